//! Lifting: within a lane, one tenant's million jobs do not hold back another tenant's ten.
//!
//! The server delivers a lane in the order of publication. While a long queue waits, a worker looks for tenants whose
//! jobs it holds too few of, moves some of theirs to the lane of lifted jobs, which it pulls from beside the others, and
//! the engine's queue then shares the engine out between tenants. A short queue is left alone.
//!
//! A job is moved by storing a copy and deleting the original. Two workers that move the same one store it once; a
//! worker that dies in between leaves a job that is run twice and answered once.

use std::collections::{HashMap, HashSet};
use std::future::ready;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_nats::jetstream::message::{PublishMessage, StreamMessage};
use async_nats::jetstream::{Context, kv, stream::Stream};
use async_nats::{Client, HeaderMap, Subscriber};
use connect::{PublishFailure, classify_publish};
use futures::StreamExt;
use schemas::subject::{LIFTED, Lane, Token, lane_filter};
use schemas::{header, stream};
use serde_json::json;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::asked;
use crate::joblog::rfc3339;
use crate::received::own_headers;
use crate::station::Station;

/// How often a worker looks.
const LOOK: Duration = Duration::from_millis(100);
/// Queues that take fewer seconds than this are left alone.
const LONG: f64 = 1.0;
/// How often it reads who was noted, while a queue is long. Tenants in accounts of their own are not heard of otherwise.
const LEARN: Duration = Duration::from_secs(1);
/// Tenants that are looked after at a time.
const TENANTS_MAX: usize = 4096;

/// The jobs of each tenant that this worker holds, and where each lane's consumer stands.
#[derive(Clone, Debug, Default)]
pub struct Held {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    /// By lane, tenant, and whether they were lifted.
    jobs: HashMap<Key, usize>,
    heads: HashMap<Lane, u64>,
}

type Key = (Lane, Arc<str>, bool);

/// A job that is held. It counts until this is dropped.
#[derive(Debug)]
pub struct Hold {
    held: Held,
    key: Key,
}

impl Held {
    /// Counts a job. `head` is its sequence, where it came in the order of its lane.
    pub fn take(&self, lane: Lane, tenant: &str, head: Option<u64>) -> Hold {
        let key: Key = (lane, tenant.into(), head.is_none());
        let mut state = self.state.lock().expect("no panic while held");
        *state.jobs.entry(key.clone()).or_default() += 1;
        if let Some(head) = head {
            let known = state.heads.entry(lane).or_default();
            *known = head.max(*known);
        }
        Hold { held: self.clone(), key }
    }

    /// Jobs that came in the order of the lane, and lifted ones.
    fn count(&self, lane: Lane, tenant: &str) -> (usize, usize) {
        let state = self.state.lock().expect("no panic while held");
        let count = |lifted| state.jobs.get(&(lane, tenant.into(), lifted)).copied().unwrap_or(0);
        (count(false), count(true))
    }

    /// Whether jobs of other tenants are held that came in the order of the lane.
    fn has_others(&self, lane: Lane, tenant: &str) -> bool {
        let state = self.state.lock().expect("no panic while held");
        state.jobs.keys().any(|(held, other, lifted)| *held == lane && !lifted && &**other != tenant)
    }

    fn head(&self, lane: Lane) -> u64 {
        self.state.lock().expect("no panic while held").heads.get(&lane).copied().unwrap_or(0)
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mut state = self.held.state.lock().expect("no panic while held");
        if let Some(count) = state.jobs.get_mut(&self.key) {
            *count -= 1;
            if *count == 0 {
                state.jobs.remove(&self.key);
            }
        }
    }
}

/// Who has jobs in the lanes of a model, as far as producers and workers have noted it.
#[derive(Clone, Debug)]
pub struct Tenants {
    noted: kv::Store,
    by_us: Arc<Mutex<HashMap<Lane, HashSet<String>>>>,
}

impl Tenants {
    pub async fn new(jetstream: &Context) -> Result<Self, async_nats::jetstream::context::KeyValueError> {
        let noted = jetstream.get_key_value(stream::TENANTS_BUCKET).await?;
        Ok(Self { noted, by_us: Arc::default() })
    }

