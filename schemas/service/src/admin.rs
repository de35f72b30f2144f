//! The admin port: `/livez`, `/readyz` and `/metrics`. Liveness never depends on NATS: a restart would not bring it back.

use std::net::SocketAddr;
use std::sync::Arc;

use async_nats::Client;
use async_nats::connection::State as Link;
use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Where a program stands in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    Loading,
    Running,
    Draining,
    /// The engine's thread is gone: only a restart helps.
    Broken,
}

impl Phase {
    pub const ALL: [Self; 4] = [Self::Loading, Self::Running, Self::Draining, Self::Broken];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Loading => "loading",
            Self::Running => "running",
            Self::Draining => "draining",
            Self::Broken => "broken",
        }
    }
}

/// What the admin port shows.
#[derive(Clone)]
pub struct Admin {
    pub phase: watch::Receiver<Phase>,
    /// Readiness is that of its connection.
    pub client: Client,
    /// Gives the text exposition format.
    pub metrics: Arc<dyn Fn() -> String + Send + Sync>,
}

/// Listens, and serves until `stop`. Gives the address, since port 0 is allowed.
pub async fn serve(address: SocketAddr, admin: Admin, stop: CancellationToken) -> std::io::Result<SocketAddr> {
    let listener = TcpListener::bind(address).await?;
    let bound = listener.local_addr()?;
    let router = Router::new()
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .with_state(admin);
    tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, router).with_graceful_shutdown(stop.cancelled_owned()).await {
            tracing::error!(%error, "admin port failed");
        }
    });
    Ok(bound)
}

async fn livez(State(admin): State<Admin>) -> impl IntoResponse {
    match *admin.phase.borrow() {
        Phase::Broken => (StatusCode::SERVICE_UNAVAILABLE, "the engine has stopped\n"),
        _ => (StatusCode::OK, "ok\n"),
    }
}

async fn readyz(State(admin): State<Admin>) -> impl IntoResponse {
    let phase = *admin.phase.borrow();
    match phase {
        Phase::Running if admin.client.connection_state() != Link::Connected => {
            (StatusCode::SERVICE_UNAVAILABLE, "not connected to nats\n")
        }
        Phase::Running => (StatusCode::OK, "ok\n"),
        Phase::Loading => (StatusCode::SERVICE_UNAVAILABLE, "starting\n"),
        Phase::Draining => (StatusCode::SERVICE_UNAVAILABLE, "draining\n"),
        Phase::Broken => (StatusCode::SERVICE_UNAVAILABLE, "the engine has stopped\n"),
    }
}

async fn metrics(State(admin): State<Admin>) -> impl IntoResponse {
    let text = (admin.metrics)();
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text)
}
