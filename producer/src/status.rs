//! Status: what waits, what runs and who works, read from JetStream and from the workers' presence.

use std::collections::BTreeMap;
use std::time::Duration;

use async_nats::Client;
use async_nats::jetstream::{Context, consumer};
use futures::{StreamExt, TryStreamExt};
use schemas::subject::Token;
use schemas::{WORKER_SERVICE, stream};
use serde::Serialize;

/// How long workers have to answer a roll call.
const ROLL_CALL: Duration = Duration::from_millis(400);

#[derive(Clone, Debug, Serialize)]
pub struct Status {
    pub lanes: Vec<LaneStatus>,
    /// Workers alive, by model.
    pub workers: BTreeMap<String, usize>,
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
    let mut infos: Vec<consumer::Info> = jobs.consumers().try_collect().await?;
    infos.sort_by(|a, b| a.config.filter_subject.cmp(&b.config.filter_subject));
    Ok(Status {
        lanes: infos.iter().filter_map(lane).collect(),
        workers: roll_call(client).await?,
        jobs: stream_status(jetstream, stream::JOBS).await,
        results: stream_status(jetstream, stream::RESULTS).await,
        dead: stream_status(jetstream, stream::DEAD).await,
    })
}

fn lane(info: &consumer::Info) -> Option<LaneStatus> {
    let mut tokens = info.config.filter_subject.split('.').skip(2);
    let model = Token::decode(tokens.next()?).ok()?;
    Some(LaneStatus {
        model,
        lane: tokens.next()?.to_owned(),
        queued: info.num_pending,
        in_flight: info.num_ack_pending,
        redelivered: info.num_redelivered,
        lag: info.num_pending + info.num_ack_pending as u64,
    })
}

async fn stream_status(jetstream: &Context, name: &str) -> StreamStatus {
    let Ok(stream) = jetstream.get_stream(name).await else { return StreamStatus::default() };
    let state = &stream.cached_info().state;
    StreamStatus { messages: state.messages, bytes: state.bytes }
}

/// Asks all workers to answer, and counts those that do in time.
async fn roll_call(client: &Client) -> anyhow::Result<BTreeMap<String, usize>> {
    #[derive(serde::Deserialize)]
    struct Ping {
        metadata: BTreeMap<String, String>,
    }
    let inbox = client.new_inbox();
    let mut answers = client.subscribe(inbox.clone()).await?;
    client.publish_with_reply(format!("$SRV.PING.{WORKER_SERVICE}"), inbox, "".into()).await?;
    let mut workers = BTreeMap::new();
    let deadline = tokio::time::Instant::now() + ROLL_CALL;
    while let Ok(Some(answer)) = tokio::time::timeout_at(deadline, answers.next()).await {
        // No responders: there is no worker at all.
        if answer.status.is_some() {
            break;
        }
        if let Ok(Ping { mut metadata }) = serde_json::from_slice(&answer.payload)
            && let Some(model) = metadata.remove("model")
        {
            *workers.entry(model).or_insert(0) += 1;
        }
    }
    Ok(workers)
}
