//! The log on standard error.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

use crate::Usage;
use crate::config::{LogArgs, LogFormat};

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
