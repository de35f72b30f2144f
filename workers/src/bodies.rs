//! Bodies over the server's `max_payload`: they travel through the object store, and the message names them.

use async_nats::jetstream::Context;
use bytes::Bytes;
use connect::PublishFailure;
use connect::bucket::{BODY_BYTES_MAX, Bucket, BucketError};
use schemas::registry::Limits;
use schemas::{header, stream};

use crate::endpoint::Reject;
use crate::received::Received;

/// The object stores of large bodies.
pub struct Bodies {
    inputs: Bucket,
    blobs: Bucket,
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
        Self { inputs: bucket(stream::INPUTS_BUCKET), blobs: bucket(stream::BLOBS_BUCKET) }
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

    /// Keeps a payload and gives its name, which no other delivery of the job uses.
    pub async fn keep(&self, received: &Received, payload: &Bytes) -> Result<String, PublishFailure> {
        let name = format!("{}/{:016x}", received.tokens().input_name(), fastrand::u64(..));
        self.blobs.put(&name, payload).await.map(|()| name)
    }

    /// Keeps the body of a job that was given up beside those of results, so that it expires as its result does. The
    /// name of it, or none where the job has no body there is.
    pub async fn lay_by(&self, received: &Received) -> Result<Option<String>, PublishFailure> {
        let own = received.tokens().input_name();
        if received.header(header::BODY) != Some(own.as_str()) {
            return Ok(None);
        }
        match self.inputs.get(&own, BODY_BYTES_MAX).await {
            Ok(body) => self.keep(received, &body).await.map(Some),
            Err(BucketError::Gone { .. } | BucketError::TooLarge { .. }) => Ok(None),
            Err(error) => Err(PublishFailure::Unconfirmed(error.to_string())),
        }
    }

    /// Removes the payload of a result that was not stored after all.
    pub async fn drop_kept(&self, name: &str) {
        if let Err(error) = self.blobs.remove(name).await {
            tracing::warn!(%error, "body of a result that was not needed not removed");
        }
    }
}

fn reject(code: &str, message: String) -> BodyError {
    BodyError::Rejected(Reject::invalid(code, header::BODY.to_owned(), message))
}
