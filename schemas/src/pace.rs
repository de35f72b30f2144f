//! Pace: how fast a worker works, from which a backlog in seconds is told.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Where workers are asked for their pace; each answers to the reply subject.
pub const SUBJECT: &str = "inferq.pace";

/// A worker's answer. The unit is what the model's cost is counted in: tokens of text.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema, PartialEq)]
pub struct Pace {
    pub worker: String,
    pub model: String,
    /// Seconds that this worker takes for a unit, all that it does at a time together. Null until it has done some work.
    #[serde(default, deserialize_with = "crate::number::finite")]
    pub unit_seconds: Option<f64>,
    /// Units of a job, on average. Null until it has done one.
    #[serde(default, deserialize_with = "crate::number::finite")]
    pub job_cost: Option<f64>,
    /// `cpu` or `cuda`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// Jobs that it holds.
    #[serde(default)]
    pub in_flight: u64,
    /// Sequences that a step of its engine moves on, on average of the last ones. Null until it has done one.
    #[serde(default, deserialize_with = "crate::number::finite", skip_serializing_if = "Option::is_none")]
    pub batch_size: Option<f64>,
}
