//! One delivery of one job, from receipt to acknowledgement. [`Delivery::run`] is the whole path, top to bottom.
//!
//! It decides an [`Outcome`] first and carries it out afterwards: the result is stored, then the job is acknowledged.
//! It never touches a tensor.

use std::borrow::Cow;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use async_nats::HeaderMap;
use async_nats::jetstream::{AckKind, Message};
use bytes::Bytes;
use connect::PublishFailure;
use futures::FutureExt;
use schemas::codec::Encoding;
use schemas::header;
use schemas::job::Job;
use schemas::log::LogEvent;
use schemas::result::{ErrorBody, ErrorObject, JobResult, NoResponse, NoResponseCode, Response};
use schemas::subject::{Address, ReplyTokens};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio_util::sync::CancellationToken;

use crate::endpoint::{self, Body, Plan, Reject, Stamp};
use crate::joblog::{self, JobLog, published_at};
use crate::outcome::{Acknowledgement, Attempts, Outcome};
use crate::reply::Stored;
use crate::worker::Station;

/// A job that runs longer than this has its log published before it ends.
const LOG_DELAY: Duration = Duration::from_millis(500);
/// Bodies above this are prepared apart from the runtime: tokenizing them takes milliseconds.
const INLINE_BYTES_MAX: usize = 8 << 10;

pub struct Delivery {
    station: Arc<Station>,
    message: Message,
    result_subject: String,
    job_id: String,
    attempts: Attempts,
    log: JobLog,
    received: Instant,
    /// The producer's name for the job, once the job has been read.
    custom_id: OnceLock<Option<String>>,
}

impl Delivery {
    /// `None` when the message has no job's subject, which no consumer's filter lets through.
    pub fn new(station: Arc<Station>, message: Message) -> Option<Self> {
        let reply = ReplyTokens::parse(&message.subject).ok()?;
        let job_id = reply.job_id.to_owned();
        let delivered = message.info().ok()?.delivered;
        let attempts =
            Attempts { current: u32::try_from(delivered).unwrap_or(u32::MAX), max: station.model.limits.attempts };
        let stamp = joblog::Stamp {
            job_id: job_id.clone(),
            model: station.model.name.clone(),
            worker: station.name.clone(),
            attempt: attempts.current,
        };
        let log = JobLog::new(reply.log_subject(), stamp);
        let result_subject = reply.result_subject();
        Some(Self {
            station,
            result_subject,
            job_id,
            attempts,
            log,
            received: Instant::now(),
            message,
            custom_id: OnceLock::new(),
        })
    }

    /// Runs the job and settles it. `abandon` ends it at once when the grace period is over.
    pub async fn run(self, abandon: CancellationToken) {
        self.open();
        let work = AssertUnwindSafe(async {
            let outcome = self.decide().await;
            self.reply(outcome).await
        });
        let outcome = tokio::select! {
            biased;
            () = abandon.cancelled() => Outcome::Abandoned,
            outcome = work.catch_unwind() => outcome.unwrap_or_else(|_| self.failed("the delivery panicked".to_owned())),
            () = self.keep_alive() => unreachable!("keeps the job alive until one of the others ends"),
        };
        self.settle(&outcome).await;
    }

    fn open(&self) {
        let metrics = &self.station.metrics;
        metrics.in_flight.inc();
        if self.attempts.current > 1 {
            metrics.redeliveries.inc();
        }
        let published = published_at(&self.message);
        let queue_seconds = (OffsetDateTime::now_utc() - published).as_seconds_f64().max(0.0);
        metrics.queue_seconds.observe(queue_seconds);
        if self.attempts.current == 1 {
            let lane = Address::parse(&self.message.subject).map_or(String::new(), |address| address.lane.to_string());
            self.log.record(published, LogEvent::Queued { lane });
        }
        self.log.record(OffsetDateTime::now_utc(), LogEvent::Started { queue_seconds });
    }

