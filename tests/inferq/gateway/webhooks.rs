//! Webhooks: ends of batches and jobs, told with a signature, whoever dies meanwhile.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::batches::{create, input, upload};
use crate::support::{Deployment, Gateway, chat, echo_registry, eventually, free_port, python, root, run};

const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

/// Somebody who wants to be told, and is away the first times.
struct Hook {
    host: String,
    heard: mpsc::UnboundedReceiver<(HeaderMap, String)>,
}

impl Hook {
    async fn new(away: usize) -> Self {
        let (told, heard) = mpsc::unbounded_channel();
        let calls = Arc::new(AtomicUsize::new(0));
        let hear =
            move |State(told): State<mpsc::UnboundedSender<(HeaderMap, String)>>, headers: HeaderMap, body: String| {
                told.send((headers, body)).unwrap();
                let is_away = calls.fetch_add(1, Ordering::Relaxed) < away;
                async move { if is_away { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::NO_CONTENT } }
            };
        let port = free_port();
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", port)).await.unwrap();
        let router = Router::new().route("/hook", post(hear)).with_state(told);
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { host: format!("127.0.0.1:{port}"), heard }
    }

    fn url(&self) -> String {
        format!("http://{}/hook", self.host)
    }

    async fn gateway(&self, deployment: &Deployment) -> Gateway {
        let secret = deployment.folder.path().join("secret");
        std::fs::write(&secret, SECRET).unwrap();
        let secret = secret.to_str().unwrap();
        let flags = ["--keys", "off", "--webhook-host", &self.host, "--webhook-secret-file", secret];
        Gateway::start(deployment, &flags).await
    }

    async fn next(&mut self) -> (HeaderMap, String) {
        self.heard.recv().await.unwrap()
    }
}

