//! Headers: whatever a message says that is not OpenAI's body.

use serde::{Deserialize, Serialize};

/// `application/json` (default) or `application/msgpack`.
pub const CONTENT_TYPE: &str = "Content-Type";
/// JetStream's message id. Ids are shared by the whole stream, and the server tells the last one to any publisher: one
/// that another tenant can guess is one by which it can have a job dropped as a duplicate.
pub const MESSAGE_ID: &str = "Nats-Msg-Id";
/// RFC 3339: a job that has not been answered by then ends as expired.
pub const DEADLINE: &str = "Inferq-Deadline";
/// Seconds from the job's publication to its deadline.
pub const TIMEOUT: &str = "Inferq-Timeout";
/// Attempts this job may have, up to the model's own limit.
pub const MAX_ATTEMPTS: &str = "Inferq-Max-Attempts";
/// `no-store`: the cache is neither read nor written.
pub const CACHE: &str = "Inferq-Cache";
/// `tokens`: chunks of the answer are published as they are made.
pub const STREAM: &str = "Inferq-Stream";
/// What the producer thinks the job costs, in the model's units (tokens, seconds of audio, images).
pub const COST: &str = "Inferq-Cost";
/// More units than any job has. What claims more is not believed: sums of such numbers would overflow.
pub const COST_MAX: f64 = 1e12;
/// The payload is in an object store, under this name: see [`crate::stream::INPUTS_BUCKET`].
pub const BODY: &str = "Inferq-Body";
/// On jobs that were lifted over another tenant's: the lane they came from.
pub const LANE: &str = "Inferq-Lane";
/// On jobs that were lifted: when they were published, RFC 3339.
pub const PUBLISHED: &str = "Inferq-Published";
/// A further subject for the result, beside the stored one. Only under an allowed prefix.
pub const REPLY_TO: &str = "Inferq-Reply-To";
/// On results: the HTTP status, so that a reader need not decode the body to count failures.
pub const STATUS: &str = "Inferq-Status";
/// On results that a worker stored: how they were made, as the JSON of [`crate::provenance::Provenance`].
pub const PROVENANCE: &str = "Inferq-Provenance";
/// On dead letters: the number of the attempt that ended the job, from 1.
pub const ATTEMPT: &str = "Inferq-Attempt";
/// On dead letters: the worker that ended the job.
pub const WORKER: &str = "Inferq-Worker";
/// On chunks: their number, from 0.
pub const CHUNK: &str = "Inferq-Chunk";
/// On chunks: the ids of their tokens, separated by commas, from which another worker goes on.
pub const TOKEN_IDS: &str = "Inferq-Token-Ids";
/// On dead letters: why the job was given up, in words.
pub const DEAD_REASON: &str = "Inferq-Dead-Reason";
/// On dead letters: why, as one of [`DeadClass`].
pub const DEAD_CLASS: &str = "Inferq-Dead-Class";
/// On dead letters: the job's log as a JSON array of its records.
pub const DEAD_LOG: &str = "Inferq-Dead-Log";
/// On dead letters and replayed jobs: the earlier lives of the job, as a JSON array.
pub const HISTORY: &str = "Inferq-History";

/// W3C Trace Context: the span of whoever published the message.
pub const TRACEPARENT: &str = "traceparent";
/// What goes with it.
pub const TRACESTATE: &str = "tracestate";

/// Why a job became a dead letter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeadClass {
    /// It cannot be run as it is: the producer's mistake.
    Invalid,
    /// It failed or killed the engine while it ran alone.
    Poison,
    /// Its attempts were spent on failures that need not be its own.
    Exhausted,
    /// Its deadline passed.
    Expired,
}

impl DeadClass {
    pub const ALL: [Self; 4] = [Self::Invalid, Self::Poison, Self::Exhausted, Self::Expired];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Invalid => "invalid",
            Self::Poison => "poison",
            Self::Exhausted => "exhausted",
            Self::Expired => "expired",
        }
    }
}

impl std::str::FromStr for DeadClass {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let class = Self::ALL.into_iter().find(|class| class.as_str() == text);
        class.ok_or_else(|| format!("{text:?} is no class; it is one of invalid, poison, exhausted, expired"))
    }
}

/// One earlier life of a replayed job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Life {
    /// RFC 3339, when it was given up.
    pub time: String,
    pub class: DeadClass,
    pub reason: String,
    pub attempts: u32,
    pub worker: String,
}

/// Every header with who sets it and what it means: the table of the README, tested against it.
pub const TABLE: [(&str, &str, &str); 23] = [
    (
        CONTENT_TYPE,
        "producer, worker",
        "`application/json` (default) or `application/msgpack`; the result answers in kind",
    ),
    (
        MESSAGE_ID,
        "producer",
        "an id that nobody can guess: a message published twice with it within two minutes is stored once",
    ),
    (DEADLINE, "producer", "RFC 3339 time at which the job ends as expired, waiting or running"),
    (TIMEOUT, "producer", "the same as seconds from publication; the earlier of the two counts"),
    (MAX_ATTEMPTS, "producer", "attempts this job may have, up to the model's `limits.attempts`"),
    (CACHE, "producer", "`no-store`: neither read nor write the cache"),
    (STREAM, "producer", "`tokens`: publish the answer in chunks as it is made, as `stream: true` in the body does"),
    (COST, "producer", "estimated cost of the job in units such as tokens, for the backlog in seconds"),
    (
        BODY,
        "producer, worker",
        "the payload is an object of that name: of `inferq-inputs` for jobs, `inferq-blobs` for results, `inferq-dead` for dead letters",
    ),
    (REPLY_TO, "producer", "a further subject for the result; `_INBOX.` by default, others by `--reply-prefix`"),
    (LANE, "worker", "on jobs lifted over another tenant's: the lane they came from"),
    (PUBLISHED, "worker", "on lifted jobs: RFC 3339 time of their publication"),
    (STATUS, "worker", "on results: the HTTP status code"),
    (PROVENANCE, "worker", "on results that a worker stored: how they were made, a [JSON object](#provenance)"),
    (CHUNK, "worker", "on chunks: their number, from 0"),
    (TOKEN_IDS, "worker", "on chunks: the ids of their tokens, separated by commas"),
    (ATTEMPT, "worker", "on dead letters: the attempt that ended the job, from 1"),
    (WORKER, "worker", "on dead letters: the worker's name"),
    (DEAD_REASON, "worker", "on dead letters: why the job was given up"),
    (DEAD_CLASS, "worker", "on dead letters: `invalid`, `poison`, `exhausted` or `expired`"),
    (DEAD_LOG, "worker", "on dead letters: the job's log, a JSON array of records"),
    (
        TRACEPARENT,
        "producer, worker",
        "W3C Trace Context, with `tracestate`: what a job's [trace](OBSERVABILITY.md#traces) goes on from, and on results the span that made it",
    ),
    (HISTORY, "worker, `inferq dead replay`", "on dead letters and replayed jobs: earlier lives, a JSON array"),
];
