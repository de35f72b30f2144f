//! What the programs of this crate do around their work: exit codes, the log on standard error, signals.

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::Parser;
use connect::ConnectError;
use tokio::runtime::Builder;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

use crate::config::{LogArgs, LogFormat};

/// `sysexits`' EX_USAGE.
const EXIT_USAGE: u8 = 64;

/// A mistake in what the program was told.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Usage(pub String);

/// Reads the command line, runs the program on a runtime to its end and says how that was.
pub fn run<C, F>(mut runtime: Builder, program: impl FnOnce(C) -> F) -> ExitCode
where
    C: Parser,
    F: Future<Output = anyhow::Result<()>>,
{
    let cli = match C::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let code = if error.use_stderr() { EXIT_USAGE } else { 0 };
            // Nothing can be done about a closed terminal.
            let _ = error.print();
            return ExitCode::from(code);
        }
    };
    let name = C::command().get_name().to_owned();
    let runtime = match runtime.enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("{name}: cannot start: {error}");
            return ExitCode::FAILURE;
        }
    };
    let ended = runtime.block_on(program(cli));
    // What still runs apart is nobody's any more.
    runtime.shutdown_background();
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{name}: {error:#}");
            let wrong_options = error.downcast_ref::<ConnectError>().is_some_and(ConnectError::is_usage);
            ExitCode::from(if error.is::<Usage>() || wrong_options { EXIT_USAGE } else { 1 })
        }
    }
}

pub fn start_log(args: &LogArgs) -> Result<(), Usage> {
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

/// SIGTERM and SIGINT stop the program; a second one ends it at once.
pub fn stop_on_signal() -> std::io::Result<CancellationToken> {
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
