//! The client: one job out, its result and its log back.

use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::jetstream::consumer::{DeliverPolicy, pull};
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::stream::DirectGetErrorKind;
use async_nats::jetstream::{Context, stream::Stream};
use backon::{ExponentialBuilder, Retryable};
use bytes::Bytes;
use connect::{Connection, PublishFailure, classify_publish};
use futures::StreamExt;
use schemas::codec::{DecodeError, Encoding};
use schemas::log::LogMessage;
use schemas::result::JobResult;
use schemas::subject::{Address, AddressError, JobId, Lane, ReplyTokens, Token, lane_filter, live_subject};
use schemas::{header, stream};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// How long a publish is tried again while the job stream has no leader or the server does not answer.
const PUBLISH_RETRY: Duration = Duration::from_secs(20);
/// A live result may be missed (core NATS drops for slow readers); the stored one is looked up this often.
const LOOK_UP_EVERY: Duration = Duration::from_secs(5);

/// Publishes jobs and reads what comes back. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Client {
    pub connection: Connection,
}

/// A job ready to be published.
#[derive(Clone, Debug)]
pub struct Submission {
    pub address: Address,
    pub encoding: Encoding,
    /// The encoded job.
    pub payload: Bytes,
    pub deadline: Option<OffsetDateTime>,
}

/// What became of a publish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Submitted {
    Queued,
    /// A job with this id is queued or in flight, or was stored moments ago.
    Duplicate,
}

#[derive(Debug, thiserror::Error)]
pub enum SubmitError {
    #[error(
        "model {model:?} has no lane {lane}: no stream takes its jobs. Registered: {known}. Add it to the registry and run `inferq setup`"
    )]
    UnknownModel { model: String, lane: Lane, known: String },
    #[error(
        "the job is {bytes} bytes; the server takes at most {max} (max_payload). Split its inputs over several jobs"
    )]
    TooLarge { bytes: usize, max: usize },
    #[error("{0}")]
    Address(#[from] AddressError),
    #[error("not stored: {0}")]
    Failed(PublishFailure),
}

#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error("stream {0} is missing; run `inferq setup`")]
    NoStream(&'static str),
    #[error("the stored message cannot be read: {0}")]
    Decode(#[from] DecodeError),
    #[error("no answer from the server: {0}")]
    Server(String),
}

impl Submission {
    /// The headers of the message.
    fn headers(&self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, self.encoding.content_type());
        let Address { tenant, job_id, .. } = &self.address;
        headers.insert(header::MESSAGE_ID, format!("{tenant}/{job_id}"));
        if let Some(deadline) = self.deadline.and_then(|at| at.format(&Rfc3339).ok()) {
            headers.insert(header::DEADLINE, deadline);
        }
        headers
    }
}

impl Client {
    pub fn new(connection: Connection) -> Self {
        Self { connection }
    }

    /// Publishes a job and waits until the server has stored it. Publishing it again is safe: it has one id.
    pub async fn submit(&self, submission: &Submission) -> Result<Submitted, SubmitError> {
        let subject = submission.address.subject()?;
        let backoff =
            ExponentialBuilder::default().with_jitter().without_max_times().with_total_delay(Some(PUBLISH_RETRY));
        let attempt = || self.submit_once(&subject, submission);
        attempt
            .retry(backoff)
            .when(|error| matches!(error, SubmitError::Failed(failure) if failure.is_transient()))
            .await
    }

    async fn submit_once(&self, subject: &str, submission: &Submission) -> Result<Submitted, SubmitError> {
        let max = self.connection.client.max_payload();
        let message = PublishMessage::build().payload(submission.payload.clone()).headers(submission.headers());
        let sent = match self.connection.jetstream.send_publish(subject.to_owned(), message).await {
            Ok(ack) => ack.await,
            Err(error) => Err(error),
        };
        match sent.map_err(|error| classify_publish(&error)) {
            Ok(ack) if ack.duplicate => Ok(Submitted::Duplicate),
            Ok(_) => Ok(Submitted::Queued),
            Err(PublishFailure::AlreadyStored) => Ok(Submitted::Duplicate),
            Err(PublishFailure::TooLarge(_)) => Err(SubmitError::TooLarge { bytes: submission.payload.len(), max }),
            Err(PublishFailure::NoStream) => Err(self.explain_no_stream(&submission.address).await),
            Err(failure) => Err(SubmitError::Failed(failure)),
        }
    }

    /// No stream answered: the model is unknown, or the stream is away for a moment.
    async fn explain_no_stream(&self, address: &Address) -> SubmitError {
        match self.is_registered(&address.model, address.lane).await {
            Ok(false) => {
                let known = self.registered().await.unwrap_or_default();
                let known =
                    known.iter().map(|(model, lane)| format!("{model} ({lane})")).collect::<Vec<_>>().join(", ");
                let known = if known.is_empty() { "none".to_owned() } else { known };
                SubmitError::UnknownModel { model: address.model.clone(), lane: address.lane, known }
            }
            Ok(true) | Err(_) => SubmitError::Failed(PublishFailure::NoStream),
        }
    }

