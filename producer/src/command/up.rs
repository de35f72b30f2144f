//! `inferq up`: a NATS server and workers on this machine, for development. One Ctrl-C stops all.
//!
//! Children run in process groups of their own, so that a Ctrl-C reaches only this process, which then stops the
//! workers before the server: a worker that drains still needs it.

mod children;
mod server;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::Context as _;
use connect::NatsArgs;
use producer::setup::{self, Mode};
use producer::status;
use schemas::registry::Model;
use tokio::process::Command;

use self::children::Children;
use super::{EXIT_STOPPED, Usage, connect, read_registry};
use crate::config::UpArgs;

/// How long models may take to be fetched and loaded.
const READY_MAX: Duration = Duration::from_secs(600);
const READY_POLL: Duration = Duration::from_millis(200);

pub async fn run(args: UpArgs) -> anyhow::Result<u8> {
    let registry = read_registry(&args.registry)?;
    let models = chosen(&args, &registry.models)?;
    let worker = worker_program()?;
    let mut children = Children::default();
    let outcome = tokio::select! {
        outcome = bring_up(&args, &registry, &models, &worker, &mut children) => outcome,
        _ = tokio::signal::ctrl_c() => Ok(EXIT_STOPPED),
        () = terminated() => Ok(EXIT_STOPPED),
    };
    children.stop().await;
    outcome
}

async fn bring_up(
    args: &UpArgs,
    registry: &schemas::registry::Registry,
    models: &[Model],
    worker: &Path,
    children: &mut Children,
) -> anyhow::Result<u8> {
    let url = server::start(args, worker, children).await?;
    eprintln!("nats-server is ready at {url}");
    let connection = connect(&NatsArgs::to(&url)).await?;
    setup::setup(&connection.jetstream, registry, Mode::Apply).await?;
    for model in models {
        children.start(&model.name, &mut worker_command(args, worker, model, &url))?;
    }
    wait_for_workers(&connection, models, children).await?;
    if let Some(address) = args.gateway {
        start_gateway(args, address, &url, children).await?;
    }
    eprintln!("ready: {}", models.iter().map(|model| model.name.as_str()).collect::<Vec<_>>().join(", "));
    if args.command.is_empty() {
        eprintln!("export NATS_URL={url}   (Ctrl-C stops everything)");
        let name = children.first_exit().await;
        anyhow::bail!("{name} has stopped");
    }
    let status = run_command(&args.command, &url).await?;
    Ok(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1))
}

/// Starts a gateway and waits until it listens.
async fn start_gateway(args: &UpArgs, address: SocketAddr, url: &str, children: &mut Children) -> anyhow::Result<()> {
    let listen = match address.port() {
        0 => SocketAddr::new(address.ip(), server::free_port(0).await?),
        _ => address,
    };
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["gateway", "--keys", "off", "--server", url, "--admin", "127.0.0.1:0", "--log", &args.log]);
    command.arg("--listen").arg(listen.to_string()).stdin(Stdio::null());
    forget_nats(&mut command);
    children.start("gateway", &mut command)?;
    let listens = async {
        while tokio::net::TcpStream::connect(listen).await.is_err() {
            tokio::time::sleep(READY_POLL).await;
        }
    };
    tokio::select! {
        () = listens => {}
        name = children.first_exit() => anyhow::bail!("{name} has stopped; its message stands above"),
    }
    eprintln!("gateway is ready at http://{listen}");
    Ok(())
}

/// Runs the given command in the foreground, with the server in its environment.
async fn run_command(words: &[String], url: &str) -> anyhow::Result<ExitStatus> {
    let (program, arguments) = words.split_first().context("the command is empty")?;
    let mut command = Command::new(program);
    forget_nats(&mut command);
    command.args(arguments).env("NATS_URL", url).kill_on_drop(true);
    command.status().await.with_context(|| format!("cannot run {program}"))
}

fn worker_command(args: &UpArgs, worker: &Path, model: &Model, url: &str) -> Command {
    let mut command = Command::new(worker);
    command.args(["--model", &model.name, "--server", url, "--admin", "127.0.0.1:0", "--log", &args.log]);
    command.arg("--registry").arg(&args.registry);
    if let Some(folder) = &args.cache_dir {
        command.arg("--cache-dir").arg(folder);
    }
    command.stdin(Stdio::null());
    forget_nats(&mut command);
    command
}

/// What the environment says of NATS is meant for another server.
fn forget_nats(command: &mut Command) {
    for name in connect::config::VARIABLES {
        command.env_remove(name);
    }
}

/// Waits until a worker of each model answers, or one of the children has died.
async fn wait_for_workers(
    connection: &connect::Connection,
    models: &[Model],
    children: &mut Children,
) -> anyhow::Result<()> {
    let all_alive = async {
        loop {
            let alive = status::status(&connection.client, &connection.jetstream).await?.workers;
            if models.iter().all(|model| alive.contains_key(&model.name)) {
                return anyhow::Ok(());
            }
            tokio::time::sleep(READY_POLL).await;
        }
    };
    tokio::select! {
        ready = tokio::time::timeout(READY_MAX, all_alive) => ready.context("workers are not ready after ten minutes")?,
        name = children.first_exit() => anyhow::bail!("{name} has stopped; its message stands above"),
    }
}

fn chosen(args: &UpArgs, models: &[Model]) -> anyhow::Result<Vec<Model>> {
    if args.models.is_empty() {
        return Ok(models.to_vec());
    }
    let find = |name: &String| {
        let model = models.iter().find(|model| model.name == *name).cloned();
        model.ok_or_else(|| Usage(format!("--model {name:?} is not in {}", args.registry.display())).into())
    };
    args.models.iter().map(find).collect()
}

/// The worker stands beside this program, or on the PATH.
fn worker_program() -> anyhow::Result<PathBuf> {
    let beside = std::env::current_exe()?.with_file_name("inferq-worker");
    Ok(if beside.is_file() { beside } else { PathBuf::from("inferq-worker") })
}

async fn terminated() {
    match tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()) {
        Ok(mut signal) => drop(signal.recv().await),
        Err(_) => std::future::pending().await,
    }
}
