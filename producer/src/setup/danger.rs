//! Settings of a NATS server and its streams by which jobs are lost that JetStream has acknowledged.
//!
//! Three answers: what set-up cannot change is refused, what it changes is told, since jobs may be gone already, and what
//! only the operator can decide is a warning. It decides on what was read, and asks no server.

use std::time::Duration;

use async_nats::jetstream::stream::{Config, DiscardPolicy, PersistenceMode, StorageType};
use schemas::stream::{BLOBS_BUCKET, DEAD, INPUTS_BUCKET, JOBS, RESULTS};

/// When a server writes what it has acknowledged through to its disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flush {
    pub server: String,
    pub interval: Duration,
    /// With each message, before it is acknowledged.
    pub always: bool,
}

/// The streams whose messages are promised: jobs, results, dead letters, and the bodies that are kept apart from them.
pub fn promised() -> [String; 5] {
    let bucket = |name: &str| format!("OBJ_{name}");
    [JOBS.to_owned(), RESULTS.to_owned(), DEAD.to_owned(), bucket(INPUTS_BUCKET), bucket(BLOBS_BUCKET)]
}

/// What loses messages of a promised stream and cannot be changed once the stream is made.
pub fn refusals(existing: &Config) -> Vec<&'static str> {
    let rules = [
        (existing.storage == StorageType::Memory, "storage: memory, which is gone when the server restarts"),
        (existing.mirror.is_some(), "mirror, which stores nothing that is published to it"),
        (
            existing.persist_mode == Some(PersistenceMode::Async),
            "persist_mode: async, which acknowledges before anything is written",
        ),
        (
            existing.name == JOBS && existing.allow_message_ttl,
            "allow_msg_ttl, by which a job can vanish while it waits or runs",
        ),
    ];
    rules.into_iter().filter_map(|(is_so, what)| is_so.then_some(what)).collect()
}

/// What loses messages of a promised stream until set-up changes it.
pub fn mended(existing: &Config) -> Vec<&'static str> {
    let is_bucket = existing.name.starts_with("OBJ_");
    let rules = [
        // Dead letters are answered: a flood of them must not stop the workers.
        (
            existing.name != DEAD && existing.discard == DiscardPolicy::Old,
            "discard: old, which drops the oldest when the stream is full",
        ),
        (existing.name == JOBS && !existing.max_age.is_zero(), "max_age, which drops jobs that wait longer"),
        (existing.no_ack, "no_ack, which leaves publishers without an answer"),
        // Object stores need it.
        (existing.allow_rollup && !is_bucket, "allow_rollup_hdrs, by which any publisher can empty the stream"),
    ];
    rules.into_iter().filter_map(|(is_so, what)| is_so.then_some(what)).collect()
}

/// What so many copies on such servers do not outlive. `clustered` tells whether there are further servers to copy to;
/// `flushes` has the servers that were asked, if any were.
pub fn copies(replicas: usize, clustered: bool, flushes: &[Flush]) -> Vec<String> {
    let mut risks = Vec::new();
    if replicas.is_multiple_of(2) {
        risks.push(format!(
            "storage.replicas is {replicas}: more than half must be up, so it outlives the loss of no more servers than \
             {} do; give an odd number, such as 3",
            replicas - 1
        ));
    }
    if replicas == 1 && clustered {
        risks.push(
            "storage.replicas is 1 in a cluster: jobs wait while their one server is away, and are lost with its disk; \
             give 3"
                .to_owned(),
        );
    }
    if replicas == 1 && flushes.is_empty() {
        risks.push(
            "there is one copy, and a server acknowledges before its disk has it, unless `sync_interval: always` is set \
             in its jetstream block: a loss of power may lose jobs of the last 2 minutes, which is the default; \
             --monitor http://HOST:8222 looks it up"
                .to_owned(),
        );
    }
    let late = flushes.iter().filter(|flush| replicas == 1 && !flush.always);
    risks.extend(late.map(|Flush { server, interval, .. }| {
        format!(
            "server {server} has sync_interval: {}, and there is one copy: a loss of power may lose the jobs \
             acknowledged since; set `sync_interval: always` in its jetstream block, or keep 3 copies on servers that \
             do not lose power together",
            humantime::format_duration(*interval)
        )
    }));
    risks
}

#[cfg(test)]
mod tests {
    use async_nats::jetstream::stream::Source;

    use super::*;

    fn jobs() -> Config {
        Config { name: JOBS.to_owned(), discard: DiscardPolicy::New, ..Default::default() }
    }

    #[test]
    fn a_stream_as_declared_is_in_no_danger() {
        assert_eq!(refusals(&jobs()), [""; 0]);
        assert_eq!(mended(&jobs()), [""; 0]);
    }

    #[test]
    fn what_cannot_be_changed_is_refused() {
        let cases = [
            (Config { storage: StorageType::Memory, ..jobs() }, "storage: memory"),
            (Config { mirror: Some(Source::default()), ..jobs() }, "mirror"),
            (Config { persist_mode: Some(PersistenceMode::Async), ..jobs() }, "persist_mode"),
            (Config { allow_message_ttl: true, ..jobs() }, "allow_msg_ttl"),
        ];
        for (config, says) in cases {
            let refusals = refusals(&config);
            assert!(refusals.len() == 1 && refusals[0].starts_with(says), "{refusals:?}");
            assert_eq!(mended(&config), [""; 0]);
        }
        let results = Config { name: RESULTS.to_owned(), allow_message_ttl: true, ..jobs() };
        assert_eq!(refusals(&results), [""; 0], "workers set no TTL on results");
    }

    #[test]
    fn what_is_changed_is_told() {
        let cases = [
            (Config { discard: DiscardPolicy::Old, ..jobs() }, "discard: old"),
            (Config { max_age: Duration::from_secs(60), ..jobs() }, "max_age"),
            (Config { no_ack: true, ..jobs() }, "no_ack"),
            (Config { allow_rollup: true, ..jobs() }, "allow_rollup_hdrs"),
        ];
        for (config, says) in cases {
            let mended = mended(&config);
            assert!(mended.len() == 1 && mended[0].starts_with(says), "{mended:?}");
            assert_eq!(refusals(&config), [""; 0]);
        }
        let bucket = Config { name: "OBJ_inferq-blobs".to_owned(), allow_rollup: true, ..jobs() };
        assert_eq!(mended(&bucket), [""; 0], "an object store needs it");
    }

    #[test]
    fn copies_are_weighed_with_what_the_servers_do() {
        let flush = |always| Flush { server: "n1".to_owned(), interval: Duration::from_secs(120), always };
        let risks = |replicas, clustered, flushes: &[Flush]| copies(replicas, clustered, flushes).join("\n");
        assert!(risks(1, false, &[]).contains("--monitor"));
        assert!(risks(1, false, &[flush(true), flush(false)]).starts_with("server n1 has sync_interval: 2m"));
        assert_eq!(risks(1, false, &[flush(true)]), "");
        assert!(risks(1, true, &[flush(true)]).starts_with("storage.replicas is 1 in a cluster"));
        assert!(risks(2, true, &[]).contains("no more servers than 1 do"));
        assert!(risks(4, true, &[]).contains("no more servers than 3 do"));
        assert_eq!(risks(3, true, &[flush(false)]), "");
    }
}
