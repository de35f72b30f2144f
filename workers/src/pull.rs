//! Pulling: as many jobs of a lane as there are free permits, and never more.
//!
//! Each lane has permits and a pull of its own, so that no lane waits for another one's jobs to end: which of the jobs
//! that are here starts first is for the engine's queue to say. A pull waits at the server until there is a job, so an
//! idle lane costs a request a second.
//!
//! A pending pull is never dropped: a job sent to a dropped one would wait for `ack_wait`.

use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::Message;
use async_nats::jetstream::consumer::PullConsumer;
use futures::StreamExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio_util::sync::CancellationToken;

/// How long a pull waits at the server. It is also how long a drain may take to end idle pulls.
const PARK: Duration = Duration::from_secs(1);
/// How long a server that is asked for what it has may be silent before the pull is taken for lost.
const SILENCE_MAX: Duration = Duration::from_secs(6);
/// One of so many parts of the permits is waited for before a pull, but not for longer than a moment.
const GATHER_SHARE: usize = 4;
const GATHER_MAX: Duration = Duration::from_millis(5);
/// How long to wait before a lane whose pull failed is asked again.
const FAILURE_DELAY: Duration = Duration::from_millis(500);

/// A job with the right to run.
pub struct Pulled {
    pub message: Message,
    pub permit: OwnedSemaphorePermit,
}

/// One lane of one worker.
pub struct Pull {
    lane: &'static str,
    consumer: PullConsumer,
    permits: Arc<Semaphore>,
    in_flight: usize,
    /// Whether the lane had jobs when it was last asked: then it is asked for all that it has, and otherwise the server is
    /// asked to wait for the first.
    is_ready: bool,
    connects: watch::Receiver<u64>,
}

impl Pull {
    pub fn new(lane: &'static str, consumer: PullConsumer, in_flight: usize, connects: watch::Receiver<u64>) -> Self {
        Self { lane, consumer, permits: Arc::new(Semaphore::new(in_flight)), in_flight, is_ready: true, connects }
    }

    pub fn lane(&self) -> &'static str {
        self.lane
    }

    /// Waits for permits and for work. Empty after `stop`, and when there was no work for a while.
    pub async fn next(&mut self, stop: &CancellationToken) -> Vec<Pulled> {
        let permits = Arc::clone(&self.permits);
        let first = tokio::select! {
            biased;
            () = stop.cancelled() => return Vec::new(),
            permit = permits.acquire_owned() => permit.expect("the semaphore is never closed"),
        };
        let mut permits = self.gather(first).await;
        let messages = self.fetch(permits.num_permits()).await;
        self.is_ready = !messages.is_empty();
        let with_permit = |message| {
            let permit = permits.split(1).expect("a pull brings at most what was asked");
            Pulled { message, permit }
        };
        messages.into_iter().map(with_permit).collect()
    }

    /// All permits that are free. A busy worker waits a moment until a share of them is, so that quick jobs are asked for
    /// in batches and not one by one: a pull costs the server about as much as a job.
    async fn gather(&self, mut permits: OwnedSemaphorePermit) -> OwnedSemaphorePermit {
        let share = self.in_flight / GATHER_SHARE;
        let missing = share.saturating_sub(self.permits.available_permits() + 1);
        if missing > 0 {
            let more = Arc::clone(&self.permits).acquire_many_owned(u32::try_from(share).unwrap_or(u32::MAX));
            if let Ok(Ok(more)) = tokio::time::timeout(GATHER_MAX, more).await {
                permits.merge(more);
            }
        }
        let free = u32::try_from(self.permits.available_permits()).unwrap_or(u32::MAX);
        if let Ok(more) = Arc::clone(&self.permits).try_acquire_many_owned(free) {
            permits.merge(more);
        }
        permits
    }

    /// What is there now, or the first that comes within a while.
    async fn fetch(&mut self, max: usize) -> Vec<Message> {
        self.connects.mark_unchanged();
        let mut request = self.consumer.fetch().max_messages(max);
        if !self.is_ready {
            request = request.expires(PARK);
        }
        let mut batch = match request.messages().await {
            Ok(batch) => batch,
            Err(error) => return failed(&error).await,
        };
        let mut messages = Vec::with_capacity(max);
        loop {
            let next = tokio::select! {
                biased;
                next = batch.next() => next,
                // After a reconnect the server knows nothing of the pull; what it sent before has been read above.
                _ = self.connects.changed() => break,
                () = tokio::time::sleep(PARK + SILENCE_MAX) => break,
            };
            match next {
                Some(Ok(message)) => messages.push(message),
                Some(Err(error)) if messages.is_empty() => return failed(&*error).await,
                Some(Err(_)) | None => break,
            }
        }
        messages
    }
}

async fn failed(error: &(dyn std::error::Error + Send + Sync)) -> Vec<Message> {
    tracing::warn!(%error, "pull failed");
    tokio::time::sleep(FAILURE_DELAY).await;
    Vec::new()
}
