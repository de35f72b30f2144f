//! Where the lines of a batch go: two objects that grow, read by whoever wants to while they do.

use std::sync::Arc;

use bytes::Bytes;
use connect::PublishFailure;
use connect::bucket::{Bucket, BucketError};
use connect::growing::Growing;
use serde::Deserialize;
use serde_json::Value;

use super::record::BatchUsage;
use crate::batch::{Bits, Outputs, row_of};

/// Another gateway writes the same batch.
#[derive(Debug, thiserror::Error)]
#[error("another gateway goes on with this batch")]
pub struct Lost;

/// Between two tries while the bucket is full or away.
const RETRY_PAUSE: std::time::Duration = std::time::Duration::from_secs(1);

pub struct Lines {
    pub answers: Part,
    pub errors: Part,
    /// Of the answers.
    pub usage: BatchUsage,
    done: Bits,
    failed: u64,
}

/// What counts of a line.
#[derive(Deserialize)]
struct Line {
    id: String,
    #[serde(default)]
    response: Option<Answer>,
}

#[derive(Deserialize)]
struct Answer {
    #[serde(default)]
    body: Body,
}

#[derive(Default, Deserialize)]
struct Body {
    /// Of audio it has another shape.
    #[serde(default)]
    usage: Value,
}

/// One object and what is yet to be added to it.
pub struct Part {
    pub object: Growing,
    pending: Vec<u8>,
}

impl Lines {
    /// New objects of those names, or what there is of them.
    pub async fn open(bucket: &Arc<Bucket>, nuids: [&str; 2], batch_id: &str, rows: u64) -> Result<Self, BucketError> {
        let mut done = Bits::new(rows);
        let mut usage = BatchUsage::default();
        let answers = Part::open(bucket, nuids[0], batch_id, &mut done, |line| usage.add(&line)).await?;
        let answered = done.count();
        let errors = Part::open(bucket, nuids[1], batch_id, &mut done, |_| {}).await?;
        let failed = done.count() - answered;
        Ok(Self { answers, errors, usage, done, failed })
    }
}

impl BatchUsage {
    fn add(&mut self, line: &Line) {
        let Some(answer) = &line.response else { return };
        let tokens = |name| answer.body.usage[name].as_u64().unwrap_or_default();
        self.input_tokens += tokens("prompt_tokens");
        self.output_tokens += tokens("completion_tokens");
        self.total_tokens += tokens("total_tokens");
    }
}

impl Part {
    async fn open(
        bucket: &Arc<Bucket>,
        nuid: &str,
        batch_id: &str,
        done: &mut Bits,
        mut count: impl FnMut(Line) + Send,
    ) -> Result<Self, BucketError> {
        let mut text = Vec::new();
        let take = |chunk: &Bytes| {
            text.extend_from_slice(chunk);
            // A line may be in several chunks; chunks are handed over up to the end of one.
            if !text.ends_with(b"\n") {
                return Ok(());
            }
            for line in text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
                let Ok(line) = serde_json::from_slice::<Line>(line) else { continue };
                let is_new = row_of(&line.id, batch_id).is_some_and(|row| done.insert(row));
                if is_new {
                    count(line);
                }
            }
            text.clear();
            Ok(())
        };
        let object = Growing::take_over(bucket.clone(), nuid, take).await?;
        Ok(Self { object, pending: Vec::new() })
    }

    async fn push(&mut self, line: &[u8]) -> anyhow::Result<()> {
        if self.pending.len() + line.len() >= self.object.chunk_bytes_max() {
            self.flush().await?;
        }
        self.pending.extend_from_slice(line);
        self.pending.push(b'\n');
        Ok(())
    }

    /// Adds what is pending, however long that takes.
    async fn flush(&mut self) -> anyhow::Result<()> {
        let pending = Bytes::from(std::mem::take(&mut self.pending));
        let most = self.object.chunk_bytes_max();
        for from in (0..pending.len()).step_by(most) {
            let chunk = pending.slice(from..pending.len().min(from + most));
            loop {
                match self.object.append(chunk.clone()).await {
                    Ok(()) => break,
                    Err(PublishFailure::AlreadyStored) => return Err(Lost.into()),
                    Err(failure) if failure.is_transient() => {
                        tracing::warn!(%failure, "lines of a batch not stored, trying again");
                        tokio::time::sleep(RETRY_PAUSE).await;
                    }
                    Err(failure) => return Err(failure.into()),
                }
            }
        }
        Ok(())
    }
}

impl Outputs for Lines {
    fn done(&self) -> &Bits {
        &self.done
    }

    fn failed(&self) -> u64 {
        self.failed
    }

    async fn write(&mut self, row: u64, line: &[u8], is_success: bool) -> anyhow::Result<bool> {
        if !self.done.insert(row) {
            return Ok(false);
        }
        match is_success.then(|| serde_json::from_slice::<Line>(line)) {
            Some(Ok(line)) => self.usage.add(&line),
            Some(Err(_)) => {}
            None => self.failed += 1,
        }
        let part = if is_success { &mut self.answers } else { &mut self.errors };
        part.push(line).await?;
        Ok(true)
    }

    async fn flush(&mut self) -> anyhow::Result<()> {
        self.answers.flush().await?;
        self.errors.flush().await
    }
}
