//! The lanes of all models, and a look at the jobs that wait in them.

use std::collections::BTreeMap;

use async_nats::jetstream::consumer;
use async_nats::jetstream::message::StreamMessage;
use async_nats::jetstream::stream::{ConsumerError, Stream};
use futures::{StreamExt, TryStreamExt};
use schemas::header;
use schemas::subject::{Token, is_lifted};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::rate::{Rate, places};

/// Jobs of a lane that are looked at, and how many at a time.
const SAMPLE: u64 = 32;
const SAMPLE_AT_A_TIME: usize = 8;

/// One lane of one model.
#[derive(Clone, Debug)]
pub struct Lane {
    pub model: String,
    pub lane: String,
    /// Jobs waiting.
    pub queued: u64,
    /// Jobs delivered and not acknowledged.
    pub in_flight: usize,
    /// Of those, delivered more than once.
    pub redelivered: usize,
    /// When the first of the waiting jobs was published.
    pub oldest: Option<OffsetDateTime>,
    /// Jobs that were acknowledged since the consumer was made.
    pub acknowledged: u64,
    /// What producers say that jobs cost, of an even sample of the waiting ones.
    pub costs: Vec<Option<f64>>,
}

/// A waiting job that was looked at.
struct Seen {
    published: OffsetDateTime,
    cost: Option<f64>,
}

/// All lanes, in the order of their subjects. `jobs` is the stream of jobs with fresh information.
pub async fn lanes(jobs: &Stream) -> Result<Vec<Lane>, ConsumerError> {
    let mut infos: Vec<consumer::Info> = jobs.consumers().try_collect().await?;
    infos.sort_by(|a, b| a.config.filter_subject.cmp(&b.config.filter_subject));
    let mut lanes = Vec::new();
    for info in &infos {
        lanes.extend(lane(jobs, info).await);
    }
    Ok(lanes)
}

async fn lane(jobs: &Stream, info: &consumer::Info) -> Option<Lane> {
    let filter = &info.config.filter_subject;
    let mut tokens = filter.split('.').skip(2);
    let (model, lane) = (Token::decode(tokens.next()?).ok()?, tokens.next()?.to_owned());
    let waiting = match info.num_pending {
        0 => BTreeMap::new(),
        _ => {
            let (from, to) = (info.delivered.stream_sequence + 1, jobs.cached_info().state.last_sequence);
            sample(jobs, filter, from, to).await
        }
    };
    Some(Lane {
        model,
        lane,
        queued: info.num_pending,
        in_flight: info.num_ack_pending,
        redelivered: info.num_redelivered,
        acknowledged: info.ack_floor.consumer_sequence,
        oldest: waiting.values().next().map(|seen| seen.published),
        costs: waiting.into_values().map(|seen| seen.cost).collect(),
    })
}

/// What waits in all lanes of a model, in seconds of those who work on it. One lane that is not known leaves the sum so.
pub fn model_seconds(lanes: &[Lane], model: &str, rate: &Rate) -> Option<f64> {
    lanes.iter().filter(|lane| lane.model == model).map(|lane| rate.seconds(lane.queued, &lane.costs)).sum()
}

/// What producers say that jobs cost, of an even sample of those between two sequences.
pub async fn costs<I>(jobs: &Stream<I>, filter: &str, from: u64, to: u64) -> Vec<Option<f64>> {
    sample(jobs, filter, from, to).await.into_values().map(|seen| seen.cost).collect()
}

/// An even sample of the jobs between two sequences, the first of them included.
async fn sample<I>(jobs: &Stream<I>, filter: &str, from: u64, to: u64) -> BTreeMap<u64, Seen> {
    let look = async |sequence| {
        // One that is not found there, or not in time, is not in the sample.
        let job = jobs.direct_get_next_for_subject(filter, Some(sequence)).await.ok()?;
        Some((job.sequence, Seen { published: published(&job), cost: cost(&job) }))
    };
    let found = futures::stream::iter(places(from, to, SAMPLE)).map(look).buffer_unordered(SAMPLE_AT_A_TIME);
    // The next job after two places may be the same one.
    found.filter_map(std::future::ready).collect().await
}

/// A lifted job is as old as it was before. Of others the header is not believed: any producer may set it.
fn published(job: &StreamMessage) -> OffsetDateTime {
    if !is_lifted(&job.subject) {
        return job.time;
    }
    let before =
        job.headers.get(header::PUBLISHED).and_then(|time| OffsetDateTime::parse(time.as_str(), &Rfc3339).ok());
    before.unwrap_or(job.time)
}

fn cost(job: &StreamMessage) -> Option<f64> {
    let cost = job.headers.get(header::COST).and_then(|cost| cost.as_str().parse::<f64>().ok());
    cost.filter(|cost| (0.0..=header::COST_MAX).contains(cost))
}
