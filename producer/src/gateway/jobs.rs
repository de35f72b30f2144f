//! `/v1/jobs`: jobs whose answers nobody waits for. A job is a line of a batch file.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures::StreamExt;
use schemars::JsonSchema;
use schemas::job::{Endpoint, Job};
use schemas::log::{LogEvent, LogRecord};
use schemas::result::{ErrorObject, JobResult};
use schemas::subject::JobId;
use serde::{Deserialize, Serialize};

use super::Gateway;
use super::asked::{Asked, Body, read_json};
use super::caller::Caller;
use super::error::{ApiError, ApiResult};
use super::events;
use crate::cancel::Cancellation;
use crate::client::ReadError;
use crate::standing::Standing;

/// A job as it stands.
#[derive(Debug, Default, Serialize, JsonSchema)]
pub struct JobObject {
    id: String,
    object: &'static str,
    /// `queued`, `running`, `completed`, `failed`, `cancelled` or `expired`.
    status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    model: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    lane: Option<String>,
    /// Its place in the lane, from 1, about.
    #[serde(skip_serializing_if = "Option::is_none")]
    position: Option<u64>,
    /// What the jobs before it will take, about.
    #[serde(skip_serializing_if = "Option::is_none")]
    eta_seconds: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    worker: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    attempt: Option<u32>,
    /// A line of a batch output file, once the job is answered.
    #[serde(skip_serializing_if = "Option::is_none")]
    result: Option<JobResult>,
}

/// What a request for a job may say beside the job.
#[derive(Debug, Deserialize, JsonSchema)]
struct Notice {
    /// Where its end is told.
    #[serde(default)]
    webhook_url: Option<String>,
}

/// What is asked of `/v1/jobs`.
#[derive(JsonSchema)]
#[expect(dead_code, reason = "only its schema is used: the two are read from one body")]
pub struct JobRequest {
    #[schemars(flatten)]
    job: Job,
    #[schemars(flatten)]
    notice: Notice,
}

pub async fn create(
    State(gateway): State<Arc<Gateway>>,
    caller: Caller,
    headers: HeaderMap,
    Body(body): Body,
) -> ApiResult<Response> {
    let (job, Notice { webhook_url }): (Job, Notice) = (read_json(&body)?, read_json(&body)?);
    if Endpoint::from_url(&job.url).is_none() {
        let known = Endpoint::ALL.map(Endpoint::url).join(", ");
        return Err(ApiError::invalid("invalid_value", "url", format!("{:?} is none of {known}", job.url)));
    }
    let asked = Asked::of_job(job, &headers, &caller)?;
    let address = &asked.submission.address;
    let hook = match &webhook_url {
        Some(url) => gateway.note_hook(&caller.token, &address.job_id, url).await?,
        None => None,
    };
    let sent = gateway.send(&asked, &caller).await;
    let may_be_stored = sent.as_ref().map_or_else(ApiError::leaves_doubt, |_| true);
    match hook {
        Some(hook) if may_be_stored => gateway.tell_hook(hook),
        Some(hook) => gateway.forget_hook(hook).await,
        None => {}
    }
    sent.map_err(|error| if may_be_stored { error.of_job(address.job_id.as_str()) } else { error })?;
    let job = JobObject {
        id: address.job_id.to_string(),
        object: "job",
        status: "queued",
        model: Some(address.model.clone()),
        lane: Some(address.lane.to_string()),
        ..Default::default()
    };
    let mut response = (StatusCode::ACCEPTED, Json(job)).into_response();
    if let Ok(place) = HeaderValue::from_str(&format!("/v1/jobs/{}", address.job_id)) {
        response.headers_mut().insert(header::LOCATION, place);
    }
    Ok(response)
}

pub async fn retrieve(
    State(gateway): State<Arc<Gateway>>,
    caller: Caller,
    Path(id): Path<String>,
) -> ApiResult<Json<JobObject>> {
    Ok(Json(gateway.job(&caller, &job_id(&id)?).await?))
}

/// `DELETE`: the job is cancelled, waiting or running.
pub async fn cancel(
    State(gateway): State<Arc<Gateway>>,
    caller: Caller,
    Path(id): Path<String>,
) -> ApiResult<Json<JobObject>> {
    let job_id = job_id(&id)?;
    match gateway.client.cancel(&caller.token, &job_id).await? {
        Cancellation::Cancelled => Ok(Json(gateway.job(&caller, &job_id).await?)),
        Cancellation::Answered => {
            let error = ErrorObject::invalid("job_answered", None, format!("job {id} is answered already"));
            Err(ApiError::new(StatusCode::CONFLICT, error).no_retry())
        }
        Cancellation::Unknown => Err(ApiError::not_found("job", &id)),
    }
}

