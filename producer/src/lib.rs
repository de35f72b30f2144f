//! The producing side of inferq: publish and cancel jobs, read results, tokens and logs, tell where jobs stand, run
//! batch files, look after dead letters, set streams up.

pub mod access;
pub mod batch;
pub mod cancel;
pub mod certificates;
pub mod client;
pub mod cost;
pub mod dead;
pub mod gateway;
pub mod keys;
pub mod pool;
pub mod reach;
pub mod setup;
pub mod standing;
pub mod status;
pub mod submission;
pub mod submit;
mod tenants;
pub mod tokens;
mod trace;
mod whole;

pub use client::Client;
pub use submission::{Submission, SubmitOptions, WhenFull};
pub use submit::{SubmitError, Submitted};
