//! The client: what comes back of a job, its result and its log. How one goes out stands in [`crate::submit`].

use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::consumer::{DeliverPolicy, pull};
use async_nats::jetstream::message::StreamMessage;
use async_nats::jetstream::{Context, Message, stream::Stream};
use async_nats::{HeaderMap, Subscriber};
use bytes::Bytes;
use connect::Connection;
use connect::bucket::{BODY_BYTES_MAX, Bucket, BucketError};
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use schemas::codec::{DecodeError, Encoding};
use schemas::log::LogMessage;
use schemas::result::JobResult;
use schemas::subject::{JobId, Lane, ReplyTokens, Token, lane_filter, live_subject};
use schemas::{header, stream};
use tokio::sync::OnceCell;
use traces::Traces;
use uuid::Uuid;

use crate::reach::Reach;
use crate::tenants::Noted;

/// A live result may be missed (core NATS drops for slow readers); the stored one is looked up this often.
const LOOK_UP_EVERY: Duration = Duration::from_secs(5);

/// Publishes jobs and reads what comes back. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Client {
    pub connection: Connection,
    /// Bodies of jobs over the payload limit.
    pub(crate) inputs: Arc<Bucket>,
    /// Bodies of results over the payload limit.
    pub(crate) blobs: Arc<Bucket>,
    /// Bodies of dead letters over the payload limit.
    pub(crate) dead: Arc<Bucket>,
    pub(crate) noted: Arc<Noted>,
    pub(crate) reach: Arc<OnceCell<Reach>>,
    /// Part of every message id, so that nobody else can tell it.
    pub(crate) salt: Uuid,
    pub(crate) traces: Traces,
}

#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error("stream {0} is missing: run `inferq setup`, or it is closed to these credentials")]
    NoStream(&'static str),
    #[error("the stored message cannot be read: {0}")]
    Decode(#[from] DecodeError),
    #[error("{0}")]
    Body(#[from] BucketError),
    #[error("chunks {missing} to {} are no longer stored; the result has the whole answer", found - 1)]
    Gap { missing: u64, found: u64 },
    #[error("no answer from the server: {0}")]
    Server(String),
}

impl ReadError {
    /// Whether the same question may be answered later.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Server(_) | Self::Body(BucketError::Server { .. }))
    }
}

impl Client {
    pub fn new(connection: Connection) -> Self {
        let bucket = |name| Arc::new(Bucket::new(connection.jetstream.clone(), name));
        let (inputs, blobs) = (bucket(stream::INPUTS_BUCKET), bucket(stream::BLOBS_BUCKET));
        let dead = bucket(stream::DEAD_BUCKET);
        let (noted, reach, salt) = (Arc::default(), Arc::default(), Uuid::now_v7());
        Self { inputs, blobs, dead, noted, reach, salt, traces: Traces::default(), connection }
    }

    /// Has a span made for each job that is sent.
    pub fn with_traces(self, traces: Traces) -> Self {
        Self { traces, ..self }
    }

    /// Whether the job stream takes jobs of that model and lane.
    pub async fn is_registered(&self, model: &str, lane: Lane) -> Result<bool, ReadError> {
        let Ok(token) = Token::encode(model) else { return Ok(false) };
        if self.reach().await? == Reach::Own {
            return self.has_consumer(&token, lane).await;
        }
        let filter = lane_filter(&token, lane);
        Ok(self.job_subjects().await?.contains(&filter))
    }

    /// The models and lanes the job stream takes. Not for a tenant's own credentials: streams are not described to them.
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

    /// The subjects on which a job waits or runs: none or one, unless a producer used its id twice.
    pub async fn queued(&self, tenant: &Token, job_id: &JobId) -> Result<Vec<String>, ReadError> {
        let jobs = stream_handle(&self.connection.jetstream, stream::JOBS).await?;
        let found = jobs.info_with_subjects(queued_filter(tenant, job_id)).await.map_err(server)?;
        found.map_ok(|(subject, _)| subject).try_collect().await.map_err(server)
    }

    /// How many jobs of a tenant wait or run.
    pub async fn jobs_of(&self, tenant: &Token) -> Result<u64, ReadError> {
        let jobs = stream_handle(&self.connection.jetstream, stream::JOBS).await?;
        let found = jobs.info_with_subjects(format!("inferq.jobs.*.*.{tenant}.*")).await.map_err(server)?;
        found.try_fold(0, |count, _| std::future::ready(Ok(count + 1))).await.map_err(server)
    }

    /// The stored result of a job, if there is one.
    pub async fn result(&self, tenant: &Token, job_id: &JobId) -> Result<Option<JobResult>, ReadError> {
        match self.stored(tenant, job_id).await? {
            Some(message) => Ok(Some(self.read(Some(&message.headers), &message.payload).await?)),
            None => Ok(None),
        }
    }

    /// The message of the stored result.
    pub(crate) async fn stored(&self, tenant: &Token, job_id: &JobId) -> Result<Option<StreamMessage>, ReadError> {
        self.last_message(stream::RESULTS, &result_subject(tenant, job_id)).await
    }

    /// The payload of a result, from the message or from the object that it names.
    pub(crate) async fn payload(&self, headers: Option<&HeaderMap>, payload: &Bytes) -> Result<Bytes, BucketError> {
        match headers.and_then(|headers| headers.get(header::BODY)) {
            Some(name) => self.blobs.get(name.as_str(), BODY_BYTES_MAX).await,
            None => Ok(payload.clone()),
        }
    }

    pub(crate) async fn read(&self, headers: Option<&HeaderMap>, payload: &Bytes) -> Result<JobResult, ReadError> {
        Ok(decode(headers, &self.payload(headers, payload).await?)?)
    }

    /// Waits for the result of a job, for as long as the caller does.
    pub async fn wait(&self, tenant: &Token, job_id: &JobId) -> Result<JobResult, ReadError> {
        self.listen(tenant, job_id, true).await?.result().await
    }

    /// Begins to wait. A job that is yet to be sent has no result that would be looked up first.
    pub async fn listen(&self, tenant: &Token, job_id: &JobId, may_exist: bool) -> Result<Waiting, ReadError> {
        let subject = live_subject(&result_subject(tenant, job_id));
        let live = self.connection.client.subscribe(subject).await.map_err(server)?;
        Ok(Waiting { client: self.clone(), tenant: tenant.clone(), job_id: job_id.clone(), live, may_exist })
    }

    /// The log of a job. Ends after what is stored; with `follow` it goes on until the caller stops reading. To a tenant's
    /// own credentials only the last message of what is stored is shown.
    pub async fn logs(
        &self,
        tenant: &Token,
        job_id: &JobId,
        follow: bool,
    ) -> Result<BoxStream<'static, Result<LogMessage, ReadError>>, ReadError> {
        if self.reach().await? == Reach::Own {
            return self.last_logs(log_subject(tenant, job_id), follow).await;
        }
        let logs = stream_handle(&self.connection.jetstream, stream::LOGS).await?;
        let config = pull::OrderedConfig {
            filter_subject: log_subject(tenant, job_id),
            deliver_policy: DeliverPolicy::All,
            ..Default::default()
        };
        let consumer = logs.create_consumer(config).await.map_err(server)?;
        let stored = consumer.cached_info().num_pending;
        let messages = consumer.messages().await.map_err(server)?;
        let limit = if follow { usize::MAX } else { usize::try_from(stored).unwrap_or(usize::MAX) };
        let read = |message: Result<Message, _>| {
            let message = message.map_err(server)?;
            decode(message.headers.as_ref(), &message.payload).map_err(ReadError::from)
        };
        Ok(messages.take(limit).map(read).boxed())
    }
}

