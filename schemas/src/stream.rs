//! The declaration of every stream, consumer and bucket. `inferq setup` makes them so; everybody else looks them up.

use crate::registry::{Model, Registry, Storage};
use crate::subject::{Lane, Token, consumer_name, lane_filter, lifted_consumer_name, lifted_filter};

pub const JOBS: &str = "INFERQ_JOBS";
pub const RESULTS: &str = "INFERQ_RESULTS";
pub const LOGS: &str = "INFERQ_LOGS";
pub const TOKENS: &str = "INFERQ_TOKENS";
pub const DEAD: &str = "INFERQ_DEAD";
pub const ADVISORIES: &str = "INFERQ_ADVISORIES";

pub const CACHE_BUCKET: &str = "inferq-cache";
pub const BATCHES_BUCKET: &str = "inferq-batches";
/// Attempts of jobs that were delivered more than once.
pub const ATTEMPTS_BUCKET: &str = "inferq-attempts";
/// Tenants that have had jobs lately: see [`tenant_key`].
pub const TENANTS_BUCKET: &str = "inferq-tenants";
/// Bodies of jobs over the payload limit. They stay as long as their job.
pub const INPUTS_BUCKET: &str = "inferq-inputs";
/// Bodies of results over the payload limit. They stay as long as their result.
pub const BLOBS_BUCKET: &str = "inferq-blobs";
/// Bodies of dead letters over the payload limit. They stay as long as their job's result, or until newer ones need the
/// room: what was given up must not stop the workers.
pub const DEAD_BUCKET: &str = "inferq-dead";

/// Files of the gateway: what batches read and write.
pub const FILES_BUCKET: &str = "inferq-files";
/// API keys of the gateway, by their digests.
pub const KEYS_BUCKET: &str = "inferq-keys";

const HOUR: u64 = 3600;
const DAY: u64 = 24 * HOUR;
/// The window the README promises for a job that is published twice.
const DUPLICATE_WINDOW_SECONDS: u64 = 120;
const MIB: i64 = 1 << 20;
/// How long a file stays, whatever it asks for.
pub const FILES_DAYS: u64 = 30;

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
    /// How long the stream remembers message ids.
    pub duplicate_window_seconds: u64,
    /// Whether readers may fetch a message by its subject from any replica.
    pub allow_direct: bool,
    /// Copies that the server sends live.
    pub republish: Option<Republish>,
}

/// Copies of stored messages on another subject, by core NATS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Republish {
    pub source: &'static str,
    pub destination: &'static str,
    pub headers_only: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Discard {
    New,
    Old,
}

/// A durable pull consumer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Consumer {
    pub stream: &'static str,
    pub name: String,
    /// What of the stream it reads; all when empty.
    pub filter: String,
    /// Whether payloads are left out.
    pub headers_only: bool,
    pub ack_wait_seconds: u64,
    pub ack_pending_max: i64,
}

/// A bucket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bucket {
    pub name: &'static str,
    pub description: &'static str,
    pub kind: BucketKind,
    /// A full bucket refuses what is new, or drops what is old.
    pub discard: Discard,
    pub bytes_max: i64,
    pub age_max_seconds: u64,
    pub replicas: usize,
    /// Whether a message may take the others away. Not where tenants write.
    pub allow_rollup: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BucketKind {
    KeyValue,
    Object,
}

/// All streams of a deployment.
pub fn streams(registry: &Registry) -> Vec<Stream> {
    let storage = &registry.storage;
    vec![jobs(registry), results(storage), logs(storage), tokens(storage), dead(storage), advisories(storage)]
}

/// The consumers of one model: its lanes in their order, then the one of lifted jobs.
pub fn consumers(model: &Model) -> Vec<Consumer> {
    let token = model.token();
    let consumer = |name, filter| Consumer {
        stream: JOBS,
        name,
        filter,
        headers_only: false,
        ack_wait_seconds: model.limits.ack_wait_seconds,
        ack_pending_max: model.limits.ack_pending.into(),
    };
    let lane = |&lane| consumer(consumer_name(&token, lane), lane_filter(&token, lane));
    let lifted = consumer(lifted_consumer_name(&token), lifted_filter(&token));
    model.lanes.iter().map(lane).chain([lifted]).collect()
}

