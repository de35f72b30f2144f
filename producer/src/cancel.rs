//! Cancelling a job: its result says so first, so that no worker can answer any more; then it leaves the queue, and the
//! worker that may be running it is told to stop.

use std::time::Duration;

use anyhow::Context as _;
use async_nats::HeaderMap;
use async_nats::jetstream::message::{PublishMessage, StreamMessage};
use backon::{ExponentialBuilder, Retryable};
use bytes::Bytes;
use connect::bucket::BODY_BYTES_MAX;
use connect::{PublishFailure, classify_publish};
use schemas::codec::Encoding;
use schemas::log::{LogEvent, LogRecord};
use schemas::result::{JobResult, NoResponse, NoResponseCode};
use schemas::subject::{JobId, ReplyTokens, Token};
use schemas::{header, stream};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::client::{Client, decode, queued_filter, stream_handle};
use crate::submit::input_name;

/// The status of a result that says its job was cancelled: nginx's for a client that went away.
const CANCELLED: u16 = 499;
/// The worker that the log of a cancelled job names.
const SIGNATURE: &str = "inferq cancel";
/// How long the server may be away while the result is stored.
const STORE_RETRY: Duration = Duration::from_secs(20);

/// What became of a cancellation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Cancellation {
    /// Its result says so. A worker that was running it stops, or its answer is dropped.
    Cancelled,
    /// Too late: there is a result.
    Answered,
    /// There is no such job, or no more.
    Unknown,
}

impl Client {
    /// Cancels a job. Doing it again finishes what a crash has left undone.
    pub async fn cancel(&self, tenant: &Token, job_id: &JobId) -> anyhow::Result<Cancellation> {
        let tokens = ReplyTokens { tenant: tenant.as_str(), job_id: job_id.as_str() };
        let stored = self.stored(tenant, job_id).await?;
        let subjects = self.queued(tenant, job_id).await?;
        match stored {
            Some(result) if subjects.is_empty() || !is_cancelled(&result) => return Ok(Cancellation::Answered),
            Some(_) => {}
            None if subjects.is_empty() => {
                // It may have been answered between the two looks.
                let answered = self.stored(tenant, job_id).await?.is_some();
                return Ok(if answered { Cancellation::Answered } else { Cancellation::Unknown });
            }
            None => {}
        }
        let job = self.job_at(&subjects[0]).await?;
        let custom_id = match &job {
            Some(job) => self.custom_id(tenant, job_id, job).await,
            None => None,
        };
        let custom_id = custom_id.unwrap_or_else(|| job_id.to_string());
        let encoding = job.as_ref().map_or(Encoding::Json, |job| encoding(&job.headers));
        let (headers, payload) = cancelled(job_id, custom_id, encoding);
        if !self.store_cancelled(tokens, &headers, &payload).await? && !self.is_stored_cancelled(tenant, job_id).await?
        {
            return Ok(Cancellation::Answered);
        }
        self.copy(job.as_ref(), headers, payload).await;
        let jobs = stream_handle(&self.connection.jetstream, stream::JOBS).await?;
        jobs.purge()
            .filter(queued_filter(tenant, job_id))
            .await
            .context("the job could not be taken out of the queue")?;
        self.tell(tokens, &subjects).await?;
        if job.is_some_and(|job| job.headers.get(header::BODY).is_some()) {
            self.inputs.remove(&input_name(tenant, job_id)).await?;
        }
        self.forget_attempts(tokens).await?;
        Ok(Cancellation::Cancelled)
    }

