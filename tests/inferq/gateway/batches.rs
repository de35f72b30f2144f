//! Batches: every line has its answer once, whoever dies meanwhile and however the batch ends.

use std::collections::{BTreeMap, BTreeSet};

use reqwest::multipart::{Form, Part};
use serde_json::{Value, json};

use crate::support::{Deployment, Gateway, echo_registry, eventually};

pub fn input(rows: usize) -> String {
    let line = |row: usize| {
        let body = json!({ "model": "echo", "messages": [{ "role": "user", "content": format!("text {row}") }] });
        let line =
            json!({ "custom_id": format!("r-{row}"), "method": "POST", "url": "/v1/chat/completions", "body": body });
        format!("{line}\n")
    };
    (0..rows).map(line).collect()
}

pub async fn upload(gateway: &Gateway, text: String) -> String {
    let form = Form::new().text("purpose", "batch").part("file", Part::bytes(text.into_bytes()).file_name("in.jsonl"));
    let answer = gateway.request(reqwest::Method::POST, "/v1/files").multipart(form).send().await.unwrap();
    let file = answer.json::<Value>().await.unwrap();
    file["id"].as_str().unwrap_or_else(|| panic!("{file}")).to_owned()
}

pub async fn create(gateway: &Gateway, file: &str, more: Value) -> String {
    let mut body = json!({ "input_file_id": file, "endpoint": "/v1/chat/completions", "completion_window": "24h" });
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let batch = gateway.post("/v1/batches", &body).send().await.unwrap().json::<Value>().await.unwrap();
    batch["id"].as_str().unwrap_or_else(|| panic!("{batch}")).to_owned()
}

async fn get(gateway: &Gateway, id: &str) -> Value {
    gateway.get(&format!("/v1/batches/{id}")).send().await.unwrap().json::<Value>().await.unwrap()
}

/// Waits until a batch has a status.
async fn ended(gateway: &Gateway, id: &str, status: &str) -> Value {
    eventually(&format!("the batch is {status}"), async || {
        let batch = get(gateway, id).await;
        (batch["status"] == status).then_some(batch)
    })
    .await
}

/// The lines of a file by their custom ids; none stands twice.
async fn lines(gateway: &Gateway, file: &Value) -> BTreeMap<String, Value> {
    let Some(file) = file.as_str() else { return BTreeMap::new() };
    let text = gateway.get(&format!("/v1/files/{file}/content")).send().await.unwrap().text().await.unwrap();
    let mut found = BTreeMap::new();
    for line in text.lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        let name = line["custom_id"].as_str().unwrap().to_owned();
        assert!(found.insert(name.clone(), line).is_none(), "{name} stands twice");
    }
    found
}

fn check_answers(answers: &BTreeMap<String, Value>, rows: usize) {
    assert_eq!(answers.len(), rows);
    for row in 0..rows {
        let line = &answers[&format!("r-{row}")];
        assert_eq!(line["response"]["body"]["choices"][0]["message"]["content"], format!("text {row}"));
    }
}

#[tokio::test]
async fn a_batch_goes_on_when_its_gateway_is_killed() {
    const ROWS: usize = 10_000;
    let (deployment, _worker) = Deployment::with_worker(&echo_registry(10, "in_flight = 32")).await;
    let one = Gateway::open(&deployment).await;
    let file = upload(&one, input(ROWS)).await;
    let id = create(&one, &file, json!({})).await;
    let part = eventually("some lines are answered", async || {
        let batch = get(&one, &id).await;
        let lines = lines(&one, &batch["output_file_id"]).await;
        (lines.len() >= 200).then_some(lines)
    })
    .await;
    assert!(part.len() < ROWS, "it is read while it runs");
    let other = Gateway::open(&deployment).await;
    one.signal("-KILL");
    let batch = ended(&other, &id, "completed").await;
    assert_eq!(batch["request_counts"], json!({ "total": ROWS, "completed": ROWS, "failed": 0 }));
    assert_eq!(batch["error_file_id"], Value::Null);
    let answers = lines(&other, &batch["output_file_id"]).await;
    check_answers(&answers, ROWS);
    assert!(part.iter().all(|(name, line)| answers[name] == *line), "lines that were read have changed");
}

