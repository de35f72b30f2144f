//! Results of a tenant as they arrive: from the stream, or live where the stream itself is closed.

use anyhow::Context as _;
use async_nats::HeaderMap;
use async_nats::jetstream::Message;
use async_nats::jetstream::consumer::{DeliverPolicy, pull};
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use schemas::stream;
use schemas::subject::{ReplyTokens, Token, live_subject};

use crate::client::Client;
use crate::reach::Reach;

pub struct Arrival {
    pub job_id: String,
    pub headers: Option<HeaderMap>,
    pub payload: Bytes,
    /// Its sequence in the stream and how many are behind it, where it comes from there.
    pub place: Option<(u64, u64)>,
}

pub type Arrivals = BoxStream<'static, anyhow::Result<Arrival>>;

/// The results since a sequence, or, for a tenant's own credentials, from now on, and how many there are already.
pub async fn open(client: &Client, tenant: &Token, reach: Reach, after: u64) -> anyhow::Result<(Arrivals, u64)> {
    match reach {
        Reach::All => stored(client, tenant, after).await,
        Reach::Own => Ok((live(client, tenant).await?, 0)),
    }
}

/// All results since a sequence, in order and without gaps, over reconnects too, and how many there are already.
async fn stored(client: &Client, tenant: &Token, after: u64) -> anyhow::Result<(Arrivals, u64)> {
    let stream = client.connection.jetstream.get_stream_no_info(stream::RESULTS).await?;
    let config = pull::OrderedConfig {
        filter_subject: all_results(tenant),
        deliver_policy: DeliverPolicy::ByStartSequence { start_sequence: after + 1 },
        ..Default::default()
    };
    let consumer = stream.create_consumer(config).await?;
    let pending = consumer.cached_info().num_pending;
    let messages = consumer.messages().await?;
    Ok((messages.map(|message| arrived(message?)).boxed(), pending))
}

/// Results from now on. Some may be missed, which only asking for them tells.
async fn live(client: &Client, tenant: &Token) -> anyhow::Result<Arrivals> {
    let live = client.connection.client.subscribe(live_subject(&all_results(tenant))).await?;
    let arrived = |message: async_nats::Message| {
        let job_id = job_id(&message.subject);
        Ok(Arrival { job_id, headers: message.headers, payload: message.payload, place: None })
    };
    Ok(live.map(arrived).boxed())
}

/// The sequence of the last result of anybody.
pub async fn last(client: &Client) -> anyhow::Result<u64> {
    let results = client.connection.jetstream.get_stream(stream::RESULTS).await;
    let results = results.with_context(|| format!("stream {}; run `inferq setup`", stream::RESULTS))?;
    Ok(results.cached_info().state.last_sequence)
}

fn arrived(message: Message) -> anyhow::Result<Arrival> {
    let place = message.info().map(|info| (info.stream_sequence, info.pending)).map_err(anyhow::Error::from_boxed)?;
    let (message, _) = message.split();
    let job_id = job_id(&message.subject);
    Ok(Arrival { job_id, headers: message.headers, payload: message.payload, place: Some(place) })
}

fn all_results(tenant: &Token) -> String {
    ReplyTokens { tenant: tenant.as_str(), job_id: "*" }.result_subject()
}

fn job_id(subject: &str) -> String {
    subject.rsplit('.').next().unwrap_or_default().to_owned()
}
