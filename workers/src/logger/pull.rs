//! Pulling one stream: a batch is full, or a second old. So the disk is waited for about once a second while little
//! happens, and for whole batches while much does.
//!
//! A pending pull is never dropped, which would leave what it brings to nobody until `ack_wait`.

use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::Message;
use async_nats::jetstream::consumer::PullConsumer;
use backon::{BackoffBuilder, ExponentialBuilder};
use futures::StreamExt;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::metrics::Metrics;
use super::{Batch, Kind};

/// Messages of one pull.
const BATCH_MAX: usize = 512;
/// How long a pull gathers. It is also how long a stop may take.
const BATCH_WAIT: Duration = Duration::from_secs(1);
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(5);

/// One of the streams the logger reads.
pub struct Source {
    pub kind: Kind,
    pub consumer: PullConsumer,
    pub connects: watch::Receiver<u64>,
    pub metrics: Arc<Metrics>,
}

impl Source {
    /// Hands over batches until `stop`, or until nobody takes them. A pull that fails is tried again.
    pub async fn run(mut self, batches: mpsc::Sender<Batch>, stop: CancellationToken) {
        let backoff = ExponentialBuilder::default()
            .with_min_delay(RETRY_FIRST)
            .with_max_delay(RETRY_MAX)
            .without_max_times()
            .with_jitter();
        let mut delays = backoff.build();
        while !stop.is_cancelled() {
            match self.pull().await {
                Ok(messages) => {
                    delays = backoff.build();
                    let taken = messages.is_empty() || batches.send(Batch { kind: self.kind, messages }).await.is_ok();
                    if !taken {
                        return;
                    }
                }
                Err(error) => {
                    let kind = self.kind.as_str();
                    tracing::warn!(kind, %error, "pull failed; `inferq setup` makes the consumer where it is missing");
                    tokio::select! {
                        () = stop.cancelled() => {}
                        () = tokio::time::sleep(delays.next().unwrap_or(RETRY_MAX)) => {}
                    }
                }
            }
        }
    }

    async fn pull(&mut self) -> Result<Vec<Message>, async_nats::Error> {
        self.connects.mark_unchanged();
        let mut batch = self.consumer.batch().max_messages(BATCH_MAX).expires(BATCH_WAIT).messages().await?;
        let mut messages = Vec::new();
        loop {
            let next = tokio::select! {
                biased;
                next = batch.next() => next,
                // After a reconnect the server knows nothing of the pull; what it sent before has been read above.
                _ = self.connects.changed() => break,
            };
            match next {
                Some(Ok(message)) => messages.push(message),
                Some(Err(error)) if messages.is_empty() => return Err(error),
                Some(Err(_)) | None => break,
            }
        }
        self.measure(&messages);
        Ok(messages)
    }

    fn measure(&self, messages: &[Message]) {
        let waiting = |message: &Message| message.info().map_or(0, |info| info.pending);
        let came_again = |message: &&Message| message.info().is_ok_and(|info| info.delivered > 1);
        self.metrics.set_lag(self.kind, messages.last().map_or(0, waiting));
        self.metrics.count_redelivered(self.kind, messages.iter().filter(came_again).count());
    }
}
