//! The answer of a request that waits for it.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use schemas::job::Endpoint;
use schemas::result::{ErrorObject, JobResult, NoResponseCode};
use schemas::subject::JobId;
use serde_json::Value;
use tokio::time::timeout;

use super::asked::Asked;
use super::caller::Caller;
use super::error::{ApiError, ApiResult, JOB_ID};
use super::forms::Given;
use super::leave::Leave;
use super::{Gateway, events};

impl Gateway {
    /// Answers a request of one of the endpoints that workers have.
    pub async fn answer(
        self: Arc<Self>,
        caller: Caller,
        endpoint: Endpoint,
        headers: HeaderMap,
        given: Given,
    ) -> ApiResult<Response> {
        if let Some(place) = events::place(&headers)? {
            return self.resume(&caller, place, true).await;
        }
        let asked = Asked::of_body(endpoint, &headers, given.body()?, &caller)?;
        match asked.stream && matches!(endpoint, Endpoint::ChatCompletions | Endpoint::Completions) {
            true => self.stream(caller, asked).await,
            false => self.wait(caller, asked).await,
        }
    }

    async fn wait(self: Arc<Self>, caller: Caller, asked: Asked) -> ApiResult<Response> {
        respond(self.result(&caller, &asked).await?)
    }

    /// Sends a job and waits for its result. Who drops this leaves, and the job with it.
    pub async fn result(self: &Arc<Self>, caller: &Caller, asked: &Asked) -> ApiResult<JobResult> {
        let job_id = asked.job_id().clone();
        // Before the job is sent, so that its result cannot be missed.
        let waiting = self.client.listen(&caller.token, &job_id, asked.fingerprint.is_some()).await?;
        self.send(asked, caller).await?;
        let leave = Leave::new(self, caller, &job_id, asked.fingerprint.is_none(), Duration::ZERO);
        let result = match timeout(self.options.timeout, waiting.result()).await {
            Ok(result) => result?,
            Err(_) => {
                leave.stay();
                return Err(ApiError::timed_out(job_id.as_str(), self.options.timeout));
            }
        };
        leave.stay();
        asked.check(&result)?;
        Ok(result)
    }
}

impl Asked {
    /// Refuses the result of another request that had the same `Idempotency-Key`.
    pub fn check(&self, result: &JobResult) -> ApiResult<()> {
        match &self.fingerprint {
            Some(fingerprint) if result.custom_id != *fingerprint => {
                let message = "this Idempotency-Key was used for another request";
                let error = ErrorObject::invalid("idempotency_key_reused", None, message);
                Err(ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, error).of_job(&result.id))
            }
            _ => Ok(()),
        }
    }
}

/// A result as the HTTP response that it describes.
pub fn respond(result: JobResult) -> ApiResult<Response> {
    let job_id = result.id.clone();
    match (result.response, result.error) {
        (Some(mut response), _) => {
            name_field(&mut response.body);
            let status = StatusCode::from_u16(response.status_code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            let mut answer = match response.body {
                // A transcript that is a text is the whole answer.
                Value::String(text) => (status, text).into_response(),
                body => (status, Json(body)).into_response(),
            };
            mark(&mut answer, &JobId::new(job_id.as_str()));
            Ok(answer)
        }
        (None, error) => Err(unanswered(error.as_ref().map(|error| (error.code, error.message.as_str())), &job_id)),
    }
}

/// Workers name a field of a job's line, OpenAI's clients one of the body.
fn name_field(body: &mut Value) {
    if let Some(Value::String(param)) = body.pointer_mut("/error/param")
        && let Some(field) = param.strip_prefix("body.")
    {
        *param = field.to_owned();
    }
}

/// Names the job in a response.
pub fn mark<E>(response: &mut Response, job_id: &Result<JobId, E>) {
    let value = job_id.as_ref().ok().and_then(|id| HeaderValue::from_str(id.as_str()).ok());
    if let Some(value) = value {
        response.headers_mut().insert(JOB_ID, value);
    }
}

/// Why a job has no answer, as an error that is not worth another try of the same.
fn unanswered(error: Option<(NoResponseCode, &str)>, job_id: &str) -> ApiError {
    let (status, code, message) = match error {
        Some((NoResponseCode::BatchCancelled, message)) => (409, "job_cancelled", message),
        Some((NoResponseCode::BatchExpired, message)) => (504, "job_expired", message),
        Some((NoResponseCode::RequestTimeout, message)) => (504, "request_timeout", message),
        None => (500, "no_answer", "the result of the job is empty"),
    };
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    ApiError::new(status, ErrorObject::server(code, message)).of_job(job_id).no_retry()
}

/// The error that a result without a 2xx status comes to, for those who cannot be given a status any more.
pub fn error_of(result: &JobResult) -> ErrorObject {
    match (&result.response, &result.error) {
        (Some(response), _) => serde_json::from_value(response.body["error"].clone())
            .unwrap_or_else(|_| ErrorObject::server("no_answer", response.body.to_string())),
        (None, error) => {
            *unanswered(error.as_ref().map(|error| (error.code, error.message.as_str())), &result.id).error
        }
    }
}
