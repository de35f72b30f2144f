//! The options of a connection, with the names and environment variables of the `nats` command line.

use std::path::PathBuf;

use clap::Args;
use clap::builder::BoolishValueParser;

/// Every variable that a flag reads.
pub const VARIABLES: [&str; 11] = [
    "NATS_URL",
    "NATS_USER",
    "NATS_PASSWORD",
    "NATS_CREDS",
    "NATS_NKEY",
    "NATS_CERT",
    "NATS_KEY",
    "NATS_CA",
    "NATS_TLSFIRST",
    "NATS_INBOX_PREFIX",
    "NATS_JS_API_PREFIX",
];

#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "NATS connection")]
pub struct NatsArgs {
    /// NATS server URLs, separated by commas
    #[arg(
        short = 's',
        long,
        env = "NATS_URL",
        default_value = "nats://127.0.0.1:4222",
        global = true,
        value_name = "URL",
        // With a password in it.
        hide_env_values = true
    )]
    pub server: String,
    /// User name, or token when there is no password
    #[arg(long, env = "NATS_USER", global = true, hide_env_values = true)]
    pub user: Option<String>,
    /// Password
    #[arg(long, env = "NATS_PASSWORD", global = true, hide_env_values = true)]
    pub password: Option<String>,
    /// File with user credentials (JWT and nkey)
    #[arg(long, env = "NATS_CREDS", global = true, value_name = "FILE")]
    pub creds: Option<PathBuf>,
    /// File with an nkey seed
    #[arg(long, env = "NATS_NKEY", global = true, value_name = "FILE")]
    pub nkey: Option<PathBuf>,
    /// TLS client certificate
    #[arg(long, env = "NATS_CERT", global = true, value_name = "FILE", requires = "tlskey")]
    pub tlscert: Option<PathBuf>,
    /// TLS client key
    #[arg(long, env = "NATS_KEY", global = true, value_name = "FILE", requires = "tlscert")]
    pub tlskey: Option<PathBuf>,
    /// TLS certificate authority
    #[arg(long, env = "NATS_CA", global = true, value_name = "FILE")]
    pub tlsca: Option<PathBuf>,
    /// Perform the TLS handshake before the server's greeting
    #[arg(long, env = "NATS_TLSFIRST", global = true, value_parser = BoolishValueParser::new())]
    pub tlsfirst: bool,
    /// Prefix of inboxes, where users may not share `_INBOX`
    #[arg(long, env = "NATS_INBOX_PREFIX", global = true, value_name = "PREFIX")]
    pub inbox_prefix: Option<String>,
    /// Prefix of the JetStream API, where it is imported from another account
    #[arg(long, env = "NATS_JS_API_PREFIX", global = true, value_name = "PREFIX")]
    pub js_api_prefix: Option<String>,
}

impl NatsArgs {
    /// Where the JetStream API is in the streams' own account.
    pub const JS_API_PREFIX: &'static str = "$JS.API";

    /// A plain connection to a server, whatever the environment says.
    pub fn to(url: &str) -> Self {
        Self {
            server: url.to_owned(),
            user: None,
            password: None,
            creds: None,
            nkey: None,
            tlscert: None,
            tlskey: None,
            tlsca: None,
            tlsfirst: false,
            inbox_prefix: None,
            js_api_prefix: None,
        }
    }
}
