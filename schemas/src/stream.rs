//! The declaration of every stream, consumer and bucket. `inferq setup` makes them so; everybody else looks them up.

use crate::registry::{Model, Registry, Storage};
use crate::subject::{consumer_name, lane_filter};

pub const JOBS: &str = "INFERQ_JOBS";
pub const RESULTS: &str = "INFERQ_RESULTS";
pub const LOGS: &str = "INFERQ_LOGS";
pub const TOKENS: &str = "INFERQ_TOKENS";
pub const DEAD: &str = "INFERQ_DEAD";

pub const CACHE_BUCKET: &str = "inferq-cache";
pub const BATCHES_BUCKET: &str = "inferq-batches";
pub const BLOBS_BUCKET: &str = "inferq-blobs";

const HOUR: u64 = 3600;
const DAY: u64 = 24 * HOUR;
const MIB: i64 = 1 << 20;

/// A stream, in JetStream's words. Sizes in bytes, ages in seconds, 0 is no limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stream {
    pub name: &'static str,
    pub description: &'static str,
    pub subjects: Vec<String>,
    /// Work-queue retention (a message leaves when it is acknowledged) or by limits.
    pub work_queue: bool,
    /// A full stream refuses what is new, or drops what is old.
    pub discard: Discard,
    pub messages_per_subject_max: i64,
    pub bytes_max: i64,
    pub age_max_seconds: u64,
    pub replicas: usize,
    /// Whether readers may fetch a message by its subject from any replica.
    pub allow_direct: bool,
    /// Source and destination of the copies sent live.
    pub republish: Option<(&'static str, &'static str)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Discard {
    New,
    Old,
}

/// A durable pull consumer of the job stream: one lane of one model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Consumer {
    pub name: String,
    pub filter: String,
    pub ack_wait_seconds: u64,
    pub ack_pending_max: i64,
}

/// A bucket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bucket {
    pub name: &'static str,
    pub description: &'static str,
    pub kind: BucketKind,
    pub bytes_max: i64,
    pub age_max_seconds: u64,
    pub replicas: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BucketKind {
    KeyValue,
    Object,
}

/// All streams of a deployment.
pub fn streams(registry: &Registry) -> Vec<Stream> {
    let storage = &registry.storage;
    vec![jobs(registry), results(storage), logs(storage), tokens(storage), dead(storage)]
}

/// The consumers of one model, in the order of its lanes.
pub fn consumers(model: &Model) -> Vec<Consumer> {
    let token = model.token();
    let consumer = |&lane| Consumer {
        name: consumer_name(&token, lane),
        filter: lane_filter(&token, lane),
        ack_wait_seconds: model.limits.ack_wait_seconds,
        ack_pending_max: model.limits.ack_pending.into(),
    };
    model.lanes.iter().map(consumer).collect()
}

/// All buckets of a deployment.
pub fn buckets(storage: &Storage) -> Vec<Bucket> {
    let bucket = |name, description, kind, bytes_max, age_max_seconds| Bucket {
        name,
        description,
        kind,
        bytes_max,
        age_max_seconds,
        replicas: storage.replicas,
    };
    let (key_value, object) = (BucketKind::KeyValue, BucketKind::Object);
    vec![
        bucket(CACHE_BUCKET, "results by content", key_value, 256 * MIB, 7 * DAY),
        bucket(BATCHES_BUCKET, "batch objects", key_value, 64 * MIB, 0),
        bucket(BLOBS_BUCKET, "bodies over the payload limit", object, storage.blobs_bytes, storage.results_age_seconds),
    ]
}

/// Lists the registered models: a job for any other is refused at publish, since no stream takes it. One message per
/// subject: the same job id is refused while its job is queued or in flight.
fn jobs(registry: &Registry) -> Stream {
    let filters = |model: &Model| consumers(model).into_iter().map(|consumer| consumer.filter).collect::<Vec<_>>();
    Stream {
        name: JOBS,
        description: "jobs waiting and in flight",
        subjects: registry.models.iter().flat_map(filters).collect(),
        work_queue: true,
        discard: Discard::New,
        messages_per_subject_max: 1,
        bytes_max: registry.storage.jobs_bytes,
        age_max_seconds: 0,
        replicas: registry.storage.replicas,
        allow_direct: true,
        republish: None,
    }
}

/// One result per job id, refused when full: a result nobody has read yet is not dropped for a newer one.
fn results(storage: &Storage) -> Stream {
    Stream {
        name: RESULTS,
        description: "one result per job",
        subjects: vec!["inferq.results.*.*".to_owned()],
        work_queue: false,
        discard: Discard::New,
        messages_per_subject_max: 1,
        bytes_max: storage.results_bytes,
        age_max_seconds: storage.results_age_seconds,
        replicas: storage.replicas,
        allow_direct: true,
        republish: Some(("inferq.results.>", "inferq.live.>")),
    }
}

fn logs(storage: &Storage) -> Stream {
    Stream {
        name: LOGS,
        description: "log records of jobs",
        subjects: vec!["inferq.logs.*.*".to_owned()],
        work_queue: false,
        discard: Discard::Old,
        messages_per_subject_max: 32,
        bytes_max: storage.logs_bytes,
        age_max_seconds: 3 * DAY,
        replicas: storage.replicas,
        allow_direct: true,
        republish: None,
    }
}

fn tokens(storage: &Storage) -> Stream {
    Stream {
        name: TOKENS,
        description: "tokens of jobs that stream",
        subjects: vec!["inferq.tokens.*.*".to_owned()],
        work_queue: false,
        discard: Discard::Old,
        messages_per_subject_max: 0,
        bytes_max: 64 * MIB,
        age_max_seconds: HOUR / 4,
        replicas: storage.replicas,
        allow_direct: true,
        republish: None,
    }
}

fn dead(storage: &Storage) -> Stream {
    Stream {
        name: DEAD,
        description: "jobs that were given up",
        subjects: vec!["inferq.dead.*.*.*.*".to_owned()],
        work_queue: false,
        discard: Discard::New,
        messages_per_subject_max: 1,
        bytes_max: 256 * MIB,
        age_max_seconds: 30 * DAY,
        replicas: storage.replicas,
        allow_direct: true,
        republish: None,
    }
}