    /// Whether a tenant's job is the first of its lane that this worker sees. It counts as seen then.
    pub fn is_first(&self, lane: Lane, tenant: &str) -> bool {
        let mut by_us = self.by_us.lock().expect("no panic while held");
        let seen = by_us.entry(lane).or_default();
        !seen.contains(tenant) && seen.len() < TENANTS_MAX && seen.insert(tenant.to_owned())
    }

    /// Notes it for all workers. No job waits for that: what is lost is noted by the next worker that sees the tenant.
    pub async fn note(&self, client: &Client, model: &Token, lane: Lane, tenant: &str) {
        let subject = format!("$KV.{}.{}", stream::TENANTS_BUCKET, stream::tenant_key(model, lane, tenant));
        if let Err(error) = client.publish(subject, "".into()).await {
            tracing::debug!(%error, "tenant not noted");
        }
    }

    async fn of(&self, model: &Token, lane: Lane) -> Vec<String> {
        let prefix = format!("$KV.{}.{}", stream::TENANTS_BUCKET, stream::tenant_key(model, lane, ""));
        // Without a consumer, which the bucket's own list of keys would make.
        let Ok(subjects) = self.noted.stream.info_with_subjects(format!("{prefix}*")).await else { return Vec::new() };
        let tenant = |subject: String| subject.strip_prefix(&prefix).map(str::to_owned);
        // After an error the list may not be asked for more.
        let listed = subjects.take_while(|found| ready(found.is_ok()));
        let tenants = listed.filter_map(|found| ready(found.ok().and_then(|(subject, _)| tenant(subject))));
        tenants.take(TENANTS_MAX).collect().await
    }
}

/// Looks after one lane until `stop`.
pub async fn look_after(station: Arc<Station>, lane: Lane, jobs: Stream<()>, stop: CancellationToken) {
    let mut lifter = Lifter { station, lane, jobs, stop, tenants: Arc::default(), learned: None, listening: None };
    loop {
        tokio::select! {
            () = lifter.stop.cancelled() => return,
            () = tokio::time::sleep(LOOK) => {}
        }
        match lifter.is_long() {
            true => lifter.look().await,
            false => lifter.rest(),
        }
    }
}

struct Lifter {
    station: Arc<Station>,
    lane: Lane,
    jobs: Stream<()>,
    stop: CancellationToken,
    /// Those that may have jobs waiting, as tokens of subjects.
    tenants: Arc<Mutex<HashSet<String>>>,
    /// When it was last read who was noted.
    learned: Option<Instant>,
    /// Notes who publishes, while the queue is long.
    listening: Option<AbortOnDropHandle<()>>,
}

/// Notes who publishes jobs. It takes them as they come: their bodies are not to be heaped up.
async fn listen(mut published: Subscriber, tenants: Arc<Mutex<HashSet<String>>>) {
    while let Some(message) = published.next().await {
        let tenant = message.subject.split('.').nth(4).unwrap_or_default();
        let mut tenants = tenants.lock().expect("no panic while held");
        if tenants.len() < TENANTS_MAX && !tenants.contains(tenant) {
            tenants.insert(tenant.to_owned());
        }
    }
}

impl Lifter {
    /// Whether a newcomer would wait for long.
    fn is_long(&self) -> bool {
        let waiting = self.station.metrics.waiting(self.lane.as_str());
        waiting > self.station.model.limits.in_flight as u64 && self.station.pace.seconds(waiting) > LONG
    }

    fn rest(&mut self) {
        self.listening = None;
        self.learned = None;
        self.tenants.lock().expect("no panic while held").clear();
    }