    /// The message on a job's subject; none if it has just been answered.
    pub(crate) async fn job_at(&self, subject: &str) -> anyhow::Result<Option<StreamMessage>> {
        use async_nats::jetstream::stream::DirectGetErrorKind::NotFound;
        let jobs = stream_handle(&self.connection.jetstream, stream::JOBS).await?;
        match jobs.direct_get_last_for_subject(subject).await {
            Ok(message) => Ok(Some(message)),
            Err(error) if error.kind() == NotFound => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// The producer's own name for the job, where its payload can be read.
    async fn custom_id(&self, tenant: &Token, job_id: &JobId, job: &StreamMessage) -> Option<String> {
        #[derive(Deserialize)]
        struct Named {
            custom_id: Option<String>,
        }
        let payload = match job.headers.get(header::BODY) {
            Some(_) => self.inputs.get(&input_name(tenant, job_id), BODY_BYTES_MAX).await.ok()?,
            None => job.payload.clone(),
        };
        decode::<Named>(Some(&job.headers), &payload).ok()?.custom_id
    }

    /// Sends the result to the subject that the job asks for, as a worker does: an inbox, and no other.
    async fn copy(&self, job: Option<&StreamMessage>, headers: HeaderMap, payload: Bytes) {
        let asked = job.and_then(|job| job.headers.get(header::REPLY_TO)).map(|asked| asked.as_str());
        let Some(asked) = asked.filter(|asked| is_inbox(asked)) else { return };
        if let Err(error) = self.connection.client.publish_with_headers(asked.to_owned(), headers, payload).await {
            tracing::warn!(subject = asked, %error, "copy of a result not published");
        }
    }

    /// Stores the result that says so; false if there is a result already.
    async fn store_cancelled(
        &self,
        tokens: ReplyTokens<'_>,
        headers: &HeaderMap,
        payload: &Bytes,
    ) -> anyhow::Result<bool> {
        let store = || async {
            let message = PublishMessage::build().payload(payload.clone()).headers(headers.clone());
            let message = message.expected_last_subject_sequence(0);
            let sent = self.connection.jetstream.send_publish(tokens.result_subject(), message).await;
            match sent {
                Ok(ack) => ack.await,
                Err(error) => Err(error),
            }
            .map_err(|error| classify_publish(&error))
        };
        let backoff =
            ExponentialBuilder::default().with_jitter().without_max_times().with_total_delay(Some(STORE_RETRY));
        match store.retry(backoff).when(PublishFailure::is_transient).await {
            Ok(_) => Ok(true),
            Err(PublishFailure::AlreadyStored) => Ok(false),
            Err(failure) => Err(failure).context("the result that says `cancelled` could not be stored"),
        }
    }

    /// Whether the stored result is one of ours: of an earlier try, or of somebody who cancels at the same time.
    async fn is_stored_cancelled(&self, tenant: &Token, job_id: &JobId) -> anyhow::Result<bool> {
        Ok(self.stored(tenant, job_id).await?.is_some_and(|result| is_cancelled(&result)))
    }

    /// Tells the workers of the job's model to stop it, and its log that it is over. Nobody answers.
    async fn tell(&self, tokens: ReplyTokens<'_>, subjects: &[String]) -> anyhow::Result<()> {
        let client = &self.connection.client;
        for subject in subjects {
            let Ok(model) = Token::decode(subject.split('.').nth(2).unwrap_or_default()) else { continue };
            client.publish(tokens.cancel_subject(&Token::encode(&model)?), "".into()).await?;
            let record = LogRecord {
                time: OffsetDateTime::now_utc().format(&Rfc3339)?,
                job_id: tokens.job_id.to_owned(),
                model,
                worker: SIGNATURE.to_owned(),
                attempt: 0,
                event: LogEvent::Finished { status_code: CANCELLED, run_seconds: 0.0, usage: None },
            };
            client.publish(tokens.log_subject(), Encoding::Json.encode(&vec![record]).into()).await?;
        }
        Ok(client.flush().await?)
    }

    /// Makes the next delivery of a job its first.
    pub(crate) async fn forget_attempts(&self, tokens: ReplyTokens<'_>) -> anyhow::Result<()> {
        let bucket = stream::ATTEMPTS_BUCKET;
        let stream = self.connection.jetstream.get_stream_no_info(format!("KV_{bucket}")).await?;
        let subject = format!("$KV.{bucket}.{}", tokens.key());
        let purged = stream.purge().filter(subject).await;
        purged.with_context(|| format!("bucket {bucket}: the attempts of the job could not be forgotten")).map(drop)
    }
}

/// The result of a cancelled job.
fn cancelled(job_id: &JobId, custom_id: String, encoding: Encoding) -> (HeaderMap, Bytes) {
    let message = "the job was cancelled before it was answered".to_owned();
    let error = NoResponse { code: NoResponseCode::BatchCancelled, message };
    let result: JobResult = JobResult { id: job_id.to_string(), custom_id, response: None, error: Some(error) };
    let mut headers = HeaderMap::new();
    headers.insert(header::CONTENT_TYPE, encoding.content_type());
    headers.insert(header::STATUS, CANCELLED.to_string());
    (headers, encoding.encode(&result).into())
}

fn is_inbox(subject: &str) -> bool {
    subject.starts_with("_INBOX.") && !subject.contains(['*', '>']) && !subject.chars().any(char::is_whitespace)
}

fn is_cancelled(result: &StreamMessage) -> bool {
    result.headers.get(header::STATUS).is_some_and(|status| status.as_str() == CANCELLED.to_string())
}

/// How a job is written; its result is written in kind.
fn encoding(headers: &HeaderMap) -> Encoding {
    let content_type = headers.get(header::CONTENT_TYPE).map(|value| value.as_str());
    Encoding::from_content_type(content_type).unwrap_or_default()
}
