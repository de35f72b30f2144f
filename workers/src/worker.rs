//! The life of a worker: look up, pull, run, drain.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use async_nats::Client;
use async_nats::jetstream::AckKind;
use async_nats::jetstream::consumer::PullConsumer;
use connect::Connection;
use schemas::registry::Model;
use schemas::stream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::delivery::Delivery;
use crate::engine::text::Text;
use crate::engine::thread::EngineHandle;
use crate::metrics::Metrics;
use crate::pull::Lanes;
use crate::reply::Reply;

/// How long abandoned deliveries have to hand their jobs back.
const HAND_BACK: Duration = Duration::from_secs(2);
/// How long to wait before streams and consumers that are missing are looked up again.
const LOOK_UP_AGAIN: Duration = Duration::from_secs(2);

/// All that a delivery needs, shared by those in flight.
pub struct Station {
    pub name: String,
    pub model: Model,
    pub text: Arc<Text>,
    pub engine: EngineHandle,
    pub reply: Reply,
    pub client: Client,
    pub metrics: Arc<Metrics>,
}

/// A worker that is connected and has its model.
pub struct Worker {
    station: Arc<Station>,
    lanes: Lanes,
    grace: Duration,
}

impl Worker {
    pub fn new(station: Station, consumers: Vec<PullConsumer>, connection: &Connection, grace: Duration) -> Self {
        let lanes = Lanes::new(consumers, station.model.limits.in_flight, connection.connects.clone());
        Self { station: Arc::new(station), lanes, grace }
    }

    /// Pulls and runs jobs until `stop`, then finishes what it has within the grace period and hands back the rest.
    pub async fn run(mut self, stop: CancellationToken) {
        let tracker = TaskTracker::new();
        let abandon = CancellationToken::new();
        while !stop.is_cancelled() {
            for pulled in self.lanes.next(&stop).await {
                let delivery = Delivery::new(Arc::clone(&self.station), pulled.message);
                let abandon = abandon.clone();
                tracker.spawn(async move {
                    if let Some(delivery) = delivery {
                        delivery.run(abandon).await;
                    }
                    drop(pulled.permit);
                });
            }
        }
        tracing::info!(in_flight = tracker.len(), "draining");
        tracker.close();
        let (unstarted, ()) = tokio::join!(self.lanes.drain(), finish(&tracker, &abandon, self.grace));
        for message in unstarted {
            if let Err(error) = message.ack_with(AckKind::Nak(None)).await {
                tracing::warn!(%error, "job not handed back; it returns after ack_wait");
            }
        }
        if let Err(error) = self.station.client.flush().await {
            tracing::warn!(%error, "last messages not flushed");
        }
    }
}

async fn finish(tracker: &TaskTracker, abandon: &CancellationToken, grace: Duration) {
    if tokio::time::timeout(grace, tracker.wait()).await.is_ok() {
        return;
    }
    tracing::warn!(in_flight = tracker.len(), "grace period over, handing jobs back");
    abandon.cancel();
    if tokio::time::timeout(HAND_BACK, tracker.wait()).await.is_err() {
        tracing::error!(in_flight = tracker.len(), "jobs not handed back; they return after ack_wait");
    }
}

/// The consumers of the model's lanes, in order. Waits while `inferq setup` has not made them: it may run after us.
pub async fn look_up(
    connection: &Connection,
    model: &Model,
    stop: &CancellationToken,
) -> anyhow::Result<Vec<PullConsumer>> {
    let mut reported = false;
    loop {
        match consumers(connection, model).await {
            Ok(consumers) => return Ok(consumers),
            Err(error) if !reported => {
                reported = true;
                tracing::warn!(error = %format!("{error:#}"), "waiting for streams and consumers; run `inferq setup`");
            }
            Err(_) => {}
        }
        tokio::select! {
            () = stop.cancelled() => anyhow::bail!("stopped while waiting for streams and consumers"),
            () = tokio::time::sleep(LOOK_UP_AGAIN) => {}
        }
    }
}

async fn consumers(connection: &Connection, model: &Model) -> anyhow::Result<Vec<PullConsumer>> {
    let jobs = connection.jetstream.get_stream_no_info(stream::JOBS).await?;
    let mut consumers = Vec::new();
    for declared in stream::consumers(model) {
        let consumer = jobs.get_consumer(&declared.name).await;
        consumers
            .push(consumer.map_err(anyhow::Error::from_boxed).with_context(|| format!("consumer {}", declared.name))?);
    }
    Ok(consumers)
}