/// What happens to the job, as server-sent events, to its end.
pub async fn log(State(gateway): State<Arc<Gateway>>, caller: Caller, Path(id): Path<String>) -> ApiResult<Response> {
    let job_id = job_id(&id)?;
    gateway.known(&caller, &job_id).await?;
    let messages = gateway.client.logs(&caller.token, &job_id, true).await?;
    let records = messages.flat_map(|message| match message {
        Ok(records) => futures::stream::iter(records.into_iter().map(Ok).collect::<Vec<_>>()),
        Err(error) => futures::stream::iter(vec![Err(error)]),
    });
    let open = gateway.metrics.open_stream();
    let events = futures::stream::unfold((records.boxed(), open, false), |(mut records, open, is_over)| async move {
        let record = if is_over { None } else { records.next().await }?;
        let is_over = record.as_ref().map_or(true, |record| matches!(record.event, LogEvent::Finished { .. }));
        Some((Ok::<_, std::convert::Infallible>(event(&record)), (records, open, is_over)))
    });
    Ok(Sse::new(events).keep_alive(KeepAlive::new().text("ping")).into_response())
}

/// The job's answer as it is made, or was.
pub async fn tokens(
    State(gateway): State<Arc<Gateway>>,
    caller: Caller,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> ApiResult<Response> {
    match events::place(&headers)? {
        Some(place) => gateway.resume(&caller, place, false).await,
        None => gateway.replay(&caller, job_id(&id)?).await,
    }
}

fn event(record: &Result<LogRecord, ReadError>) -> Event {
    let write = |value: Result<String, serde_json::Error>| value.unwrap_or_default();
    match record {
        Ok(record) => {
            let name = match record.event {
                LogEvent::Queued { .. } => "queued",
                LogEvent::Started { .. } => "started",
                LogEvent::Progress { .. } => "progress",
                LogEvent::Retried { .. } => "retried",
                LogEvent::Finished { .. } => "finished",
            };
            Event::default().event(name).data(write(serde_json::to_string(record)))
        }
        Err(error) => {
            let error = ErrorObject::server("log_broken", error.to_string());
            Event::default().event("error").data(write(serde_json::to_string(&error)))
        }
    }
}

pub fn job_id(id: &str) -> ApiResult<JobId> {
    JobId::new(id).map_err(|error| ApiError::invalid("invalid_value", "id", format!("job id {id:?} {error}")))
}

impl Gateway {
    /// Refuses a job that is unknown: nothing of it would ever come.
    pub async fn known(&self, caller: &Caller, job_id: &JobId) -> ApiResult<()> {
        match self.client.standing(&caller.token, job_id).await? {
            Standing::Unknown => Err(ApiError::not_found("job", job_id.as_str())),
            _ => Ok(()),
        }
    }

    pub async fn job(&self, caller: &Caller, job_id: &JobId) -> ApiResult<JobObject> {
        let job = JobObject { id: job_id.to_string(), object: "job", ..Default::default() };
        match self.client.standing(&caller.token, job_id).await? {
            Standing::Unknown => Err(ApiError::not_found("job", job_id.as_str())),
            Standing::Waiting { model, lane, position, eta_seconds } => Ok(JobObject {
                status: "queued",
                model: Some(model),
                lane: Some(lane),
                position: Some(position),
                eta_seconds,
                ..job
            }),
            Standing::Running { model, lane, worker, attempt } => {
                Ok(JobObject { status: "running", model: Some(model), lane: Some(lane), worker, attempt, ..job })
            }
            Standing::Answered { .. } => {
                let result = self.client.result(&caller.token, job_id).await?;
                let result = result.ok_or_else(|| ApiError::not_found("job", job_id.as_str()))?;
                Ok(JobObject { status: status(&result), result: Some(result), ..job })
            }
        }
    }
}

/// How an answered job ended.
pub fn status(result: &JobResult) -> &'static str {
    match (result.is_success(), result.status_code()) {
        (true, _) => "completed",
        (false, 499) => "cancelled",
        (false, 408) if result.response.is_none() => "expired",
        _ => "failed",
    }
}
