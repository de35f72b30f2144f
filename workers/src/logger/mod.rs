//! The logger: job logs, outcomes of jobs, dead letters and advisories of the server as lines of JSON.
//!
//! Each stream is pulled by a task of its own; one writer takes their batches from a bounded channel. A message is
//! acknowledged only after its lines are on the disk: a line may be written twice, after a crash, but none is lost while
//! its stream still has the message.

pub mod config;
mod files;
mod line;
pub mod metrics;
mod pull;
pub mod queue;
mod sink;

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use async_nats::jetstream::consumer::PullConsumer;
use async_nats::jetstream::{Context, Message};
use backon::{ConstantBuilder, Retryable};
use connect::Connection;
use schemas::stream;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

pub use line::Kind;
pub use sink::Sink;

use metrics::Metrics;
use pull::Source;

/// How long to wait before streams and consumers that are missing are looked up again.
const LOOK_UP_AGAIN: Duration = Duration::from_secs(2);

/// How long the last acknowledgements may take when the server is away.
const FLUSH: Duration = Duration::from_secs(2);

/// What one pull brought.
struct Batch {
    kind: Kind,
    messages: Vec<Message>,
}

/// The consumers of the logger. Waits while `inferq setup` has not made them; none when it was stopped meanwhile.
pub async fn look_up(jetstream: &Context, stop: &CancellationToken) -> Option<Vec<(Kind, PullConsumer)>> {
    let forever = ConstantBuilder::default().with_delay(LOOK_UP_AGAIN).without_max_times();
    let found = (|| consumers(jetstream)).retry(forever).notify(|error: &anyhow::Error, _| {
        tracing::warn!(error = %format!("{error:#}"), "waiting for streams and consumers; run `inferq setup`");
    });
    tokio::select! {
        found = found => found.ok(),
        () = stop.cancelled() => None,
    }
}

async fn consumers(jetstream: &Context) -> anyhow::Result<Vec<(Kind, PullConsumer)>> {
    let mut consumers = Vec::new();
    for (kind, declared) in Kind::ALL.into_iter().zip(stream::logger_consumers()) {
        let stream = jetstream.get_stream_no_info(declared.stream).await?;
        let consumer = stream.get_consumer(&declared.name).await;
        let consumer =
            consumer.map_err(anyhow::Error::from_boxed).with_context(|| format!("consumer {}", declared.name))?;
        consumers.push((kind, consumer));
    }
    Ok(consumers)
}

/// Pulls and writes until `stop`, then finishes what was pulled. Fails when lines cannot be written; what they stand
/// for is then not acknowledged.
pub async fn run(
    consumers: Vec<(Kind, PullConsumer)>,
    connection: &Connection,
    sink: Sink,
    metrics: Arc<Metrics>,
    stop: &CancellationToken,
) -> anyhow::Result<()> {
    let (sender, batches) = mpsc::channel(1);
    let mut pulls = JoinSet::new();
    for (kind, consumer) in consumers {
        let source = Source { kind, consumer, connects: connection.connects.clone(), metrics: Arc::clone(&metrics) };
        pulls.spawn(source.run(sender.clone(), stop.clone()));
    }
    drop(sender);
    write(batches, sink, &metrics).await?;
    pulls.join_all().await;
    if !matches!(tokio::time::timeout(FLUSH, connection.client.flush()).await, Ok(Ok(()))) {
        tracing::warn!("the server does not take the last acknowledgements; their lines will be written again");
    }
    Ok(())
}

/// Writes the batches that are there together, so that a busy logger waits for the disk once for all of them.
async fn write(mut batches: mpsc::Receiver<Batch>, mut sink: Sink, metrics: &Metrics) -> anyhow::Result<()> {
    let mut group = Vec::new();
    while batches.recv_many(&mut group, Kind::ALL.len()).await > 0 {
        tokio::task::block_in_place(|| write_group(&group, &mut sink, metrics))
            .context("the lines cannot be written; nothing of them was acknowledged, they come again")?;
        for message in group.drain(..).flat_map(|batch: Batch| batch.messages) {
            if let Err(error) = message.ack().await {
                tracing::warn!(%error, "line not acknowledged; it will be written again");
            }
        }
    }
    Ok(())
}

fn write_group(group: &[Batch], sink: &mut Sink, metrics: &Metrics) -> anyhow::Result<()> {
    let mut text = Vec::new();
    for batch in group {
        for message in &batch.messages {
            text.clear();
            let lines = line::append(batch.kind, message, stored_at(message), &mut text);
            sink.append(&text)?;
            metrics.count(batch.kind, lines, text.len());
            if batch.kind == Kind::Dead {
                let (model, class) = line::given_up(message);
                metrics.count_dead_letter(&model, class);
            }
        }
    }
    sink.sync()
}

fn stored_at(message: &Message) -> time::OffsetDateTime {
    message.info().map_or(time::OffsetDateTime::UNIX_EPOCH, |info| info.published)
}
