//! Bodies over the server's `max_payload`: they travel through the object store, and the message names them.

use async_nats::jetstream::context::ObjectStoreError;
use async_nats::jetstream::{Context, object_store::ObjectStore};
use bytes::Bytes;
use schemas::{header, stream};
use tokio::io::AsyncReadExt;

use crate::endpoint::Reject;
use crate::received::Received;

/// The object stores of large bodies.
#[derive(Clone)]
pub struct Bodies {
    inputs: ObjectStore,
    blobs: ObjectStore,
}

/// Why a large body is not there.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// The producer's mistake.
    #[error("{}", .0.error.message)]
    Rejected(Reject),
    /// The server's trouble: another try may succeed.
    #[error("the body of the job cannot be read: {0}")]
    Failed(String),
}

impl Bodies {
    pub async fn new(jetstream: &Context) -> Result<Self, ObjectStoreError> {
        let inputs = jetstream.get_object_store(stream::INPUTS_BUCKET).await?;
        let blobs = jetstream.get_object_store(stream::BLOBS_BUCKET).await?;
        Ok(Self { inputs, blobs })
    }

    /// The job's payload: that of its message, or the object it names. A job can name its own object only.
    pub async fn payload(&self, received: &Received, bytes_max: usize) -> Result<Bytes, BodyError> {
        let Some(name) = received.header(header::BODY) else { return Ok(received.message.payload.clone()) };
        let own = received.tokens().input_name();
        if name != own {
            let message = format!("{}: {name:?} is not {own:?}, the object of this job", header::BODY);
            return Err(reject("invalid_value", message));
        }
        let mut object = match self.inputs.get(name).await {
            Ok(object) => object,
            Err(error) if error.to_string().contains("not found") => {
                let message = format!("{}: there is no object {name:?} in {}", header::BODY, stream::INPUTS_BUCKET);
                return Err(reject("body_not_found", message));
            }
            Err(error) => return Err(BodyError::Failed(error.to_string())),
        };
        if object.info().size > bytes_max {
            let message = format!("the body has {} bytes; the model takes at most {bytes_max}", object.info().size);
            return Err(reject("body_too_large", message));
        }
        let mut payload = Vec::with_capacity(object.info().size);
        match object.read_to_end(&mut payload).await {
            Ok(_) => Ok(payload.into()),
            Err(error) => Err(BodyError::Failed(error.to_string())),
        }
    }

    /// Removes the job's object once it is answered.
    pub async fn forget(&self, received: &Received) {
        if received.header(header::BODY).is_some()
            && let Err(error) = self.inputs.delete(received.tokens().input_name()).await
        {
            tracing::warn!(%error, "body of an answered job not removed");
        }
    }

    /// Keeps the payload of a result and gives its name, which no other delivery of the job uses.
    pub async fn keep(&self, received: &Received, payload: &[u8]) -> Result<String, String> {
        let name = format!("{}/{:016x}", received.tokens().input_name(), fastrand::u64(..));
        let mut bytes = payload;
        self.blobs.put(name.as_str(), &mut bytes).await.map_err(|error| error.to_string())?;
        Ok(name)
    }

    /// Removes the payload of a result that was not stored after all.
    pub async fn drop_kept(&self, name: &str) {
        if let Err(error) = self.blobs.delete(name).await {
            tracing::warn!(%error, "body of a result that was not needed not removed");
        }
    }
}

fn reject(code: &str, message: String) -> BodyError {
    BodyError::Rejected(Reject::invalid(code, header::BODY.to_owned(), message))
}
