//! `/v1/files`: what batches read and write, in the object store.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::multipart::{Field, MultipartError};
use axum::extract::{Multipart, Path, Query, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::{Bytes, BytesMut};
use connect::PublishFailure;
use connect::bucket::Bucket;
use connect::growing::{self, Growing};
use futures::{StreamExt, TryStreamExt};
use schemars::JsonSchema;
use schemas::result::ErrorObject;
use schemas::stream::FILES_DAYS;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use time::OffsetDateTime;
use uuid::Uuid;

use super::Gateway;
use super::caller::Caller;
use super::error::{ApiError, ApiResult};
use super::pages::{List, Order, Paging};
use super::records::Kind;

const DAY: i64 = 24 * 3600;
/// What `expires_after` may ask for, in seconds.
const EXPIRES_AFTER: std::ops::RangeInclusive<i64> = 3600..=FILES_DAYS as i64 * DAY;
pub const PURPOSES: [&str; 6] = ["assistants", "batch", "fine-tune", "vision", "user_data", "evals"];
const FIELD_BYTES_MAX: usize = 4096;
const FILES_PAGE: usize = 10_000;
/// Records that are read at a time.
const READ_AT_A_TIME: usize = 64;

/// OpenAI's File object.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
pub struct FileObject {
    pub id: String,
    pub object: String,
    pub bytes: u64,
    pub created_at: i64,
    pub filename: String,
    pub purpose: String,
    pub status: String,
    pub expires_at: Option<i64>,
}

/// What is kept of a file.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct FileRecord {
    pub file: FileObject,
    /// The name of its chunks.
    pub nuid: String,
    /// Whether nothing is added to it any more.
    pub sealed: bool,
}

#[derive(Debug, Deserialize)]
pub struct Asked {
    purpose: Option<String>,
    // Not a flattened `Paging`: serde reads no numbers of a query there.
    after: Option<String>,
    limit: Option<usize>,
    #[serde(default)]
    order: Order,
}

impl FileRecord {
    pub fn new(nuid: &str, filename: &str, purpose: &str, expires_after: Option<i64>) -> Self {
        let now = OffsetDateTime::now_utc().unix_timestamp();
        let file = FileObject {
            id: format!("file-{}", Uuid::now_v7().simple()),
            object: "file".to_owned(),
            bytes: 0,
            created_at: now,
            filename: filename.to_owned(),
            purpose: purpose.to_owned(),
            status: "uploaded".to_owned(),
            expires_at: Some(now + expires_after.unwrap_or(FILES_DAYS as i64 * DAY)),
        };
        Self { file, nuid: nuid.to_owned(), sealed: false }
    }
}

/// An upload that has not ended: its chunks go when it is dropped.
struct Upload {
    object: Growing,
    bucket: Arc<Bucket>,
    pending: BytesMut,
    is_kept: bool,
}

impl Upload {
    fn new(bucket: &Arc<Bucket>) -> Self {
        let object = Growing::new(bucket.clone());
        Self { object, bucket: bucket.clone(), pending: BytesMut::new(), is_kept: false }
    }

    async fn read(&mut self, field: &mut Field<'_>) -> ApiResult<()> {
        while let Some(part) = field.chunk().await.map_err(unreadable)? {
            self.pending.extend_from_slice(&part);
            while self.pending.len() >= self.object.chunk_bytes_max() {
                let chunk = self.pending.split_to(self.object.chunk_bytes_max()).freeze();
                self.object.append(chunk).await.map_err(refused)?;
            }
        }
        if !self.pending.is_empty() {
            let chunk = self.pending.split().freeze();
            self.object.append(chunk).await.map_err(refused)?;
        }
        Ok(())
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        if self.is_kept {
            return;
        }
        let (bucket, nuid) = (self.bucket.clone(), self.object.nuid().to_owned());
        tokio::spawn(async move {
            if let Err(error) = growing::delete(&bucket, &nuid, &nuid).await {
                tracing::warn!(%error, "chunks of an upload that did not end are left over");
            }
        });
    }
}

