//! The gateway on NATS: the service `inferq-control`, so that a plain request of any client submits a job and waits for it,
//! cancels one or tells where one stands. The tenant is part of the subject, which NATS accounts guard.

use std::sync::Arc;

use async_nats::service::error::Error as Refusal;
use async_nats::service::{Request, Service, ServiceExt};
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use bytes::Bytes;
use futures::StreamExt;
use schemas::header;
use schemas::job::Job;
use schemas::result::ErrorBody;
use schemas::subject::{Lane, Token};
use tokio::sync::Semaphore;

use super::Gateway;
use super::asked::{Asked, IDEMPOTENCY_KEY, read_json};
use super::caller::Caller;
use super::error::{ApiError, ApiResult};
use super::jobs::job_id;
use crate::cancel::Cancellation;

const NAME: &str = "inferq-control";
/// Requests that are answered at a time; more wait.
const AT_A_TIME: usize = 1024;

#[derive(Clone, Copy, Debug)]
enum Verb {
    Submit,
    Cancel,
    Status,
}

/// Answers for as long as the gateway lives.
pub async fn answer(gateway: &Arc<Gateway>) -> anyhow::Result<Service> {
    let client = &gateway.client.connection.client;
    let builder = client.service_builder().description("submits, cancels and finds jobs");
    let service = builder.start(NAME, env!("CARGO_PKG_VERSION")).await.map_err(anyhow::Error::from_boxed)?;
    let room = Arc::new(Semaphore::new(AT_A_TIME));
    for (name, verb) in [("submit", Verb::Submit), ("cancel", Verb::Cancel), ("status", Verb::Status)] {
        let subject = format!("inferq.control.{name}.*");
        let endpoint = service.endpoint_builder().name(name).add(subject).await.map_err(anyhow::Error::from_boxed)?;
        let (gateway, room) = (gateway.clone(), room.clone());
        tokio::spawn(async move {
            let mut requests = std::pin::pin!(endpoint);
            while let Some(request) = requests.next().await {
                let Ok(permit) = room.clone().acquire_owned().await else { return };
                let gateway = gateway.clone();
                tokio::spawn(async move {
                    let answered = gateway.obey(verb, &request).await;
                    if let Err(error) = reply(&request, answered).await {
                        tracing::warn!(%error, "request not answered");
                    }
                    drop(permit);
                });
            }
        });
    }
    Ok(service)
}

async fn reply(request: &Request, answered: ApiResult<Bytes>) -> Result<(), async_nats::PublishError> {
    let ApiError { status, error, .. } = match answered {
        Ok(answer) => return request.respond(Ok(answer)).await,
        Err(error) => error,
    };
    // The library's own answer to an error has no body, which says less than OpenAI's object.
    let body = serde_json::to_vec(&ErrorBody { error: (*error).clone() }).unwrap_or_default();
    let mut headers = async_nats::HeaderMap::new();
    headers.insert("Nats-Service-Error", error.message.replace(['\r', '\n'], " "));
    headers.insert("Nats-Service-Error-Code", status.as_u16().to_string());
    let refused: Result<Bytes, Refusal> = Ok(body.into());
    request.respond_with_headers(refused, headers).await
}

impl Gateway {
    async fn obey(self: &Arc<Self>, verb: Verb, request: &Request) -> ApiResult<Bytes> {
        let message = &request.message;
        let caller = caller(&message.subject)?;
        let id = || job_id(String::from_utf8_lossy(message.payload.trim_ascii()).trim_matches('"'));
        match verb {
            Verb::Submit => {
                let job: Job = read_json(&message.payload)?;
                let asked = Asked::of_job(job, &headers(message.headers.as_ref()), &caller)?;
                write(&self.result(&caller, &asked).await?)
            }
            Verb::Cancel => {
                let id = id()?;
                match self.client.cancel(&caller.token, &id).await? {
                    Cancellation::Unknown => Err(ApiError::not_found("job", id.as_str())),
                    Cancellation::Cancelled | Cancellation::Answered => write(&self.job(&caller, &id).await?),
                }
            }
            Verb::Status => write(&self.job(&caller, &id()?).await?),
        }
    }
}

fn write<T: serde::Serialize>(value: &T) -> ApiResult<Bytes> {
    Ok(serde_json::to_vec(value).map_err(anyhow::Error::from)?.into())
}

fn caller(subject: &str) -> ApiResult<Caller> {
    let tenant = subject.rsplit('.').next().unwrap_or_default();
    let wrong = |error| ApiError::invalid("invalid_value", "subject", format!("tenant {tenant:?} {error}"));
    let tenant = Token::decode(tenant).map_err(wrong)?;
    let token = Token::encode(&tenant).map_err(wrong)?;
    let lanes = vec![Lane::Default, Lane::Priority, Lane::Flex];
    Ok(Caller { tenant, token, lanes, operator: false, jobs_max: None })
}

/// The headers that HTTP requests have, too.
fn headers(headers: Option<&async_nats::HeaderMap>) -> HeaderMap {
    let read = |name: &str| {
        let value = headers?.get(name)?.as_str();
        Some((HeaderName::try_from(name).ok()?, HeaderValue::try_from(value).ok()?))
    };
    [IDEMPOTENCY_KEY, header::TIMEOUT, header::CACHE, header::TRACEPARENT].into_iter().filter_map(read).collect()
}
