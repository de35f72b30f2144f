//! The station: all that a delivery needs, shared by those in flight.

use std::sync::Arc;
use std::time::Duration;

use async_nats::Client;
use async_nats::jetstream::Context;
use async_nats::jetstream::consumer::PullConsumer;
use connect::Connection;
use schemas::registry::Model;
use schemas::stream;
use tokio_util::sync::CancellationToken;
use traces::Traces;

use crate::attempts::Ledger;
use crate::bodies::Bodies;
use crate::cache::Cache;
use crate::cancel::Running;
use crate::chunks::Chunks;
use crate::engine::text::Text;
use crate::engine::thread::EngineHandle;
use crate::lift::{Held, Tenants};
use crate::metrics::Metrics;
use crate::pace::Pace;
use crate::provenance::Origin;
use crate::reply::Reply;

/// How long to wait before streams and consumers that are missing are looked up again.
const LOOK_UP_AGAIN: Duration = Duration::from_secs(2);

pub struct Station {
    pub name: String,
    pub model: Model,
    pub text: Arc<Text>,
    pub engine: EngineHandle,
    pub client: Client,
    pub metrics: Arc<Metrics>,
    pub origin: Origin,
    pub traces: Traces,
    pub(crate) running: Running,
    pub(crate) reply: Reply,
    pub(crate) ledger: Ledger,
    pub(crate) bodies: Bodies,
    pub(crate) chunks: Chunks,
    pub(crate) cache: Cache,
    pub(crate) pace: Arc<Pace>,
    pub(crate) held: Held,
    pub(crate) tenants: Tenants,
    pub(crate) jetstream: Context,
}

/// What a worker is made of before it has looked anything up at the server.
pub struct Parts {
    pub name: String,
    pub model: Model,
    pub text: Arc<Text>,
    pub engine: EngineHandle,
    pub metrics: Arc<Metrics>,
    pub origin: Origin,
    pub traces: Traces,
    /// `cpu` or `cuda`.
    pub device: &'static str,
    /// Subjects outside input may name as `Inferq-Reply-To`.
    pub reply_prefixes: Vec<String>,
}

/// The station and the consumers of the model's lanes. Waits while `inferq setup` has not made what they stand on: it
/// may run after us.
pub async fn look_up(
    connection: &Connection,
    parts: Parts,
    stop: &CancellationToken,
) -> anyhow::Result<(Station, Vec<PullConsumer>)> {
    let mut reported = false;
    loop {
        match try_look_up(connection, &parts).await {
            Ok((found, consumers)) => {
                let Parts { name, model, device, text, engine, metrics, origin, traces, .. } = parts;
                let (reply, ledger, bodies, chunks, tenants) = found;
                let jetstream = connection.jetstream.clone();
                let client = connection.client.clone();
                let running = Running::default();
                let cache = Cache::new(model.cache, connection, &origin.identity());
                let pace = Arc::new(Pace::new(&name, &model.name, device, engine.watch()));
                let station = Station {
                    name,
                    model,
                    text,
                    engine,
                    client,
                    metrics,
                    origin,
                    traces,
                    running,
                    reply,
                    ledger,
                    bodies,
                    chunks,
                    cache,
                    pace,
                    held: Held::default(),
                    tenants,
                    jetstream,
                };
                return Ok((station, consumers));
            }
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

type Found = (Reply, Ledger, Bodies, Chunks, Tenants);

async fn try_look_up(connection: &Connection, parts: &Parts) -> anyhow::Result<(Found, Vec<PullConsumer>)> {
    use anyhow::Context as _;
    let jetstream = &connection.jetstream;
    let jobs = jetstream.get_stream_no_info(stream::JOBS).await?;
    let mut consumers = Vec::new();
    for declared in stream::consumers(&parts.model) {
        let consumer = jobs.get_consumer(&declared.name).await.map_err(anyhow::Error::from_boxed);
        consumers.push(consumer.with_context(|| format!("consumer {}", declared.name))?);
    }
    let reply = Reply::new(jetstream.clone(), parts.reply_prefixes.clone()).await?;
    let ledger = Ledger::new(jetstream).await.with_context(|| format!("bucket {}", stream::ATTEMPTS_BUCKET))?;
    let bodies = Bodies::new(jetstream);
    let chunks = Chunks::new(jetstream.clone()).await?;
    let tenants = Tenants::new(jetstream).await.with_context(|| format!("bucket {}", stream::TENANTS_BUCKET))?;
    Ok(((reply, ledger, bodies, chunks, tenants), consumers))
}