#[tokio::test]
async fn a_batch_goes_on_when_its_gateway_stops() {
    let (deployment, _worker) = Deployment::with_worker(&echo_registry(20, "in_flight = 8")).await;
    let mut one = Gateway::open(&deployment).await;
    let file = upload(&one, input(2000)).await;
    let id = create(&one, &file, json!({})).await;
    ended(&one, &id, "in_progress").await;
    let other = Gateway::open(&deployment).await;
    one.signal("-TERM");
    assert_eq!(one.exit_code().await, Some(0));
    let batch = ended(&other, &id, "completed").await;
    check_answers(&lines(&other, &batch["output_file_id"]).await, 2000);
}

#[tokio::test]
async fn a_cancelled_batch_keeps_what_was_answered() {
    const ROWS: usize = 3000;
    let (deployment, worker) = Deployment::with_worker(&echo_registry(20, "in_flight = 8")).await;
    let gateway = Gateway::open(&deployment).await;
    let file = upload(&gateway, input(ROWS)).await;
    let id = create(&gateway, &file, json!({})).await;
    eventually("some lines are answered", async || {
        (lines(&gateway, &get(&gateway, &id).await["output_file_id"]).await.len() >= 20).then_some(())
    })
    .await;
    drop(worker);
    let cancelling = gateway.request(reqwest::Method::POST, &format!("/v1/batches/{id}/cancel")).send().await.unwrap();
    assert_eq!(cancelling.json::<Value>().await.unwrap()["status"], "cancelling");
    let batch = ended(&gateway, &id, "cancelled").await;
    let answers = lines(&gateway, &batch["output_file_id"]).await;
    let errors = lines(&gateway, &batch["error_file_id"]).await;
    assert!(errors.values().all(|line| line["error"]["code"] == "batch_cancelled" && line["response"].is_null()));
    let all: BTreeSet<&String> = answers.keys().chain(errors.keys()).collect();
    assert_eq!((all.len(), answers.len() + errors.len()), (ROWS, ROWS));
    let counts = json!({ "total": ROWS, "completed": answers.len(), "failed": errors.len() });
    assert_eq!(batch["request_counts"], counts);
    // What the worker had answered and not yet acknowledged when it died, another one does no more than acknowledge.
    let results = deployment.count(schemas::stream::RESULTS).await;
    let _worker = deployment.worker("echo").await;
    eventually("no job is left", async || (deployment.count(schemas::stream::JOBS).await.0 == 0).then_some(())).await;
    assert_eq!(deployment.count(schemas::stream::RESULTS).await, results);
}

#[tokio::test]
async fn a_batch_expires_with_its_window() {
    let deployment = Deployment::new(&echo_registry(0, "")).await;
    let gateway = Gateway::open(&deployment).await;
    let file = upload(&gateway, input(40)).await;
    let id = create(&gateway, &file, json!({ "completion_window": "3s" })).await;
    let batch = ended(&gateway, &id, "expired").await;
    let errors = lines(&gateway, &batch["error_file_id"]).await;
    assert!(errors.len() == 40 && errors.values().all(|line| line["error"]["code"] == "batch_expired"));
    assert_eq!((&batch["output_file_id"], &batch["request_counts"]["failed"]), (&Value::Null, &json!(40)));
}

#[tokio::test]
async fn several_gateways_share_batches() {
    let (deployment, _worker) = Deployment::with_worker(&echo_registry(1, "in_flight = 32")).await;
    let gateways = [Gateway::open(&deployment).await, Gateway::open(&deployment).await];
    let mut batches = Vec::new();
    for number in 0..12 {
        let file = upload(&gateways[number % 2], input(100)).await;
        batches.push(create(&gateways[number % 2], &file, json!({})).await);
    }
    for id in &batches {
        let batch = ended(&gateways[0], id, "completed").await;
        check_answers(&lines(&gateways[1], &batch["output_file_id"]).await, 100);
    }
}
