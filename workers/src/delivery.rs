//! One delivery of one job, from receipt to acknowledgement. [`Delivery::run`] is the whole path, top to bottom.
//!
//! It decides an [`Outcome`] first (`decide.rs`) and carries it out afterwards: the result is stored, then the job is
//! acknowledged. It never touches a tensor.
//!
//! What is seldom awaited is boxed: a delivery's future is moved and zeroed as a whole, thousands of times a second.

mod decide;

use std::panic::AssertUnwindSafe;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime};

use async_nats::HeaderMap;
use async_nats::jetstream::message::StreamMessage;
use async_nats::jetstream::{AckKind, Message};

use bytes::Bytes;
use connect::PublishFailure;
use futures::FutureExt;
use schemas::header::{self, DeadClass};
use schemas::log::LogEvent;
use time::OffsetDateTime;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::answer::{self, Addressee};
use crate::cancel::Entry;
use crate::engine::thread::Followed;
use crate::joblog::{JobLog, Stamp};
use crate::lift::Hold;
use crate::outcome::{Acknowledgement, Attempts, Outcome};
use crate::provenance::Made;
use crate::received::{Received, own_headers};
use crate::reply::{Stored, status_of};
use crate::station::Station;
use crate::trace::Trace;

/// A job that runs longer than this has its log published before it ends.
const LOG_DELAY: Duration = Duration::from_millis(500);
/// How often the log of a running job says how far it is.
const PROGRESS_EVERY: Duration = Duration::from_secs(5);

pub struct Delivery {
    station: Arc<Station>,
    received: Received,
    result_subject: String,
    job_id: String,
    log: JobLog,
    since: Instant,
    queued: Duration,
    entry: Entry,
    _hold: Hold,
    /// Tokens of the engine, for chunks and for the log.
    followed: watch::Sender<Followed>,
    /// Known once the bucket of attempts was asked.
    attempts: OnceLock<Attempts>,
    /// The payload, where it is not the message's own.
    payload: OnceLock<Bytes>,
    /// The producer's name for the job, once the job has been read.
    custom_id: OnceLock<Option<String>>,
    made: OnceLock<Made>,
    trace: Option<Box<Trace>>,
}

impl Delivery {
    /// `None` when the message has no job's subject, which no consumer's filter lets through.
    pub fn new(station: Arc<Station>, message: Message) -> Option<Self> {
        let received = Received::new(message)?;
        let tokens = received.tokens();
        let job_id = tokens.job_id.to_owned();
        let log = JobLog::new(tokens.log_subject());
        let head = (!received.is_lifted()).then_some(received.sequence);
        let hold = station.held.take(received.lane(), tokens.tenant, head);
        let queued = (OffsetDateTime::now_utc() - received.published).try_into().unwrap_or_default();
        Some(Self {
            result_subject: tokens.result_subject(),
            entry: station.running.enter(tokens.key()),
            _hold: hold,
            job_id,
            log,
            since: Instant::now(),
            queued,
            followed: watch::Sender::default(),
            attempts: OnceLock::new(),
            payload: OnceLock::new(),
            custom_id: OnceLock::new(),
            made: OnceLock::new(),
            trace: Trace::begin(&station.traces, &received, &station.model.name),
            received,
            station,
        })
    }

    /// Runs the job and settles it. `abandon` ends it at once when the grace period is over.
    pub async fn run(self, abandon: CancellationToken) {
        let metrics = &self.station.metrics;
        metrics.in_flight.inc();
        self.station.pace.begin();
        metrics.queue_seconds.observe(self.queued.as_secs_f64());
        if self.received.delivered > 1 {
            metrics.redeliveries.inc();
        }
        let (lane, tenant) = (self.received.lane(), self.received.tokens().tenant);
        if self.station.tenants.is_first(lane, tenant) {
            self.station.tenants.note(&self.station.client, &self.station.model.token(), lane, tenant).await;
        }
        let work = AssertUnwindSafe(async {
            let outcome = tokio::select! {
                biased;
                () = self.entry.cancelled.cancelled() => Outcome::Cancelled,
                deadline = self.expiry() => Outcome::Expired { deadline },
                outcome = self.decide() => outcome,
            };
            self.reply(outcome).await
        });
        let outcome = tokio::select! {
            biased;
            () = abandon.cancelled() => Outcome::Abandoned,
            outcome = work.catch_unwind() => {
                outcome.unwrap_or_else(|_| Outcome::failed("the delivery panicked".to_owned(), false, self.attempts()))
            }
            () = self.keep_alive() => unreachable!("keeps the job alive until one of the others ends"),
        };
        self.settle(&outcome).await;
    }

