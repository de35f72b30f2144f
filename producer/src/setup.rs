//! Set-up: makes streams, consumers and buckets as `schemas` declares them. Running it again changes nothing.

pub mod danger;
pub mod monitor;

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::bail;
use async_nats::jetstream::consumer::{AckPolicy, PullConsumer, pull};
use async_nats::jetstream::stream::{self as nats, DiscardPolicy, Republish, RetentionPolicy};
use async_nats::jetstream::{Context, kv, object_store};
use futures::TryStreamExt;
use schemas::registry::Registry;
use schemas::stream::{self, Bucket, BucketKind, Consumer, Discard, Stream};
use serde::Serialize;

/// Pulls that may wait at the server for one consumer: one for each idle worker.
const WAITING_PULLS_MAX: i64 = 4096;

/// One thing that was made so, or found so, or a warning.
#[derive(Clone, Debug, Serialize, PartialEq, Eq)]
pub struct Change {
    pub kind: &'static str,
    pub name: String,
    pub action: Action,
    /// What differs, for `changed`; the text, for `warned`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub fields: Vec<String>,
}

#[derive(Clone, Copy, Debug, Serialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    Created,
    Changed,
    Unchanged,
    /// A consumer of a model or lane that the registry no longer has. It is kept: its jobs may still be wanted.
    Unregistered,
    /// It may lose jobs that were acknowledged.
    Warned,
}

/// Whether to act or only to say what would be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Apply,
    DryRun,
}

/// Brings the server to what the registry asks for, and says what that took.
pub async fn setup(jetstream: &Context, registry: &Registry, mode: Mode) -> anyhow::Result<Vec<Change>> {
    let warnings = survey(jetstream).await?;
    let mut changes = Vec::new();
    for declared in stream::streams(registry) {
        changes.push(
            stream_as_declared(jetstream, &declared, mode)
                .await
                .map_err(|error| explain(error, "stream", declared.name))?,
        );
    }
    let of_models = registry.models.iter().flat_map(stream::consumers);
    let consumers: Vec<Consumer> = of_models.chain(stream::logger_consumers()).collect();
    for declared in &consumers {
        changes.push(
            consumer_as_declared(jetstream, declared, mode)
                .await
                .map_err(|error| explain(error, "consumer", &declared.name))?,
        );
    }
    for declared in stream::buckets(&registry.storage) {
        changes.push(
            bucket_as_declared(jetstream, &declared, mode)
                .await
                .map_err(|error| explain(error, "bucket", declared.name))?,
        );
    }
    changes.extend(unregistered(jetstream, &consumers).await?);
    changes.extend(warnings);
    Ok(changes)
}

/// What so many copies do not outlive, where `flushes` has the servers whose monitoring was asked.
pub async fn risks(jetstream: &Context, replicas: usize, flushes: &[danger::Flush]) -> anyhow::Result<Vec<Change>> {
    // In a dry run on a fresh server the stream does not exist yet.
    let clustered = match jetstream.get_stream(stream::JOBS).await {
        // A lone server says that it leads, but names no cluster.
        Ok(jobs) => jobs.cached_info().cluster.as_ref().is_some_and(|cluster| cluster.name.is_some()),
        Err(error) if is_missing(&error) => false,
        Err(error) => return Err(error.into()),
    };
    Ok(danger::copies(replicas, clustered, flushes).into_iter().map(|text| warning(stream::JOBS, text)).collect())
}

/// Looks for settings that lose what was acknowledged, before anything is changed.
async fn survey(jetstream: &Context) -> anyhow::Result<Vec<Change>> {
    let mut warnings = Vec::new();
    for name in danger::promised() {
        let existing = match jetstream.get_stream(&name).await {
            Ok(stream) => stream.cached_info().config.clone(),
            Err(error) if is_missing(&error) => continue,
            Err(error) => return Err(explain(error.into(), "stream", &name)),
        };
        let refusals = danger::refusals(&existing);
        if !refusals.is_empty() {
            bail!(
                "stream {name} would lose messages that it has acknowledged: it has {}. That cannot be changed: when \
                 what it holds is done with, delete it (`nats stream rm {name}`) and run `inferq setup` again",
                refusals.join("; ")
            );
        }
        let told = |what| format!("it had {what}: look for what is missing");
        warnings.extend(danger::mended(&existing).into_iter().map(|what| warning(&name, told(what))));
    }
    Ok(warnings)
}

/// Whether JetStream has not answered: a cluster that has no leader yet may do so later.
pub fn is_unanswered(error: &anyhow::Error) -> bool {
    format!("{error:#}").contains("timed out")
}

fn warning(name: &str, text: String) -> Change {
    Change { kind: "warning", name: name.to_owned(), action: Action::Warned, fields: vec![text] }
}

