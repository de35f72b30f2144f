//! Log records: what happened to a job, on its log subject.
//!
//! One message holds one or more records as an array: a job that is done within a moment leaves all of them in one
//! message, so that its log costs one write and not one per event.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The payload of a message on `inferq.logs.<tenant>.<job_id>`: records in the order of their times.
pub type LogMessage = Vec<LogRecord>;

/// One event of one job.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema, PartialEq)]
#[schemars(rename = "LogRecord")]
pub struct LogRecord<S = String> {
    /// RFC 3339, UTC.
    pub time: String,
    pub job_id: S,
    pub model: S,
    pub worker: S,
    /// The number of the delivery, from 1.
    pub attempt: u32,
    #[serde(flatten)]
    pub event: LogEvent,
}

/// What happened.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema, PartialEq)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum LogEvent {
    /// The job was stored in the queue.
    Queued { lane: String },
    /// A worker began to run it.
    Started {
        #[serde(deserialize_with = "crate::number::finite")]
        queue_seconds: f64,
    },
    /// How far it is, every few seconds while it runs.
    Progress {
        /// Tokens generated so far.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        completion_tokens: Option<u64>,
        /// Seconds of audio read so far.
        #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "crate::number::finite")]
        audio_seconds: Option<f64>,
    },
    /// This delivery did not answer it; another one will.
    Retried {
        reason: String,
        #[serde(deserialize_with = "crate::number::finite")]
        delay_seconds: f64,
    },
    /// Its result is stored.
    Finished {
        status_code: u16,
        #[serde(deserialize_with = "crate::number::finite")]
        run_seconds: f64,
        usage: Option<Usage>,
    },
}

/// Tokens of a job.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
pub struct Usage {
    pub prompt_tokens: u64,
    /// Absent for embeddings.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completion_tokens: Option<u64>,
    pub total_tokens: u64,
}
