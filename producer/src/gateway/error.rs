//! Errors as OpenAI's clients read them: a status by which they choose the exception, an error object, and headers that
//! say whether the same request is worth another try.

use std::time::Duration;

use axum::Json;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use connect::PublishFailure;
use schemas::result::{ErrorBody, ErrorObject};

use crate::client::ReadError;
use crate::submit::SubmitError;

/// OpenAI's clients try again by the status alone unless this says otherwise.
const SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");
/// The job that a request has become.
pub const JOB_ID: HeaderName = HeaderName::from_static("x-inferq-job-id");

/// The code of what the queue did not confirm or could not be asked.
pub const QUEUE_UNAVAILABLE: &str = "queue_unavailable";

/// A request that was not answered.
#[derive(Debug)]
pub struct ApiError {
    pub status: StatusCode,
    pub error: Box<ErrorObject>,
    headers: Box<HeaderMap>,
}

pub type ApiResult<T> = Result<T, ApiError>;

impl ApiError {
    pub fn new(status: StatusCode, error: ErrorObject) -> Self {
        let mut headers = HeaderMap::new();
        if status == StatusCode::PAYLOAD_TOO_LARGE {
            // The rest of the body is not read: nothing can follow it on this connection.
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        Self { status, error: Box::new(error), headers: Box::new(headers) }
    }

    /// The caller's mistake.
    pub fn invalid(code: &str, param: &str, message: impl Into<String>) -> Self {
        let param = (!param.is_empty()).then(|| param.to_owned());
        Self::new(StatusCode::BAD_REQUEST, ErrorObject::invalid(code, param, message))
    }

    pub fn not_found(what: &str, id: &str) -> Self {
        let error = ErrorObject::invalid("not_found", None, format!("no {what} {id:?}, or no more"));
        Self::new(StatusCode::NOT_FOUND, error)
    }

    pub fn unauthorized(message: &str) -> Self {
        let error = ErrorObject::invalid("invalid_api_key", None, message);
        let mut refused = Self::new(StatusCode::UNAUTHORIZED, error);
        refused.headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        refused
    }

    pub fn forbidden(message: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, ErrorObject::invalid("permission_denied", None, message))
    }

    /// Too much of one caller.
    pub fn too_many(code: &str, message: impl Into<String>, wait: Duration) -> Self {
        let error = ErrorObject {
            message: message.into(),
            kind: "rate_limit_error".to_owned(),
            param: None,
            code: Some(code.to_owned()),
        };
        Self::new(StatusCode::TOO_MANY_REQUESTS, error).retry_after(wait)
    }

    /// Something of ours does not work just now.
    pub fn unavailable(code: &str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, ErrorObject::server(code, message))
    }

    /// The answer takes longer than the gateway waits. It is not lost, so that another try would only do it twice.
    pub fn timed_out(job_id: &str, waited: Duration) -> Self {
        let message = format!(
            "no answer within {} s; job {job_id} goes on: GET /v1/jobs/{job_id} gives its result, or ask with stream: true",
            waited.as_secs()
        );
        Self::new(StatusCode::GATEWAY_TIMEOUT, ErrorObject::server("timeout", message)).of_job(job_id).no_retry()
    }

    /// Whether what was asked may have been done all the same.
    pub fn leaves_doubt(&self) -> bool {
        self.error.code.as_deref() == Some(QUEUE_UNAVAILABLE)
    }

    pub fn retry_after(mut self, wait: Duration) -> Self {
        self.headers.insert(header::RETRY_AFTER, HeaderValue::from(wait.as_secs().max(1)));
        self
    }

    pub fn no_retry(mut self) -> Self {
        self.headers.insert(SHOULD_RETRY, HeaderValue::from_static("false"));
        self
    }

    pub fn of_job(mut self, job_id: &str) -> Self {
        if let Ok(value) = HeaderValue::from_str(job_id) {
            self.headers.insert(JOB_ID, value);
        }
        self
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        (self.status, *self.headers, Json(ErrorBody { error: *self.error })).into_response()
    }
}

impl From<ReadError> for ApiError {
    fn from(error: ReadError) -> Self {
        Self::unavailable(QUEUE_UNAVAILABLE, format!("the queue cannot be read: {error}"))
    }
}

impl From<anyhow::Error> for ApiError {
    fn from(error: anyhow::Error) -> Self {
        tracing::error!(error = format!("{error:#}"), "request failed");
        let error = ErrorObject::server("internal_error", "the gateway could not do this; its log says why");
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, error)
    }
}

impl From<SubmitError> for ApiError {
    fn from(error: SubmitError) -> Self {
        let message = error.to_string();
        match error {
            SubmitError::UnknownModel { model, lane, .. } => {
                let message =
                    format!("the model {model:?} does not exist, or has no lane {lane}; GET /v1/models lists all");
                let error = ErrorObject::invalid("model_not_found", Some("model".to_owned()), message);
                Self::new(StatusCode::NOT_FOUND, error)
            }
            SubmitError::TooLarge { .. } => {
                let error = ErrorObject::invalid("request_too_large", None, message);
                Self::new(StatusCode::PAYLOAD_TOO_LARGE, error)
            }
            SubmitError::Address(_) => Self::invalid("invalid_value", "model", message),
            SubmitError::Failed(PublishFailure::Full(_)) => Self::unavailable("queue_full", "the queue is full"),
            SubmitError::Failed(_) | SubmitError::Read(_) => Self::unavailable(QUEUE_UNAVAILABLE, message),
        }
    }
}
