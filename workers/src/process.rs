//! How the programs of this crate start, and the exit codes with which they end.

use std::process::ExitCode;

use clap::Parser;
use connect::ConnectError;
pub use service::Usage;
use tokio::runtime::Builder;

/// `sysexits`' EX_USAGE.
const EXIT_USAGE: u8 = 64;

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
