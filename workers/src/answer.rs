//! The line of a result, made from the outcome of a delivery. Pure code.

use std::borrow::Cow;

use schemas::codec::Encoding;
use schemas::result::{ErrorBody, ErrorObject, JobResult, NoResponse, NoResponseCode, Response};

use crate::endpoint::Body;
use crate::joblog::rfc3339;
use crate::outcome::{Attempts, Outcome};

/// Whose result it is.
#[derive(Clone, Copy, Debug)]
pub struct Addressee<'a> {
    pub job_id: &'a str,
    pub custom_id: &'a str,
    pub attempts: Attempts,
}

/// The status and the encoded line, or none where there is nothing to say or nothing more to say.
pub fn line(outcome: &Outcome, to: Addressee<'_>, encoding: Encoding) -> Option<(u16, Vec<u8>)> {
    let (response, error) = match outcome {
        Outcome::Completed { body, .. } => (answered(200, Cow::Borrowed(&**body), to), None),
        Outcome::Rejected(reject) => (answered(reject.status, failed(reject.error.clone()), to), None),
        Outcome::Exhausted { reason, .. } => {
            let message = format!("gave up after {}: {reason}", attempts(to.attempts.current));
            (answered(500, failed(ErrorObject::server("attempts_exhausted", message)), to), None)
        }
        Outcome::Expired { deadline } => {
            let message = format!("the deadline of the job ({}) has passed", rfc3339(*deadline));
            (None, Some(unanswered(NoResponseCode::BatchExpired, &message)))
        }
        Outcome::Cancelled => (None, Some(unanswered(NoResponseCode::BatchCancelled, "the job was cancelled"))),
        Outcome::Retry { .. } | Outcome::AlreadyStored { .. } | Outcome::Abandoned => return None,
    };
    let result = JobResult { id: to.job_id.to_owned(), custom_id: to.custom_id.to_owned(), response, error };
    Some((result.status_code(), encoding.encode(&result)))
}

/// The line that stands for a result whose payload is an object.
pub fn stub(status_code: u16, to: Addressee<'_>, encoding: Encoding) -> Vec<u8> {
    let response = Some(Response { status_code, request_id: to.job_id.to_owned(), body: () });
    let result = JobResult { id: to.job_id.to_owned(), custom_id: to.custom_id.to_owned(), response, error: None };
    encoding.encode(&result)
}

fn answered<'a>(status_code: u16, body: Cow<'a, Body>, to: Addressee<'_>) -> Option<Response<Cow<'a, Body>>> {
    Some(Response { status_code, request_id: to.job_id.to_owned(), body })
}

fn failed(error: ErrorObject) -> Cow<'static, Body> {
    Cow::Owned(Body::Error(ErrorBody { error }))
}

fn unanswered(code: NoResponseCode, message: &str) -> NoResponse {
    NoResponse { code, message: message.to_owned() }
}

fn attempts(count: u32) -> String {
    if count == 1 { "1 attempt".to_owned() } else { format!("{count} attempts") }
}