/// Somebody who waits for a result.
#[derive(Debug)]
pub struct Waiting {
    client: Client,
    tenant: Token,
    job_id: JobId,
    live: Subscriber,
    may_exist: bool,
}

impl Waiting {
    /// The result, for as long as the caller waits.
    pub async fn result(mut self) -> Result<JobResult, ReadError> {
        loop {
            if self.may_exist {
                match self.client.result(&self.tenant, &self.job_id).await {
                    Ok(Some(result)) => return Ok(result),
                    Ok(None) => {}
                    Err(error) if error.is_transient() => {}
                    Err(error) => return Err(error),
                }
            }
            self.may_exist = true;
            match tokio::time::timeout(LOOK_UP_EVERY, self.live.next()).await {
                Ok(Some(message)) => return self.client.read(message.headers.as_ref(), &message.payload).await,
                Ok(None) => return Err(ReadError::Server("the connection is closed".to_owned())),
                Err(_) => {}
            }
        }
    }
}

fn result_subject(tenant: &Token, job_id: &JobId) -> String {
    ReplyTokens { tenant: tenant.as_str(), job_id: job_id.as_str() }.result_subject()
}

/// All lanes of all models, that of lifted jobs too.
pub(crate) fn queued_filter(tenant: &Token, job_id: &JobId) -> String {
    format!("inferq.jobs.*.*.{tenant}.{job_id}")
}

pub(crate) fn log_subject(tenant: &Token, job_id: &JobId) -> String {
    ReplyTokens { tenant: tenant.as_str(), job_id: job_id.as_str() }.log_subject()
}

pub(crate) async fn stream_handle(jetstream: &Context, name: &'static str) -> Result<Stream<()>, ReadError> {
    jetstream.get_stream_no_info(name).await.map_err(server)
}

pub(crate) fn server(error: impl ToString) -> ReadError {
    ReadError::Server(error.to_string())
}

/// Reads a payload as its headers say.
pub(crate) fn decode<T: serde::de::DeserializeOwned>(
    headers: Option<&HeaderMap>,
    payload: &[u8],
) -> Result<T, DecodeError> {
    let content_type = headers.and_then(|headers| headers.get(header::CONTENT_TYPE)).map(|value| value.as_str());
    Encoding::from_content_type(content_type).unwrap_or_default().decode(payload)
}