    /// What becomes of the job. Cheap refusals come first, the engine last.
    async fn decide(&self) -> Outcome {
        if self.attempts.current > 1
            && let Some(status) = self.station.reply.stored_status(&self.result_subject).await
        {
            return Outcome::AlreadyStored { status };
        }
        if self.attempts.current > self.attempts.max {
            return Outcome::Exhausted { reason: "no delivery answered it".to_owned() };
        }
        if let Err(error) = Address::parse(&self.message.subject) {
            let param = error.to_string().split(':').next().unwrap_or_default().to_owned();
            return Outcome::Rejected(Reject::invalid("invalid_value", param, error.to_string()));
        }
        match self.deadline() {
            Ok(Some(deadline)) if deadline <= OffsetDateTime::now_utc() => return Outcome::Expired,
            Ok(_) => {}
            Err(reject) => return Outcome::Rejected(reject),
        }
        let plan = match self.prepare().await {
            Ok(plan) => plan,
            Err(reject) => return Outcome::Rejected(reject),
        };
        let prompt_tokens = plan.sequences.iter().map(|sequence| sequence.tokens.len() as u64).sum();
        let outputs = match self.station.engine.run(plan.sequences).await {
            Ok(outputs) => outputs,
            Err(error) => return self.failed(error.to_string()),
        };
        let stamp = Stamp {
            model: &self.station.model.name,
            job_id: &self.job_id,
            created: OffsetDateTime::now_utc().unix_timestamp(),
            prompt_tokens,
        };
        let (body, usage) = plan.answer.body(outputs, stamp);
        Outcome::Completed { body: Box::new(body), usage }
    }

    async fn prepare(&self) -> Result<Plan, Reject> {
        let encoding = self.encoding().map_err(|error| Reject {
            status: 415,
            error: ErrorObject::invalid("unsupported_content_type", header::CONTENT_TYPE.to_owned(), error.to_string()),
        })?;
        let station = Arc::clone(&self.station);
        let payload = self.message.payload.clone();
        let job_id = self.job_id.clone();
        let is_short = payload.len() <= INLINE_BYTES_MAX;
        let prepare = move || {
            let mut job: Job = encoding.decode(&payload).map_err(|error| {
                let param = Some(error.path.clone()).filter(|path| !path.is_empty() && !error.is_syntax);
                let code = if error.is_syntax { "invalid_body" } else { "invalid_value" };
                Reject::invalid(code, param, format!("the job cannot be read: {error}"))
            })?;
            let plan = endpoint::prepare(&job, &job_id, &station.model, &station.text);
            Ok((job.custom_id.take(), plan))
        };
        let prepared = match is_short {
            true => prepare(),
            false => match tokio::task::spawn_blocking(prepare).await {
                Ok(prepared) => prepared,
                // The delivery deals with panics, wherever they happen.
                Err(error) => std::panic::resume_unwind(error.into_panic()),
            },
        };
        let (custom_id, plan) = prepared?;
        self.custom_id.get_or_init(|| custom_id);
        plan
    }

    /// Stores the result that the outcome calls for. An outcome whose result could not be stored becomes a retry.
    async fn reply(&self, outcome: Outcome) -> Outcome {
        if let Outcome::Exhausted { reason } = &outcome
            && let Err(failure) = self.bury(reason).await
        {
            return Outcome::Retry { reason: format!("dead letter not stored: {failure}") };
        }
        let Some((status, payload)) = self.result_payload(&outcome) else { return outcome };
        let stored = self.store(status, payload).await;
        match stored {
            Ok(Stored::First) => outcome,
            Ok(Stored::Already) => {
                let status = self.station.reply.stored_status(&self.result_subject).await.unwrap_or(status);
                Outcome::AlreadyStored { status }
            }
            Err(PublishFailure::TooLarge(reason)) => self.reply_too_large(reason).await,
            Err(failure) => Outcome::Retry { reason: format!("result not stored: {failure}") },
        }
    }

