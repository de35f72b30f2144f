//! The contract of inferq. Every type here is what stands on the wire or in a file; there is no I/O.
//!
//! It depends on serde and friends only: no tokio, no NATS client, no candle.

pub mod registry;
pub mod subject;
