//! `inferq-worker` and `inferq-logger` as a library: everything but the command lines.

pub mod admin;
pub mod config;
mod delivery;
pub mod endpoint;
pub mod engine;
pub mod fetch;
mod joblog;
pub mod logger;
pub mod metrics;
mod outcome;
pub mod presence;
pub mod process;
mod pull;
pub mod reply;
pub mod worker;