    /// Ends when the job has expired. A wrong deadline is no deadline here; it is refused elsewhere.
    async fn expiry(&self) -> OffsetDateTime {
        let Ok(Some(deadline)) = self.received.deadline() else { return std::future::pending().await };
        let left: Duration = (deadline - OffsetDateTime::now_utc()).try_into().unwrap_or_default();
        // Even the shortest sleep lets others go first.
        if !left.is_zero() {
            tokio::time::sleep(left).await;
        }
        deadline
    }

    /// Stores the result that the outcome calls for. An outcome whose result could not be stored becomes a retry.
    async fn reply(&self, outcome: Outcome) -> Outcome {
        let retry = |what: &str, failure: String| Outcome::Retry {
            reason: format!("{what} not stored: {failure}"),
            suspect: false,
        };
        if let Some(class) = outcome.dead_class() {
            // What another delivery has answered is not dead, and its letter must not be written over.
            match Box::pin(self.station.reply.stored(&self.result_subject)).await {
                Ok(Some(stored)) => return Box::pin(self.answered_by(&stored)).await,
                Ok(None) => {}
                Err(error) => return retry("dead letter", error.to_string()),
            }
            if let Err(failure) = Box::pin(self.bury(class, &reason(&outcome))).await {
                return retry("dead letter", failure.to_string());
            }
        }
        let custom_id = self.custom_id();
        let to = Addressee { job_id: &self.job_id, custom_id: &custom_id, attempts: self.attempts() };
        let encoding = self.received.encoding().unwrap_or_default();
        let (outcome, line) = answer::encode(outcome, to, encoding).await;
        let Some((status, line)) = line else { return outcome };
        let room = self.station.client.max_payload().saturating_sub(HEADER_ROOM);
        let line = Bytes::from(line);
        let (line, kept) = match line.len() <= room {
            true => (line, None),
            false => match Box::pin(self.station.bodies.keep(&self.received, &line)).await {
                Ok(name) => (answer::stub(status, to, encoding).into(), Some(name)),
                Err(failure) => return retry("body of the result", failure.to_string()),
            },
        };
        let storing = SystemTime::now();
        let stored = self.store(&line, || self.result_headers(status, kept.as_deref())).await;
        if let Some(trace) = &self.trace {
            trace.tell("store", storing);
        }
        match stored {
            Ok(Stored::First) => {
                if let Some(class) = outcome.dead_class() {
                    self.station.metrics.count_dead_letter(class);
                }
                outcome
            }
            Ok(Stored::Already) => Box::pin(self.find_stored(kept)).await.unwrap_or(Outcome::AlreadyStored { status }),
            Err(failure) => retry("result", failure.to_string()),
        }
    }

    /// The outcome of a job whose result cannot be stored because there is one. The body that was `kept` for it is dropped,
    /// unless the result is the very one: stored, but confirmed to nobody.
    async fn find_stored(&self, kept: Option<String>) -> Option<Outcome> {
        let stored = self.station.reply.stored(&self.result_subject).await.ok()??;
        let named = stored.headers.get(header::BODY).map(|name| name.as_str());
        if let Some(name) = kept.filter(|name| named != Some(name.as_str())) {
            self.station.bodies.drop_kept(&name).await;
        }
        Some(self.answered_by(&stored).await)
    }

    /// The outcome of a job that has a result already. One that was published anew under its id has it sent again, for
    /// those who wait for it now.
    async fn answered_by(&self, stored: &StreamMessage) -> Outcome {
        if self.received.delivered == 1 {
            self.station.reply.send_again(stored).await;
            if let Some(asked) = self.received.header(header::REPLY_TO) {
                self.station.reply.copy_to(asked, stored.headers.clone(), stored.payload.clone()).await;
            }
        }
        Outcome::AlreadyStored { status: status_of(stored) }
    }

    async fn store(&self, payload: &Bytes, headers: impl Fn() -> HeaderMap) -> Result<Stored, PublishFailure> {
        let reply = &self.station.reply;
        let stored = reply.store(&self.result_subject, payload, &headers).await?;
        if stored == Stored::First
            && let Some(asked) = self.received.header(header::REPLY_TO)
        {
            reply.copy_to(asked, headers(), payload.clone()).await;
        }
        Ok(stored)
    }

