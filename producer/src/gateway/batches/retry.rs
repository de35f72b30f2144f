//! The lines of a batch that failed, as the input of another.

use bytes::{Bytes, BytesMut};
use connect::growing::{self, Growing};
use futures::{Stream, StreamExt, TryStreamExt};
use serde::Deserialize;

use super::record::BatchRecord;
use crate::batch::{Bits, row_of};
use crate::gateway::Gateway;
use crate::gateway::caller::Caller;
use crate::gateway::error::{ApiError, ApiResult};
use crate::gateway::files::FileRecord;
use crate::gateway::records::Kind;

impl Gateway {
    /// Makes a file of them and gives its id.
    pub(super) async fn failed_lines(&self, caller: &Caller, record: &BatchRecord) -> ApiResult<String> {
        #[derive(Deserialize)]
        struct Line {
            id: String,
        }
        let none =
            || ApiError::invalid("invalid_value", "id", "this batch has no failed lines that could be tried again");
        let errors = record.batch.error_file_id.as_deref().ok_or_else(none)?;
        let mut failed = Bits::new(record.batch.request_counts.total);
        let mut lines = lines(self.chunks(&self.file(caller, errors).await?)).boxed();
        while let Some(line) = lines.try_next().await? {
            let line = serde_json::from_slice::<Line>(&line).map_err(anyhow::Error::from)?;
            failed.insert(row_of(&line.id, &record.batch.id).unwrap_or(u64::MAX));
        }
        let input = self.file(caller, &record.batch.input_file_id).await?;
        let mut object = Growing::new(self.files.clone());
        let (mut lines, mut row, mut pending) = (self::lines(self.chunks(&input)).boxed(), 0, BytesMut::new());
        while let Some(line) = lines.try_next().await? {
            if line.trim_ascii().is_empty() {
                continue;
            }
            if failed.contains(row) {
                pending.extend_from_slice(&line);
                pending.extend_from_slice(b"\n");
            }
            row += 1;
            while pending.len() >= object.chunk_bytes_max() {
                let chunk = pending.split_to(object.chunk_bytes_max()).freeze();
                object.append(chunk).await.map_err(anyhow::Error::from)?;
            }
        }
        if !pending.is_empty() {
            object.append(pending.freeze()).await.map_err(anyhow::Error::from)?;
        }
        let name = format!("{}_failed.jsonl", record.batch.id);
        let mut file = FileRecord::new(object.nuid(), &name, "batch", None);
        (file.file.bytes, file.sealed) = (object.size().bytes as u64, true);
        file.file.status = "processed".to_owned();
        object.seal(&file.file.id).await.map_err(anyhow::Error::from)?;
        self.records.create(&Kind::Files.key(&caller.token, &file.file.id), &file).await?;
        Ok(file.file.id)
    }

    fn chunks(&self, file: &FileRecord) -> impl Stream<Item = anyhow::Result<Bytes>> + Send + use<> {
        growing::chunks(self.files.clone(), &file.nuid, 0).map_ok(|(_, chunk)| chunk).map_err(anyhow::Error::from)
    }
}

/// The lines of a file that comes in chunks, without their ends.
fn lines(chunks: impl Stream<Item = anyhow::Result<Bytes>> + Send) -> impl Stream<Item = anyhow::Result<Bytes>> + Send {
    let state = (Box::pin(chunks), BytesMut::new(), false);
    futures::stream::try_unfold(state, |(mut chunks, mut held, mut is_over)| async move {
        loop {
            if let Some(end) = held.iter().position(|byte| *byte == b'\n') {
                let line = held.split_to(end + 1).freeze();
                return Ok(Some((line.slice(..end), (chunks, held, is_over))));
            }
            if is_over {
                let rest = held.split().freeze();
                return Ok((!rest.is_empty()).then_some((rest, (chunks, held, is_over))));
            }
            match chunks.try_next().await? {
                Some(chunk) => held.extend_from_slice(&chunk),
                None => is_over = true,
            }
        }
    })
}
