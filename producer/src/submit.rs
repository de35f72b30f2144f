//! How a job goes out: published until it is stored, by way of the object store where it is too large for a message.

use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::jetstream::message::PublishMessage;
use backon::{ExponentialBuilder, Retryable};
use bytes::Bytes;
use connect::bucket::BODY_BYTES_MAX;
use connect::{PublishFailure, classify_publish};
use schemas::header;
use schemas::subject::{Address, AddressError, JobId, Lane, ReplyTokens, Token};

use crate::client::{Client, ReadError};
use crate::reach::Reach;
use crate::submission::{Submission, WhenFull};
use crate::trace::Sending;

/// How long a publish is tried again while the job stream has no leader or the server does not answer.
const AWAY_MAX: Duration = Duration::from_secs(20);
/// Between two tries while the stream is full.
const FULL_DELAY_MAX: Duration = Duration::from_secs(2);

/// What became of a submission.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Submitted {
    Queued,
    /// A job with this id is queued or in flight, or was stored moments ago.
    Duplicate,
    /// Its result is stored already; nothing was published.
    Answered,
}

#[derive(Debug, thiserror::Error)]
pub enum SubmitError {
    #[error(
        "model {model:?} has no lane {lane}: no stream takes its jobs. Registered: {known}. Add it to the registry and run `inferq setup`"
    )]
    UnknownModel { model: String, lane: Lane, known: String },
    #[error("the job is {bytes} bytes; at most {max} are taken. Split its inputs over several jobs")]
    TooLarge { bytes: usize, max: usize },
    #[error("{0}")]
    Address(#[from] AddressError),
    #[error("not stored: {0}")]
    Failed(PublishFailure),
    #[error("not published: {0}")]
    Read(#[from] ReadError),
}

impl SubmitError {
    /// Whether the same submission may succeed later.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Failed(failure) => failure.is_transient(),
            Self::Read(error) => error.is_transient(),
            Self::UnknownModel { .. } | Self::TooLarge { .. } | Self::Address(_) => false,
        }
    }

    fn is_full(&self) -> bool {
        matches!(self, Self::Failed(PublishFailure::Full(_)))
    }
}

impl Client {
    /// Publishes a job and waits until the server has stored it. Publishing it again is safe: it has one id.
    pub async fn submit(&self, submission: &Submission) -> Result<Submitted, SubmitError> {
        let sending = Sending::begin(&self.traces, submission);
        let submitted = self.send(submission, &sending).await;
        sending.end(&submitted);
        submitted
    }

    async fn send(&self, submission: &Submission, sending: &Sending) -> Result<Submitted, SubmitError> {
        let Submission { address, payload, options, .. } = submission;
        if options.may_exist {
            let tenant = Token::encode(&address.tenant).map_err(AddressError::Tenant)?;
            if Box::pin(self.stored(&tenant, &address.job_id)).await?.is_some() {
                return Ok(Submitted::Answered);
            }
        }
        let headers = || {
            let mut headers = submission.headers(self.salt);
            sending.put(&mut headers);
            headers
        };
        let message = || PublishMessage::build().payload(payload.clone()).headers(headers());
        match self.publish(address, options.when_full, message).await {
            // Over the server's limit, which the client knows: nothing was sent.
            Err(SubmitError::Failed(PublishFailure::TooLarge(_))) => {
                Box::pin(self.submit_large(submission, headers)).await
            }
            submitted => submitted,
        }
    }