    fn result_headers(&self, status: u16, body: Option<&str>) -> HeaderMap {
        let made = self.made.get().copied().unwrap_or_default();
        let made = Made { queue: self.queued, ..made };
        let mut headers = HeaderMap::new();
        headers.insert(header::PROVENANCE, self.station.origin.provenance(self.attempts().current, made));
        headers.insert(header::CONTENT_TYPE, self.received.encoding().unwrap_or_default().content_type());
        headers.insert(header::STATUS, status.to_string());
        if let Some(name) = body {
            headers.insert(header::BODY, name);
        }
        match &self.trace {
            Some(trace) => trace.put(&mut headers),
            // Passed on as it came.
            None => [header::TRACEPARENT, header::TRACESTATE].into_iter().for_each(|name| {
                if let Some(value) = self.received.header(name) {
                    headers.insert(name, value);
                }
            }),
        }
        headers
    }

    /// Keeps the job as it came with the dead letters, with why and with its log.
    async fn bury(&self, class: DeadClass, reason: &str) -> Result<(), PublishFailure> {
        let came_with = self.received.message.headers.clone().unwrap_or_default();
        let mut headers = own_headers(&came_with, &[header::LANE, header::PUBLISHED]);
        let mut payload = self.received.message.payload.clone();
        if let Some(name) = self.station.bodies.lay_by(&self.received, &self.station.model.limits).await? {
            headers.insert(header::BODY, name);
            payload = Bytes::new();
        }
        let reason = cut(&reason.replace(['\r', '\n'], " "), REASON_BYTES_MAX);
        headers.insert(header::ATTEMPT, self.attempts().current.to_string());
        headers.insert(header::WORKER, self.station.name.as_str());
        headers.insert(header::DEAD_CLASS, class.as_str());
        headers.insert(header::DEAD_REASON, reason.as_str());
        let log = self.station.reply.log_of(self.received.tokens(), self.log.records(self.stamp())).await;
        headers.insert(header::DEAD_LOG, log);
        match class {
            // The producer is told, in words that may be its own.
            DeadClass::Invalid | DeadClass::Expired => {
                tracing::debug!(job.id = self.job_id, class = class.as_str(), "job not run");
            }
            DeadClass::Poison | DeadClass::Exhausted => {
                tracing::warn!(job.id = self.job_id, class = class.as_str(), reason, "job given up");
            }
        }
        self.station.reply.bury(&self.received.subject(), headers, payload).await
    }

    /// Tells the server, and the job's log, how it ended. The one place that acknowledges.
    async fn settle(&self, outcome: &Outcome) {
        if let Some((begun, suspect)) = self.mark(outcome) {
            // Where it is not stored, the deliveries count.
            Box::pin(self.station.ledger.write(&self.received, begun, suspect)).await;
        }
        let acknowledgement = outcome.acknowledgement(self.attempts(), fastrand::f64());
        self.log_end(outcome, acknowledgement);
        self.flush_log().await;
        let comes_again = matches!(outcome, Outcome::Retry { .. } | Outcome::Abandoned);
        if !comes_again && self.received.header(header::BODY).is_some() {
            Box::pin(self.station.bodies.forget(&self.received)).await;
        }
        let kind = match acknowledgement {
            Acknowledgement::Ack => AckKind::Ack,
            Acknowledgement::Term => AckKind::Term,
            Acknowledgement::Nak(delay) => AckKind::Nak(Some(delay).filter(|delay| !delay.is_zero())),
        };
        if let Err(error) = self.received.message.ack_with(kind).await {
            tracing::warn!(job.id = self.job_id, %error, "not acknowledged; it will be delivered again and found answered");
        }
        let metrics = &self.station.metrics;
        metrics.in_flight.dec();
        metrics.count_outcome(outcome);
        metrics.delivery_seconds.observe(self.since.elapsed().as_secs_f64());
        let mut units = None;
        if let Outcome::Completed { usage, .. } = outcome {
            metrics.count_tokens(usage.prompt_tokens, usage.completion_tokens.unwrap_or(0));
            units = Some(self.received.cost().unwrap_or(usage.total_tokens as f64));
        }
        self.station.pace.end(units);
        let attempt = self.attempts().current;
        if let Some(trace) = &self.trace {
            trace.end(outcome, attempt);
        }
        tracing::debug!(job.id = self.job_id, job.attempt = attempt, outcome = outcome.label(), "delivery ended");
    }

