//! Bodies over the server's `max_payload`: they travel through the object store, and the message names them.

use async_nats::Client;
use async_nats::jetstream::Context;
use backon::Retryable;
use bytes::Bytes;
use connect::PublishFailure;
use connect::bucket::{BODY_BYTES_MAX, Bucket, BucketError};
use schemas::registry::Limits;
use schemas::{header, stream};

use crate::endpoint::Reject;
use crate::received::Received;
use crate::reply::{patience, report};

/// What a dead letter says beside its job: the log, the reason and who gave it up, within the server's payload limit.
const LETTER_ROOM: usize = 16 << 10;

/// The object stores of large bodies.
pub struct Bodies {
    client: Client,
    inputs: Bucket,
    blobs: Bucket,
    dead: Bucket,
}

/// Why a job has no body.
#[derive(Debug)]
pub enum BodyError {
    /// The producer's mistake.
    Rejected(Reject),
    /// The server's trouble: another try may succeed.
    Failed(String),
}

impl Bodies {
    pub fn new(jetstream: &Context) -> Self {
        let bucket = |name| Bucket::new(jetstream.clone(), name);
        Self {
            client: jetstream.client(),
            inputs: bucket(stream::INPUTS_BUCKET),
            blobs: bucket(stream::BLOBS_BUCKET),
            dead: bucket(stream::DEAD_BUCKET),
        }
    }

    /// The job's payload: the object it names. A job can name its own object only.
    pub async fn input(&self, name: &str, received: &Received, limits: &Limits) -> Result<Bytes, BodyError> {
        let own = received.tokens().input_name();
        if name != own {
            let message = format!("{}: {name:?} is not {own:?}, the object of this job", header::BODY);
            return Err(reject("invalid_value", message));
        }
        self.inputs.get(name, limits.body_bytes).await.map_err(|error| match error {
            BucketError::Gone { .. } => reject("body_not_found", error.to_string()),
            BucketError::TooLarge { .. } => reject("body_too_large", error.to_string()),
            BucketError::Missing(_) | BucketError::Server { .. } => BodyError::Failed(error.to_string()),
        })
    }

    /// Removes the job's object once the job is over.
    pub async fn forget(&self, received: &Received) {
        if let Err(error) = self.inputs.remove(&received.tokens().input_name()).await {
            tracing::warn!(%error, "body of a job that is over not removed");
        }
    }

    /// Keeps the payload of a result and gives its name, which no other delivery of the job uses. Waits as results do.
    pub async fn keep(&self, received: &Received, payload: &Bytes) -> Result<String, PublishFailure> {
        let name = new_name(received);
        let put = || self.blobs.put(&name, payload);
        put.retry(patience()).when(PublishFailure::is_transient).notify(report).await?;
        Ok(name)
    }

    /// Keeps the body of a job that is given up, where it is no part of its dead letter: it came as an object, or leaves no
    /// room for what the letter says beside it. Its name, or none where the letter has all there is.
    pub async fn lay_by(&self, received: &Received, limits: &Limits) -> Result<Option<String>, PublishFailure> {
        let own = received.tokens().input_name();
        let body = match received.header(header::BODY) {
            Some(name) if name == own => match self.inputs.get(&own, limits.body_bytes.max(BODY_BYTES_MAX)).await {
                Ok(body) => body,
                Err(error @ BucketError::Server { .. }) => return Err(PublishFailure::Unconfirmed(error.to_string())),
                Err(BucketError::Gone { .. } | BucketError::TooLarge { .. } | BucketError::Missing(_)) => {
                    return Ok(None);
                }
            },
            _ if received.message.payload.len() + LETTER_ROOM > self.payload_max() => received.message.payload.clone(),
            _ => return Ok(None),
        };
        let name = new_name(received);
        match self.dead.put(&name, &body).await {
            Ok(()) => Ok(Some(name)),
            // A letter without its body is better than none.
            Err(PublishFailure::Refused(reason)) => {
                tracing::warn!(reason, "body of a dead letter not kept");
                Ok(None)
            }
            Err(failure) => Err(failure),
        }
    }

    fn payload_max(&self) -> usize {
        self.client.max_payload()
    }

    /// Removes the payload of a result that was not stored after all.
    pub async fn drop_kept(&self, name: &str) {
        if let Err(error) = self.blobs.remove(name).await {
            tracing::warn!(%error, "body of a result that was not needed not removed");
        }
    }
}

fn new_name(received: &Received) -> String {
    format!("{}/{:016x}", received.tokens().input_name(), fastrand::u64(..))
}

fn reject(code: &str, message: String) -> BodyError {
    BodyError::Rejected(Reject::invalid(code, header::BODY.to_owned(), message))
}
