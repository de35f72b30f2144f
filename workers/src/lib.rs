//! `inferq-worker` as a library: everything but the command line.

pub mod admin;
mod answer;
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
pub mod metrics;
mod outcome;
pub mod pace;
pub mod presence;
pub mod provenance;
mod pull;
mod received;
pub mod reply;
pub mod station;
pub mod worker;