/// The consumers of the logger, which all its replicas share.
pub fn logger_consumers() -> [Consumer; 4] {
    let consumer = |stream, name: &str, headers_only| Consumer {
        stream,
        name: name.to_owned(),
        filter: String::new(),
        headers_only,
        // To write a batch takes a moment; what a logger held that died is waited for no longer than this.
        ack_wait_seconds: 10,
        ack_pending_max: 10_000,
    };
    [
        consumer(LOGS, "logger_logs", false),
        consumer(RESULTS, "logger_results", true),
        consumer(DEAD, "logger_dead", true),
        consumer(ADVISORIES, "logger_advisories", false),
    ]
}

/// All buckets of a deployment.
pub fn buckets(storage: &Storage) -> Vec<Bucket> {
    let bucket = |name, description, kind, discard, bytes_max, age_max_seconds| Bucket {
        name,
        description,
        kind,
        discard,
        bytes_max,
        age_max_seconds,
        replicas: storage.replicas,
        allow_rollup: name != TENANTS_BUCKET,
    };
    let (key_value, object) = (BucketKind::KeyValue, BucketKind::Object);
    let blobs_age = match storage.results_age_seconds {
        0 => 0,
        // A result never outlives its body.
        age => age + HOUR,
    };
    vec![
        bucket(CACHE_BUCKET, "results by content", key_value, Discard::Old, 256 * MIB, storage.cache_age_seconds),
        bucket(BATCHES_BUCKET, "batches and files", key_value, Discard::New, 64 * MIB, 0),
        bucket(KEYS_BUCKET, "API keys by their digests", key_value, Discard::New, 16 * MIB, 0),
        bucket(ATTEMPTS_BUCKET, "attempts of jobs delivered again", key_value, Discard::Old, 64 * MIB, 7 * DAY),
        bucket(TENANTS_BUCKET, "tenants with jobs lately", key_value, Discard::Old, 16 * MIB, 7 * DAY),
        bucket(INPUTS_BUCKET, "jobs over the payload limit", object, Discard::New, storage.blobs_bytes, 0),
        bucket(BLOBS_BUCKET, "results over the payload limit", object, Discard::New, storage.blobs_bytes, blobs_age),
        bucket(FILES_BUCKET, "files of batches", object, Discard::New, storage.files_bytes, FILES_DAYS * DAY),
        bucket(
            DEAD_BUCKET,
            "dead letters over the payload limit",
            object,
            Discard::Old,
            storage.blobs_bytes,
            blobs_age,
        ),
    ]
}

/// A tenant's key in [`TENANTS_BUCKET`]: a lane of a model it has had jobs in.
pub fn tenant_key(model: &Token, lane: Lane, tenant: &str) -> String {
    format!("{model}.{lane}.{tenant}")
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
        duplicate_window_seconds: DUPLICATE_WINDOW_SECONDS,
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
        duplicate_window_seconds: DUPLICATE_WINDOW_SECONDS,
        allow_direct: true,
        republish: Some(Republish { source: "inferq.results.>", destination: "inferq.live.>", headers_only: false }),
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
        duplicate_window_seconds: DUPLICATE_WINDOW_SECONDS,
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
        duplicate_window_seconds: DUPLICATE_WINDOW_SECONDS,
        allow_direct: true,
        // For tenants in accounts of their own: the server does not pass on to them what comes from the workers' account.
        republish: Some(Republish {
            source: "inferq.tokens.>",
            destination: "inferq.live.tokens.>",
            headers_only: false,
        }),
    }
}

fn dead(storage: &Storage) -> Stream {
    Stream {
        name: DEAD,
        description: "jobs that were given up",
        subjects: vec!["inferq.dead.*.*.*.*".to_owned()],
        work_queue: false,
        // What was given up last is what is looked for; a flood of bad jobs must not stop the workers.
        discard: Discard::Old,
        messages_per_subject_max: 1,
        bytes_max: 256 * MIB,
        age_max_seconds: 30 * DAY,
        replicas: storage.replicas,
        duplicate_window_seconds: DUPLICATE_WINDOW_SECONDS,
        allow_direct: true,
        republish: None,
    }
}

