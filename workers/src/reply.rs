//! Replies: the result is stored on the job's result subject, where the first writer wins, and dead letters beside it.

use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::jetstream::context::PublishErrorKind;
use async_nats::jetstream::message::{PublishMessage, StreamMessage};
use async_nats::jetstream::stream::{DirectGetError, DirectGetErrorKind};
use async_nats::jetstream::{self, Context};
use backon::{ExponentialBuilder, Retryable};
use bytes::Bytes;
use connect::{PublishFailure, classify_publish};
use schemas::codec::Encoding;
use schemas::log::{LogMessage, LogRecord};
use schemas::subject::ReplyTokens;
use schemas::{header, stream, subject};

/// What became of a result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stored {
    /// This one is kept.
    First,
    /// Another delivery's was there before.
    Already,
}

/// Stores results and dead letters.
#[derive(Clone, Debug)]
pub struct Reply {
    jetstream: Context,
    results: jetstream::stream::Stream<()>,
    logs: jetstream::stream::Stream<()>,
    /// Subjects outside input may name as `Inferq-Reply-To`.
    prefixes: Vec<String>,
}

/// Of a job's log in a header.
const LOG_BYTES_MAX: usize = 8 << 10;
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(5);
/// Result and job stream are retried for as long as the delivery lives; the grace period ends it from outside.
const RETRIES_MAX: usize = 1_000;

impl Reply {
    pub async fn new(jetstream: Context, prefixes: Vec<String>) -> Result<Self, jetstream::context::GetStreamError> {
        let results = jetstream.get_stream_no_info(stream::RESULTS).await?;
        let logs = jetstream.get_stream_no_info(stream::LOGS).await?;
        Ok(Self { jetstream, results, logs, prefixes })
    }

    /// The job's stored result, if there is one.
    pub async fn stored(&self, result_subject: &str) -> Result<Option<StreamMessage>, DirectGetError> {
        match self.results.direct_get_last_for_subject(result_subject).await {
            Ok(stored) => Ok(Some(stored)),
            Err(error) if error.kind() == DirectGetErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Sends a stored result again to those who listen now.
    pub async fn send_again(&self, stored: &StreamMessage) {
        let subject = subject::live_subject(&stored.subject);
        let (headers, payload) = (stored.headers.clone(), stored.payload.clone());
        if let Err(error) = self.jetstream.client().publish_with_headers(subject, headers, payload).await {
            tracing::warn!(%error, "stored result not sent again");
        }
    }

    /// Stores a result unless there is one, waiting while the server is away or the stream is full.
    pub async fn store(
        &self,
        subject: &str,
        payload: &Bytes,
        headers: impl Fn() -> HeaderMap,
    ) -> Result<Stored, PublishFailure> {
        let message = || {
            let message = PublishMessage::build().payload(payload.clone()).headers(headers());
            message.expected_last_subject_sequence(0)
        };
        match self.publish(subject, message).await {
            Ok(()) => Ok(Stored::First),
            Err(PublishFailure::AlreadyStored) => Ok(Stored::Already),
            Err(failure) => Err(failure),
        }
    }

    /// Keeps a job that was given up, as it came. One of an earlier life under the same id gives way to it.
    pub async fn bury(&self, job_subject: &str, headers: HeaderMap, payload: Bytes) -> Result<(), PublishFailure> {
        let message = || PublishMessage::build().payload(payload.clone()).headers(headers.clone());
        match self.publish(&subject::dead_subject(job_subject), message).await {
            Ok(()) | Err(PublishFailure::AlreadyStored) => Ok(()),
            Err(failure) => Err(failure),
        }
    }

    /// The log of a job as a JSON array: what is stored of it, and the records that are not stored yet. Cut at its
    /// beginning to what fits in a header.
    pub async fn log_of(&self, job: ReplyTokens<'_>, unpublished: Vec<LogRecord>) -> String {
        let (subject, mut after, mut records) = (job.log_subject(), 0, LogMessage::new());
        while let Ok(message) = self.logs.direct_get_next_for_subject(subject.as_str(), Some(after + 1)).await {
            after = message.sequence;
            records.extend(Encoding::Json.decode::<LogMessage>(&message.payload).unwrap_or_default());
        }
        records.extend(unpublished);
        loop {
            let text = String::from_utf8(Encoding::Json.encode(&records)).unwrap_or_default();
            if text.len() <= LOG_BYTES_MAX || records.is_empty() {
                return text;
            }
            records.remove(0);
        }
    }

    /// Sends a copy of a stored result to the subject the job asks for, where that is allowed.
    pub async fn copy_to(&self, asked: &str, headers: HeaderMap, payload: Bytes) {
        if !self.is_allowed(asked) {
            tracing::warn!(subject = asked, header = header::REPLY_TO, "reply subject is not under an allowed prefix");
            return;
        }
        let client = self.jetstream.client();
        if let Err(error) = client.publish_with_headers(asked.to_owned(), headers, payload).await {
            tracing::warn!(subject = asked, %error, "copy of a result not published");
        }
    }

    fn is_allowed(&self, subject: &str) -> bool {
        let plain = !subject.contains(['*', '>']) && !subject.chars().any(char::is_whitespace);
        plain && self.prefixes.iter().any(|prefix| subject.starts_with(prefix.as_str()))
    }

    /// The message is made anew for each try: nearly always there is one.
    async fn publish(&self, subject: &str, message: impl Fn() -> PublishMessage) -> Result<(), PublishFailure> {
        match self.publish_once(subject, message()).await {
            // Boxed, as all that is seldom needed.
            Err(failure) if failure.is_transient() => {
                report(&failure, Duration::ZERO);
                Box::pin(self.persist(subject, message)).await
            }
            done => done,
        }
    }

    async fn persist(&self, subject: &str, message: impl Fn() -> PublishMessage) -> Result<(), PublishFailure> {
        let attempt = || self.publish_once(subject, message());
        attempt.retry(patience()).when(PublishFailure::is_transient).notify(report).await
    }

    async fn publish_once(&self, subject: &str, message: PublishMessage) -> Result<(), PublishFailure> {
        let sent = self.jetstream.send_publish(subject.to_owned(), message).await;
        let confirmed = match sent {
            Ok(ack) => ack.await,
            Err(error) => Err(error),
        };
        confirmed.map(drop).map_err(|error| {
            // A publish into a lost connection is tried again at once when the connection is back.
            debug_assert!(error.kind() != PublishErrorKind::MaxAckPending, "publishes wait for a slot");
            classify_publish(&error)
        })
    }
}

/// How often what a result needs is tried again while the server is away or full.
pub fn patience() -> ExponentialBuilder {
    ExponentialBuilder::default()
        .with_min_delay(RETRY_FIRST)
        .with_max_delay(RETRY_MAX)
        .with_max_times(RETRIES_MAX)
        .with_jitter()
}

pub fn report(failure: &PublishFailure, delay: Duration) {
    tracing::warn!(%failure, ?delay, "result not stored yet");
}

/// The HTTP status of a stored result.
pub fn status_of(stored: &StreamMessage) -> u16 {
    stored.headers.get(header::STATUS).and_then(|status| status.as_str().parse().ok()).unwrap_or(200)
}
