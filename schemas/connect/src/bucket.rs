//! Bodies over the payload limit, in an object store, in the format of all NATS clients.
//!
//! Reading is the client library's. Writing and deleting are not: it leaves the chunks of an object that it could not
//! finish, and a marker of each one it deletes, and both would stay for ever in a bucket whose objects have no age.

use std::collections::VecDeque;
use std::fmt;
use std::time::Duration;

use crate::{PublishFailure, classify_publish};
use async_nats::HeaderMap;
use async_nats::jetstream::Context;
use async_nats::jetstream::context::PublishErrorKind;
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::object_store::{GetErrorKind, InfoErrorKind, ObjectStore};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE;
use bytes::Bytes;
use serde_json::json;
use sha2::{Digest, Sha256};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::io::AsyncReadExt;
use tokio::sync::OnceCell;
use uuid::Uuid;

/// The largest body of a job: what a worker takes by default (`limits.body_bytes`). Results keep to it too.
pub const BODY_BYTES_MAX: usize = 64 << 20;

const CHUNK_BYTES_MAX: usize = 128 * 1024;
/// Chunks on their way to the server at a time.
const CHUNKS_UNCONFIRMED: usize = 8;
/// How long the next part of an object may take.
const READ_SILENCE: Duration = Duration::from_secs(10);

/// One object store. It is looked up when it is first needed, and once.
pub struct Bucket {
    name: &'static str,
    jetstream: Context,
    store: OnceCell<ObjectStore>,
}

