//! `inferq`: the command line. Exits with 64 for a wrong command line, 65 for wrong input, 1 when something failed,
//! 130 when it was stopped.

mod command;
mod config;

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::Parser;
use config::{BatchCommand, Cli, Command, Output};
use connect::NatsArgs;
use traces::Traces;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let code = if error.use_stderr() { command::EXIT_USAGE } else { 0 };
            // Nothing can be done about a closed terminal.
            let _ = error.print();
            return ExitCode::from(code);
        }
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("inferq: cannot start: {error}");
            return ExitCode::FAILURE;
        }
    };
    let code = runtime.block_on(run(cli)).unwrap_or_else(|error| {
        if command::is_closed_output(&error) {
            return 0;
        }
        eprintln!("inferq: {error:#}");
        command::exit_code(&error)
    });
    // A blocked read of standard input must not hold up the exit.
    runtime.shutdown_background();
    ExitCode::from(code)
}

async fn run(cli: Cli) -> anyhow::Result<u8> {
    let Cli { command, nats, output, traces } = cli;
    start_log(&command)?;
    let (traces, exporter) = traces
        .start("inferq", env!("CARGO_PKG_VERSION"))
        .map_err(|error| anyhow::Error::new(command::Usage(error.to_string())))?;
    let ended = obey(command, &nats, traces, output).await;
    tokio::task::spawn_blocking(|| exporter.finish()).await?;
    ended
}

/// A service has a log; whoever runs a command is told of warnings alone.
fn start_log(command: &Command) -> anyhow::Result<()> {
    match command {
        Command::Gateway(args) => {
            service::log::start_log(&args.log).map_err(|error| anyhow::Error::new(command::Usage(error.to_string())))
        }
        _ => {
            let log = tracing_subscriber::fmt().with_max_level(tracing::Level::WARN).without_time();
            log.with_ansi(std::io::stderr().is_terminal()).with_writer(std::io::stderr).init();
            Ok(())
        }
    }
}

async fn obey(command: Command, nats: &NatsArgs, traces: Traces, output: Output) -> anyhow::Result<u8> {
    match command {
        Command::Setup(args) => command::setup::run(nats, output, &args).await,
        Command::Submit(args) => command::submit::run(nats, traces, output, *args).await,
        Command::Batch(BatchCommand::Run(args)) => command::batch::run(nats, traces, output, args).await,
        Command::Results(args) => command::results::run(nats, args).await,
        Command::Tokens(args) => command::tokens::run(nats, output, args).await,
        Command::Logs(args) => command::logs::run(nats, output, args).await,
        Command::Cancel(args) => command::cancel::run(nats, output, args).await,
        Command::Dead(args) => command::dead::run(nats, output, args).await,
        Command::Tenants(command) => command::tenants::run(output, command),
        Command::Certificates(args) => command::certificates::run(output, &args),
        Command::Gateway(args) => command::gateway::run(nats, traces, *args).await,
        Command::Keys(command) => command::keys::run(nats, output, command).await,
        Command::Status(args) => command::status::run(nats, output, args).await,
        Command::Top => command::top::run(nats).await,
        Command::Up(args) => command::up::run(args).await,
        Command::Completions { shell } => {
            let mut command = <Cli as clap::CommandFactory>::command();
            clap_complete::generate(shell, &mut command, "inferq", &mut std::io::stdout());
            Ok(0)
        }
    }
}
