//! The producing side of inferq: publish jobs, read results and logs, run batch files, set streams up.

pub mod batch;
pub mod client;
pub mod pool;
pub mod setup;
pub mod status;

pub use client::{Client, Submission, SubmitError, Submitted};