    /// The answer is larger than the server's `max_payload`: the producer is told so instead.
    async fn reply_too_large(&self, reason: String) -> Outcome {
        let message = format!("the result is too large to send ({reason}); ask for fewer inputs in one job");
        let reject = Reject::invalid("result_too_large", None, message);
        let outcome = Outcome::Rejected(reject);
        let Some((status, payload)) = self.result_payload(&outcome) else { return outcome };
        match self.store(status, payload).await {
            Ok(_) => outcome,
            Err(failure) => Outcome::Retry { reason: format!("result not stored: {failure}") },
        }
    }

    async fn store(&self, status: u16, payload: Bytes) -> Result<Stored, PublishFailure> {
        let mut headers = self.headers();
        headers.insert(header::CONTENT_TYPE, self.encoding().unwrap_or_default().content_type());
        headers.insert(header::STATUS, status.to_string());
        let reply = &self.station.reply;
        let stored = reply.store(&self.result_subject, headers.clone(), payload.clone()).await?;
        if stored == Stored::First
            && let Some(asked) = self.header(header::REPLY_TO)
        {
            reply.copy_to(asked, headers, payload).await;
        }
        Ok(stored)
    }

    /// The line of the result, or none where there is nothing to say or nothing more to say.
    fn result_payload(&self, outcome: &Outcome) -> Option<(u16, Bytes)> {
        let answer = |status_code, body| (Some(Response { status_code, request_id: self.job_id.clone(), body }), None);
        let (response, error) = match outcome {
            Outcome::Completed { body, .. } => answer(200, Cow::Borrowed(&**body)),
            Outcome::Rejected(reject) => {
                answer(reject.status, Cow::Owned(Body::Error(ErrorBody { error: reject.error.clone() })))
            }
            Outcome::Exhausted { reason } => {
                let message = format!("gave up after {} attempts: {reason}", self.attempts.max);
                answer(
                    500,
                    Cow::Owned(Body::Error(ErrorBody { error: ErrorObject::server("attempts_exhausted", message) })),
                )
            }
            Outcome::Expired => {
                let message = format!(
                    "the deadline of the job ({}) has passed",
                    self.header(header::DEADLINE).unwrap_or_default()
                );
                (None, Some(NoResponse { code: NoResponseCode::BatchExpired, message }))
            }
            Outcome::Retry { .. } | Outcome::AlreadyStored { .. } | Outcome::Abandoned => return None,
        };
        let result = JobResult { id: self.job_id.clone(), custom_id: self.custom_id(), response, error };
        let payload = self.encoding().unwrap_or_default().encode(&result);
        Some((result.status_code(), payload.into()))
    }

    async fn bury(&self, reason: &str) -> Result<(), PublishFailure> {
        let mut headers = self.headers();
        for name in [header::CONTENT_TYPE, header::DEADLINE, header::REPLY_TO] {
            if let Some(value) = self.header(name) {
                headers.insert(name, value);
            }
        }
        headers.insert(header::DEAD_REASON, reason.replace(['\r', '\n'], " "));
        self.station.reply.bury(&self.message.subject, headers, self.message.payload.clone()).await
    }

    /// Tells the server, and the job's log, how it ended. The one place that acknowledges.
    async fn settle(&self, outcome: &Outcome) {
        let acknowledgement = outcome.acknowledgement(self.attempts, fastrand::f64());
        self.log_end(outcome, acknowledgement);
        self.log.flush(&self.station.client).await;
        let kind = match acknowledgement {
            Acknowledgement::Ack => AckKind::Ack,
            Acknowledgement::Term => AckKind::Term,
            Acknowledgement::Nak(delay) => AckKind::Nak(Some(delay).filter(|delay| !delay.is_zero())),
        };
        if let Err(error) = self.message.ack_with(kind).await {
            tracing::warn!(job.id = self.job_id, %error, "not acknowledged; it will be delivered again and found answered");
        }
        let metrics = &self.station.metrics;
        metrics.in_flight.dec();
        metrics.count_outcome(outcome);
        metrics.delivery_seconds.observe(self.received.elapsed().as_secs_f64());
        if let Outcome::Completed { usage, .. } = outcome {
            metrics.count_tokens(usage.prompt_tokens, usage.completion_tokens.unwrap_or(0));
        }
        tracing::debug!(
            job.id = self.job_id,
            job.attempt = self.attempts.current,
            outcome = outcome.label(),
            "delivery ended"
        );
    }