async fn stream_as_declared(jetstream: &Context, declared: &Stream, mode: Mode) -> anyhow::Result<Change> {
    let existing = match jetstream.get_stream(declared.name).await {
        Ok(stream) => Some(stream.cached_info().config.clone()),
        Err(error) if is_missing(&error) => None,
        Err(error) => return Err(error.into()),
    };
    let wanted = stream_config(declared, existing.clone().unwrap_or_default());
    let change = change("stream", declared.name, existing.as_ref(), &wanted)?;
    if mode == Mode::Apply {
        match change.action {
            Action::Created => drop(jetstream.create_stream(wanted).await?),
            Action::Changed => drop(jetstream.update_stream(wanted).await?),
            Action::Unchanged | Action::Unregistered | Action::Warned => {}
        }
    }
    Ok(change)
}

async fn consumer_as_declared(jetstream: &Context, declared: &Consumer, mode: Mode) -> anyhow::Result<Change> {
    let found: Result<PullConsumer, _> = match jetstream.get_stream_no_info(declared.stream).await {
        Ok(stream) => stream.get_consumer(&declared.name).await,
        Err(error) => return Err(error.into()),
    };
    let existing = found.ok().map(|consumer| pull_config(&consumer));
    let wanted = consumer_config(declared, existing.clone().unwrap_or_default());
    let change = change("consumer", &declared.name, existing.as_ref(), &wanted)?;
    if mode == Mode::Apply && change.action != Action::Unchanged {
        let stream = jetstream.get_stream_no_info(declared.stream).await?;
        stream.create_consumer(wanted).await?;
    }
    Ok(change)
}

async fn bucket_as_declared(jetstream: &Context, declared: &Bucket, mode: Mode) -> anyhow::Result<Change> {
    let stream_name = match declared.kind {
        BucketKind::KeyValue => format!("KV_{}", declared.name),
        BucketKind::Object => format!("OBJ_{}", declared.name),
    };
    let existing = match jetstream.get_stream(&stream_name).await {
        Ok(stream) => Some(stream.cached_info().config.clone()),
        Err(error) if is_missing(&error) => None,
        Err(error) => return Err(error.into()),
    };
    let lay_over = |config: nats::Config| nats::Config {
        discard: discard(declared.discard),
        max_bytes: limit(declared.bytes_max),
        max_age: Duration::from_secs(declared.age_max_seconds),
        num_replicas: declared.replicas,
        allow_rollup: declared.allow_rollup && config.allow_rollup,
        ..config
    };
    let wanted = existing.clone().map(lay_over);
    let change = match (&existing, &wanted) {
        (Some(existing), Some(wanted)) => change("bucket", declared.name, Some(existing), wanted)?,
        _ => Change { kind: "bucket", name: declared.name.to_owned(), action: Action::Created, fields: Vec::new() },
    };
    match (mode, wanted) {
        (Mode::Apply, None) => {
            create_bucket(jetstream, declared).await?;
            // The client library creates buckets that refuse what is new.
            if declared.discard == Discard::Old {
                let made = jetstream.get_stream(&stream_name).await?.cached_info().config.clone();
                jetstream.update_stream(lay_over(made)).await?;
            }
        }
        (Mode::Apply, Some(wanted)) if change.action == Action::Changed => drop(jetstream.update_stream(wanted).await?),
        _ => {}
    }
    Ok(change)
}

async fn create_bucket(jetstream: &Context, declared: &Bucket) -> anyhow::Result<()> {
    let max_age = Duration::from_secs(declared.age_max_seconds);
    match declared.kind {
        BucketKind::KeyValue => {
            let config = kv::Config {
                bucket: declared.name.to_owned(),
                description: declared.description.to_owned(),
                max_age,
                max_bytes: declared.bytes_max,
                num_replicas: declared.replicas,
                ..Default::default()
            };
            jetstream.create_key_value(config).await?;
        }
        BucketKind::Object => {
            let config = object_store::Config {
                bucket: declared.name.to_owned(),
                description: Some(declared.description.to_owned()),
                max_age,
                max_bytes: declared.bytes_max,
                num_replicas: declared.replicas,
                ..Default::default()
            };
            jetstream.create_object_store(config).await?;
        }
    }
    Ok(())
}

/// Consumers of the job stream that nothing in the registry asks for.
async fn unregistered(jetstream: &Context, declared: &[Consumer]) -> anyhow::Result<Vec<Change>> {
    // In a dry run on a fresh server the stream does not exist yet.
    let Ok(jobs) = jetstream.get_stream(stream::JOBS).await else { return Ok(Vec::new()) };
    let names: Vec<String> = jobs.consumer_names().try_collect().await?;
    let left_over = names.into_iter().filter(|name| !declared.iter().any(|consumer| consumer.name == *name));
    let change = |name| Change { kind: "consumer", name, action: Action::Unregistered, fields: Vec::new() };
    Ok(left_over.map(change).collect())
}

