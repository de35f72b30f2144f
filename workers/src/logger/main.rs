//! `inferq-logger`: configuration, signals, exit codes. Exits with 64 when what it is told is wrong, before connecting.

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context as _;
use service::admin::{self, Admin, Phase};
use service::health;
use tokio::runtime::Builder;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use workers::logger::config::{Cli, Command};
use workers::logger::metrics::Metrics;
use workers::logger::{self, Sink, queue};
use workers::process;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    process::run(Builder::new_multi_thread(), run)
}

async fn run(cli: Cli) -> anyhow::Result<()> {
    match cli.command {
        Some(Command::Health) => Ok(health::check(cli.admin).await?),
        None => serve(cli).await,
    }
}

async fn serve(cli: Cli) -> anyhow::Result<()> {
    service::log::start_log(&cli.log)?;
    let sink = Sink::open(&cli.out, cli.rotate_bytes, cli.keep)?;
    let stop = service::stop_on_signal()?;
    let metrics = Arc::new(Metrics::default());
    let (phase, watched) = watch::channel(Phase::Loading);

    let connection = connect::connect(&cli.nats, "inferq-logger", connect::FirstConnect::Retry).await?;
    let (shown, link) = (Arc::clone(&metrics), connection.clone());
    let admin =
        Admin { phase: watched, client: connection.client.clone(), metrics: Arc::new(move || shown.render(&link)) };
    let closed = CancellationToken::new();
    let bound =
        admin::serve(cli.admin, admin, closed.clone()).await.with_context(|| format!("--admin {}", cli.admin))?;
    tracing::info!(out = %cli.out.display(), admin = %bound, "starting");

    let Some(consumers) = logger::look_up(&connection.jetstream, &stop).await else { return Ok(()) };
    phase.send_replace(Phase::Running);
    tracing::info!("ready");
    tokio::spawn(queue::watch(connection.clone(), Arc::clone(&metrics), stop.clone()));
    let draining = async {
        stop.cancelled().await;
        phase.send_replace(Phase::Draining);
        std::future::pending::<()>().await;
    };
    tokio::select! {
        ended = logger::run(consumers, &connection, sink, metrics, &stop) => ended?,
        () = draining => {}
    }
    closed.cancel();
    tracing::info!("stopped");
    Ok(())
}
