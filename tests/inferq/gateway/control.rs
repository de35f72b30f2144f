//! The gateway on NATS: what a plain request of any client can have done.

use bytes::Bytes;
use schemas::stream::JOBS;
use serde_json::{Value, json};

use crate::support::{Deployment, Gateway, TENANT, chat, content, echo_registry, eventually};

/// A request, and what is answered: the error's code, if it is one, and the body.
async fn ask(deployment: &Deployment, verb: &str, payload: String) -> (Option<String>, Value) {
    let subject = format!("inferq.control.{verb}.{TENANT}");
    let answer = deployment.client.connection.client.request(subject, Bytes::from(payload)).await.unwrap();
    let code = answer.headers.and_then(|headers| Some(headers.get("Nats-Service-Error-Code")?.to_string()));
    (code, serde_json::from_slice(&answer.payload).unwrap())
}

#[tokio::test]
async fn a_request_submits_a_job_and_waits_for_it() {
    let (deployment, _worker) = Deployment::with_worker(&echo_registry(0, "")).await;
    let _gateway = Gateway::open(&deployment).await;
    let (code, result) = ask(&deployment, "submit", chat("hello").to_string()).await;
    assert_eq!((code, content(&result)), (None, "hello"));
    let id = result["id"].as_str().unwrap().to_owned();
    let (code, job) = ask(&deployment, "status", id.clone()).await;
    assert_eq!((code, &job["status"]), (None, &json!("completed")));
    assert_eq!(ask(&deployment, "cancel", id).await.1["status"], "completed");
    let (code, error) = ask(&deployment, "submit", "{".to_owned()).await;
    assert_eq!((code.as_deref(), &error["error"]["code"]), (Some("400"), &json!("invalid_json")));
    let (code, _) = ask(&deployment, "status", "nobody".to_owned()).await;
    assert_eq!(code.as_deref(), Some("404"));
}

#[tokio::test]
async fn a_request_cancels_a_job_that_waits() {
    let deployment = Deployment::new(&echo_registry(0, "")).await;
    let gateway = Gateway::open(&deployment).await;
    let job = gateway.post("/v1/jobs", &chat("never")).send().await.unwrap().json::<Value>().await.unwrap();
    let id = job["id"].as_str().unwrap().to_owned();
    assert_eq!(ask(&deployment, "status", id.clone()).await.1["status"], "queued");
    assert_eq!(ask(&deployment, "cancel", id).await.1["status"], "cancelled");
    eventually("the job is gone", async || (deployment.count(JOBS).await.0 == 0).then_some(())).await;
}