pub async fn create(
    State(gateway): State<Arc<Gateway>>,
    caller: Caller,
    form: Result<Multipart, axum::extract::multipart::MultipartRejection>,
) -> ApiResult<Json<FileObject>> {
    let mut form = form.map_err(|error| ApiError::invalid("invalid_multipart", "", error.body_text()))?;
    let (mut upload, mut filename, mut purpose, mut expires_after) = (None, None, None, None);
    while let Some(mut field) = form.next_field().await.map_err(unreadable)? {
        match field.name().unwrap_or_default() {
            "file" if upload.is_none() => {
                filename = field.file_name().map(str::to_owned);
                let mut begun = Upload::new(&gateway.files);
                begun.read(&mut field).await?;
                upload = Some(begun);
            }
            "purpose" => purpose = Some(text(&mut field).await?),
            "expires_after[seconds]" => expires_after = Some(seconds(&text(&mut field).await?)?),
            "expires_after[anchor]" => {
                let anchor = text(&mut field).await?;
                if anchor != "created_at" {
                    return Err(ApiError::invalid("invalid_value", "expires_after[anchor]", "is not created_at"));
                }
            }
            other => {
                let message = format!("{other:?} is no field of a file, or is given twice");
                return Err(ApiError::invalid("unknown_parameter", other, message));
            }
        }
    }
    let missing = |field| ApiError::invalid("missing_required_parameter", field, format!("you must give a {field}"));
    let (mut upload, purpose) = (upload.ok_or_else(|| missing("file"))?, purpose.ok_or_else(|| missing("purpose"))?);
    if !PURPOSES.contains(&purpose.as_str()) {
        return Err(ApiError::invalid("invalid_value", "purpose", format!("{purpose:?} is none of {PURPOSES:?}")));
    }
    let name = filename.filter(|name| !name.is_empty()).unwrap_or_else(|| "upload".to_owned());
    let mut record = FileRecord::new(upload.object.nuid(), &name, &purpose, expires_after);
    record.file.bytes = upload.object.size().bytes as u64;
    record.file.status = "processed".to_owned();
    record.sealed = true;
    upload.object.seal(&record.file.id).await.map_err(refused)?;
    gateway.records.create(&Kind::Files.key(&caller.token, &record.file.id), &record).await?;
    upload.is_kept = true;
    Ok(Json(record.file))
}

pub async fn list(
    State(gateway): State<Arc<Gateway>>,
    caller: Caller,
    asked: Result<Query<Asked>, axum::extract::rejection::QueryRejection>,
) -> ApiResult<Json<List<FileObject>>> {
    let Query(Asked { purpose, after, limit, order }) = asked.map_err(|error| wrong_query(&error.body_text()))?;
    let paging = Paging { after, limit, order };
    let ids = gateway.records.ids(Kind::Files, &caller.token).await?;
    let (ids, limit) = paging.begin(ids, FILES_PAGE, FILES_PAGE)?;
    let read = |id: String| {
        let (gateway, caller) = (gateway.clone(), caller.clone());
        async move { gateway.find_file(&caller, &id).await }
    };
    let files = futures::stream::iter(ids).map(read).buffered(READ_AT_A_TIME);
    let is_wanted = |file: &FileRecord| purpose.as_ref().is_none_or(|purpose| *purpose == file.file.purpose);
    let files = files.try_filter_map(|file| std::future::ready(Ok(file.filter(is_wanted))));
    let mut found: Vec<FileRecord> = files.take(limit + 1).try_collect().await?;
    let has_more = found.len() > limit;
    found.truncate(limit);
    Ok(Json(List::of(found.into_iter().map(|file| (file.file.id.clone(), file.file)).collect(), has_more)))
}

pub async fn retrieve(
    State(gateway): State<Arc<Gateway>>,
    caller: Caller,
    Path(id): Path<String>,
) -> ApiResult<Json<FileObject>> {
    Ok(Json(gateway.file(&caller, &id).await?.file))
}

pub async fn delete(
    State(gateway): State<Arc<Gateway>>,
    caller: Caller,
    Path(id): Path<String>,
) -> ApiResult<Json<Value>> {
    let record = gateway.file(&caller, &id).await?;
    if !record.sealed {
        let error = ErrorObject::invalid("file_in_use", None, format!("{id} is written by a batch; cancel it first"));
        return Err(ApiError::new(StatusCode::CONFLICT, error).no_retry());
    }
    gateway.delete_file(&caller, &record).await?;
    Ok(Json(json!({ "id": id, "object": "file", "deleted": true })))
}

