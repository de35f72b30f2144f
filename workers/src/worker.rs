//! The life of a worker: pull, run, drain.

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_nats::jetstream::consumer::PullConsumer;
use connect::Connection;
use schemas::stream;
use schemas::subject::LIFTED;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::delivery::Delivery;
use crate::lift;
use crate::pace;
use crate::pull::Pull;
use crate::station::Station;

/// How long abandoned deliveries have to hand their jobs back.
const HAND_BACK: Duration = Duration::from_secs(2);
/// How often the engine is looked at.
const WATCH: Duration = Duration::from_secs(1);

/// A worker that is connected and has its model.
pub struct Worker {
    station: Arc<Station>,
    pulls: Vec<Pull>,
    grace: Duration,
}

impl Worker {
    pub fn new(station: Station, consumers: Vec<PullConsumer>, connection: &Connection, grace: Duration) -> Self {
        let in_flight = station.model.limits.in_flight;
        let lanes = station.model.lanes.iter().map(|lane| lane.as_str()).chain([LIFTED]);
        let pull = |(lane, consumer)| Pull::new(lane, consumer, in_flight, connection.connects.clone());
        Self { pulls: lanes.zip(consumers).map(pull).collect(), station: Arc::new(station), grace }
    }

    /// Pulls and runs jobs until `stop`, then finishes what it has within the grace period and hands back the rest.
    pub async fn run(self, stop: CancellationToken) -> anyhow::Result<()> {
        let Self { station, pulls, grace } = self;
        let _listening = station.running.listen(&station.client, &station.model.token()).await?;
        let _announced = pace::announce(Arc::clone(&station.pace), &station.client).await?;
        let jobs = station.jetstream.get_stream_no_info(stream::JOBS).await?;
        for &lane in &station.model.lanes {
            tokio::spawn(lift::look_after(Arc::clone(&station), lane, jobs.clone(), stop.clone()));
        }
        let tracker = TaskTracker::new();
        let abandon = CancellationToken::new();
        let lanes = pulls.into_iter().map(|pull| serve(pull, &station, &tracker, &abandon, &stop));
        let (_, stopped) = tokio::join!(futures::future::join_all(lanes), async {
            stop.cancelled().await;
            station.metrics.begin_drain();
            tracing::info!(in_flight = tracker.len(), "draining");
            Instant::now()
        });
        tracker.close();
        finish(&tracker, &abandon, grace.saturating_sub(stopped.elapsed())).await;
        tracing::info!(seconds = stopped.elapsed().as_secs_f64(), "drained");
        // Without a server there is nobody to send them to.
        match tokio::time::timeout(HAND_BACK, station.client.flush()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "last messages not flushed"),
            Err(_) => tracing::warn!("last messages not flushed: nats is away"),
        }
        Ok(())
    }
}

/// Runs the jobs of one lane, each in a task of its own. What a pull brings that was on its way at the stop is run too:
/// most of it can be finished, and what cannot is handed back with the rest.
async fn serve(
    mut pull: Pull,
    station: &Arc<Station>,
    tracker: &TaskTracker,
    abandon: &CancellationToken,
    stop: &CancellationToken,
) {
    while !stop.is_cancelled() {
        let pulled = pull.next(stop).await;
        let waiting = pulled.last().and_then(|last| last.message.info().ok()).map_or(0, |info| info.pending);
        station.metrics.note_waiting(pull.lane(), waiting);
        station.metrics.note_pace(&station.pace);
        for pulled in pulled {
            let delivery = Delivery::new(Arc::clone(station), pulled.message);
            let abandon = abandon.clone();
            tracker.spawn(async move {
                if let Some(delivery) = delivery {
                    delivery.run(abandon).await;
                }
                drop(pulled.permit);
            });
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

/// Gives the engine up when a step of it takes longer than the model allows: its jobs are tried again elsewhere.
pub async fn watch_engine(stepping: impl Fn() -> Option<Duration>, step_max: Duration, stopped: CancellationToken) {
    loop {
        tokio::time::sleep(WATCH).await;
        if let Some(stepping) = stepping().filter(|stepping| *stepping > step_max) {
            tracing::error!(seconds = stepping.as_secs_f64(), "the engine hangs in its step and is given up");
            stopped.cancel();
            return;
        }
    }
}
