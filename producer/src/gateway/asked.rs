//! A request as a job: what its body and its headers come to.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, FailedToBufferBody};
use axum::extract::{FromRequest, Request};
use axum::http::{HeaderMap, StatusCode};
use opentelemetry::Context;
use opentelemetry::context::FutureExt as _;
use schemas::codec::Encoding;
use schemas::header;
use schemas::job::{Endpoint, Job, Method};
use schemas::result::ErrorObject;
use schemas::subject::{Address, JobId};
use serde_json::Value;
use uuid::Uuid;

use super::Gateway;
use super::caller::Caller;
use super::error::{ApiError, ApiResult};
use crate::submission::{Submission, SubmitOptions, WhenFull, message_id};
use crate::{cost, submit};

/// OpenAI's header for requests that are made again: they become one job.
pub const IDEMPOTENCY_KEY: &str = "Idempotency-Key";
const KEY_BYTES_MAX: usize = 255;
/// How the ids of jobs begin that several requests may have become.
const SHARED: &str = "idem_";

/// The whole body of a request, up to the limit.
#[derive(Debug)]
pub struct Body(pub Bytes);

impl FromRequest<Arc<Gateway>> for Body {
    type Rejection = ApiError;

    async fn from_request(request: Request, gateway: &Arc<Gateway>) -> ApiResult<Self> {
        Bytes::from_request(request, gateway).await.map(Self).map_err(|rejection| match rejection {
            BytesRejection::FailedToBufferBody(FailedToBufferBody::LengthLimitError(_)) => {
                let message = format!("the body is larger than {} bytes", gateway.options.body_bytes);
                let error = ErrorObject::invalid("request_too_large", None, message);
                ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, error)
            }
            other => ApiError::invalid("body_not_read", "", format!("the body did not come: {other}")),
        })
    }
}

/// A job that is to be sent.
#[derive(Debug)]
pub struct Asked {
    pub submission: Submission,
    pub job: Job,
    /// Whether chunks of the answer are wanted.
    pub stream: bool,
    /// The trace that the request belongs to.
    pub context: Context,
    /// Where the request may be made again: what a result has to name for it to be its own.
    pub fingerprint: Option<String>,
}

impl Asked {
    /// From the body of an endpoint.
    pub fn of_body(endpoint: Endpoint, headers: &HeaderMap, body: Value, caller: &Caller) -> ApiResult<Self> {
        let job = Job { custom_id: None, method: Method::Post, url: endpoint.url().to_owned(), body };
        Self::of_job(job, headers, caller)
    }

    pub fn of_job(mut job: Job, headers: &HeaderMap, caller: &Caller) -> ApiResult<Self> {
        if !job.body.is_object() {
            return Err(ApiError::invalid("invalid_type", "body", "the body is not a JSON object"));
        }
        let model = match job.model() {
            Some(model) if !model.is_empty() => model.to_owned(),
            _ => {
                let message = "you must give a model: a string that GET /v1/models lists";
                return Err(ApiError::invalid("missing_required_parameter", "model", message));
            }
        };
        let asked = job.lane().map_err(|message| ApiError::invalid("invalid_value", "service_tier", message))?;
        let lane = caller.lane(asked)?;
        let stream = match job.body.get("stream") {
            None | Some(Value::Null) | Some(Value::Bool(false)) => false,
            // As OpenAI does with models that give no parts of a transcript.
            Some(Value::Bool(true)) => {
                !matches!(Endpoint::from_url(&job.url), Some(Endpoint::Transcriptions | Endpoint::Translations))
            }
            Some(other) => {
                return Err(ApiError::invalid("invalid_type", "stream", format!("{other} is not true or false")));
            }
        };
        let key = idempotency_key(headers)?;
        let fingerprint = key.is_some().then(|| {
            let mut body = job.body.clone();
            body.sort_all_objects();
            message_id(&[job.url.as_bytes(), body.to_string().as_bytes()])
        });
        if job.custom_id.is_none() {
            // It comes back with the result.
            job.custom_id.clone_from(&fingerprint);
        }
        let job_id = match key {
            Some(key) => format!("{SHARED}{}", message_id(&[caller.tenant.as_bytes(), key.as_bytes()])),
            None => Uuid::now_v7().to_string(),
        };
        let job_id = JobId::new(job_id).map_err(|error| ApiError::invalid("invalid_value", "", error.to_string()))?;
        let payload: Bytes = Encoding::Json.encode(&job).into();
        let options = SubmitOptions {
            timeout: timeout(headers)?,
            no_store: headers.get(header::CACHE).is_some_and(|value| value == "no-store"),
            stream,
            cost: Some(cost::estimate(payload.len(), &job.body)),
            when_full: WhenFull::Refuse,
            may_exist: fingerprint.is_some(),
            is_id_random: fingerprint.is_none(),
            ..Default::default()
        };
        let address = Address { model, lane, tenant: caller.tenant.clone(), job_id };
        let submission = Submission { address, encoding: Encoding::Json, payload, options };
        Ok(Self { submission, job, stream, context: context(headers), fingerprint })
    }

    pub fn job_id(&self) -> &JobId {
        &self.submission.address.job_id
    }
}