/// Of a file that still grows: its whole lines so far.
pub async fn content(
    State(gateway): State<Arc<Gateway>>,
    caller: Caller,
    Path(id): Path<String>,
) -> ApiResult<Response> {
    let record = gateway.file(&caller, &id).await?;
    let chunks = growing::chunks(gateway.files.clone(), &record.nuid, 0).map_ok(|(_, chunk)| chunk);
    let mut response = match record.sealed {
        true => Body::from_stream(chunks).into_response(),
        false => Body::from_stream(whole_lines(chunks)).into_response(),
    };
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    if record.sealed {
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from(record.file.bytes));
    }
    let plain = |c: char| if c.is_ascii_graphic() && c != '"' && c != '\\' { c } else { '_' };
    let name: String = record.file.filename.chars().map(plain).collect();
    if let Ok(value) = HeaderValue::from_str(&format!("attachment; filename=\"{name}\"")) {
        headers.insert(header::CONTENT_DISPOSITION, value);
    }
    Ok(response)
}

/// Chunks up to the last one that ends a line.
fn whole_lines<E>(
    chunks: impl futures::Stream<Item = Result<Bytes, E>>,
) -> impl futures::Stream<Item = Result<Bytes, E>> {
    let held = BytesMut::new();
    chunks.scan(held, |held, chunk| {
        let ready = chunk.map(|chunk| {
            held.extend_from_slice(&chunk);
            if held.ends_with(b"\n") { held.split().freeze() } else { Bytes::new() }
        });
        std::future::ready(Some(ready))
    })
}

impl Gateway {
    /// A file that is there and has not expired.
    pub async fn file(&self, caller: &Caller, id: &str) -> ApiResult<FileRecord> {
        self.find_file(caller, id).await?.ok_or_else(|| ApiError::not_found("file", id))
    }

    async fn find_file(&self, caller: &Caller, id: &str) -> ApiResult<Option<FileRecord>> {
        if !is_id(id) {
            return Ok(None);
        }
        let found = self.records.get::<FileRecord>(&Kind::Files.key(&caller.token, id)).await?;
        let Some(record) = found.map(|found| found.record) else { return Ok(None) };
        let now = OffsetDateTime::now_utc().unix_timestamp();
        if record.sealed && record.file.expires_at.is_some_and(|at| at <= now) {
            self.delete_file(caller, &record).await?;
            return Ok(None);
        }
        Ok(Some(record))
    }

    async fn delete_file(&self, caller: &Caller, record: &FileRecord) -> ApiResult<()> {
        let deleted = growing::delete(&self.files, &record.nuid, &record.file.id).await;
        deleted.map_err(|error| ApiError::unavailable("files_unavailable", error.to_string()))?;
        Ok(self.records.remove(&Kind::Files.key(&caller.token, &record.file.id)).await?)
    }
}

/// Whether an id can be part of a key.
pub fn is_id(id: &str) -> bool {
    !id.is_empty() && id.len() <= 64 && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
}

pub fn wrong_query(message: &str) -> ApiError {
    ApiError::invalid("invalid_value", "", message)
}

pub async fn text(field: &mut Field<'_>) -> ApiResult<String> {
    let mut text = Vec::new();
    while let Some(part) = field.chunk().await.map_err(unreadable)? {
        text.extend_from_slice(&part);
        if text.len() > FIELD_BYTES_MAX {
            let message = format!("is longer than {FIELD_BYTES_MAX} bytes");
            return Err(ApiError::invalid("invalid_value", field.name().unwrap_or_default(), message));
        }
    }
    String::from_utf8(text).map_err(|error| ApiError::invalid("invalid_value", "", error.to_string()))
}

/// What `expires_after` asks for.
pub fn seconds(text: &str) -> ApiResult<i64> {
    let seconds = text.parse().ok().filter(|seconds| EXPIRES_AFTER.contains(seconds));
    let (from, to) = (EXPIRES_AFTER.start(), EXPIRES_AFTER.end());
    let wrong = || ApiError::invalid("invalid_value", "expires_after", format!("seconds: {from} to {to}"));
    seconds.ok_or_else(wrong)
}

pub fn unreadable(error: MultipartError) -> ApiError {
    if error.status() == StatusCode::PAYLOAD_TOO_LARGE {
        let error = ErrorObject::invalid("request_too_large", Some("file".to_owned()), error.body_text());
        return ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, error);
    }
    ApiError::invalid("invalid_multipart", "", error.body_text())
}

fn refused(failure: PublishFailure) -> ApiError {
    match failure {
        PublishFailure::Full(_) => {
            let error = ErrorObject::server("storage_full", "there is no room for this file; delete others");
            ApiError::new(StatusCode::INSUFFICIENT_STORAGE, error).no_retry()
        }
        other => ApiError::unavailable("files_unavailable", format!("the file could not be stored: {other}")),
    }
}
