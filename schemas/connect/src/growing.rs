//! Objects that are written bit by bit, and read while they grow. They become ordinary ones when they are sealed.
//!
//! A chunk names the one before it, so that of two writers only one goes on; whoever takes an object over reads it first.

use std::sync::Arc;

use async_nats::jetstream::message::PublishMessage;
use bytes::Bytes;
use futures::{Stream, StreamExt};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::bucket::{Bucket, BucketError, CHUNK_BYTES_MAX, Size};
use crate::{PublishFailure, classify_publish};

/// An object that grows.
pub struct Growing {
    bucket: Arc<Bucket>,
    nuid: String,
    /// The sequence of its last chunk.
    last: u64,
    size: Size,
    digest: Sha256,
}

impl Growing {
    pub fn new(bucket: Arc<Bucket>) -> Self {
        Self::named(bucket, Uuid::now_v7().simple().to_string())
    }

    /// One whose name is known already.
    pub fn named(bucket: Arc<Bucket>, nuid: String) -> Self {
        Self { bucket, nuid, last: 0, size: Size::default(), digest: Sha256::new() }
    }

    /// What its chunks are called.
    pub fn nuid(&self) -> &str {
        &self.nuid
    }

    pub fn size(&self) -> Size {
        self.size
    }

    /// How many bytes a chunk may have.
    pub fn chunk_bytes_max(&self) -> usize {
        CHUNK_BYTES_MAX.min(self.bucket.jetstream.client().max_payload() / 2)
    }

    /// Goes on with an object of lines that another one has begun: reads it, and takes away what stands behind its last
    /// whole line. Each chunk is handed to `take`; those that end a line are whole up to there.
    pub async fn take_over(
        bucket: Arc<Bucket>,
        nuid: &str,
        mut take: impl FnMut(&Bytes) -> Result<(), BucketError>,
    ) -> Result<Self, BucketError> {
        let mut growing = Self::named(bucket.clone(), nuid.to_owned());
        let (mut chunks, mut pieces) = (std::pin::pin!(chunks(bucket.clone(), nuid, 0)), Vec::new());
        while let Some(chunk) = chunks.next().await {
            let (sequence, chunk) = chunk?;
            pieces.push((sequence, chunk));
            if pieces.last().is_some_and(|(_, chunk)| chunk.ends_with(b"\n")) {
                for (sequence, chunk) in pieces.drain(..) {
                    growing.count(sequence, &chunk);
                    take(&chunk)?;
                }
            }
        }
        let stream = bucket.stream().await?;
        for (sequence, _) in pieces {
            stream.delete_message(sequence).await.map_err(|error| bucket.failed(error))?;
        }
        Ok(growing)
    }

    /// Adds a chunk. `AlreadyStored` is that somebody else has added one.
    pub async fn append(&mut self, chunk: Bytes) -> Result<(), PublishFailure> {
        let message = PublishMessage::build().payload(chunk.clone()).expected_last_subject_sequence(self.last);
        let sent = match self.bucket.jetstream.send_publish(self.bucket.chunk_subject(&self.nuid), message).await {
            Ok(ack) => ack.await,
            Err(error) => Err(error),
        };
        let sequence = match sent.map_err(|error| classify_publish(&error)) {
            Ok(ack) => ack.sequence,
            // An earlier try may have been stored and not confirmed.
            Err(PublishFailure::AlreadyStored) => match self.next().await? {
                Some((sequence, stored)) if stored == chunk => sequence,
                _ => return Err(PublishFailure::AlreadyStored),
            },
            Err(failure) => return Err(failure),
        };
        self.count(sequence, &chunk);
        Ok(())
    }

    /// Makes it an ordinary object of that name.
    pub async fn seal(&self, name: &str) -> Result<(), PublishFailure> {
        self.bucket.put_meta(name, &self.nuid, &self.size, &self.digest.clone().finalize()).await
    }

    fn count(&mut self, sequence: u64, chunk: &Bytes) {
        self.last = sequence;
        self.size.bytes += chunk.len();
        self.size.chunks += 1;
        self.digest.update(chunk);
    }

    async fn next(&self) -> Result<Option<(u64, Bytes)>, PublishFailure> {
        let found = self.bucket.find(&self.bucket.chunk_subject(&self.nuid), Some(self.last + 1)).await;
        let found = found.map_err(|error| PublishFailure::Unconfirmed(error.to_string()))?;
        Ok(found.map(|chunk| (chunk.sequence, chunk.payload)))
    }
}

/// The chunks that are stored of an object after a sequence, with theirs.
pub fn chunks(
    bucket: Arc<Bucket>,
    nuid: &str,
    after: u64,
) -> impl Stream<Item = Result<(u64, Bytes), BucketError>> + Send + use<> {
    let subject = bucket.chunk_subject(nuid);
    futures::stream::try_unfold((bucket, subject, after), |(bucket, subject, after)| async move {
        let found = bucket.find(&subject, Some(after + 1)).await?;
        Ok(found.map(|chunk| ((chunk.sequence, chunk.payload), (bucket, subject, chunk.sequence))))
    })
}

/// Deletes an object, and its name if it has one.
pub async fn delete(bucket: &Bucket, nuid: &str, name: &str) -> Result<(), BucketError> {
    bucket.purge(bucket.meta_subject(name)).await?;
    bucket.purge(bucket.chunk_subject(nuid)).await
}
