//! `inferq-worker`: configuration, signals, exit codes. Exits with 64 when what it is told is wrong, before connecting.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context as _;
use schemas::registry::{Model, Registry};
use service::admin::{self, Admin, Phase};
use service::health;
use tokio::runtime::Builder;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use workers::config::{Cli, Command, FetchArgs, FileArgs};
use workers::engine::{self, thread};
use workers::fetch::{FetchError, Fetcher, Progress, Request};
use workers::metrics::{Metrics, Readings};
use workers::presence;
use workers::process::{self, Usage};
use workers::provenance::Origin;
use workers::station::{Parts, look_up};
use workers::worker::{Worker, watch_engine};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // One thread does for the queue: the engine has threads of its own, and texts are tokenized apart, by no more threads
    // than the machine has use for.
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let mut runtime = Builder::new_current_thread();
    runtime.max_blocking_threads(2 * cores + 2);
    process::run(runtime, run)
}

async fn run(cli: Cli) -> anyhow::Result<()> {
    match cli.command {
        Some(Command::Fetch(args)) => fetch(args, &cli.files).await,
        Some(Command::Health) => Ok(health::check(cli.worker.admin).await?),
        None => serve(cli).await,
    }
}

async fn serve(cli: Cli) -> anyhow::Result<()> {
    let args = &cli.worker;
    service::log::start_log(&args.log)?;
    let (traces, exporter) =
        cli.traces.start("inferq-worker", env!("CARGO_PKG_VERSION")).map_err(|error| Usage(error.to_string()))?;
    let name = args.model.as_deref().unwrap_or_default();
    let model = find_model(&args.registry, name)?;
    // What is missing is told before a connection is made.
    let cached = match args.offline {
        true => Some(weights(&model, &cli.files, true).await?),
        false => None,
    };
    let stop = service::stop_on_signal()?;
    let metrics = Arc::new(Metrics::new(&model.name));
    let (phase, watched) = watch::channel(Phase::Loading);

    let worker_name = args.worker_name();
    let connection = connect::connect(&cli.nats, &worker_name, connect::FirstConnect::Retry).await?;
    let (client, connects) = (connection.client.clone(), connection.connects.clone());
    let loaded_engine = Arc::new(std::sync::OnceLock::<thread::EngineHandle>::new());
    let shown_engine = Arc::clone(&loaded_engine);
    let shown_phase = watched.clone();
    let readings = move || Readings {
        phase: *shown_phase.borrow(),
        engine_steps: shown_engine.get().map_or(0, thread::EngineHandle::steps),
        engine_sequences: shown_engine.get().map_or(0, thread::EngineHandle::sequences),
        nats_connected: client.connection_state() == async_nats::connection::State::Connected,
        nats_connects: *connects.borrow(),
    };
    let shown = Arc::clone(&metrics);
    let render = move || shown.render(readings());
    let admin = Admin { phase: watched, client: connection.client.clone(), metrics: Arc::new(render) };
    let closed = CancellationToken::new();
    let bound =
        admin::serve(args.admin, admin, closed.clone()).await.with_context(|| format!("--admin {}", args.admin))?;
    tracing::info!(model = model.name, worker = worker_name, admin = %bound, "starting");

    let files = match cached {
        Some(files) => files,
        None => weights(&model, &cli.files, false).await?,
    };
    let loaded = load(&model, files, &metrics).await?;
    let linger = thread::Linger::from(&model.limits);
    let engine = thread::spawn(loaded.engine, model.weights, linger, traces.clone());
    let _ = loaded_engine.set(engine.clone());
    let origin = Origin::new(&worker_name, &model, loaded.digest.as_deref());
    let parts = Parts {
        name: worker_name.clone(),
        model: model.clone(),
        text: loaded.text,
        engine: engine.clone(),
        metrics,
        origin,
        traces,
        device: loaded.device,
        reply_prefixes: args.reply_prefix.clone(),
    };
    let (station, consumers) = match look_up(&connection, parts, &stop).await {
        // Told to stop before there was anything to do.
        Err(_) if stop.is_cancelled() => return Ok(()),
        found => found?,
    };
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
    tokio::task::spawn_blocking(|| exporter.finish()).await?;
    anyhow::ensure!(!broken.is_cancelled(), "the engine's thread has stopped; its jobs were handed back");
    tracing::info!("stopped");
    Ok(())
}

async fn load(model: &Model, weights: Option<PathBuf>, metrics: &Metrics) -> anyhow::Result<engine::Loaded> {
    let started = std::time::Instant::now();
    let for_thread = model.clone();
    let loaded = tokio::task::spawn_blocking(move || engine::load(&for_thread, weights.as_deref())).await??;
    let seconds = started.elapsed().as_secs_f64();
    metrics.load_seconds.set(seconds);
    tracing::info!(model = model.name, device = loaded.device, seconds, "model loaded");
    Ok(loaded)
}

/// Where a model's files are, after fetching them where that is needed and allowed. `None` for a model without files.
async fn weights(model: &Model, files: &FileArgs, is_offline: bool) -> anyhow::Result<Option<PathBuf>> {
    let Some(source) = model.parsed_source()? else { return Ok(None) };
    let request = Request { source, path: model.path.clone(), sha256: model.sha256.clone() };
    match fetcher(files, is_offline).fetch(&request).await {
        Err(missing @ FetchError::Offline { .. }) => {
            let advice = format!("`inferq-worker fetch --model {}` puts it there", model.name);
            Err(Usage(format!("--offline: {missing}; {advice}")).into())
        }
        fetched => Ok(Some(fetched?)),
    }
}

async fn fetch(args: FetchArgs, files: &FileArgs) -> anyhow::Result<()> {
    let found = match (&args.model, &args.source) {
        (_, Some(source)) => {
            let source =
                schemas::registry::Source::parse(source).map_err(|reason| Usage(format!("--source: {reason}")))?;
            let request = Request { source, path: args.path, sha256: args.sha256 };
            Some(fetcher(files, false).fetch(&request).await?)
        }
        (name, None) => {
            let model = find_model(&args.registry, name.as_deref().unwrap_or_default())?;
            weights(&model, files, false).await?
        }
    };
    if let Some(path) = found {
        println!("{}", path.display());
    }
    Ok(())
}

fn fetcher(files: &FileArgs, is_offline: bool) -> Fetcher {
    Fetcher { cache: files.cache_folder(), index_url: files.index(), is_offline, progress: progress() }
}

fn find_model(path: &std::path::Path, name: &str) -> anyhow::Result<Model> {
    let text = std::fs::read_to_string(path).map_err(|error| {
        Usage(format!("--registry {}: {error}; give the file that lists the models", path.display()))
    })?;
    let registry = Registry::parse(&text).map_err(|error| Usage(format!("--registry {}: {error}", path.display())))?;
    let model = registry.model(name).map_err(|error| Usage(format!("--model: {error}")))?;
    Ok(model.clone())
}

/// A bar for a person, lines for a log.
fn progress() -> Progress {
    if std::io::stderr().is_terminal() { Progress::Bar } else { Progress::Lines }
}