    /// Stores the payload as an object, then publishes the job that names it.
    async fn submit_large(
        &self,
        submission: &Submission,
        headers: impl Fn() -> HeaderMap,
    ) -> Result<Submitted, SubmitError> {
        let Submission { address, payload, options, .. } = submission;
        let max = match self.reach().await? {
            Reach::All => BODY_BYTES_MAX,
            // Object stores are closed to it.
            Reach::Own => self.connection.client.max_payload(),
        };
        if payload.len() > max || max < BODY_BYTES_MAX {
            return Err(SubmitError::TooLarge { bytes: payload.len(), max });
        }
        let tenant = Token::encode(&address.tenant).map_err(AddressError::Tenant)?;
        // The object of a job that waits or runs must not be replaced under the worker's hands.
        if self.is_queued(&tenant, &address.job_id).await? {
            return Ok(Submitted::Duplicate);
        }
        let name = input_name(&tenant, &address.job_id);
        self.put_input(&name, payload, options.when_full).await?;
        let message = || {
            let mut headers = headers();
            headers.insert(header::BODY, name.as_str());
            PublishMessage::build().payload(Bytes::new()).headers(headers)
        };
        let submitted = self.publish(address, options.when_full, message).await;
        let is_orphan = match &submitted {
            Ok(Submitted::Queued | Submitted::Answered) => false,
            // The object is that of the job which was first, if it is still there.
            Ok(Submitted::Duplicate) => !self.is_queued(&tenant, &address.job_id).await?,
            // It may have been stored all the same.
            Err(SubmitError::Failed(PublishFailure::Unconfirmed(_))) => false,
            Err(_) => true,
        };
        if is_orphan && let Err(error) = self.inputs.remove(&name).await {
            tracing::warn!(%error, "the body of a job that was not stored is left over");
        }
        submitted
    }

    pub(crate) async fn put_input(&self, name: &str, payload: &Bytes, when_full: WhenFull) -> Result<(), SubmitError> {
        let put = || async {
            // What an earlier submission of this id has left over.
            self.inputs.remove(name).await.map_err(ReadError::from)?;
            self.inputs.put(name, payload).await.map_err(SubmitError::Failed)
        };
        persist(when_full, put).await
    }

    async fn is_queued(&self, tenant: &Token, job_id: &JobId) -> Result<bool, ReadError> {
        Ok(!self.queued(tenant, job_id).await?.is_empty())
    }

    /// Publishes a message on a job's subject until it is stored or refused for good.
    pub(crate) async fn publish(
        &self,
        address: &Address,
        when_full: WhenFull,
        message: impl Fn() -> PublishMessage,
    ) -> Result<Submitted, SubmitError> {
        let subject = address.subject()?;
        // On the same connection and before the job, so that it is there when the job is.
        self.note_tenant(address).await?;
        match self.publish_once(address, &subject, message()).await {
            // Boxed, as all that is seldom needed: thousands of these futures are alive at a time.
            Err(error) if error.is_transient() => {
                Box::pin(persist(when_full, || self.publish_once(address, &subject, message()))).await
            }
            done => done,
        }
    }

    async fn publish_once(
        &self,
        address: &Address,
        subject: &str,
        message: PublishMessage,
    ) -> Result<Submitted, SubmitError> {
        let sent = match self.connection.jetstream.send_publish(subject.to_owned(), message).await {
            Ok(ack) => ack.await,
            Err(error) => Err(error),
        };
        match sent.map_err(|error| classify_publish(&error)) {
            Ok(ack) if ack.duplicate => Ok(Submitted::Duplicate),
            Ok(_) => Ok(Submitted::Queued),
            Err(PublishFailure::AlreadyStored) => Ok(Submitted::Duplicate),
            Err(PublishFailure::NoStream) => Err(Box::pin(self.explain_no_stream(address)).await),
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
                let known = match known.is_empty() {
                    true if self.reach.get() == Some(&Reach::Own) => "only the operator is told".to_owned(),
                    true => "none".to_owned(),
                    false => known,
                };
                SubmitError::UnknownModel { model: address.model.clone(), lane: address.lane, known }
            }
            Ok(true) | Err(_) => SubmitError::Failed(PublishFailure::NoStream),
        }
    }
}

/// The name of a job's body in the object store.
pub(crate) fn input_name(tenant: &Token, job_id: &JobId) -> String {
    ReplyTokens { tenant: tenant.as_str(), job_id: job_id.as_str() }.input_name()
}

/// Tries again while the server is away, for a while, and while the stream is full, for as long as the caller waits.
async fn persist<T, F, R>(when_full: WhenFull, attempt: F) -> Result<T, SubmitError>
where
    F: Fn() -> R,
    R: Future<Output = Result<T, SubmitError>>,
{
    let away = ExponentialBuilder::default().with_jitter().without_max_times().with_total_delay(Some(AWAY_MAX));
    let full = ExponentialBuilder::default().with_jitter().without_max_times().with_max_delay(FULL_DELAY_MAX);
    let despite_absence = || (&attempt).retry(away).when(|error| error.is_transient() && !error.is_full());
    despite_absence.retry(full).when(|error| when_full == WhenFull::Wait && error.is_full()).await
}
