//! Results: a line of an OpenAI batch output or error file is the payload of a result.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// One result. `response` holds the answer (also one with a 4xx or 5xx status); `error` says why there is none.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema, PartialEq)]
#[schemars(rename = "JobResult")]
pub struct JobResult<B = Value> {
    /// The job id.
    pub id: String,
    pub custom_id: String,
    pub response: Option<Response<B>>,
    pub error: Option<NoResponse>,
}

/// What an HTTP call of the endpoint would have answered.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema, PartialEq)]
#[schemars(rename = "Response")]
pub struct Response<B = Value> {
    pub status_code: u16,
    /// The job id.
    pub request_id: String,
    /// The endpoint's response, or `{"error": {...}}`.
    pub body: B,
}

/// Why a job was not executed.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema, PartialEq)]
pub struct NoResponse {
    pub code: NoResponseCode,
    pub message: String,
}

/// OpenAI's batch error codes.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum NoResponseCode {
    BatchExpired,
    BatchCancelled,
    RequestTimeout,
}

impl<B> JobResult<B> {
    /// Whether the job was answered with a 2xx status: its line belongs in the output file, otherwise in the error file.
    pub fn is_success(&self) -> bool {
        self.response.as_ref().is_some_and(|response| (200..300).contains(&response.status_code))
    }

    /// The HTTP status that describes the result.
    pub fn status_code(&self) -> u16 {
        match (&self.response, &self.error) {
            (Some(response), _) => response.status_code,
            (None, Some(NoResponse { code: NoResponseCode::BatchCancelled, .. })) => 499,
            (None, _) => 408,
        }
    }
}

/// The body of an answer that is an error: OpenAI's error object.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema, PartialEq)]
pub struct ErrorBody {
    pub error: ErrorObject,
}

#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema, PartialEq)]
pub struct ErrorObject {
    /// What was wrong, with the value, and what to do next.
    pub message: String,
    /// `invalid_request_error` for the producer's mistakes, `server_error` for ours.
    #[serde(rename = "type")]
    pub kind: String,
    /// The field, as a path into the job's line or body (`body.input[2]`).
    pub param: Option<String>,
    /// What a program can match on: `invalid_body`, `invalid_value`, `context_length_exceeded`, ...
    pub code: Option<String>,
}

impl ErrorObject {
    /// A mistake of the producer.
    pub fn invalid(code: &str, param: impl Into<Option<String>>, message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            kind: "invalid_request_error".to_owned(),
            param: param.into(),
            code: Some(code.to_owned()),
        }
    }

    /// A mistake of the service.
    pub fn server(code: &str, message: impl Into<String>) -> Self {
        Self { message: message.into(), kind: "server_error".to_owned(), param: None, code: Some(code.to_owned()) }
    }
}
