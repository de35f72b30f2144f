//! What programs that run for long do around their work: log, signals, admin port, health check, metrics.

pub mod admin;
pub mod catalog;
pub mod config;
pub mod health;
pub mod log;
mod signals;

pub use catalog::{Catalog, Row};
pub use config::{LogArgs, LogFormat};
pub use signals::stop_on_signal;

/// A mistake in what the program was told.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Usage(pub String);
