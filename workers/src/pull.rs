//! Pulling: as many jobs as there are free permits, in the order of the lanes, and never more.
//!
//! A lane is either *ready* (it had jobs when last asked) and is asked at once for as many as there are permits, or
//! *parked*: one long poll for one job waits at the server, holding one permit. So an idle worker costs a request a second
//! and lane, a busy one asks only where there is work, and nothing is ever received that cannot be started.
//!
//! A pending pull is never dropped: a job sent to a dropped one would wait for `ack_wait`.

use std::time::Duration;

use async_nats::jetstream::Message;
use async_nats::jetstream::consumer::PullConsumer;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio_util::sync::CancellationToken;

/// How long a parked pull waits at the server. It is also how long a drain may take to end idle pulls.
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

/// The lanes of one worker.
pub struct Lanes {
    consumers: Vec<PullConsumer>,
    ready: Vec<bool>,
    parked: FuturesUnordered<BoxFuture<'static, Parked>>,
    permits: Arc<Semaphore>,
    in_flight: usize,
    connects: watch::Receiver<u64>,
}

/// A long poll that has ended.
struct Parked {
    lane: usize,
    permit: OwnedSemaphorePermit,
    batch: Batch,
}

/// What one pull brought.
struct Batch {
    messages: Vec<Message>,
    /// Whether the lane has more.
    more: bool,
}

impl Lanes {
    /// `consumers` in order of precedence; `in_flight` is at least their number.
    pub fn new(consumers: Vec<PullConsumer>, in_flight: usize, connects: watch::Receiver<u64>) -> Self {
        let ready = vec![true; consumers.len()];
        Self {
            consumers,
            ready,
            parked: FuturesUnordered::new(),
            permits: Arc::new(Semaphore::new(in_flight)),
            in_flight,
            connects,
        }
    }

    /// Waits for work and for permits. Empty after `stop`.
    pub async fn next(&mut self, stop: &CancellationToken) -> Vec<Pulled> {
        loop {
            let permits = Arc::clone(&self.permits);
            tokio::select! {
                biased;
                () = stop.cancelled() => return Vec::new(),
                Some(parked) = self.parked.next() => {
                    if let Some(pulled) = self.unpark(parked) {
                        return vec![pulled];
                    }
                }
                permit = permits.acquire_owned(), if self.ready.contains(&true) => {
                    let permit = permit.expect("the semaphore is never closed");
                    let pulled = self.sweep(permit).await;
                    if !pulled.is_empty() {
                        return pulled;
                    }
                }
            }
        }
    }

    /// Ends the parked pulls and gives what they still brought, to be handed back.
    pub async fn drain(mut self) -> Vec<Message> {
        let mut messages = Vec::new();
        while let Some(parked) = self.parked.next().await {
            messages.extend(parked.batch.messages);
        }
        messages
    }

    /// Asks the ready lanes in order for all the permits that are free. A lane that has no more is parked.
    async fn sweep(&mut self, first: OwnedSemaphorePermit) -> Vec<Pulled> {
        let mut permits = self.gather(first).await;
        let mut pulled = Vec::with_capacity(permits.num_permits());
        for lane in 0..self.consumers.len() {
            let asked = permits.num_permits();
            if !self.ready[lane] || asked == 0 {
                continue;
            }
            let batch = pull(&self.consumers[lane], asked, None, self.connects.clone()).await;
            for message in batch.messages {
                let permit = permits.split(1).expect("a pull brings at most what was asked");
                pulled.push(Pulled { message, permit });
            }
            if !batch.more
                && let Some(permit) = permits.split(1)
            {
                self.park(lane, permit);
            }
        }
        pulled
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

    fn park(&mut self, lane: usize, permit: OwnedSemaphorePermit) {
        self.ready[lane] = false;
        let consumer = self.consumers[lane].clone();
        let connects = self.connects.clone();
        let wait = async move {
            let batch = pull(&consumer, 1, Some(PARK), connects).await;
            Parked { lane, permit, batch }
        };
        self.parked.push(wait.boxed());
    }

    fn unpark(&mut self, parked: Parked) -> Option<Pulled> {
        let Parked { lane, permit, mut batch } = parked;
        let Some(message) = batch.messages.pop() else {
            self.park(lane, permit);
            return None;
        };
        match Arc::clone(&self.permits).try_acquire_owned() {
            // The lane has no more, so the next job is waited for at the server again.
            Ok(next) if !batch.more => self.park(lane, next),
            _ => self.ready[lane] = true,
        }
        Some(Pulled { message, permit })
    }
}

/// One pull: for what is there now (`wait` is none), or for the first that comes.
async fn pull(
    consumer: &PullConsumer,
    max: usize,
    wait: Option<Duration>,
    mut connects: watch::Receiver<u64>,
) -> Batch {
    connects.mark_unchanged();
    let mut request = consumer.fetch().max_messages(max);
    if let Some(wait) = wait {
        request = request.expires(wait);
    }
    let mut batch = match request.messages().await {
        Ok(batch) => batch,
        Err(error) => return failed(&error).await,
    };
    let silence = SILENCE_MAX + wait.unwrap_or_default();
    let mut messages = Vec::with_capacity(max);
    loop {
        let next = tokio::select! {
            biased;
            next = batch.next() => next,
            // After a reconnect the server knows nothing of the pull; what it sent before has been read above.
            _ = connects.changed() => break,
            () = tokio::time::sleep(silence) => break,
        };
        match next {
            Some(Ok(message)) => messages.push(message),
            Some(Err(error)) if messages.is_empty() => return failed(&*error).await,
            Some(Err(_)) | None => break,
        }
    }
    let more =
        messages.len() == max && messages.last().is_some_and(|last| last.info().is_ok_and(|info| info.pending > 0));
    Batch { messages, more }
}

async fn failed(error: &(dyn std::error::Error + Send + Sync)) -> Batch {
    tracing::warn!(%error, "pull failed");
    tokio::time::sleep(FAILURE_DELAY).await;
    Batch { messages: Vec::new(), more: false }
}
