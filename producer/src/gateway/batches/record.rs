//! A batch as OpenAI's clients see it, and what gateways keep of it beside.

use schemars::JsonSchema;
use schemas::subject::Lane;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// How far a batch is.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    Validating,
    Failed,
    InProgress,
    Finalizing,
    Completed,
    Expired,
    Cancelling,
    Cancelled,
}

impl Status {
    pub fn is_over(self) -> bool {
        matches!(self, Self::Failed | Self::Completed | Self::Expired | Self::Cancelled)
    }
}

/// OpenAI's Batch object. Times are Unix seconds.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
pub struct BatchObject {
    pub id: String,
    pub object: String,
    pub endpoint: String,
    pub errors: Option<Errors>,
    pub input_file_id: String,
    pub completion_window: String,
    pub status: Status,
    /// There from the first line on: it can be read while the batch runs.
    pub output_file_id: Option<String>,
    pub error_file_id: Option<String>,
    pub created_at: i64,
    pub in_progress_at: Option<i64>,
    pub expires_at: Option<i64>,
    pub finalizing_at: Option<i64>,
    pub completed_at: Option<i64>,
    pub failed_at: Option<i64>,
    pub expired_at: Option<i64>,
    pub cancelling_at: Option<i64>,
    pub cancelled_at: Option<i64>,
    pub request_counts: Counts,
    /// Of the answers, when it is over. Of audio nothing is counted.
    #[serde(default)]
    pub usage: Option<BatchUsage>,
    pub metadata: Option<Map<String, Value>>,
    /// The batch whose failed lines these are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_of: Option<String>,
}

#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, PartialEq, Eq, JsonSchema)]
pub struct Counts {
    pub total: u64,
    pub completed: u64,
    pub failed: u64,
}

/// Tokens.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, PartialEq, Eq, JsonSchema)]
pub struct BatchUsage {
    pub input_tokens: u64,
    #[serde(default)]
    pub input_tokens_details: InputTokensDetails,
    pub output_tokens: u64,
    #[serde(default)]
    pub output_tokens_details: OutputTokensDetails,
    pub total_tokens: u64,
}

/// Not told apart by any engine.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, PartialEq, Eq, JsonSchema)]
pub struct InputTokensDetails {
    pub cached_tokens: u64,
}

/// Not told apart by any engine.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, PartialEq, Eq, JsonSchema)]
pub struct OutputTokensDetails {
    pub reasoning_tokens: u64,
}

/// What is wrong with the input file, by its lines.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
pub struct Errors {
    pub object: String,
    pub data: Vec<LineError>,
}

#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
pub struct LineError {
    pub code: String,
    pub message: String,
    pub param: Option<String>,
    pub line: Option<u64>,
}

/// All that is known of a batch.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct BatchRecord {
    pub batch: BatchObject,
    pub tenant: String,
    /// The lanes its rows may take; of those that ask for none, the first that their model has.
    pub lanes: Vec<Lane>,
    /// How long its files are kept, in seconds.
    pub output_expires_after: Option<i64>,
    /// Results of its rows have higher sequences in the result stream.
    #[serde(default)]
    pub results_after: u64,
    /// The gateway that drives it. It says so again and again; one that is silent has lost it.
    #[serde(default)]
    pub driver: Option<Driver>,
    /// Where its end is told.
    #[serde(default)]
    pub webhook: Option<Webhook>,
}

#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
pub struct Driver {
    pub gateway: String,
    /// Counts the times that it has said so.
    pub beat: u64,
}

#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
pub struct Webhook {
    pub url: String,
    /// Whether there is no more to be done.
    #[serde(default)]
    pub is_done: bool,
}

impl BatchRecord {
    /// Whether somebody has to drive it still.
    pub fn is_open(&self) -> bool {
        !self.batch.status.is_over() || self.webhook.as_ref().is_some_and(|webhook| !webhook.is_done)
    }
}
