//! `inferq-worker` and `inferq-logger` as a library: everything but the command lines.

pub mod admin;
mod answer;
mod asked;
mod attempts;
mod bodies;
mod cache;
mod cancel;
mod chunks;
pub mod config;
mod delivery;
pub mod endpoint;
pub mod engine;
pub mod fetch;
mod joblog;
mod lift;
pub mod logger;
pub mod metrics;
mod outcome;
pub mod pace;
pub mod presence;
pub mod process;
pub mod provenance;
mod pull;
mod received;
pub mod reply;
pub mod station;
pub mod worker;
