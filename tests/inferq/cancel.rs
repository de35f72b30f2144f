//! Cancelling jobs: what waits, what runs, what is over, and what never was.

use std::process::Output;

use async_nats::HeaderMap;
use futures::StreamExt;
use schemas::codec::Encoding;
use schemas::stream::{JOBS, RESULTS};
use serde_json::{Value, json};

use crate::support::{Deployment, TENANT, chat, content, echo_registry, eventually};

fn errors(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Stores a result as a worker would.
async fn store_result(deployment: &Deployment, job_id: &str, status: &str) {
    let mut headers = HeaderMap::new();
    headers.insert("Content-Type", "application/json");
    headers.insert("Inferq-Status", status);
    let result = json!({ "id": job_id, "custom_id": job_id, "response": null, "error": null });
    let subject = format!("inferq.results.{TENANT}.{job_id}");
    let jetstream = &deployment.client.connection.jetstream;
    jetstream.publish_with_headers(subject, headers, result.to_string().into()).await.unwrap().await.unwrap();
}

#[tokio::test]
async fn a_waiting_job_is_answered_as_cancelled_and_leaves_the_queue() {
    let deployment = Deployment::new(&echo_registry(0, "")).await;
    let mut told = deployment.client.connection.client.subscribe("inferq.cancel.>").await.unwrap();
    deployment.client.connection.client.flush().await.unwrap();
    let mut job = chat("hi");
    job["custom_id"] = json!("mine");
    for encoding in [Encoding::Json, Encoding::MessagePack] {
        let id = deployment.submit(&job, encoding).await;
        let cancelled = deployment.inferq(&["cancel", id.as_str()]);
        assert_eq!(cancelled.status.code(), Some(0), "{}", errors(&cancelled));
        assert_eq!(String::from_utf8_lossy(&cancelled.stdout), format!("{id} cancelled\n"));
        let (headers, result) = deployment.result(id.as_str()).await;
        assert_eq!(headers.get("Inferq-Status").unwrap().as_str(), "499");
        assert_eq!(headers.get("Content-Type").unwrap().as_str(), encoding.content_type());
        assert_eq!((&result["custom_id"], &result["response"]), (&json!("mine"), &Value::Null));
        assert_eq!(result["error"]["code"], "batch_cancelled");
        assert_eq!(deployment.count(JOBS).await.0, 0);
        assert_eq!(told.next().await.unwrap().subject.as_str(), format!("inferq.cancel.echo.{TENANT}.{id}"));
        let log = deployment.inferq(&["logs", id.as_str()]);
        assert!(String::from_utf8_lossy(&log.stdout).contains("finished with status 499"));
    }
}

#[tokio::test]
async fn who_waits_on_a_subject_of_its_own_is_told_that_the_job_was_cancelled() {
    let deployment = Deployment::new(&echo_registry(0, "")).await;
    let client = &deployment.client.connection.client;
    let mut told = client.subscribe("_INBOX.mine").await.unwrap();
    let mut not_told = client.subscribe("elsewhere").await.unwrap();
    client.flush().await.unwrap();
    for subject in ["elsewhere", "_INBOX.mine"] {
        let id = deployment.publish_raw(chat("hi").to_string().as_bytes(), &[("Inferq-Reply-To", subject)]).await;
        assert_eq!(deployment.inferq(&["cancel", &id]).status.code(), Some(0));
    }
    let result: Value = serde_json::from_slice(&told.next().await.unwrap().payload).unwrap();
    assert_eq!(result["error"]["code"], "batch_cancelled");
    assert!(futures::FutureExt::now_or_never(not_told.next()).is_none(), "a job may name inboxes only");
}

#[tokio::test]
async fn a_running_job_is_cancelled_and_the_worker_goes_on() {
    let (deployment, _worker) = Deployment::with_worker(&echo_registry(1_000, "")).await;
    let id = deployment.submit(&chat("hi"), Encoding::Json).await;
    eventually("the job is running", async || (deployment.in_flight().await == 1).then_some(())).await;
    assert_eq!(deployment.inferq(&["cancel", id.as_str()]).status.code(), Some(0));
    assert_eq!(deployment.count(JOBS).await.0, 0);
    let next = deployment.submit(&chat("next"), Encoding::Json).await;
    assert_eq!(content(&deployment.result(next.as_str()).await.1), "next");
    assert_eq!(deployment.result(id.as_str()).await.1["error"]["code"], "batch_cancelled");
    assert_eq!(deployment.count(RESULTS).await.0, 2, "one result for each job");
}

#[tokio::test]
async fn a_job_that_is_answered_stays_answered() {
    let deployment = Deployment::new(&echo_registry(0, "")).await;
    store_result(&deployment, "over", "200").await;
    let output = deployment.inferq(&["cancel", "over", "--output", "json"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(errors(&output).contains("job over is already answered"), "{}", errors(&output));
    let outcome: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(outcome, json!({ "job_id": "over", "outcome": "answered" }));
    assert_eq!(deployment.result("over").await.0.get("Inferq-Status").unwrap().as_str(), "200");
}

#[tokio::test]
async fn an_unknown_job_is_not_answered() {
    let deployment = Deployment::new(&echo_registry(0, "")).await;
    let known = deployment.submit(&chat("hi"), Encoding::Json).await;
    let output = deployment.inferq(&["cancel", "nobody", known.as_str()]);
    assert_eq!(output.status.code(), Some(1));
    assert!(errors(&output).contains("job nobody of tenant \"default\" is unknown"), "{}", errors(&output));
    assert_eq!(String::from_utf8_lossy(&output.stdout), format!("{known} cancelled\n"), "the others are cancelled");
    assert_eq!(deployment.count(RESULTS).await.0, 1);
    let elsewhere = deployment.submit(&chat("hi"), Encoding::Json).await;
    let output = deployment.inferq(&["cancel", "--tenant", "other", elsewhere.as_str()]);
    assert_eq!(output.status.code(), Some(1), "jobs of other tenants are not touched");
    assert_eq!(deployment.count(JOBS).await.0, 1);
}

#[tokio::test]
async fn a_cancellation_that_was_cut_off_is_finished_by_another() {
    let deployment = Deployment::new(&echo_registry(0, "")).await;
    let id = deployment.submit(&chat("hi"), Encoding::Json).await;
    store_result(&deployment, id.as_str(), "499").await;
    assert_eq!(deployment.inferq(&["cancel", id.as_str()]).status.code(), Some(0));
    assert_eq!(deployment.count(JOBS).await.0, 0);
    assert_eq!(deployment.inferq(&["cancel", id.as_str()]).status.code(), Some(1), "now it is over");
}
