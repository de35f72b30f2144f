//! `inferq setup` on servers and streams whose settings lose what they have acknowledged.

use std::path::PathBuf;
use std::process::Output;
use std::time::Duration;

use async_nats::jetstream::consumer::{AckPolicy, pull};
use async_nats::jetstream::stream::{Config, DiscardPolicy, PersistenceMode, RetentionPolicy, Source, StorageType};
use async_nats::jetstream::{self, Context};
use schemas::stream::{JOBS, RESULTS};
use serde_json::Value;
use tempfile::TempDir;

use super::SMALL;
use crate::support::{Cluster, Server, echo_registry, program, run};

/// A registry and the servers it is set up on.
struct Site {
    urls: String,
    folder: TempDir,
    jetstream: Context,
}

impl Site {
    async fn new(urls: &str) -> Self {
        let jetstream = jetstream::new(async_nats::connect(urls.split(',').next().unwrap()).await.unwrap());
        Self { urls: urls.to_owned(), folder: tempfile::tempdir().unwrap(), jetstream }
    }

    fn setup(&self, replicas: usize, arguments: &[&str]) -> Output {
        let registry: PathBuf = self.folder.path().join("models.toml");
        std::fs::write(&registry, echo_registry(0, "") + SMALL + &format!("replicas = {replicas}\n")).unwrap();
        let arguments = [&["setup", "--registry", registry.to_str().unwrap()], arguments].concat();
        run(&program("inferq"), &arguments, &[("NATS_URL", &self.urls)])
    }
}