impl Gateway {
    /// Has a job stored, if its caller may have one more.
    pub async fn send(self: &Arc<Self>, asked: &Asked, caller: &Caller) -> ApiResult<submit::Submitted> {
        if let Some(max) = caller.jobs_max {
            let queued = self.jobs_of(caller).await?;
            if queued >= max {
                let message = format!("{queued} jobs of {:?} wait or run; this API key may have {max}", caller.tenant);
                return Err(ApiError::too_many("queue_limit_exceeded", message, self.room_after(None).await));
            }
        }
        match self.client.submit(&asked.submission).with_context(asked.context.clone()).await {
            Ok(submitted) => Ok(submitted),
            Err(error) => {
                let refused = ApiError::from(error);
                match refused.error.code.as_deref() {
                    Some("queue_full") => {
                        Err(refused.retry_after(self.room_after(Some(&asked.submission.address.model)).await))
                    }
                    _ => Err(refused),
                }
            }
        }
    }
}

/// The context in W3C's headers.
fn context(headers: &HeaderMap) -> Context {
    let mut carried = async_nats::HeaderMap::new();
    for name in [header::TRACEPARENT, header::TRACESTATE] {
        if let Some(value) = headers.get(name).and_then(|value| value.to_str().ok()) {
            carried.insert(name, value);
        }
    }
    traces::context_in(Some(&carried))
}

/// Whether other requests than one may wait for a job.
pub fn is_shared(job_id: &JobId) -> bool {
    job_id.as_str().starts_with(SHARED)
}

/// A JSON body, with the place of what is wrong with it.
pub fn read_json<T: serde::de::DeserializeOwned>(body: &[u8]) -> ApiResult<T> {
    Encoding::Json.decode(body).map_err(|error| {
        let code = if error.is_syntax { "invalid_json" } else { "invalid_type" };
        ApiError::invalid(code, &error.path, error.to_string())
    })
}

pub fn idempotency_key(headers: &HeaderMap) -> ApiResult<Option<String>> {
    let Some(value) = headers.get(IDEMPOTENCY_KEY) else { return Ok(None) };
    match value.to_str() {
        Ok(key) if !key.is_empty() && key.len() <= KEY_BYTES_MAX => Ok(Some(key.to_owned())),
        _ => {
            let message = format!("{IDEMPOTENCY_KEY}: up to {KEY_BYTES_MAX} visible ASCII characters");
            Err(ApiError::invalid("invalid_value", "", message))
        }
    }
}

fn timeout(headers: &HeaderMap) -> ApiResult<Option<Duration>> {
    let Some(value) = headers.get(header::TIMEOUT) else { return Ok(None) };
    let seconds = value.to_str().ok().and_then(|value| value.parse::<f64>().ok());
    let timeout =
        seconds.filter(|seconds| *seconds > 0.0).and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    let wrong = || ApiError::invalid("invalid_value", "", format!("{}: seconds, above 0", header::TIMEOUT));
    timeout.ok_or_else(wrong).map(Some)
}

#[cfg(test)]
mod tests {
    use schemas::subject::{Lane, Token};

    use super::*;

    fn caller() -> Caller {
        Caller {
            tenant: "t".to_owned(),
            token: Token::encode("t").unwrap(),
            lanes: vec![Lane::Flex, Lane::Default],
            operator: false,
            jobs_max: None,
        }
    }

    fn ask(body: &str, headers: &[(&'static str, &str)]) -> ApiResult<Asked> {
        let headers = headers.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect();
        Asked::of_body(Endpoint::ChatCompletions, &headers, read_json(body.as_bytes())?, &caller())
    }

    #[test]
    fn a_body_is_a_job_in_the_lane_its_tier_names() {
        let asked = ask(r#"{"model":"m","stream":true}"#, &[]).unwrap();
        assert_eq!((asked.submission.address.lane, asked.stream), (Lane::Flex, true));
        assert!(asked.submission.options.stream && asked.submission.options.is_id_random);
        let asked = ask(r#"{"model":"m","service_tier":"default"}"#, &[]).unwrap();
        assert_eq!(asked.submission.address.lane, Lane::Default);
        let refused = ask(r#"{"model":"m","service_tier":"priority"}"#, &[]).unwrap_err();
        assert_eq!(refused.status, 403);
    }

    #[test]
    fn what_is_wrong_is_named() {
        let wrong = |body| ask(body, &[]).unwrap_err().error;
        assert_eq!(wrong("{").code.as_deref(), Some("invalid_json"));
        assert_eq!(wrong("[]").code.as_deref(), Some("invalid_type"));
        assert_eq!(wrong("{}").param.as_deref(), Some("model"));
        assert_eq!(wrong(r#"{"model":"m","stream":1}"#).param.as_deref(), Some("stream"));
        assert_eq!(wrong(r#"{"model":"m","service_tier":"x"}"#).param.as_deref(), Some("service_tier"));
        assert!(ask(r#"{"model":"m"}"#, &[("inferq-timeout", "-1")]).is_err());
    }

    #[test]
    fn one_idempotency_key_is_one_job_and_another_body_is_seen() {
        let key = [("idempotency-key", "k")];
        let (one, same) = (ask(r#"{"model":"m"}"#, &key).unwrap(), ask(r#"{"model":"m"}"#, &key).unwrap());
        let other = ask(r#"{"model":"n"}"#, &key).unwrap();
        assert_eq!((one.job_id(), &one.fingerprint), (same.job_id(), &same.fingerprint));
        assert_eq!(one.job_id(), other.job_id());
        assert_ne!(one.fingerprint, other.fingerprint);
        assert_ne!(ask(r#"{"model":"m"}"#, &[]).unwrap().job_id(), one.job_id());
    }
}
