//! Bodies over the payload limit, in an object store, in the format of all NATS clients.
//!
//! None of it is the client library's. It leaves the chunks of an object that it could not finish, and a marker of each
//! one it deletes, and both would stay for ever in a bucket whose objects have no age. And it reads by consumers, which
//! deliver to no other account, and which nobody but the operator shall make.

use std::collections::VecDeque;
use std::fmt;

use crate::{PublishFailure, classify_publish};
use async_nats::HeaderMap;
use async_nats::jetstream::Context;
use async_nats::jetstream::context::PublishErrorKind;
use async_nats::jetstream::message::{PublishMessage, StreamMessage};
use async_nats::jetstream::stream::{DirectGetErrorKind, RawMessageErrorKind, Stream};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE;
use bytes::Bytes;
use serde::Deserialize;
use serde_json::json;
use sha2::{Digest, Sha256};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use uuid::Uuid;

/// The largest body of a job: what a worker takes by default (`limits.body_bytes`). Results keep to it too.
pub const BODY_BYTES_MAX: usize = 64 << 20;

pub(crate) const CHUNK_BYTES_MAX: usize = 128 * 1024;
/// Chunks on their way to the server at a time.
const CHUNKS_UNCONFIRMED: usize = 8;
/// How the digest of an object begins.
pub(crate) const DIGEST: &str = "SHA-256=";

/// One object store.
pub struct Bucket {
    pub(crate) name: &'static str,
    pub(crate) jetstream: Context,
}

/// What is kept beside the chunks of an object, as far as it is read.
#[derive(Deserialize)]
struct Meta {
    /// The last token of its chunks' subject.
    nuid: String,
    size: usize,
    #[serde(default)]
    digest: Option<String>,
    /// Other clients leave this behind.
    #[serde(default)]
    deleted: bool,
}

/// How large an object is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Size {
    pub bytes: usize,
    pub chunks: usize,
}

