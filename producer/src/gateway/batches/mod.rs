//! `/v1/batches`: OpenAI's Batch API. A batch is driven by one gateway at a time; what it has come to is in JetStream.

mod drive;
mod drivers;
mod lines;
mod record;
mod retry;

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode};
use futures::{StreamExt, TryStreamExt};
use schemars::JsonSchema;
use schemas::result::ErrorObject;
use schemas::subject::Lane;
use serde::Deserialize;
use serde_json::{Map, Value};
use uuid::Uuid;

pub use self::drivers::keep;
pub use self::record::{BatchObject, Status};

use self::drive::now;
use self::record::{BatchRecord, Counts, Webhook};
use super::Gateway;
use super::asked::{Body, idempotency_key, read_json};
use super::caller::Caller;
use super::error::{ApiError, ApiResult};
use super::files::{is_id, seconds, wrong_query};
use super::pages::{List, Paging};
use super::records::{Kind, Records};
use crate::submission::message_id;

/// The same batch asked for again within this time is the same batch: clients repeat requests whose answers were lost.
const SAME_SECONDS: i64 = 60;
const WINDOW_MAX: Duration = Duration::from_secs(7 * 24 * 3600);
const PAGE: (usize, usize) = (20, 100);
/// OpenAI's limits of `metadata`.
const METADATA_PAIRS_MAX: usize = 16;
const METADATA_KEY_MAX: usize = 64;
const METADATA_VALUE_MAX: usize = 512;

/// What a batch is asked for by.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
pub struct Create {
    input_file_id: String,
    endpoint: String,
    completion_window: String,
    #[serde(default)]
    metadata: Option<Map<String, Value>>,
    #[serde(default)]
    output_expires_after: Option<ExpiresAfter>,
    /// Ours: where its end is told.
    #[serde(default)]
    webhook_url: Option<String>,
}

#[derive(Clone, Debug, Deserialize, JsonSchema)]
pub struct ExpiresAfter {
    seconds: i64,
}

pub async fn create(
    State(gateway): State<Arc<Gateway>>,
    caller: Caller,
    headers: HeaderMap,
    Body(body): Body,
) -> ApiResult<Json<BatchObject>> {
    let asked: Create = read_json(&body)?;
    let window = window(&asked.completion_window)?;
    check_metadata(asked.metadata.as_ref())?;
    if !asked.endpoint.starts_with("/v1/") {
        let message = format!("{:?} is no endpoint, such as /v1/chat/completions", asked.endpoint);
        return Err(ApiError::invalid("invalid_value", "endpoint", message));
    }
    let output_expires_after = match &asked.output_expires_after {
        Some(after) => Some(seconds(&after.seconds.to_string())?),
        None => None,
    };
    if let Some(url) = &asked.webhook_url {
        gateway.webhooks.check(url)?;
    }
    let file = gateway.file(&caller, &asked.input_file_id).await.map_err(|error| match error.status {
        StatusCode::NOT_FOUND => {
            let message = format!("no file {:?}", asked.input_file_id);
            ApiError::invalid("invalid_value", "input_file_id", message)
        }
        _ => error,
    })?;
    if file.file.purpose != "batch" || !file.sealed {
        let message = format!("{} has the purpose {:?}; it must be \"batch\"", file.file.id, file.file.purpose);
        return Err(ApiError::invalid("invalid_value", "input_file_id", message));
    }
    let id = match idempotency_key(&headers)? {
        Some(key) => format!("batch_{}", message_id(&[b"batch", caller.tenant.as_bytes(), key.as_bytes()])),
        None => match gateway.same(&caller, &asked).await? {
            Some(same) => return Ok(Json(same)),
            None => new_id(),
        },
    };
    let record = BatchRecord {
        batch: BatchObject {
            metadata: asked.metadata.clone(),
            ..batch(&id, &asked.endpoint, &asked.input_file_id, &asked.completion_window, window)
        },
        tenant: caller.tenant.clone(),
        lanes: lanes(&caller),
        output_expires_after,
        results_after: 0,
        driver: None,
        webhook: asked.webhook_url.clone().map(|url| Webhook { url, is_done: false }),
    };
    let key = Kind::Batches.key(&caller.token, &id);
    match gateway.records.create(&key, &record).await? {
        true => Ok(Json(record.batch)),
        // The same key was used before.
        false => Ok(Json(gateway.batch(&caller, &id).await?.batch)),
    }
}