    /// What the next delivery cannot know by itself: that this one tried nothing, that it failed, even before it came to
    /// the engine, or that its job is suspected.
    fn mark(&self, outcome: &Outcome) -> Option<(u32, bool)> {
        let is_first = self.received.delivered == 1;
        match (outcome, self.attempts.get()) {
            (Outcome::Abandoned, Some(attempts)) => Some((attempts.current - 1, false)),
            (Outcome::Abandoned, None) => is_first.then_some((0, false)),
            (Outcome::Retry { suspect, .. }, Some(attempts)) if *suspect || !is_first => {
                Some((attempts.current, *suspect))
            }
            _ => None,
        }
    }

    fn log_end(&self, outcome: &Outcome, acknowledgement: Acknowledgement) {
        let run_seconds = self.since.elapsed().as_secs_f64();
        let finished = |status_code, usage| LogEvent::Finished { status_code, run_seconds, usage };
        let event = match (outcome, acknowledgement) {
            (Outcome::Retry { reason, .. }, Acknowledgement::Nak(delay)) => {
                tracing::warn!(job.id = self.job_id, job.attempt = self.attempts().current, reason, "delivery failed");
                LogEvent::Retried { reason: reason.clone(), delay_seconds: delay.as_secs_f64() }
            }
            (Outcome::Abandoned, _) => {
                LogEvent::Retried { reason: "the worker stopped".to_owned(), delay_seconds: 0.0 }
            }
            (Outcome::Completed { usage, .. }, _) => finished(200, Some(*usage)),
            (Outcome::AlreadyStored { status }, _) => finished(*status, None),
            (Outcome::Rejected(reject), _) => finished(reject.status, None),
            (Outcome::Expired { .. }, _) => finished(408, None),
            (Outcome::Cancelled, _) => finished(499, None),
            (Outcome::Exhausted { .. } | Outcome::Retry { .. }, _) => finished(500, None),
        };
        self.record(event);
    }

    /// Says every third of `ack_wait` that the job is being worked on, and in the log how far it is. Never ends.
    async fn keep_alive(&self) {
        tokio::time::sleep(LOG_DELAY).await;
        self.flush_log().await;
        let mut ticks = tokio::time::interval(self.station.model.limits.ack_wait() / 3);
        let mut progress = tokio::time::interval_at(tokio::time::Instant::now() + PROGRESS_EVERY, PROGRESS_EVERY);
        loop {
            tokio::select! {
                _ = ticks.tick() => {
                    if let Err(error) = self.received.message.ack_with(AckKind::Progress).await {
                        tracing::warn!(job.id = self.job_id, %error, "progress not acknowledged");
                    }
                }
                _ = progress.tick() => {
                    let (total, audio_seconds) = {
                        let followed = self.followed.borrow();
                        (followed.total, followed.audio_seconds)
                    };
                    if total > 0 {
                        self.record(LogEvent::Progress { completion_tokens: Some(total), audio_seconds });
                        self.flush_log().await;
                    }
                }
            }
        }
    }

    async fn flush_log(&self) {
        self.log.flush(&self.station.client, self.stamp()).await;
    }

    fn stamp(&self) -> Stamp<'_> {
        Stamp { job_id: &self.job_id, model: &self.station.model.name, worker: &self.station.name }
    }

    fn record(&self, event: LogEvent) {
        self.log.record(OffsetDateTime::now_utc(), self.attempts().current, event);
    }

    /// This attempt; before it is known, what the deliveries suggest.
    fn attempts(&self) -> Attempts {
        let limit = self.station.model.limits.attempts;
        let guess = || Attempts {
            current: u32::try_from(self.received.delivered).unwrap_or(limit).clamp(1, limit),
            max: limit,
        };
        self.attempts.get().copied().unwrap_or_else(guess)
    }

    fn payload(&self) -> &Bytes {
        self.payload.get().unwrap_or(&self.received.message.payload)
    }

    /// The producer's own name for the job, or its id.
    fn custom_id(&self) -> String {
        let read = || self.received.custom_id(self.payload());
        self.custom_id.get_or_init(read).clone().unwrap_or_else(|| self.job_id.clone())
    }
}

/// The server's payload limit counts headers too; those of a result take less than this.
const HEADER_ROOM: usize = 4096;

/// Of a dead letter's reason: it may be a producer's words, and a header has no room for all of them.
const REASON_BYTES_MAX: usize = 1024;

fn cut(text: &str, bytes_max: usize) -> String {
    text[..text.floor_char_boundary(bytes_max)].to_owned()
}

/// Why a job is a dead letter, in words.
fn reason(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Rejected(reject) => reject.error.message.clone(),
        Outcome::Exhausted { reason, .. } => reason.clone(),
        other => other.label().to_owned(),
    }
}
