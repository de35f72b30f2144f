//! The contract of inferq. Every type here is what stands on the wire or in a file; there is no I/O.
//!
//! It depends on serde and friends only: no tokio, no NATS client, no candle.

/// The name under which workers answer on the NATS services API.
pub const WORKER_SERVICE: &str = "inferq-worker";

pub mod audio;
pub mod chunk;
pub mod classify;
pub mod codec;
pub mod completions;
pub mod document;
pub mod embeddings;
pub mod header;
pub mod input;
pub mod job;
pub mod log;
mod number;
pub mod pace;
pub mod provenance;
pub mod registry;
pub mod rerank;
pub mod result;
pub mod stream;
pub mod subject;
pub mod tools;
