//! The dashboard: a page of plain HTML, CSS and JavaScript modules, fed by events once a second while somebody looks.

mod dead;
mod snapshot;

use std::sync::Arc;

use axum::Router;
use axum::extract::{Path, State};
use axum::http::{HeaderName, HeaderValue, header};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use futures::StreamExt;

use super::Gateway;
use super::caller::Caller;
use super::error::{ApiError, ApiResult};

pub use self::snapshot::{Looks, Queue, Snapshot, TenantBatch};

/// What is served: a name, its type and its text.
const FILES: [(&str, &str, &str); 7] = [
    ("style.css", "text/css", include_str!("static/style.css")),
    ("main.js", "text/javascript", include_str!("static/main.js")),
    ("events.js", "text/javascript", include_str!("static/events.js")),
    ("tables.js", "text/javascript", include_str!("static/tables.js")),
    ("dead.js", "text/javascript", include_str!("static/dead.js")),
    ("docs.js", "text/javascript", include_str!("static/docs.js")),
    ("words.js", "text/javascript", include_str!("static/words.js")),
];
const PAGE: &str = include_str!("static/index.html");
const DOCS: &str = include_str!("static/docs.html");
/// Nothing but what comes from here: no name of a model or a job can become a script.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

pub fn routes() -> Router<Arc<Gateway>> {
    Router::new()
        .route("/", get(|| async { file("text/html; charset=utf-8", PAGE) }))
        .route("/docs", get(|| async { file("text/html; charset=utf-8", DOCS) }))
        .route("/dashboard/{name}", get(part))
        .route("/dashboard/events", get(events))
        .route("/dashboard/dead", get(dead::list))
        .route("/dashboard/dead/{tenant}/{id}", get(dead::show).delete(dead::delete))
        .route("/dashboard/dead/{tenant}/{id}/replay", post(dead::replay))
}

async fn part(Path(name): Path<String>) -> ApiResult<Response> {
    let found = FILES.iter().find(|(known, ..)| *known == name);
    let (_, kind, text) = found.ok_or_else(|| ApiError::not_found("file", &name))?;
    Ok(file(kind, text))
}

fn file(kind: &'static str, text: &'static str) -> Response {
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static(kind)),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
        (header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY)),
        (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
        (HeaderName::from_static("referrer-policy"), HeaderValue::from_static("no-referrer")),
    ];
    (headers, text).into_response()
}

/// What there is to see, each second.
async fn events(State(gateway): State<Arc<Gateway>>, caller: Caller) -> ApiResult<Response> {
    caller.as_operator()?;
    let latest = gateway.samples.follow();
    let open = gateway.metrics.open_stream();
    let events = futures::stream::unfold((latest, open), |(mut latest, open)| async move {
        latest.changed().await.ok()?;
        let snapshot = latest.borrow_and_update().clone()?;
        let event = Event::default().data(serde_json::to_string(&*snapshot).unwrap_or_default());
        Some((event, (latest, open)))
    });
    let events = events.map(Ok::<_, std::convert::Infallible>);
    Ok(Sse::new(events).keep_alive(KeepAlive::new().text("ping")).into_response())
}