/// The declaration laid over what exists, so that only declared fields can differ.
fn stream_config(declared: &Stream, existing: nats::Config) -> nats::Config {
    nats::Config {
        name: declared.name.to_owned(),
        description: Some(declared.description.to_owned()),
        subjects: declared.subjects.clone(),
        retention: if declared.work_queue { RetentionPolicy::WorkQueue } else { RetentionPolicy::Limits },
        discard: discard(declared.discard),
        max_messages_per_subject: limit(declared.messages_per_subject_max),
        discard_new_per_subject: declared.discard == Discard::New && declared.messages_per_subject_max > 0,
        max_bytes: limit(declared.bytes_max),
        max_age: Duration::from_secs(declared.age_max_seconds),
        num_replicas: declared.replicas,
        duplicate_window: Duration::from_secs(declared.duplicate_window_seconds),
        allow_direct: declared.allow_direct,
        republish: declared.republish.map(|copies| Republish {
            source: copies.source.to_owned(),
            destination: copies.destination.to_owned(),
            headers_only: copies.headers_only,
        }),
        no_ack: false,
        allow_rollup: false,
        ..existing
    }
}

fn consumer_config(declared: &Consumer, existing: pull::Config) -> pull::Config {
    pull::Config {
        durable_name: Some(declared.name.clone()),
        name: Some(declared.name.clone()),
        filter_subject: declared.filter.clone(),
        headers_only: declared.headers_only,
        ack_policy: AckPolicy::Explicit,
        ack_wait: Duration::from_secs(declared.ack_wait_seconds),
        // Attempts of a job are counted by the worker, which can then say why it gave up.
        max_deliver: -1,
        // It would distort the delays that workers ask for.
        backoff: Vec::new(),
        // An idle queue must not lose its consumer.
        inactive_threshold: Duration::ZERO,
        max_ack_pending: declared.ack_pending_max,
        max_waiting: WAITING_PULLS_MAX,
        ..existing
    }
}

/// What the server has, in the form that it is asked for.
fn pull_config(consumer: &PullConsumer) -> pull::Config {
    let config = consumer.cached_info().config.clone();
    pull::Config {
        durable_name: config.durable_name,
        name: config.name,
        description: config.description,
        deliver_policy: config.deliver_policy,
        ack_policy: config.ack_policy,
        ack_wait: config.ack_wait,
        max_deliver: config.max_deliver,
        backoff: config.backoff,
        inactive_threshold: config.inactive_threshold,
        headers_only: config.headers_only,
        filter_subject: config.filter_subject,
        max_waiting: config.max_waiting,
        max_ack_pending: config.max_ack_pending,
        ..Default::default()
    }
}

/// Names what failed, and what to do where the server's own words do not say it.
fn explain(error: anyhow::Error, kind: &str, name: &str) -> anyhow::Error {
    let advice = match error.to_string() {
        text if text.contains("insufficient storage") => {
            "; the sizes of [storage] in the registry are reserved at the server: lower them, or give the server more \
             (max_file_store is three quarters of the free disk by default)"
        }
        text if text.contains("no suitable peers") || text.contains("non-clustered mode") => {
            "; storage.replicas in the registry asks for as many servers with JetStream in one cluster, each with room \
             for the sizes of [storage]: lower it, or add servers"
        }
        text if text.contains("timed out") => {
            "; JetStream does not answer in time: a cluster may be choosing a leader, or still be copying"
        }
        _ => "",
    };
    error.context(format!("{kind} {name}{advice}"))
}

fn discard(declared: Discard) -> DiscardPolicy {
    match declared {
        Discard::New => DiscardPolicy::New,
        Discard::Old => DiscardPolicy::Old,
    }
}

/// No limit is 0 in a declaration and -1 at the server.
fn limit(declared: i64) -> i64 {
    if declared == 0 { -1 } else { declared }
}

/// Compares as JSON, which is what the server compares too.
fn change<T: Serialize>(kind: &'static str, name: &str, existing: Option<&T>, wanted: &T) -> anyhow::Result<Change> {
    let (action, fields) = match existing {
        None => (Action::Created, Vec::new()),
        Some(existing) => match differences(&serde_json::to_value(existing)?, &serde_json::to_value(wanted)?) {
            fields if fields.is_empty() => (Action::Unchanged, fields),
            fields => (Action::Changed, fields),
        },
    };
    Ok(Change { kind, name: name.to_owned(), action, fields })
}

fn differences(existing: &serde_json::Value, wanted: &serde_json::Value) -> Vec<String> {
    let (Some(existing), Some(wanted)) = (existing.as_object(), wanted.as_object()) else { return Vec::new() };
    // What is not set is left out.
    let keys: BTreeSet<&String> = existing.keys().chain(wanted.keys()).collect();
    let value = |of: &serde_json::Map<_, _>, key| of.get(key).cloned().unwrap_or_default();
    let differs = |key| {
        let (before, after) = (value(existing, key), value(wanted, key));
        (before != after).then(|| format!("{key}: {before} → {after}"))
    };
    keys.into_iter().filter_map(differs).collect()
}

fn is_missing(error: &async_nats::jetstream::context::GetStreamError) -> bool {
    use async_nats::jetstream::context::GetStreamErrorKind;
    matches!(error.kind(), GetStreamErrorKind::JetStream(error) if error.error_code() == async_nats::jetstream::ErrorCode::STREAM_NOT_FOUND)
}