pub async fn retrieve(
    State(gateway): State<Arc<Gateway>>,
    caller: Caller,
    Path(id): Path<String>,
) -> ApiResult<Json<BatchObject>> {
    Ok(Json(gateway.batch(&caller, &id).await?.batch))
}

pub async fn list(
    State(gateway): State<Arc<Gateway>>,
    caller: Caller,
    paging: Result<Query<Paging>, axum::extract::rejection::QueryRejection>,
) -> ApiResult<Json<List<BatchObject>>> {
    let Query(paging) = paging.map_err(|error| wrong_query(&error.body_text()))?;
    let ids = gateway.records.ids(Kind::Batches, &caller.token).await?;
    let (mut ids, limit) = paging.begin(ids, PAGE.0, PAGE.1)?;
    let has_more = ids.len() > limit;
    ids.truncate(limit);
    let read = |id: String| {
        let (records, key) = (gateway.records.clone(), Kind::Batches.key(&caller.token, &id));
        async move { records.get::<BatchRecord>(&key).await }
    };
    let found = futures::stream::iter(ids).map(read).buffered(PAGE.0);
    let found: Vec<_> = found.try_filter_map(|found| std::future::ready(Ok(found))).try_collect().await?;
    let items = found.into_iter().map(|found| (found.record.batch.id.clone(), found.record.batch));
    Ok(Json(List::of(items.collect(), has_more)))
}

pub async fn cancel(
    State(gateway): State<Arc<Gateway>>,
    caller: Caller,
    Path(id): Path<String>,
) -> ApiResult<Json<BatchObject>> {
    let mut is_over = false;
    gateway.batch(&caller, &id).await?;
    let changed = gateway
        .records
        .modify::<BatchRecord>(&Kind::Batches.key(&caller.token, &id), |record| {
            is_over = record.batch.status.is_over();
            let is_new = matches!(record.batch.status, Status::Validating | Status::InProgress);
            if is_new {
                record.batch.status = Status::Cancelling;
                record.batch.cancelling_at = Some(now());
            }
            is_new
        })
        .await?;
    let batch = changed.ok_or_else(|| ApiError::not_found("batch", &id))?.record.batch;
    if is_over && batch.status != Status::Cancelled {
        let message = format!("batch {id} is over: it can be cancelled no more");
        return Err(ApiError::new(StatusCode::CONFLICT, ErrorObject::invalid("batch_over", None, message)).no_retry());
    }
    Ok(Json(batch))
}

/// Ours: a new batch of the lines that failed.
pub async fn retry(
    State(gateway): State<Arc<Gateway>>,
    caller: Caller,
    Path(id): Path<String>,
) -> ApiResult<Json<BatchObject>> {
    let record = gateway.batch(&caller, &id).await?;
    if !record.batch.status.is_over() {
        let message = format!("batch {id} is not over yet");
        return Err(ApiError::new(StatusCode::CONFLICT, ErrorObject::invalid("batch_open", None, message)).no_retry());
    }
    let input = gateway.failed_lines(&caller, &record).await?;
    let window = window(&record.batch.completion_window)?;
    let new = new_id();
    let batch = BatchObject {
        metadata: record.batch.metadata.clone(),
        retry_of: Some(id),
        ..batch(&new, &record.batch.endpoint, &input, &record.batch.completion_window, window)
    };
    let webhook = record.webhook.map(|webhook| Webhook { is_done: false, ..webhook });
    let again = BatchRecord { batch, results_after: 0, driver: None, webhook, lanes: lanes(&caller), ..record };
    gateway.records.create(&Kind::Batches.key(&caller.token, &new), &again).await?;
    Ok(Json(again.batch))
}