    fn log_end(&self, outcome: &Outcome, acknowledgement: Acknowledgement) {
        let run_seconds = self.received.elapsed().as_secs_f64();
        let event = match (outcome, acknowledgement) {
            (Outcome::AlreadyStored { status }, _) => {
                LogEvent::Finished { status_code: *status, run_seconds, usage: None }
            }
            (Outcome::Retry { reason }, Acknowledgement::Nak(delay)) => {
                tracing::warn!(job.id = self.job_id, job.attempt = self.attempts.current, reason, "delivery failed");
                LogEvent::Retried { reason: reason.clone(), delay_seconds: delay.as_secs_f64() }
            }
            (Outcome::Abandoned, _) => {
                LogEvent::Retried { reason: "the worker stopped".to_owned(), delay_seconds: 0.0 }
            }
            (Outcome::Completed { usage, .. }, _) => {
                LogEvent::Finished { status_code: 200, run_seconds, usage: Some(*usage) }
            }
            (Outcome::Rejected(reject), _) => {
                LogEvent::Finished { status_code: reject.status, run_seconds, usage: None }
            }
            (Outcome::Expired, _) => LogEvent::Finished { status_code: 408, run_seconds, usage: None },
            (Outcome::Exhausted { .. } | Outcome::Retry { .. }, _) => {
                LogEvent::Finished { status_code: 500, run_seconds, usage: None }
            }
        };
        self.log.record(OffsetDateTime::now_utc(), event);
    }

    /// Says every third of `ack_wait` that the job is being worked on. Never ends.
    async fn keep_alive(&self) {
        tokio::time::sleep(LOG_DELAY).await;
        self.log.flush(&self.station.client).await;
        let third = Duration::from_secs(self.station.model.limits.ack_wait_seconds) / 3;
        let mut ticks = tokio::time::interval(third);
        loop {
            ticks.tick().await;
            if let Err(error) = self.message.ack_with(AckKind::Progress).await {
                tracing::warn!(job.id = self.job_id, %error, "progress not acknowledged");
            }
        }
    }

    fn failed(&self, reason: String) -> Outcome {
        Outcome::failed(reason, self.attempts)
    }

    fn deadline(&self) -> Result<Option<OffsetDateTime>, Reject> {
        let Some(value) = self.header(header::DEADLINE) else { return Ok(None) };
        OffsetDateTime::parse(value, &Rfc3339).map(Some).map_err(|_| {
            let message =
                format!("{}: {value:?} is not an RFC 3339 time such as 2027-01-31T12:00:00Z", header::DEADLINE);
            Reject::invalid("invalid_value", header::DEADLINE.to_owned(), message)
        })
    }

    /// The producer's own name for the job, even where the rest of the job cannot be read.
    fn custom_id(&self) -> String {
        #[derive(serde::Deserialize)]
        struct Named {
            custom_id: Option<String>,
        }
        let read = || {
            let encoding = self.encoding().unwrap_or_default();
            encoding.decode::<Named>(&self.message.payload).ok().and_then(|named| named.custom_id)
        };
        self.custom_id.get_or_init(read).clone().unwrap_or_else(|| self.job_id.clone())
    }

    fn encoding(&self) -> Result<Encoding, schemas::codec::UnknownContentType> {
        Encoding::from_content_type(self.header(header::CONTENT_TYPE))
    }

    fn headers(&self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(header::ATTEMPT, self.attempts.current.to_string());
        headers.insert(header::WORKER, self.station.name.as_str());
        headers
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.message.headers.as_ref()?.get(name).map(|value| value.as_str())
    }
}
