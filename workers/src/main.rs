//! `inferq-worker`: configuration, signals, exit codes. Exits with 64 when what it is told is wrong, before connecting.

use std::io::IsTerminal;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context as _;
use clap::Parser;
use schemas::registry::{Model, Registry};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;
use workers::admin::{self, Admin, Phase};
use workers::config::{Cli, Command, FetchArgs, FileArgs, LogFormat, WorkerArgs};
use workers::engine::{self, thread};
use workers::fetch::{Fetcher, Progress, Request};
use workers::metrics::{Metrics, Readings};
use workers::presence;
use workers::provenance::Provenance;
use workers::station::{Parts, look_up};
use workers::worker::{Worker, watch_engine};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// `sysexits`' EX_USAGE.
const EXIT_USAGE: u8 = 64;

/// A mistake in what the worker was told.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Usage(String);

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let code = if error.use_stderr() { EXIT_USAGE } else { 0 };
            // Nothing can be done about a closed terminal.
            let _ = error.print();
            return ExitCode::from(code);
        }
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("inferq-worker: cannot start: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(run(cli)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("inferq-worker: {error:#}");
            ExitCode::from(if error.is::<Usage>() { EXIT_USAGE } else { 1 })
        }
    }
}

async fn run(cli: Cli) -> anyhow::Result<()> {
    match cli.command {
        Some(Command::Fetch(args)) => fetch(args, &cli.files).await,
        None => serve(cli).await,
    }
}

async fn serve(cli: Cli) -> anyhow::Result<()> {
    let args = &cli.worker;
    start_log(args)?;
    let name = args.model.as_deref().unwrap_or_default();
    let model = find_model(&args.registry, name)?;
    let stop = stop_on_signal()?;
    let metrics = Arc::new(Metrics::new(&model.name));
    let (phase, watched) = watch::channel(Phase::Loading);

    let worker_name = args.worker_name();
    let connection = connect::connect(&cli.nats, &worker_name, connect::FirstConnect::Retry).await?;
    let (client, connects) = (connection.client.clone(), connection.connects.clone());
    let steps = Arc::new(std::sync::OnceLock::<thread::EngineHandle>::new());
    let steps_read = Arc::clone(&steps);
    let readings = move || Readings {
        engine_steps: steps_read.get().map_or(0, thread::EngineHandle::steps),
        nats_connected: client.connection_state() == async_nats::connection::State::Connected,
        nats_connects: *connects.borrow(),
    };
    let admin = Admin { phase: watched, metrics: Arc::clone(&metrics), readings: Arc::new(readings) };
    let closed = CancellationToken::new();
    let bound =
        admin::serve(args.admin, admin, closed.clone()).await.with_context(|| format!("--admin {}", args.admin))?;
    tracing::info!(model = model.name, worker = worker_name, admin = %bound, "starting");

    let loaded = load(&model, &cli.files).await?;
    let engine = thread::spawn(loaded.engine, model.weights);
    let _ = steps.set(engine.clone());
    let provenance = Provenance::new(&worker_name, &model, loaded.digest.as_deref());
    let parts = Parts {
        name: worker_name.clone(),
        model: model.clone(),
        text: loaded.text,
        engine: engine.clone(),
        metrics,
        provenance,
        reply_prefixes: args.reply_prefix.clone(),
    };
    let (station, consumers) = look_up(&connection, parts, &stop).await?;
    let service = presence::announce(&connection.client, &worker_name, &model).await?;
    let worker = Worker::new(station, consumers, &connection, args.grace());
    phase.send_replace(Phase::Running);
    tracing::info!("ready");

    let broken = engine.stopped();
    let step_max = std::time::Duration::from_secs(model.limits.step_seconds);
    tokio::spawn(watch_engine(move || engine.stepping(), step_max, broken.clone()));
    let follow_engine = async {
        tokio::select! {
            () = broken.cancelled() => phase.send_replace(Phase::Broken),
            () = stop.cancelled() => phase.send_replace(Phase::Draining),
        };
        stop.cancel();
        std::future::pending::<()>().await;
    };
    tokio::select! {
        ran = worker.run(stop.clone()) => ran?,
        () = follow_engine => {}
    }
    // Presence is a courtesy: a worker that is gone stops answering anyway.
    let _ = service.stop().await;
    closed.cancel();
    anyhow::ensure!(!broken.is_cancelled(), "the engine's thread has stopped; its jobs were handed back");
    tracing::info!("stopped");
    Ok(())
}

async fn load(model: &Model, files: &FileArgs) -> anyhow::Result<engine::Loaded> {
    let path = match model.parsed_source()? {
        Some(source) => {
            let request = Request { source, path: model.path.clone(), sha256: model.sha256.clone() };
            Some(fetcher(files).fetch(&request).await?)
        }
        None => None,
    };
    let started = std::time::Instant::now();
    let for_thread = model.clone();
    let loaded = tokio::task::spawn_blocking(move || engine::load(&for_thread, path.as_deref())).await??;
    tracing::info!(model = model.name, seconds = started.elapsed().as_secs_f64(), "model loaded");
    Ok(loaded)
}

async fn fetch(args: FetchArgs, files: &FileArgs) -> anyhow::Result<()> {
    let request = match (&args.model, &args.source) {
        (_, Some(source)) => {
            let source =
                schemas::registry::Source::parse(source).map_err(|reason| Usage(format!("--source: {reason}")))?;
            Request { source, path: args.path, sha256: args.sha256 }
        }
        (name, None) => {
            let model = find_model(&args.registry, name.as_deref().unwrap_or_default())?;
            match model.parsed_source()? {
                Some(source) => Request { source, path: model.path, sha256: model.sha256 },
                None => return Ok(()),
            }
        }
    };
    println!("{}", fetcher(files).fetch(&request).await?.display());
    Ok(())
}

fn fetcher(files: &FileArgs) -> Fetcher {
    Fetcher { cache: files.cache_folder(), index_url: files.index(), progress: progress() }
}

fn find_model(path: &std::path::Path, name: &str) -> anyhow::Result<Model> {
    let text = std::fs::read_to_string(path).map_err(|error| {
        Usage(format!("--registry {}: {error}; give the file that lists the models", path.display()))
    })?;
    let registry = Registry::parse(&text).map_err(|error| Usage(format!("--registry {}: {error}", path.display())))?;
    let model = registry.model(name).map_err(|error| Usage(format!("--model: {error}")))?;
    Ok(model.clone())
}

fn start_log(args: &WorkerArgs) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(&args.log).map_err(|error| Usage(format!("--log {:?}: {error}", args.log)))?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    match args.log_format {
        LogFormat::Text => builder.init(),
        LogFormat::Json => builder.json().init(),
    }
    Ok(())
}

/// SIGTERM and SIGINT stop the worker; a second one ends it at once.
fn stop_on_signal() -> anyhow::Result<CancellationToken> {
    let stop = CancellationToken::new();
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let token = stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        token.cancel();
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::warn!("second signal, leaving at once");
        std::process::exit(130);
    });
    Ok(stop)
}

/// A bar for a person, lines for a log.
fn progress() -> Progress {
    if std::io::stderr().is_terminal() { Progress::Bar } else { Progress::Lines }
}
