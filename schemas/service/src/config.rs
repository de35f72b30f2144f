//! Options that all services have, and the environment variables that stand in for them.

use clap::{Args, ValueEnum};

#[derive(Args, Debug, Clone)]
pub struct LogArgs {
    /// Form of the log on standard error
    #[arg(long, env = "INFERQ_LOG_FORMAT", value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
    /// Levels of the log, such as `info` or `workers=debug,info`
    #[arg(long, env = "INFERQ_LOG", default_value = "info,async_nats=warn", value_name = "FILTER")]
    pub log: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    Text,
    Json,
}
