//! The state of a deployment: what waits, what runs, how long that will take and who works on it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use async_nats::Client;
use async_nats::jetstream::stream::Stream;
use async_nats::jetstream::{Context, consumer};
use futures::{StreamExt, TryStreamExt};
use schemas::pace::{self, Pace};
use schemas::subject::Token;
use schemas::{WORKER_SERVICE, header, stream};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::backlog::{Rate, places};

/// How long workers have to answer.
const ROLL_CALL: Duration = Duration::from_millis(400);
/// Jobs of a lane whose cost is looked at, and how many at a time.
const SAMPLE: u64 = 32;
const SAMPLE_AT_A_TIME: usize = 8;

#[derive(Clone, Debug, Serialize)]
pub struct Status {
    pub lanes: Vec<LaneStatus>,
    /// Workers alive, by model.
    pub workers: BTreeMap<String, usize>,
    pub models: BTreeMap<String, ModelStatus>,
    pub jobs: StreamStatus,
    pub results: StreamStatus,
    pub dead: StreamStatus,
}

/// One lane of one model.
#[derive(Clone, Debug, Serialize)]
pub struct LaneStatus {
    pub model: String,
    pub lane: String,
    /// Jobs waiting.
    pub queued: u64,
    /// Jobs delivered and not acknowledged.
    pub in_flight: usize,
    /// Of those, delivered more than once.
    pub redelivered: usize,
    /// What KEDA scales by: queued and in flight.
    pub lag: u64,
    /// What the waiting jobs will take all workers of the model together. None while that is not known.
    pub backlog_seconds: Option<f64>,
}

/// What the workers of one model say of their pace, and what waits for them in all lanes.
#[derive(Clone, Debug, Serialize)]
pub struct ModelStatus {
    #[serde(flatten)]
    pub rate: Rate,
    pub backlog_seconds: Option<f64>,
}

#[derive(Clone, Debug, Default, Serialize)]
pub struct StreamStatus {
    pub messages: u64,
    pub bytes: u64,
}

/// Reads the state of a deployment.
pub async fn status(client: &Client, jetstream: &Context) -> anyhow::Result<Status> {
    let jobs = jetstream
        .get_stream(stream::JOBS)
        .await
        .map_err(|error| anyhow::anyhow!("stream {}: {error}; run `inferq setup`", stream::JOBS))?;
    let (workers, paces) = tokio::try_join!(roll_call(client), paces(client))?;
    let mut infos: Vec<consumer::Info> = jobs.consumers().try_collect().await?;
    infos.sort_by(|a, b| a.config.filter_subject.cmp(&b.config.filter_subject));
    let last = jobs.cached_info().state.last_sequence;
    let mut lanes = Vec::new();
    for info in &infos {
        lanes.extend(lane(&jobs, info, last, &paces).await);
    }
    Ok(Status {
        models: models(&lanes, &paces),
        lanes,
        workers,
        jobs: stream_status(jetstream, stream::JOBS).await,
        results: stream_status(jetstream, stream::RESULTS).await,
        dead: stream_status(jetstream, stream::DEAD).await,
    })
}

async fn lane<I>(jobs: &Stream<I>, info: &consumer::Info, last: u64, paces: &[Pace]) -> Option<LaneStatus> {
    let filter = &info.config.filter_subject;
    let mut tokens = filter.split('.').skip(2);
    let model = Token::decode(tokens.next()?).ok()?;
    let rate = rate(paces, &model);
    let costs = match (info.num_pending, rate.units_per_second) {
        (0, _) | (_, None) => Vec::new(),
        _ => costs(jobs, filter, info.delivered.stream_sequence + 1, last).await,
    };
    Some(LaneStatus {
        lane: tokens.next()?.to_owned(),
        queued: info.num_pending,
        in_flight: info.num_ack_pending,
        redelivered: info.num_redelivered,
        lag: info.num_pending + info.num_ack_pending as u64,
        backlog_seconds: rate.seconds(info.num_pending, &costs),
        model,
    })
}

fn models(lanes: &[LaneStatus], paces: &[Pace]) -> BTreeMap<String, ModelStatus> {
    let names: BTreeSet<&String> =
        lanes.iter().map(|lane| &lane.model).chain(paces.iter().map(|pace| &pace.model)).collect();
    let status = |name: &String| {
        let of_model = lanes.iter().filter(|lane| lane.model == *name);
        // One lane that is not known leaves the sum unknown.
        ModelStatus { rate: rate(paces, name), backlog_seconds: of_model.map(|lane| lane.backlog_seconds).sum() }
    };
    names.into_iter().map(|name| (name.clone(), status(name))).collect()
}

/// What the workers of a model say together.
pub(crate) fn rate(paces: &[Pace], model: &str) -> Rate {
    Rate::of(paces.iter().filter(|pace| pace.model == model))
}

/// What producers say that jobs cost, of an even sample of those between two sequences.
pub(crate) async fn costs<I>(jobs: &Stream<I>, filter: &str, from: u64, to: u64) -> Vec<Option<f64>> {
    let look = async |sequence| {
        // One that is not found there, or not in time, is not in the sample.
        let job = jobs.direct_get_next_for_subject(filter, Some(sequence)).await.ok()?;
        let cost = job.headers.get(header::COST).and_then(|cost| cost.as_str().parse::<f64>().ok());
        Some((job.sequence, cost.filter(|cost| (0.0..=header::COST_MAX).contains(cost))))
    };
    let found = futures::stream::iter(places(from, to, SAMPLE)).map(look).buffer_unordered(SAMPLE_AT_A_TIME);
    // The next job after two places may be the same one.
    let found: BTreeMap<u64, Option<f64>> = found.filter_map(std::future::ready).collect().await;
    found.into_values().collect()
}

async fn stream_status(jetstream: &Context, name: &str) -> StreamStatus {
    let Ok(stream) = jetstream.get_stream(name).await else { return StreamStatus::default() };
    let state = &stream.cached_info().state;
    StreamStatus { messages: state.messages, bytes: state.bytes }
}

/// Counts the workers that are there, by model.
async fn roll_call(client: &Client) -> anyhow::Result<BTreeMap<String, usize>> {
    #[derive(serde::Deserialize)]
    struct Ping {
        metadata: BTreeMap<String, String>,
    }
    let mut workers = BTreeMap::new();
    for Ping { mut metadata } in ask(client, format!("$SRV.PING.{WORKER_SERVICE}")).await? {
        if let Some(model) = metadata.remove("model") {
            *workers.entry(model).or_insert(0) += 1;
        }
    }
    Ok(workers)
}

/// What each worker says of its pace.
pub(crate) async fn paces(client: &Client) -> anyhow::Result<Vec<Pace>> {
    ask(client, pace::SUBJECT.to_owned()).await
}

/// Asks all workers, and keeps the answers that come in time and can be read.
async fn ask<T: DeserializeOwned>(client: &Client, subject: String) -> anyhow::Result<Vec<T>> {
    let inbox = client.new_inbox();
    let mut answers = client.subscribe(inbox.clone()).await?;
    client.publish_with_reply(subject, inbox, "".into()).await?;
    let mut read = Vec::new();
    let deadline = tokio::time::Instant::now() + ROLL_CALL;
    while let Ok(Some(answer)) = tokio::time::timeout_at(deadline, answers.next()).await {
        // No responders: there is no worker at all.
        if answer.status.is_some() {
            break;
        }
        read.extend(serde_json::from_slice(&answer.payload).ok());
    }
    Ok(read)
}