/// What the server says of its streams and consumers, which it keeps nowhere itself. Left out are those of every API
/// request, nak and term, and of consumers other than those of jobs, which readers make and forget all the time.
fn advisories(storage: &Storage) -> Stream {
    let subjects = [
        "STREAM.*.*".to_owned(),
        "CONSUMER.MAX_DELIVERIES.*.*".to_owned(),
        "CONSUMER.LEADER_ELECTED.*.*".to_owned(),
        "CONSUMER.QUORUM_LOST.*.*".to_owned(),
        format!("CONSUMER.CREATED.{JOBS}.*"),
        format!("CONSUMER.DELETED.{JOBS}.*"),
        format!("CONSUMER.PAUSE.{JOBS}.*"),
    ];
    Stream {
        name: ADVISORIES,
        description: "what the server says of streams and consumers",
        subjects: subjects.into_iter().map(|subject| format!("$JS.EVENT.ADVISORY.{subject}")).collect(),
        work_queue: false,
        discard: Discard::Old,
        messages_per_subject_max: 0,
        bytes_max: 64 * MIB,
        age_max_seconds: 3 * DAY,
        replicas: storage.replicas,
        duplicate_window_seconds: DUPLICATE_WINDOW_SECONDS,
        allow_direct: true,
        republish: None,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::subject::{Address, JobId};

    fn registry(names: &[&str]) -> Registry {
        let model = |name: &&str| format!("[[models]]\nname = {name:?}\ntask = \"echo\"\n");
        Registry::parse(&names.iter().map(model).collect::<String>()).unwrap()
    }

    /// Names that would collide or spill over if they were not escaped.
    fn awkward() -> Registry {
        registry(&["a", "A", "a.default", "a_default", "a=2E", "*", ">", "a/b", "a b", "世界", "a.*.*.*"])
    }

    fn matches(filter: &str, subject: &str) -> bool {
        let (filter, subject): (Vec<_>, Vec<_>) = (filter.split('.').collect(), subject.split('.').collect());
        filter.len() == subject.len()
            && filter.iter().zip(subject).all(|(wanted, token)| *wanted == "*" || *wanted == token)
    }

    /// Whether a subject exists that both filters match.
    fn overlap(one: &str, other: &str) -> bool {
        let (one, other): (Vec<_>, Vec<_>) = (one.split('.').collect(), other.split('.').collect());
        one.len() == other.len()
            && one.iter().zip(other).all(|(left, right)| *left == "*" || right == "*" || *left == right)
    }

    #[test]
    fn the_consumers_filters_are_the_job_streams_subjects() {
        let registry = awkward();
        let filters: Vec<String> = registry.models.iter().flat_map(consumers).map(|consumer| consumer.filter).collect();
        assert_eq!(filters.len(), 4 * registry.models.len());
        assert_eq!(jobs(&registry).subjects, filters);
        assert!(filters.iter().all(|filter| !filter.contains('>')));
    }

    #[test]
    fn no_two_filters_and_no_two_streams_overlap() {
        let subjects: Vec<String> = streams(&awkward()).into_iter().flat_map(|stream| stream.subjects).collect();
        for (index, one) in subjects.iter().enumerate() {
            for other in &subjects[index + 1..] {
                assert!(!overlap(one, other), "{one} and {other}");
            }
        }
    }

    #[test]
    fn consumer_names_are_legal_and_differ() {
        let registry = awkward();
        let all = registry.models.iter().flat_map(consumers).chain(logger_consumers());
        let names: Vec<String> = all.map(|consumer| consumer.name).collect();
        assert_eq!(names.iter().collect::<HashSet<_>>().len(), names.len(), "{names:?}");
        assert!(names.iter().all(|name| !name.contains(['.', '*', '>', '/', '\\', ' '])), "{names:?}");
    }

    #[test]
    fn a_job_is_read_by_the_consumer_of_its_model_and_lane_alone() {
        let registry = awkward();
        let all: Vec<Consumer> = registry.models.iter().flat_map(consumers).collect();
        for model in &registry.models {
            for lane in Lane::ALL {
                let job_id = JobId::new("j-1").unwrap();
                let address = Address { model: model.name.clone(), lane, tenant: "a.b".into(), job_id };
                let subject = address.subject().unwrap();
                let readers: Vec<&str> = all
                    .iter()
                    .filter(|consumer| matches(&consumer.filter, &subject))
                    .map(|consumer| consumer.name.as_str())
                    .collect();
                assert_eq!(readers, [consumer_name(&model.token(), lane)]);
            }
        }
    }

    #[test]
    fn a_model_has_consumers_for_its_own_lanes_only() {
        let text = "[[models]]\nname = \"a\"\ntask = \"echo\"\nlanes = [\"flex\", \"default\"]";
        let registry = Registry::parse(text).unwrap();
        assert_eq!(
            jobs(&registry).subjects,
            ["inferq.jobs.a.flex.*.*", "inferq.jobs.a.default.*.*", "inferq.jobs.a.lifted.*.*"]
        );
        let consumer = &consumers(&registry.models[0])[0];
        assert_eq!((consumer.ack_wait_seconds, consumer.ack_pending_max), (30, 10_000));
    }
}
