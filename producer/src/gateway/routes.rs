//! Which request goes where, and what is done around each of them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::{DefaultBodyLimit, MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use schemas::job::Endpoint;
use schemas::result::ErrorObject;
use tower_http::cors::{AllowOrigin, Any, CorsLayer};
use tower_http::timeout::RequestBodyTimeoutLayer;
use uuid::Uuid;

use super::caller::Caller;
use super::error::{ApiError, ApiResult, JOB_ID};
use super::forms::Given;
use super::{Gateway, batches, dashboard, files, jobs, models, openapi};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const REQUEST_ID_BYTES_MAX: usize = 128;
/// A body that stands still for so long is given up.
const BODY_SILENCE: Duration = Duration::from_secs(30);

pub fn router(gateway: Arc<Gateway>) -> Router {
    let mut router = Router::new()
        .route("/v1/models", get(models::list))
        .route("/v1/models/{*model}", get(models::retrieve))
        .route("/v1/jobs", post(jobs::create))
        .route("/v1/jobs/{id}", get(jobs::retrieve).delete(jobs::cancel))
        .route("/v1/jobs/{id}/events", get(jobs::log))
        .route("/v1/jobs/{id}/tokens", get(jobs::tokens))
        .route("/v1/files", get(files::list))
        .route("/v1/files/{id}", get(files::retrieve).delete(files::delete))
        .route("/v1/files/{id}/content", get(files::content))
        .route("/v1/batches", get(batches::list).post(batches::create))
        .route("/v1/batches/{id}", get(batches::retrieve))
        .route("/v1/batches/{id}/cancel", post(batches::cancel))
        .route("/v1/batches/{id}/retry", post(batches::retry))
        .route("/openapi.json", get(openapi::serve))
        .merge(dashboard::routes());
    for endpoint in Endpoint::ALL {
        let answer = move |State(gateway): State<Arc<Gateway>>, caller: Caller, headers: HeaderMap, body: Given| {
            answer(gateway, caller, endpoint, headers, body)
        };
        router = router.route(endpoint.url(), post(answer));
    }
    let router = router
        .fallback(unknown)
        .method_not_allowed_fallback(wrong_method)
        .layer(DefaultBodyLimit::max(gateway.options.body_bytes))
        .route("/v1/files", post(files::create).layer(DefaultBodyLimit::max(gateway.options.file_bytes)))
        .layer(RequestBodyTimeoutLayer::new(BODY_SILENCE))
        .layer(middleware::from_fn_with_state(gateway.clone(), around));
    match cors(&gateway.options.origins) {
        Some(cors) => router.layer(cors),
        None => router,
    }
    .with_state(gateway)
}

async fn answer(
    gateway: Arc<Gateway>,
    caller: Caller,
    endpoint: Endpoint,
    headers: HeaderMap,
    body: Given,
) -> ApiResult<Response> {
    let (begun, metrics) = (Instant::now(), gateway.metrics.clone());
    let answered = gateway.answer(caller, endpoint, headers, body).await;
    // A stream has only begun.
    if answered.as_ref().is_ok_and(|response| response.status().is_success() && !is_stream(response)) {
        metrics.answered(operation(endpoint), begun.elapsed());
    }
    answered
}

/// OpenTelemetry's names, and ours where it has none.
fn operation(endpoint: Endpoint) -> &'static str {
    match endpoint {
        Endpoint::ChatCompletions => "chat",
        Endpoint::Completions => "text_completion",
        Endpoint::Embeddings => "embeddings",
        Endpoint::Rerank => "rerank",
        Endpoint::Classify => "classify",
        Endpoint::Transcriptions => "transcription",
        Endpoint::Translations => "translation",
    }
}

async fn unknown(method: Method, uri: axum::http::Uri) -> ApiError {
    let message = format!("no such place: {method} {}", uri.path());
    ApiError::new(StatusCode::NOT_FOUND, ErrorObject::invalid("unknown_url", None, message))
}

async fn wrong_method(method: Method, uri: axum::http::Uri) -> ApiError {
    let message = format!("{method} is not for {}", uri.path());
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, ErrorObject::invalid("method_not_allowed", None, message))
}

/// Every response bears an id, every request is counted and logged.
async fn around(
    State(gateway): State<Arc<Gateway>>,
    path: Option<MatchedPath>,
    request: Request,
    next: Next,
) -> Response {
    let begun = Instant::now();
    let given = request.headers().get(REQUEST_ID).filter(|id| id.len() <= REQUEST_ID_BYTES_MAX && !id.is_empty());
    let id = match given {
        Some(id) => id.clone(),
        None => {
            HeaderValue::try_from(format!("req_{}", Uuid::now_v7().simple())).unwrap_or(HeaderValue::from_static(""))
        }
    };
    let method = request.method().clone();
    let mut response = next.run(request).await;
    // What axum refuses by itself has no body, or one that is no error object.
    if response.status().is_client_error() && !is_json(&response) {
        let message = response.status().canonical_reason().unwrap_or("refused").to_owned();
        response = ApiError::new(response.status(), ErrorObject::invalid("bad_request", None, message)).into_response();
    }
    let route = path.as_ref().map_or("unknown", MatchedPath::as_str);
    let (status, took) = (response.status().as_u16(), begun.elapsed());
    gateway.metrics.request(route, status, took);
    let job_id = response.headers().get(JOB_ID).and_then(|id| id.to_str().ok()).unwrap_or_default().to_owned();
    tracing::debug!(%method, route, status, seconds = took.as_secs_f64(), job.id = job_id, "request");
    response.headers_mut().insert(REQUEST_ID, id);
    response
}

fn is_stream(response: &Response) -> bool {
    response.headers().get(header::CONTENT_TYPE).is_some_and(|value| value.as_bytes().starts_with(b"text/event-stream"))
}

fn is_json(response: &Response) -> bool {
    let content_type = response.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    content_type.is_some_and(|value| value.starts_with("application/json"))
}

fn cors(origins: &[String]) -> Option<CorsLayer> {
    let allowed = match origins {
        [] => return None,
        [all] if all == "*" => AllowOrigin::any(),
        some => AllowOrigin::list(some.iter().filter_map(|origin| HeaderValue::from_str(origin).ok())),
    };
    Some(CorsLayer::new().allow_origin(allowed).allow_methods(Any).allow_headers(Any).expose_headers(Any))
}