fn errors(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn jobs() -> Config {
    Config {
        name: JOBS.to_owned(),
        subjects: vec!["inferq.jobs.echo.*.*.*".to_owned()],
        retention: RetentionPolicy::WorkQueue,
        ..Default::default()
    }
}

#[tokio::test]
async fn streams_that_cannot_keep_what_they_acknowledge_are_refused() {
    let server = Server::start();
    let site = Site::new(&server.url).await;
    let mirror = Source { name: "OTHER".to_owned(), ..Default::default() };
    let limits = RetentionPolicy::Limits;
    let cases = [
        (Config { storage: StorageType::Memory, ..jobs() }, "INFERQ_JOBS would lose messages that it has acknowledged"),
        (Config { allow_message_ttl: true, ..jobs() }, "allow_msg_ttl"),
        (Config { persist_mode: Some(PersistenceMode::Async), ..jobs() }, "persist_mode: async"),
        (Config { mirror: Some(mirror), subjects: Vec::new(), retention: limits, ..jobs() }, "mirror"),
        (Config { name: RESULTS.to_owned(), storage: StorageType::Memory, ..Default::default() }, "INFERQ_RESULTS"),
    ];
    for (config, says) in cases {
        let name = config.name.clone();
        site.jetstream.create_stream(config).await.unwrap();
        for arguments in [&[][..], &["--dry-run"]] {
            let output = site.setup(1, arguments);
            assert_eq!(output.status.code(), Some(1), "{says}");
            let errors = errors(&output);
            assert!(errors.contains(says) && errors.contains(&format!("nats stream rm {name}")), "{errors}");
        }
        assert!(site.jetstream.get_stream("INFERQ_LOGS").await.is_err(), "nothing is made before all is looked at");
        site.jetstream.delete_stream(name).await.unwrap();
    }
    assert!(site.setup(1, &[]).status.success());
}

#[tokio::test]
async fn settings_that_can_be_changed_are_set_right_and_told() {
    let server = Server::start();
    let site = Site::new(&server.url).await;
    let careless = Config {
        discard: DiscardPolicy::Old,
        max_age: Duration::from_secs(3600),
        allow_rollup: true,
        no_ack: true,
        ..jobs()
    };
    site.jetstream.create_stream(careless).await.unwrap();
    let output = site.setup(1, &["--output", "json"]);
    let changes: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", errors(&output)));
    let of_jobs = changes.iter().find(|change| change["name"] == JOBS).unwrap();
    assert_eq!(of_jobs["action"], "changed");
    let warned: Vec<&Value> = changes.iter().filter(|change| change["kind"] == "warning").collect();
    for what in ["discard: old", "max_age", "no_ack", "allow_rollup_hdrs"] {
        assert!(warned.iter().any(|change| change["fields"][0].as_str().unwrap().contains(what)), "{what}");
        let key = what.split(':').next().unwrap();
        assert!(of_jobs["fields"].to_string().contains(key), "{key} in {of_jobs}");
    }
    let stream = site.jetstream.get_stream(JOBS).await.unwrap();
    let config = stream.cached_info().config.clone();
    assert!(config.discard == DiscardPolicy::New && config.max_age.is_zero(), "{config:?}");
    assert!(!config.allow_rollup && !config.no_ack, "{config:?}");

    let stalling = pull::Config {
        durable_name: Some("echo_flex".to_owned()),
        ack_policy: AckPolicy::Explicit,
        filter_subject: "inferq.jobs.echo.flex.*.*".to_owned(),
        max_deliver: 3,
        backoff: vec![Duration::from_secs(60), Duration::from_secs(120)],
        inactive_threshold: Duration::from_secs(60),
        max_waiting: 4096,
        max_ack_pending: 10_000,
        ..Default::default()
    };
    stream.create_consumer(stalling).await.unwrap();
    let output = site.setup(1, &[]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("changed consumer echo_flex"), "{text}{}", errors(&output));
    let config = stream.consumer_info("echo_flex").await.unwrap().config;
    assert!(config.backoff.is_empty() && config.inactive_threshold.is_zero(), "{config:?}");
    let text = String::from_utf8(site.setup(1, &[]).stdout).unwrap();
    assert!(text.lines().all(|line| line.starts_with("unchanged ")), "{text}");
}

#[tokio::test]
async fn a_lone_server_is_asked_when_it_writes_through() {
    let (late, always) = (Server::start(), Server::with("jetstream { sync_interval: always }"));
    let site = Site::new(&late.url).await;
    let told = errors(&site.setup(1, &["--dry-run"]));
    assert!(told.starts_with("warning: INFERQ_JOBS: there is one copy") && told.lines().count() == 1, "{told}");
    let told = errors(&site.setup(1, &["--monitor", late.monitor()]));
    assert!(told.contains("has sync_interval: 2m, and there is one copy") && told.lines().count() == 1, "{told}");
    let site = Site::new(&always.url).await;
    let output = site.setup(1, &["--monitor", always.monitor()]);
    assert!(output.status.success() && errors(&output).is_empty(), "{}", errors(&output));
    let output = site.setup(1, &["--monitor", "http://127.0.0.1:1"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(errors(&output).contains("--monitor http://127.0.0.1:1 cannot be read"), "{}", errors(&output));
    let output = site.setup(3, &[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(errors(&output).contains("storage.replicas in the registry asks for as many"), "{}", errors(&output));
}

#[tokio::test]
async fn a_cluster_is_asked_for_copies_that_outlive_a_server() {
    let cluster = Cluster::start().await;
    let site = Site::new(&cluster.urls()).await;
    let output = site.setup(5, &[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(errors(&output).contains("storage.replicas in the registry asks for as many"), "{}", errors(&output));
    let told = errors(&site.setup(1, &[]));
    assert!(told.contains("storage.replicas is 1 in a cluster"), "{told}");
    let told = errors(&site.setup(2, &[]));
    assert!(told.contains("no more servers than 1 do"), "{told}");
    // The server may still be making the second copy and not answer the first time.
    let output = site.setup(3, &[]);
    assert!(output.status.success() && !errors(&output).contains("warning"), "{}", errors(&output));
    let jobs = site.jetstream.get_stream(JOBS).await.unwrap();
    assert_eq!(jobs.cached_info().config.num_replicas, 3, "copies are added to a stream that has fewer");
}