/// Whether OpenAI's own client believes it.
fn check(headers: &HeaderMap, body: &str, kind: &str, id: &str) {
    let headers: BTreeMap<&str, &str> =
        headers.iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect();
    let (script, headers) = (root().join("tests/python/webhook.py"), serde_json::to_string(&headers).unwrap());
    let output = run(python(), &[script.to_str().unwrap(), SECRET, &headers, body, kind, id], &[]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

async fn send(gateway: &Gateway, url: &str) -> String {
    let mut job = chat("hello");
    (job["webhook_url"], job["custom_id"]) = (json!(url), json!("mine"));
    let sent = gateway.post("/v1/jobs", &job).send().await.unwrap();
    assert_eq!(sent.status(), 202);
    sent.json::<Value>().await.unwrap()["id"].as_str().unwrap().to_owned()
}

async fn hooks_left(deployment: &Deployment) -> usize {
    let stream = deployment.stream("KV_inferq-batches").await;
    let found = stream.info_with_subjects("$KV.inferq-batches.hooks.>").await.unwrap();
    futures::StreamExt::count(found).await
}

#[tokio::test]
async fn the_end_of_a_batch_is_told_with_a_signature() {
    let (deployment, _worker) = Deployment::with_worker(&echo_registry(0, "")).await;
    let mut hook = Hook::new(1).await;
    let gateway = hook.gateway(&deployment).await;
    let file = upload(&gateway, input(3)).await;
    let id = create(&gateway, &file, json!({ "webhook_url": hook.url() })).await;
    let ((first, _), (headers, body)) = (hook.next().await, hook.next().await);
    assert_eq!(first["webhook-id"], headers["webhook-id"]);
    check(&headers, &body, "batch.completed", &id);
    let elsewhere = json!({ "input_file_id": file, "endpoint": "/v1/chat/completions", "completion_window": "1h", "webhook_url": "http://example.com/" });
    assert_eq!(gateway.post("/v1/batches", &elsewhere).send().await.unwrap().status(), 400);
    // What its answers took, all together.
    let batch = gateway.get(&format!("/v1/batches/{id}")).send().await.unwrap().json::<Value>().await.unwrap();
    let told = |name: &str| batch["usage"][name].as_u64().unwrap();
    assert_eq!((told("input_tokens"), told("output_tokens"), told("total_tokens")), (18, 18, 36), "{batch}");
}

#[tokio::test]
async fn the_end_of_a_job_is_told_with_a_signature() {
    let (deployment, _worker) = Deployment::with_worker(&echo_registry(0, "")).await;
    let mut hook = Hook::new(1).await;
    let gateway = hook.gateway(&deployment).await;
    let id = send(&gateway, &hook.url()).await;
    let ((first, _), (headers, body)) = (hook.next().await, hook.next().await);
    assert_eq!(first["webhook-id"], headers["webhook-id"]);
    check(&headers, &body, "job.completed", &id);
    assert_eq!(serde_json::from_str::<Value>(&body).unwrap()["data"], json!({ "id": id, "custom_id": "mine" }));
    eventually("nothing is left to tell", async || (hooks_left(&deployment).await == 0).then_some(())).await;
    for (url, status) in [("http://example.com/", 400), ("file:///etc/passwd", 400)] {
        let mut job = chat("x");
        job["webhook_url"] = json!(url);
        assert_eq!(gateway.post("/v1/jobs", &job).send().await.unwrap().status(), status, "{url}");
    }
    // A job that cannot be sent leaves nothing.
    let mut unknown = chat("x");
    (unknown["webhook_url"], unknown["body"]["model"]) = (json!(hook.url()), json!("nobody"));
    assert_eq!(gateway.post("/v1/jobs", &unknown).send().await.unwrap().status(), 404);
    assert_eq!(hooks_left(&deployment).await, 0);
}

#[tokio::test]
async fn the_end_of_a_job_is_told_that_was_not_known_to_be_stored() {
    let deployment = Deployment::new(&echo_registry(0, "")).await;
    let mut hook = Hook::new(0).await;
    let gateway = hook.gateway(&deployment).await;
    let jobs = deployment.stream(schemas::stream::JOBS).await;
    let config = async_nats::jetstream::stream::Config { sealed: true, ..jobs.cached_info().config.clone() };
    deployment.client.connection.jetstream.update_stream(&config).await.unwrap();
    let mut job = chat("hello");
    job["webhook_url"] = json!(hook.url());
    let refused = gateway.post("/v1/jobs", &job).send().await.unwrap();
    assert_eq!(refused.status(), 503);
    let id = refused.headers()["x-inferq-job-id"].to_str().unwrap().to_owned();
    assert_eq!(hooks_left(&deployment).await, 1);
    // As if it had been.
    deployment.client.connection.jetstream.delete_stream(schemas::stream::JOBS).await.unwrap();
    deployment.set_up();
    deployment.publish_as(&id, chat("hello").to_string().as_bytes(), &[]).await;
    let _worker = deployment.worker("echo").await;
    let (headers, body) = hook.next().await;
    check(&headers, &body, "job.completed", &id);
}

#[tokio::test]
async fn another_gateway_tells_what_one_that_is_gone_had_to() {
    let deployment = Deployment::new(&echo_registry(0, "")).await;
    let mut hook = Hook::new(0).await;
    let _other = hook.gateway(&deployment).await;
    let mut sent = Vec::new();
    for signal in ["-KILL", "-TERM"] {
        let one = hook.gateway(&deployment).await;
        for _ in 0..10 {
            sent.push(send(&one, &hook.url()).await);
        }
        one.signal(signal);
    }
    let _worker = deployment.worker("echo").await;
    let mut told = Vec::new();
    while told.len() < sent.len() {
        let (_, body) = hook.next().await;
        told.push(serde_json::from_str::<Value>(&body).unwrap()["data"]["id"].as_str().unwrap().to_owned());
    }
    sent.sort();
    told.sort();
    assert_eq!(told, sent);
    eventually("nothing is left to tell", async || (hooks_left(&deployment).await == 0).then_some(())).await;
}
