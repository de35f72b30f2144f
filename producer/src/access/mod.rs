//! Access: NATS accounts that keep tenants, workers and operators apart.
//!
//! [`plan`] says what crosses the border of an account, and nothing else does. [`Folder`] holds the keys and writes what a
//! server reads: a configuration (`conf.rs`), or claims that an operator has signed (`claims.rs`).

mod claims;
mod conf;
mod folder;
pub mod plan;

pub use folder::{AccessError, Folder, Listed, Mode, Role};