#[derive(Debug, thiserror::Error)]
pub enum BucketError {
    #[error("bucket {0} is missing; run `inferq setup`")]
    Missing(&'static str),
    #[error("the body {name:?} is not in bucket {bucket}: it has expired or was deleted")]
    Gone { bucket: &'static str, name: String },
    #[error("the body {name:?} in bucket {bucket} has {bytes} bytes; at most {max} are read")]
    TooLarge { bucket: &'static str, name: String, bytes: usize, max: usize },
    #[error("bucket {bucket}: {reason}")]
    Server { bucket: &'static str, reason: String },
}

impl fmt::Debug for Bucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bucket").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Bucket {
    pub fn new(jetstream: Context, name: &'static str) -> Self {
        Self { name, jetstream, store: OnceCell::new() }
    }

    /// Stores an object under a name that is free, or leaves nothing.
    pub async fn put(&self, name: &str, body: &Bytes) -> Result<(), PublishFailure> {
        let nuid = Uuid::now_v7().simple().to_string();
        let written = self.write(name, &nuid, body).await;
        if written.is_err()
            && let Err(error) = self.purge(format!("$O.{}.C.{nuid}", self.name)).await
        {
            tracing::warn!(%error, "chunks of an unfinished object are left over");
        }
        written
    }

    /// Reads a whole object.
    pub async fn get(&self, name: &str, bytes_max: usize) -> Result<Bytes, BucketError> {
        let gone = || BucketError::Gone { bucket: self.name, name: name.to_owned() };
        let found = self.store().await?.get(name).await;
        let mut object = found.map_err(|error| match error.kind() {
            GetErrorKind::NotFound => gone(),
            _ => self.failed(error),
        })?;
        let bytes = object.info().size;
        if bytes > bytes_max {
            return Err(BucketError::TooLarge { bucket: self.name, name: name.to_owned(), bytes, max: bytes_max });
        }
        let mut body = Vec::with_capacity(bytes);
        loop {
            match tokio::time::timeout(READ_SILENCE, object.read_buf(&mut body)).await {
                Ok(Ok(0)) if body.len() == bytes => return Ok(body.into()),
                Ok(Ok(0)) => return Err(gone()),
                Ok(Ok(_)) if body.len() > bytes => return Err(self.failed("more bytes than it says it has")),
                Ok(Ok(_)) => {}
                Ok(Err(error)) => return Err(self.failed(error)),
                // Chunks that are gone never come, nor does anything while the server is away.
                Err(_) => return Err(self.explain_silence(name).await),
            }
        }
    }

    async fn explain_silence(&self, name: &str) -> BucketError {
        let found = match self.store().await {
            Ok(store) => store.info(name).await,
            Err(error) => return error,
        };
        match found {
            Err(error) if error.kind() == InfoErrorKind::NotFound => {
                BucketError::Gone { bucket: self.name, name: name.to_owned() }
            }
            Ok(_) => self.failed(format!("parts of {name:?} did not come within {READ_SILENCE:?}")),
            Err(error) => self.failed(error),
        }
    }

    /// Deletes an object, if it is there, without a trace.
    pub async fn remove(&self, name: &str) -> Result<(), BucketError> {
        let nuid = match self.store().await?.info(name).await {
            Ok(object) => object.nuid,
            Err(error) if error.kind() == InfoErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(self.failed(error)),
        };
        self.purge(self.meta_subject(name)).await?;
        self.purge(format!("$O.{}.C.{nuid}", self.name)).await
    }

    /// Chunks first, so that an object that can be found is whole.
    async fn write(&self, name: &str, nuid: &str, body: &Bytes) -> Result<(), PublishFailure> {
        let chunk_bytes = CHUNK_BYTES_MAX.min(self.jetstream.client().max_payload() / 2);
        let chunks = (0..body.len()).step_by(chunk_bytes).map(|at| body.slice(at..body.len().min(at + chunk_bytes)));
        let subject = format!("$O.{}.C.{nuid}", self.name);
        let mut unconfirmed = VecDeque::with_capacity(CHUNKS_UNCONFIRMED);
        let mut stored = Ok(());
        for chunk in chunks {
            if unconfirmed.len() == CHUNKS_UNCONFIRMED
                && let Some(oldest) = unconfirmed.pop_front()
            {
                stored = stored.and(self.confirmed(oldest).await);
            }
            if stored.is_err() {
                break;
            }
            let message = PublishMessage::build().payload(chunk);
            match self.jetstream.send_publish(subject.clone(), message).await {
                Ok(sent) => unconfirmed.push_back(sent),
                Err(error) => stored = Err(classify_publish(&error)),
            }
        }
        // All are waited for: a chunk that is stored after a failure was cleaned up would stay.
        for sent in unconfirmed {
            stored = stored.and(self.confirmed(sent).await);
        }
        stored?;
        let meta = json!({
            "name": name,
            "bucket": self.name,
            "nuid": nuid,
            "size": body.len(),
            "chunks": body.len().div_ceil(chunk_bytes),
            "mtime": OffsetDateTime::now_utc().format(&Rfc3339).unwrap_or_default(),
            "digest": format!("SHA-256={}", URL_SAFE.encode(Sha256::digest(body))),
            "options": { "max_chunk_size": chunk_bytes },
        });
        let mut headers = HeaderMap::new();
        headers.insert(async_nats::header::NATS_ROLLUP, "sub");
        let message = PublishMessage::build().payload(meta.to_string().into()).headers(headers);
        let sent = self.jetstream.send_publish(self.meta_subject(name), message).await;
        self.confirmed(sent.map_err(|error| classify_publish(&error))?).await
    }

    async fn confirmed(&self, sent: async_nats::jetstream::context::PublishAckFuture) -> Result<(), PublishFailure> {
        match sent.await {
            Ok(_) => Ok(()),
            Err(error) if error.kind() == PublishErrorKind::StreamNotFound => {
                Err(PublishFailure::Refused(BucketError::Missing(self.name).to_string()))
            }
            Err(error) => Err(classify_publish(&error)),
        }
    }

    async fn purge(&self, subject: String) -> Result<(), BucketError> {
        let stream = self.jetstream.get_stream_no_info(format!("OBJ_{}", self.name)).await;
        let stream = stream.map_err(|error| self.failed(error))?;
        stream.purge().filter(subject).await.map(drop).map_err(|error| self.failed(error))
    }

    async fn store(&self) -> Result<&ObjectStore, BucketError> {
        let look_up = || async {
            self.jetstream.get_object_store(self.name).await.map_err(|error| match error.to_string() {
                text if text.contains("stream not found") => BucketError::Missing(self.name),
                text => self.failed(text),
            })
        };
        self.store.get_or_try_init(look_up).await
    }

    fn meta_subject(&self, name: &str) -> String {
        format!("$O.{}.M.{}", self.name, URL_SAFE.encode(name))
    }

    fn failed(&self, reason: impl ToString) -> BucketError {
        BucketError::Server { bucket: self.name, reason: reason.to_string() }
    }
}