    /// Whether the job stream takes jobs of that model and lane.
    pub async fn is_registered(&self, model: &str, lane: Lane) -> Result<bool, ReadError> {
        let Ok(token) = Token::encode(model) else { return Ok(false) };
        let filter = lane_filter(&token, lane);
        Ok(self.job_subjects().await?.contains(&filter))
    }

    /// The models and lanes the job stream takes.
    pub async fn registered(&self) -> Result<Vec<(String, Lane)>, ReadError> {
        let read = |subject: String| {
            let mut tokens = subject.split('.').skip(2);
            let model = Token::decode(tokens.next()?).ok()?;
            Some((model, tokens.next()?.parse().ok()?))
        };
        Ok(self.job_subjects().await?.into_iter().filter_map(read).collect())
    }

    async fn job_subjects(&self) -> Result<Vec<String>, ReadError> {
        let stream = match self.connection.jetstream.get_stream(stream::JOBS).await {
            Ok(stream) => stream,
            // A missing stream takes nothing; anything else is the server's trouble.
            Err(error) if error.to_string().contains("not found") => return Ok(Vec::new()),
            Err(error) => return Err(ReadError::Server(error.to_string())),
        };
        Ok(stream.cached_info().config.subjects.clone())
    }

    /// The stored result of a job, if there is one.
    pub async fn result(&self, tenant: &Token, job_id: &JobId) -> Result<Option<JobResult>, ReadError> {
        let subject = result_subject(tenant, job_id);
        let results = stream_handle(&self.connection.jetstream, stream::RESULTS).await?;
        match results.direct_get_last_for_subject(subject).await {
            Ok(message) => Ok(Some(decode(Some(&message.headers), &message.payload)?)),
            Err(error) if error.kind() == DirectGetErrorKind::NotFound => Ok(None),
            Err(error) => match error.to_string() {
                text if text.contains("no responders") => Err(ReadError::NoStream(stream::RESULTS)),
                text => Err(ReadError::Server(text)),
            },
        }
    }

    /// Waits for the result of a job, for as long as the caller does.
    pub async fn wait(&self, tenant: &Token, job_id: &JobId) -> Result<JobResult, ReadError> {
        let subject = live_subject(&result_subject(tenant, job_id));
        let subscribed = self.connection.client.subscribe(subject).await;
        let mut live = subscribed.map_err(|error| ReadError::Server(error.to_string()))?;
        loop {
            match self.result(tenant, job_id).await {
                Ok(Some(result)) => return Ok(result),
                Ok(None) | Err(ReadError::Server(_)) => {}
                Err(error) => return Err(error),
            }
            match tokio::time::timeout(LOOK_UP_EVERY, live.next()).await {
                Ok(Some(message)) => return Ok(decode(message.headers.as_ref(), &message.payload)?),
                Ok(None) => return Err(ReadError::Server("the connection is closed".to_owned())),
                Err(_) => {}
            }
        }
    }

    /// The log of a job. Ends after what is stored; with `follow` it goes on until the caller stops reading.
    pub async fn logs(
        &self,
        tenant: &Token,
        job_id: &JobId,
        follow: bool,
    ) -> Result<impl futures::Stream<Item = Result<LogMessage, ReadError>> + use<>, ReadError> {
        let logs = stream_handle(&self.connection.jetstream, stream::LOGS).await?;
        let config = pull::OrderedConfig {
            filter_subject: log_subject(tenant, job_id),
            deliver_policy: DeliverPolicy::All,
            ..Default::default()
        };
        let consumer = logs.create_consumer(config).await.map_err(|error| ReadError::Server(error.to_string()))?;
        let stored = consumer.cached_info().num_pending;
        let messages = consumer.messages().await.map_err(|error| ReadError::Server(error.to_string()))?;
        let limit = if follow { usize::MAX } else { usize::try_from(stored).unwrap_or(usize::MAX) };
        Ok(messages.take(limit).map(|message| {
            let message = message.map_err(|error| ReadError::Server(error.to_string()))?;
            decode(message.headers.as_ref(), &message.payload).map_err(ReadError::from)
        }))
    }
}

fn result_subject(tenant: &Token, job_id: &JobId) -> String {
    ReplyTokens { tenant: tenant.as_str(), job_id: job_id.as_str() }.result_subject()
}

fn log_subject(tenant: &Token, job_id: &JobId) -> String {
    ReplyTokens { tenant: tenant.as_str(), job_id: job_id.as_str() }.log_subject()
}

async fn stream_handle(jetstream: &Context, name: &'static str) -> Result<Stream<()>, ReadError> {
    jetstream.get_stream_no_info(name).await.map_err(|error| ReadError::Server(error.to_string()))
}

fn decode<T: serde::de::DeserializeOwned>(headers: Option<&HeaderMap>, payload: &[u8]) -> Result<T, DecodeError> {
    let content_type = headers.and_then(|headers| headers.get(header::CONTENT_TYPE)).map(|value| value.as_str());
    Encoding::from_content_type(content_type).unwrap_or_default().decode(payload)
}
