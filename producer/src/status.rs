//! The state of a deployment: what waits, what runs, how long that will take and who works on it.

use std::collections::{BTreeMap, BTreeSet};

use async_nats::Client;
use async_nats::jetstream::Context;
use backlog::{Lane, Rate, ask, lanes, model_seconds, paces};
use schemas::pace::Pace;
use schemas::{WORKER_SERVICE, stream};
use serde::Serialize;
use time::OffsetDateTime;

#[derive(Clone, Debug, Default, Serialize)]
pub struct Status {
    pub lanes: Vec<LaneStatus>,
    /// Workers alive, by model.
    pub workers: BTreeMap<String, usize>,
    pub models: BTreeMap<String, ModelStatus>,
    /// What each worker says of itself.
    pub paces: Vec<Pace>,
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
    /// Age of the first of the jobs that wait.
    pub age_seconds: Option<f64>,
    /// Jobs that were acknowledged since the lane was made.
    pub acknowledged: u64,
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
    let told = async { paces(client).await.map_err(anyhow::Error::from_boxed) };
    let (workers, paces) = tokio::try_join!(roll_call(client), told)?;
    let lanes = lanes(&jobs).await?;
    Ok(Status {
        models: models(&lanes, &paces),
        lanes: lanes.into_iter().map(|lane| lane_status(lane, &paces)).collect(),
        workers,
        paces,
        jobs: stream_status(jetstream, stream::JOBS).await,
        results: stream_status(jetstream, stream::RESULTS).await,
        dead: stream_status(jetstream, stream::DEAD).await,
    })
}

fn lane_status(lane: Lane, paces: &[Pace]) -> LaneStatus {
    let Lane { model, lane, queued, in_flight, redelivered, oldest, acknowledged, costs } = lane;
    let backlog_seconds = Rate::of_model(paces, &model).seconds(queued, &costs);
    let lag = queued + in_flight as u64;
    let age_seconds = oldest.map(|oldest| (OffsetDateTime::now_utc() - oldest).as_seconds_f64().max(0.0));
    LaneStatus { model, lane, queued, in_flight, redelivered, lag, backlog_seconds, age_seconds, acknowledged }
}

fn models(lanes: &[Lane], paces: &[Pace]) -> BTreeMap<String, ModelStatus> {
    let names: BTreeSet<&String> =
        lanes.iter().map(|lane| &lane.model).chain(paces.iter().map(|pace| &pace.model)).collect();
    let status = |name: &String| {
        let rate = Rate::of_model(paces, name);
        ModelStatus { backlog_seconds: model_seconds(lanes, name, &rate), rate }
    };
    names.into_iter().map(|name| (name.clone(), status(name))).collect()
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
    let answers = ask(client, format!("$SRV.PING.{WORKER_SERVICE}")).await.map_err(anyhow::Error::from_boxed)?;
    for Ping { mut metadata } in answers {
        if let Some(model) = metadata.remove("model") {
            *workers.entry(model).or_insert(0) += 1;
        }
    }
    Ok(workers)
}
