//! The command lines of `inferq gateway` and `inferq keys`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use schemas::subject::Lane;
use service::LogArgs;

use super::TenantArgs;

#[derive(Args, Debug)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "Examples:
  inferq gateway --keys off
  inferq gateway --listen 0.0.0.0:8443 --tls-cert cert.pem --tls-key key.pem
  inferq gateway health"
)]
pub struct GatewayArgs {
    #[command(subcommand)]
    pub command: Option<GatewayCommand>,
    /// Address of the API; port 0 takes a free one
    #[arg(long, env = "INFERQ_LISTEN", default_value = "127.0.0.1:8080", value_name = "ADDRESS")]
    pub listen: SocketAddr,
    /// Address of /livez, /readyz and /metrics; port 0 takes a free one
    #[arg(long, env = "INFERQ_ADMIN", default_value = "127.0.0.1:9466", global = true, value_name = "ADDRESS")]
    pub admin: SocketAddr,
    /// Whether callers need an API key of `inferq keys create`
    #[arg(long, env = "INFERQ_KEYS", value_enum, default_value_t = KeyMode::Required)]
    pub keys: KeyMode,
    /// Whose jobs all are with `--keys off`
    #[command(flatten)]
    pub tenant: TenantArgs,
    /// Seconds that a request waits for its answer, after which it is told the job's id
    #[arg(long, env = "INFERQ_TIMEOUT_SECONDS", default_value_t = 300, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    pub timeout_seconds: u64,
    /// Seconds in which a stream that was cut off can be taken up again before its job is cancelled
    #[arg(long, env = "INFERQ_RESUME_SECONDS", default_value_t = 5, value_name = "SECONDS")]
    pub resume_seconds: u64,
    /// Seconds to finish requests after SIGTERM
    #[arg(long, env = "INFERQ_GRACE_SECONDS", default_value_t = 25, value_name = "SECONDS")]
    pub grace_seconds: u64,
    /// Mebibytes of one request's body, files apart
    #[arg(long, env = "INFERQ_BODY_MEBIBYTES", default_value_t = 32, value_name = "MIB", value_parser = clap::value_parser!(u32).range(1..=64))]
    pub body_mebibytes: u32,
    /// Mebibytes of one file
    #[arg(long, env = "INFERQ_FILE_MEBIBYTES", default_value_t = 1024, value_name = "MIB", value_parser = clap::value_parser!(u32).range(1..))]
    pub file_mebibytes: u32,
    /// Hosts that webhooks may go to, separated by commas, with a port where it is not the scheme's own
    #[arg(
        long,
        env = "INFERQ_WEBHOOK_HOSTS",
        value_delimiter = ',',
        value_name = "HOST",
        requires = "webhook_secret_file"
    )]
    pub webhook_host: Vec<String>,
    /// File with the secret that webhooks are signed with: whsec_ and base64
    #[arg(long, env = "INFERQ_WEBHOOK_SECRET_FILE", value_name = "FILE")]
    pub webhook_secret_file: Option<PathBuf>,
    /// Show operators what dead letters asked: prompts and documents of all tenants
    #[arg(long, env = "INFERQ_SHOW_PAYLOADS", value_parser = clap::builder::BoolishValueParser::new())]
    pub show_payloads: bool,
    /// TLS certificate chain
    #[arg(long, env = "INFERQ_TLS_CERT", value_name = "FILE", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,
    /// Private key of the certificate
    #[arg(long, env = "INFERQ_TLS_KEY", value_name = "FILE", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,
    /// Origins of web pages that may ask, separated by commas; `*` for all
    #[arg(long, env = "INFERQ_CORS_ORIGINS", value_delimiter = ',', value_name = "ORIGIN")]
    pub cors_origin: Vec<String>,
    #[command(flatten)]
    pub log: LogArgs,
}

#[derive(Subcommand, Debug)]
pub enum GatewayCommand {
    /// Ask the gateway at --admin whether it is ready; exits with 1 when it is not
    Health,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum KeyMode {
    Required,
    Off,
}

#[derive(Subcommand, Debug)]
#[command(after_help = "Examples:
  inferq keys create --name alice
  inferq keys create --name batches --tenant acme --lane flex --requests-per-minute 600 --jobs-max 100000
  inferq keys revoke 3fa1b2c3d4e5")]
pub enum KeysCommand {
    /// Make a key and print it, once
    Create(CreateKeyArgs),
    /// Show all keys, not the secrets
    List,
    /// Take a key away; gateways refuse it at once
    Revoke {
        /// Its id, or the beginning of it
        id: String,
    },
}

#[derive(Args, Debug)]
pub struct CreateKeyArgs {
    /// What it is called
    #[arg(long)]
    pub name: String,
    #[command(flatten)]
    pub tenant: TenantArgs,
    /// A lane its jobs may take; may be given several times. The first is that of jobs that ask for none
    #[arg(long = "lane", value_name = "LANE", default_values = ["default", "flex"])]
    pub lanes: Vec<Lane>,
    /// Requests a minute, at each gateway
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..))]
    pub requests_per_minute: Option<u32>,
    /// Jobs of its tenant that may wait or run
    #[arg(long, value_name = "NUMBER")]
    pub jobs_max: Option<u64>,
    /// Lets it see and mend what is everybody's: queues, workers, dead letters
    #[arg(long)]
    pub operator: bool,
    /// How long it is good for, such as 30d
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    pub expires_in: Option<Duration>,
}