    async fn look(&mut self) {
        self.learn().await;
        if self.station.metrics.waiting(LIFTED) > 0 {
            return;
        }
        let limits = &self.station.model.limits;
        let enough = limits.batch.max(limits.in_flight / 4);
        let tenants: Vec<String> = self.tenants.lock().expect("no panic while held").iter().cloned().collect();
        for tenant in tenants {
            let (in_order, lifted) = self.station.held.count(self.lane, &tenant);
            // Its turn has come by itself, or nobody is in its way.
            if in_order > 0 || !self.station.held.has_others(self.lane, &tenant) {
                continue;
            }
            for _ in lifted..enough {
                if self.stop.is_cancelled() {
                    return;
                }
                match self.lift_next(&tenant).await {
                    Ok(true) => {}
                    // One that has no room for two headers more is run in its turn, with those behind it.
                    Ok(false) | Err(PublishFailure::TooLarge(_)) => break,
                    Err(failure) => {
                        tracing::warn!(%failure, "job not lifted; it is run in its turn");
                        return;
                    }
                }
            }
        }
    }

    /// Learns who has jobs in the lane, from those who publish and from what was noted.
    async fn learn(&mut self) {
        let token = self.station.model.token();
        if self.listening.as_ref().is_none_or(AbortOnDropHandle::is_finished) {
            // One of the workers is told of each job: together they know all tenants.
            let filter = lane_filter(&token, self.lane);
            let Ok(published) = self.station.client.queue_subscribe(filter, LIFTED.to_owned()).await else { return };
            let listening = tokio::spawn(listen(published, Arc::clone(&self.tenants)));
            self.listening = Some(AbortOnDropHandle::new(listening));
        }
        if self.learned.is_none_or(|learned| learned.elapsed() >= LEARN) {
            self.learned = Some(Instant::now());
            let noted = self.station.tenants.of(&token, self.lane).await;
            self.tenants.lock().expect("no panic while held").extend(noted);
        }
    }

    /// Moves the next job of a tenant that is far enough from its turn. False if there is none.
    async fn lift_next(&self, tenant: &str) -> Result<bool, PublishFailure> {
        let far = self.station.held.head(self.lane) + 2 * self.station.model.limits.in_flight as u64;
        let filter = format!("inferq.jobs.{}.{}.{tenant}.*", self.station.model.token(), self.lane);
        let Ok(job) = self.jobs.direct_get_next_for_subject(filter, Some(far)).await else { return Ok(false) };
        let message = PublishMessage::build().payload(job.payload.clone()).headers(self.headers(&job));
        let subject = job.subject.replacen(&format!(".{}.", self.lane), &format!(".{LIFTED}."), 1);
        let sent = match self.station.jetstream.send_publish(subject, message).await {
            Ok(ack) => ack.await,
            Err(error) => Err(error),
        };
        match sent.map_err(|error| classify_publish(&error)) {
            Ok(_) | Err(PublishFailure::AlreadyStored) => {}
            Err(failure) => return Err(failure),
        }
        // The client library has the bytes overwritten too, for which the server writes a whole block anew.
        let request = json!({ "seq": job.sequence, "no_erase": true });
        let deleted = self.station.jetstream.request(format!("STREAM.MSG.DELETE.{}", stream::JOBS), &request).await;
        if let Err(error) = deleted.map(|_: serde_json::Value| ()) {
            tracing::debug!(%error, "lifted job was gone already");
        }
        self.station.metrics.lifted.inc();
        Ok(true)
    }

    /// The job's own headers, with what its new message cannot say by itself.
    fn headers(&self, job: &StreamMessage) -> HeaderMap {
        let mut headers = own_headers(&job.headers, &[header::TIMEOUT, header::DEADLINE]);
        let value = |name| job.headers.get(name).map(|value| value.as_str());
        match asked::deadline(value(header::DEADLINE), value(header::TIMEOUT), job.time) {
            Ok(Some(deadline)) => headers.insert(header::DEADLINE, rfc3339(deadline)),
            Ok(None) => {}
            // Kept as it is: whoever runs the job refuses it.
            Err(_) => [header::DEADLINE, header::TIMEOUT]
                .into_iter()
                .filter_map(|name| Some((name, value(name)?)))
                .for_each(|(name, value)| headers.insert(name, value)),
        }
        headers.insert(header::LANE, self.lane.as_str());
        headers.insert(header::PUBLISHED, rfc3339(job.time));
        headers
    }
}