#[derive(Debug, thiserror::Error)]
pub enum BucketError {
    #[error("bucket {0} is missing; run `inferq setup`. Or it is closed to these credentials, as it is to a tenant's")]
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
        Self { name, jetstream }
    }

    /// Stores an object under a name that is free, or leaves nothing.
    pub async fn put(&self, name: &str, body: &Bytes) -> Result<(), PublishFailure> {
        let nuid = Uuid::now_v7().simple().to_string();
        let written = self.write(name, &nuid, body).await;
        if written.is_err()
            && let Err(error) = self.purge(self.chunk_subject(&nuid)).await
        {
            tracing::warn!(%error, "chunks of an unfinished object are left over");
        }
        written
    }

    /// Reads a whole object.
    pub async fn get(&self, name: &str, bytes_max: usize) -> Result<Bytes, BucketError> {
        let gone = || BucketError::Gone { bucket: self.name, name: name.to_owned() };
        let Meta { nuid, size: bytes, digest, .. } = self.meta(name).await?.ok_or_else(gone)?;
        if bytes > bytes_max {
            return Err(BucketError::TooLarge { bucket: self.name, name: name.to_owned(), bytes, max: bytes_max });
        }
        let (subject, mut after) = (self.chunk_subject(&nuid), 0);
        let mut body = Vec::with_capacity(bytes);
        while body.len() < bytes {
            let chunk = self.find(&subject, Some(after + 1)).await?.ok_or_else(gone)?;
            after = chunk.sequence;
            body.extend_from_slice(&chunk.payload);
        }
        if body.len() > bytes {
            return Err(self.failed("more bytes than it says it has"));
        }
        match digest.as_deref().and_then(|digest| digest.strip_prefix(DIGEST)) {
            Some(digest) if digest != URL_SAFE.encode(Sha256::digest(&body)) => Err(self.failed("a wrong digest")),
            _ => Ok(body.into()),
        }
    }

    /// Deletes an object, if it is there, without a trace.
    pub async fn remove(&self, name: &str) -> Result<(), BucketError> {
        let Some(Meta { nuid, .. }) = self.meta(name).await? else { return Ok(()) };
        self.purge(self.meta_subject(name)).await?;
        self.purge(self.chunk_subject(&nuid)).await
    }

    /// Chunks first, so that an object that can be found is whole.
    async fn write(&self, name: &str, nuid: &str, body: &Bytes) -> Result<(), PublishFailure> {
        let chunk_bytes = CHUNK_BYTES_MAX.min(self.jetstream.client().max_payload() / 2);
        let chunks = (0..body.len()).step_by(chunk_bytes).map(|at| body.slice(at..body.len().min(at + chunk_bytes)));
        let subject = self.chunk_subject(nuid);
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
        let digest = Sha256::digest(body);
        self.put_meta(name, nuid, &Size { bytes: body.len(), chunks: body.len().div_ceil(chunk_bytes) }, &digest).await
    }

    /// Has an object be found by its name, once its chunks are stored.
    pub(crate) async fn put_meta(
        &self,
        name: &str,
        nuid: &str,
        size: &Size,
        digest: &[u8],
    ) -> Result<(), PublishFailure> {
        let meta = json!({
            "name": name,
            "bucket": self.name,
            "nuid": nuid,
            "size": size.bytes,
            "chunks": size.chunks,
            "mtime": OffsetDateTime::now_utc().format(&Rfc3339).unwrap_or_default(),
            "digest": format!("{DIGEST}{}", URL_SAFE.encode(digest)),
            "options": { "max_chunk_size": CHUNK_BYTES_MAX },
        });
        let mut headers = HeaderMap::new();
        headers.insert(async_nats::header::NATS_ROLLUP, "sub");
        let message = PublishMessage::build().payload(meta.to_string().into()).headers(headers);
        let sent = self.jetstream.send_publish(self.meta_subject(name), message).await;
        self.confirmed(sent.map_err(|error| classify_publish(&error))?).await
    }

    pub(crate) async fn confirmed(
        &self,
        sent: async_nats::jetstream::context::PublishAckFuture,
    ) -> Result<(), PublishFailure> {
        match sent.await {
            Ok(_) => Ok(()),
            Err(error) if error.kind() == PublishErrorKind::StreamNotFound => {
                Err(PublishFailure::Refused(BucketError::Missing(self.name).to_string()))
            }
            Err(error) => Err(classify_publish(&error)),
        }
    }

    pub(crate) async fn purge(&self, subject: String) -> Result<(), BucketError> {
        let purged = self.stream().await?.purge().filter(subject).await;
        purged.map(drop).map_err(|error| self.failed(error))
    }

    async fn meta(&self, name: &str) -> Result<Option<Meta>, BucketError> {
        let Some(found) = self.find(&self.meta_subject(name), None).await? else { return Ok(None) };
        let meta: Meta = serde_json::from_slice(&found.payload).map_err(|error| self.failed(error))?;
        let is_token = |text: &str| text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte));
        match meta {
            Meta { deleted: true, .. } => Ok(None),
            // It becomes part of a subject, and a wildcard would be all objects.
            Meta { nuid, .. } if nuid.is_empty() || !is_token(&nuid) => Err(self.failed("a wrong nuid")),
            meta => Ok(Some(meta)),
        }
    }

    /// The next message of a subject from a sequence on, or its last one.
    pub(crate) async fn find(&self, subject: &str, from: Option<u64>) -> Result<Option<StreamMessage>, BucketError> {
        let stream = self.stream().await?;
        let found = match from {
            Some(_) => stream.direct_get_next_for_subject(subject, from).await,
            None => stream.direct_get_last_for_subject(subject).await,
        };
        match found {
            Ok(message) => return Ok(Some(message)),
            // A replica that is behind does not have it yet: its leader is asked.
            Err(error) if error.kind() == DirectGetErrorKind::NotFound => {}
            Err(error) => return Err(self.unreached(error)),
        }
        let asked = match from {
            Some(from) => stream.raw_message_builder().next_by_subject(subject).sequence(from),
            None => stream.raw_message_builder().last_by_subject(subject),
        };
        match asked.send().await {
            Ok(message) => Ok(Some(message)),
            Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => Ok(None),
            Err(error) => Err(self.failed(error)),
        }
    }

    pub(crate) async fn stream(&self) -> Result<Stream<()>, BucketError> {
        self.jetstream.get_stream_no_info(format!("OBJ_{}", self.name)).await.map_err(|error| self.failed(error))
    }

    /// No responders: there is no such stream.
    fn unreached(&self, error: impl ToString) -> BucketError {
        match error.to_string() {
            text if text.contains("no responders") => BucketError::Missing(self.name),
            text => self.failed(text),
        }
    }

    pub(crate) fn chunk_subject(&self, nuid: &str) -> String {
        format!("$O.{}.C.{nuid}", self.name)
    }

    pub(crate) fn meta_subject(&self, name: &str) -> String {
        format!("$O.{}.M.{}", self.name, URL_SAFE.encode(name))
    }

    pub(crate) fn failed(&self, reason: impl ToString) -> BucketError {
        BucketError::Server { bucket: self.name, reason: reason.to_string() }
    }
}
