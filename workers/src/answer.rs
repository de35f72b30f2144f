//! The line of a result, made from the outcome of a delivery. Reads and sends nothing.

use std::borrow::Cow;

use schemas::codec::Encoding;
use schemas::result::{ErrorBody, ErrorObject, JobResult, NoResponse, NoResponseCode, Response};

use crate::apart::apart;
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

/// An answer of more vectors than this takes a while to write out.
const VECTORS_MAX: usize = 64;

/// The same as [`line`], and the outcome back; apart where it takes long.
pub async fn encode(outcome: Outcome, to: Addressee<'_>, encoding: Encoding) -> (Outcome, Option<(u16, Vec<u8>)>) {
    if !is_large(&outcome) {
        let line = line(&outcome, to, encoding);
        return (outcome, line);
    }
    let (job_id, custom_id, attempts) = (to.job_id.to_owned(), to.custom_id.to_owned(), to.attempts);
    apart(move || {
        let line = line(&outcome, Addressee { job_id: &job_id, custom_id: &custom_id, attempts }, encoding);
        (outcome, line)
    })
    .await
}

fn is_large(outcome: &Outcome) -> bool {
    let Outcome::Completed { body, .. } = outcome else { return false };
    matches!(&**body, Body::Embeddings(response) if response.data.len() > VECTORS_MAX)
}

/// The status and the encoded line, or none where there is nothing to say or nothing more to say.
fn line(outcome: &Outcome, to: Addressee<'_>, encoding: Encoding) -> Option<(u16, Vec<u8>)> {
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