/// The newest batches of all tenants.
pub async fn recent(records: &Records, most: usize) -> anyhow::Result<Vec<(String, BatchObject)>> {
    let mut keys = records.keys(Kind::Batches, None).await?;
    keys.truncate(most);
    let read = async |key: String| records.get::<BatchRecord>(&key).await;
    let found: Vec<_> = futures::stream::iter(keys).map(read).buffered(PAGE.0).try_collect().await?;
    Ok(found.into_iter().flatten().map(|found| (found.record.tenant, found.record.batch)).collect())
}

impl Gateway {
    async fn batch(&self, caller: &Caller, id: &str) -> ApiResult<BatchRecord> {
        if !is_id(id) {
            return Err(ApiError::not_found("batch", id));
        }
        let found = self.records.get::<BatchRecord>(&Kind::Batches.key(&caller.token, id)).await?;
        Ok(found.ok_or_else(|| ApiError::not_found("batch", id))?.record)
    }

    /// A batch like the one that is asked for, made moments ago.
    async fn same(&self, caller: &Caller, asked: &Create) -> ApiResult<Option<BatchObject>> {
        let since = now() - SAME_SECONDS;
        for id in self.records.ids(Kind::Batches, &caller.token).await?.into_iter().take(PAGE.0) {
            let Ok(BatchRecord { batch, webhook, .. }) = self.batch(caller, &id).await else { continue };
            if batch.created_at < since {
                return Ok(None);
            }
            let is_same = batch.input_file_id == asked.input_file_id
                && batch.endpoint == asked.endpoint
                && batch.metadata == asked.metadata
                && batch.retry_of.is_none()
                && webhook.map(|webhook| webhook.url) == asked.webhook_url;
            if is_same {
                return Ok(Some(batch));
            }
        }
        Ok(None)
    }
}

fn new_id() -> String {
    format!("batch_{}", Uuid::now_v7().simple())
}

fn batch(id: &str, endpoint: &str, input: &str, completion_window: &str, window: Duration) -> BatchObject {
    let created_at = now();
    BatchObject {
        id: id.to_owned(),
        object: "batch".to_owned(),
        endpoint: endpoint.to_owned(),
        errors: None,
        input_file_id: input.to_owned(),
        completion_window: completion_window.to_owned(),
        status: Status::Validating,
        output_file_id: None,
        error_file_id: None,
        created_at,
        in_progress_at: None,
        expires_at: Some(created_at.saturating_add_unsigned(window.as_secs())),
        finalizing_at: None,
        completed_at: None,
        failed_at: None,
        expired_at: None,
        cancelling_at: None,
        cancelled_at: None,
        request_counts: Counts::default(),
        usage: None,
        metadata: None,
        retry_of: None,
    }
}

/// Nobody waits for a batch: it takes the lane of what may take its time, where it may.
fn lanes(caller: &Caller) -> Vec<Lane> {
    let mut lanes = caller.lanes.clone();
    lanes.sort_by_key(|lane| *lane != Lane::Flex);
    lanes
}

fn window(text: &str) -> ApiResult<Duration> {
    let window = humantime::parse_duration(text).ok().filter(|window| *window <= WINDOW_MAX && !window.is_zero());
    let wrong = || ApiError::invalid("invalid_value", "completion_window", "a time such as 24h, up to 7 days");
    window.ok_or_else(wrong)
}

fn check_metadata(metadata: Option<&Map<String, Value>>) -> ApiResult<()> {
    let Some(metadata) = metadata else { return Ok(()) };
    let fits = |(key, value): (&String, &Value)| {
        key.chars().count() <= METADATA_KEY_MAX
            && value.as_str().is_some_and(|value| value.chars().count() <= METADATA_VALUE_MAX)
    };
    match metadata.len() <= METADATA_PAIRS_MAX && metadata.iter().all(fits) {
        true => Ok(()),
        false => {
            let message = format!(
                "up to {METADATA_PAIRS_MAX} pairs of keys up to {METADATA_KEY_MAX} and strings up to {METADATA_VALUE_MAX} characters"
            );
            Err(ApiError::invalid("invalid_value", "metadata", message))
        }
    }
}
