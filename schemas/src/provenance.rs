//! Provenance: how a result was made. It is one header with a JSON object, not a header for each fact: every reader of a
//! result takes its headers apart, and this part is seldom looked at.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The value of the header `Inferq-Provenance`: how the answer was made, and where the time went.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, JsonSchema, PartialEq)]
#[schemars(rename = "Provenance")]
pub struct Provenance<S = String> {
    /// The number of the attempt that ended the job, from 1.
    pub attempt: u32,
    /// The worker that ended it.
    pub worker: S,
    /// The engine and its version.
    pub engine: S,
    /// The type that weights were computed in.
    pub quantization: S,
    /// The model's source as the registry pins it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<S>,
    /// SHA-256 of the weights, in hexadecimal digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weights: Option<S>,
    /// Of sampling: given, or made from the job id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
    /// Of jobs that may be cached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache: Option<CacheUse>,
    /// From publication to the start of the attempt.
    #[serde(deserialize_with = "crate::number::finite")]
    pub queue_seconds: f64,
    /// From there to the first token, or to the embedding, where the engine was used.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "crate::number::finite")]
    pub prefill_seconds: Option<f64>,
    /// From the first token to the last, where the engine was used.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "crate::number::finite")]
    pub decode_seconds: Option<f64>,
}

/// What the cache had to do with an answer.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum CacheUse {
    /// Read from the cache.
    Hit,
    /// Computed, and stored where that is worth it.
    Miss,
    /// Computed once for several jobs in flight.
    Shared,
}

impl CacheUse {
    pub const ALL: [Self; 3] = [Self::Hit, Self::Miss, Self::Shared];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Hit => "hit",
            Self::Miss => "miss",
            Self::Shared => "shared",
        }
    }
}
