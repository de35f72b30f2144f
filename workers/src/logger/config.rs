//! What the logger is told: flags and their environment variables. Checked before any connection is made.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Parser, Subcommand};
use connect::NatsArgs;

use service::LogArgs;

/// Write the logs and outcomes of all jobs as lines of JSON, from NATS JetStream to standard output or to files.
#[derive(Parser, Debug)]
#[command(name = "inferq-logger", version, args_override_self = true, args_conflicts_with_subcommands = true)]
pub struct Cli {
    /// Folder of the files, or `-` for standard output
    #[arg(long, env = "INFERQ_LOGGER_OUT", default_value = "-", value_name = "DIR")]
    pub out: PathBuf,
    /// Bytes after which a new file is begun
    #[arg(
        long,
        env = "INFERQ_LOGGER_ROTATE_BYTES",
        default_value_t = 100 << 20,
        value_parser = clap::value_parser!(u64).range(1..),
        value_name = "BYTES"
    )]
    pub rotate_bytes: u64,
    /// Full files that are kept beside the current one; the oldest go
    #[arg(
        long,
        env = "INFERQ_LOGGER_KEEP",
        default_value_t = 10,
        value_parser = clap::value_parser!(u32).range(1..),
        value_name = "FILES"
    )]
    pub keep: u32,
    /// Address of /livez, /readyz and /metrics; port 0 takes a free one
    #[arg(long, env = "INFERQ_ADMIN", default_value = "127.0.0.1:9465", global = true, value_name = "ADDRESS")]
    pub admin: SocketAddr,
    #[command(flatten)]
    pub log: LogArgs,
    #[command(flatten)]
    pub nats: NatsArgs,
    #[command(subcommand)]
    pub command: Option<Command>,
}

#[derive(Subcommand, Debug)]
pub enum Command {
    /// Ask the logger at --admin whether it is ready; exits with 1 when it is not
    Health,
}
