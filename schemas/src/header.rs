//! Headers: whatever a message says that is not OpenAI's body.

/// `application/json` (default) or `application/msgpack`.
pub const CONTENT_TYPE: &str = "Content-Type";
/// JetStream's message id: `<tenant>/<job_id>`, since ids are shared by the whole stream.
pub const MESSAGE_ID: &str = "Nats-Msg-Id";
/// RFC 3339: a job that has not been answered by then ends as expired.
pub const DEADLINE: &str = "Inferq-Deadline";
/// A further subject for the result, beside the stored one. Only under an allowed prefix.
pub const REPLY_TO: &str = "Inferq-Reply-To";
/// On results: the HTTP status, so that a reader need not decode the body to count failures.
pub const STATUS: &str = "Inferq-Status";
/// On results and dead letters: the number of the delivery that ended the job, from 1.
pub const ATTEMPT: &str = "Inferq-Attempt";
/// On results and dead letters: the worker that ended the job.
pub const WORKER: &str = "Inferq-Worker";
/// On dead letters: why the job was given up.
pub const DEAD_REASON: &str = "Inferq-Dead-Reason";

/// Every header with who sets it and what it means: the table of the README, tested against it.
pub const TABLE: [(&str, &str, &str); 8] = [
    (
        CONTENT_TYPE,
        "producer, worker",
        "`application/json` (default) or `application/msgpack`; the result answers in kind",
    ),
    (MESSAGE_ID, "producer", "`<tenant>/<job_id>`: the same job published twice within two minutes is stored once"),
    (DEADLINE, "producer", "RFC 3339 time after which the job is not started any more"),
    (REPLY_TO, "producer", "a further subject for the result; `_INBOX.` by default, others by `--reply-prefix`"),
    (STATUS, "worker", "on results: the HTTP status code"),
    (ATTEMPT, "worker", "on results and dead letters: the delivery that ended the job, from 1"),
    (WORKER, "worker", "on results and dead letters: the worker's name"),
    (DEAD_REASON, "worker", "on dead letters: why the job was given up"),
];
