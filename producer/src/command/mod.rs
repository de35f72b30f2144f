//! The commands: each reads its arguments, calls the library and prints.

pub mod batch;
pub mod cancel;
pub mod certificates;
pub mod dead;
pub mod gateway;
pub mod keys;
pub mod logs;
pub mod results;
pub mod setup;
pub mod status;
pub mod submit;
pub mod tenants;
pub mod tokens;
pub mod top;
pub mod up;

use std::io::Write;
use std::path::Path;

use anyhow::Context as _;
use connect::{ConnectError, Connection, FirstConnect, NatsArgs};
use producer::batch::InputError;
use schemas::registry::Registry;
use schemas::subject::Token;

use crate::config::TenantArgs;

/// `sysexits`' EX_USAGE.
pub const EXIT_USAGE: u8 = 64;
/// `sysexits`' EX_DATAERR.
const EXIT_INPUT: u8 = 65;
/// Killed by SIGINT, as shells have it.
const EXIT_STOPPED: u8 = 130;

/// A mistake in the command line that only the command itself can see.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Usage(pub String);

/// Input that is no job.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct BadInput(pub String);

/// The exit code of an error.
pub fn exit_code(error: &anyhow::Error) -> u8 {
    match error {
        error if error.is::<Usage>() => EXIT_USAGE,
        error if error.downcast_ref::<ConnectError>().is_some_and(ConnectError::is_usage) => EXIT_USAGE,
        error if error.is::<BadInput>() || error.is::<InputError>() => EXIT_INPUT,
        _ => 1,
    }
}

async fn connect(nats: &NatsArgs) -> anyhow::Result<Connection> {
    Ok(connect::connect(nats, "inferq", FirstConnect::Fail).await?)
}

fn read_registry(path: &Path) -> anyhow::Result<Registry> {
    let text = std::fs::read_to_string(path).map_err(|error| {
        Usage(format!("--registry {}: {error}; give the file that lists the models", path.display()))
    })?;
    Ok(Registry::parse(&text).map_err(|error| Usage(format!("{}: {error}", path.display())))?)
}

fn tenant_token(args: &TenantArgs) -> anyhow::Result<Token> {
    Ok(Token::encode(&args.tenant).map_err(|error| Usage(format!("--tenant {:?} {error}", args.tenant)))?)
}

/// Whether an error is that the reader of our output went away, which ends a command but is no failure of it.
pub fn is_closed_output(error: &anyhow::Error) -> bool {
    error.downcast_ref::<std::io::Error>().is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
}

fn print_json<T: serde::Serialize>(value: &T) -> anyhow::Result<()> {
    print_line(&serde_json::to_string(value).context("printing")?)
}

/// A line on standard output. `println!` would panic when the reader goes away.
fn print_line(line: &str) -> anyhow::Result<()> {
    Ok(writeln!(std::io::stdout(), "{line}")?)
}
