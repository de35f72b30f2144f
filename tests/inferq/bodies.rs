//! Bodies over the payload limit, of jobs and of results, by way of the object store.

use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::jetstream::object_store::ObjectStore;
use connect::PublishFailure;
use connect::bucket::BODY_BYTES_MAX;
use producer::{Submission, SubmitError, SubmitOptions, Submitted, WhenFull};
use schemas::codec::Encoding;
use schemas::stream::{BLOBS_BUCKET, DEAD_BUCKET, INPUTS_BUCKET, JOBS, RESULTS};
use schemas::subject::JobId;
use serde_json::{Value, json};
use tokio::io::AsyncReadExt;

use crate::support::{
    Deployment, Line, PATIENCE, Proxy, TENANT, chat, content, echo_registry, eventually, free_port, submission, tenant,
};

const LARGE: usize = 3 << 20;

async fn bucket(deployment: &Deployment, name: &str) -> ObjectStore {
    deployment.client.connection.jetstream.get_object_store(name).await.unwrap()
}

/// Stores a result whose payload is an object, as a worker does.
async fn store_large_result(deployment: &Deployment, job_id: &str, text: &str) {
    let result = json!({ "id": job_id, "custom_id": job_id, "error": null, "response":
        { "status_code": 200, "request_id": job_id, "body": { "text": text } } });
    let name = format!("{TENANT}/{job_id}");
    bucket(deployment, BLOBS_BUCKET).await.put(name.as_str(), &mut result.to_string().as_bytes()).await.unwrap();
    let mut headers = HeaderMap::new();
    headers.insert("Content-Type", "application/json");
    headers.insert("Inferq-Status", "200");
    headers.insert("Inferq-Body", name);
    let jetstream = &deployment.client.connection.jetstream;
    let subject = format!("inferq.results.{TENANT}.{job_id}");
    jetstream.publish_with_headers(subject, headers, "".into()).await.unwrap().await.unwrap();
}

#[tokio::test]
async fn a_large_job_goes_by_the_object_store_and_keeps_its_body_while_it_waits() {
    let deployment = Deployment::new(&echo_registry(0, "")).await;
    let submission = submission(&chat(&"x".repeat(LARGE)), Encoding::Json);
    assert_eq!(deployment.client.submit(&submission).await.unwrap(), Submitted::Queued);
    let (id, name) = (&submission.address.job_id, format!("{TENANT}/{}", submission.address.job_id));
    let subject = submission.address.subject().unwrap();
    let job = deployment.stream(JOBS).await.direct_get_last_for_subject(subject).await.unwrap();
    assert_eq!(job.headers.get("Inferq-Body").unwrap().as_str(), name);
    assert!(job.payload.is_empty());

    let inputs = bucket(&deployment, INPUTS_BUCKET).await;
    let before = inputs.info(&name).await.unwrap();
    assert_eq!(deployment.client.submit(&submission).await.unwrap(), Submitted::Duplicate);
    assert_eq!(inputs.info(&name).await.unwrap().nuid, before.nuid, "the first one's body was replaced");
    let mut stored = Vec::new();
    inputs.get(&name).await.unwrap().read_to_end(&mut stored).await.unwrap();
    assert!(stored == submission.payload, "the object is not the job");

    assert_eq!(deployment.inferq(&["cancel", id.as_str()]).status.code(), Some(0));
    assert_eq!(deployment.count(&format!("OBJ_{INPUTS_BUCKET}")).await.0, 0, "a cancelled job leaves its body");
}

#[tokio::test]
async fn a_large_job_that_is_refused_leaves_nothing() {
    let deployment = Deployment::new(&echo_registry(0, "")).await;
    let mut job = chat(&"x".repeat(LARGE));
    job["body"]["model"] = json!("gpt-9");
    let error = deployment.client.submit(&submission(&job, Encoding::Json)).await.unwrap_err();
    assert!(matches!(error, SubmitError::UnknownModel { .. }), "{error}");
    assert_eq!(deployment.count(&format!("OBJ_{INPUTS_BUCKET}")).await.0, 0);

    let job = chat(&"x".repeat(BODY_BYTES_MAX));
    let error = deployment.client.submit(&submission(&job, Encoding::Json)).await.unwrap_err();
    assert!(matches!(error, SubmitError::TooLarge { max: BODY_BYTES_MAX, .. }), "{error}");
    assert!(error.to_string().contains("at most 67108864 are taken"), "{error}");
}

#[tokio::test]
async fn a_body_that_its_bucket_has_no_room_for_leaves_no_part_of_it() {
    let registry = format!("{}[storage]\nblobs_bytes = 2000000\n", echo_registry(0, ""));
    let deployment = Deployment::new(&registry).await;
    let options = SubmitOptions { when_full: WhenFull::Refuse, ..Default::default() };
    let submission = Submission { options, ..submission(&chat(&"x".repeat(LARGE)), Encoding::Json) };
    let error = deployment.client.submit(&submission).await.unwrap_err();
    assert!(matches!(error, SubmitError::Failed(PublishFailure::Full(_))), "{error}");
    assert_eq!(deployment.count(&format!("OBJ_{INPUTS_BUCKET}")).await.0, 0);
    assert_eq!(deployment.count(JOBS).await.1, 0);
}

#[tokio::test]
async fn a_large_result_is_read_as_any_other() {
    let deployment = Deployment::new(&echo_registry(0, "")).await;
    let text = "y".repeat(LARGE);
    let id = JobId::new("big").unwrap();
    let waiting = tokio::spawn({
        let (client, id) = (deployment.client.clone(), id.clone());
        async move { client.wait(&tenant(), &id).await }
    });
    store_large_result(&deployment, "big", &text).await;
    let live = tokio::time::timeout(PATIENCE, waiting).await.unwrap().unwrap().unwrap();
    let stored = deployment.client.result(&tenant(), &id).await.unwrap().unwrap();
    assert!(live == stored && stored.response.unwrap().body["text"] == text.as_str());
    let printed = deployment.inferq(&["results", "big"]);
    assert_eq!(printed.status.code(), Some(0));
    let printed: Value = serde_json::from_slice(&printed.stdout).unwrap();
    assert!(printed["response"]["body"]["text"] == text.as_str());

    bucket(&deployment, BLOBS_BUCKET).await.delete("default/big").await.unwrap();
    let gone = deployment.inferq(&["results", "big"]);
    assert_eq!(gone.status.code(), Some(1));
    let errors = String::from_utf8_lossy(&gone.stderr).into_owned();
    assert!(
        errors.contains("\"default/big\" is not in bucket inferq-blobs: it has expired or was deleted"),
        "{errors}"
    );
}

/// The result is stored, and its confirmation swallowed: the worker stores it again and finds a result, its own.
#[tokio::test]
async fn a_large_result_keeps_its_body_when_its_confirmation_is_lost() {
    let deployment = Deployment::new(&echo_registry(0, "completion_tokens = 10000000\nack_wait_seconds = 600")).await;
    let proxy = Proxy::before(&deployment.server.url).await;
    let admin = format!("127.0.0.1:{}", free_port());
    let _worker = deployment.worker_with("echo", &["--server", &proxy.url, "--admin", &admin]).await;
    let metric = async |line: &str| {
        let text = reqwest::get(format!("http://{admin}/metrics")).await.unwrap().text().await.unwrap();
        text.lines().any(|found| found == line).then_some(())
    };
    proxy.set(Line::OpenUntil("PUB inferq.results."));
    let text = "z".repeat(LARGE);
    let id = deployment.submit(&chat(&text), Encoding::Json).await;
    eventually("the result is stored", async || (deployment.count(RESULTS).await.0 == 1).then_some(())).await;
    proxy.set(Line::Cut);
    eventually("the worker sees it", async || metric("inferq_nats_connected{model=\"echo\"} 0").await).await;
    proxy.set(Line::Open);
    eventually("the worker has found its result", async || {
        metric("inferq_deliveries_total{outcome=\"already_stored\",model=\"echo\"} 1").await
    })
    .await;
    eventually("the job is acknowledged", async || (deployment.count(JOBS).await.0 == 0).then_some(())).await;
    let result = deployment.client.result(&tenant(), &id).await.unwrap().unwrap();
    assert!(content(&serde_json::to_value(result).unwrap()) == text);
}

#[tokio::test]
async fn a_large_job_and_its_large_result_round_trip() {
    let (deployment, _worker) = Deployment::with_worker(&echo_registry(0, "completion_tokens = 10000000")).await;
    let text = "z".repeat(LARGE);
    let id = deployment.submit(&chat(&text), Encoding::Json).await;
    let result = tokio::time::timeout(PATIENCE, deployment.client.wait(&tenant(), &id)).await.unwrap().unwrap();
    assert!(content(&serde_json::to_value(result).unwrap()) == text);
    eventually("the job's body is deleted", async || {
        bucket(&deployment, INPUTS_BUCKET).await.get(format!("{TENANT}/{id}")).await.is_err().then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_batch_file_has_large_rows_and_large_answers() {
    let (deployment, _worker) = Deployment::with_worker(&echo_registry(0, "completion_tokens = 10000000")).await;
    let row = |number: usize| {
        let mut row = chat(&number.to_string().repeat(if number.is_multiple_of(2) { 10 } else { LARGE }));
        row["custom_id"] = json!(number.to_string());
        row.to_string()
    };
    let (input, output) = (deployment.folder.path().join("in.jsonl"), deployment.folder.path().join("out.jsonl"));
    std::fs::write(&input, (0..6).map(row).collect::<Vec<_>>().join("\n")).unwrap();
    let run = deployment.inferq(&["batch", "run", input.to_str().unwrap(), "-o", output.to_str().unwrap()]);
    assert_eq!(run.status.code(), Some(0), "{}", String::from_utf8_lossy(&run.stderr));
    for line in std::fs::read_to_string(&output).unwrap().lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        let number: usize = line["custom_id"].as_str().unwrap().parse().unwrap();
        let wanted = number.to_string().repeat(if number.is_multiple_of(2) { 10 } else { LARGE });
        assert!(content(&line) == wanted, "row {number}");
    }
    assert_eq!(deployment.count(RESULTS).await.0, 6);
}

#[tokio::test]
async fn an_answer_whose_body_is_lost_is_an_error_of_its_row() {
    let deployment = Deployment::new(&echo_registry(0, "")).await;
    let (input, output) = (deployment.folder.path().join("in.jsonl"), deployment.folder.path().join("out.jsonl"));
    let mut row = chat("hi");
    row["custom_id"] = json!("r");
    std::fs::write(&input, row.to_string()).unwrap();
    let arguments = ["batch", "run", input.to_str().unwrap(), "-o", output.to_str().unwrap()];
    let url = deployment.server.url.clone();
    let running =
        std::process::Command::new(crate::support::program("inferq")).args(arguments).env("NATS_URL", url).spawn();
    let mut running = running.unwrap();
    let subject = eventually("the row is published", async || {
        let found = deployment.stream(JOBS).await.get_last_raw_message_by_subject("inferq.jobs.echo.*.*.*").await;
        found.ok().map(|job| job.subject.to_string())
    })
    .await;
    let mut headers = HeaderMap::new();
    headers.insert("Inferq-Status", "200");
    headers.insert("Inferq-Body", "default/nothing");
    let result = format!("inferq.results.{TENANT}.{}", subject.rsplit('.').next().unwrap());
    let jetstream = &deployment.client.connection.jetstream;
    jetstream.publish_with_headers(result, headers, "".into()).await.unwrap().await.unwrap();
    let status = tokio::task::spawn_blocking(move || running.wait().unwrap());
    let status = tokio::time::timeout(Duration::from_secs(60), status).await.unwrap().unwrap();
    assert_eq!(status.code(), Some(1));
    let errors = std::fs::read_to_string(deployment.folder.path().join("out.errors.jsonl")).unwrap();
    assert!(errors.contains("result_lost") && errors.contains("default/nothing"), "{errors}");
}

#[tokio::test]
async fn the_body_of_a_job_that_is_given_up_expires_with_its_result_and_comes_back_with_a_replay() {
    let registry = echo_registry(0, "attempts = 1").replace("echo = {", "echo = { faults = true,");
    let (deployment, worker) = Deployment::with_worker(&registry).await;
    let job = chat(&format!("!error!{}", "x".repeat(LARGE)));
    let id = deployment.submit(&job, Encoding::Json).await;
    assert_eq!(deployment.result(id.as_str()).await.1["response"]["status_code"], 500);
    let inputs = format!("OBJ_{INPUTS_BUCKET}");
    eventually("its body leaves the jobs", async || (deployment.count(&inputs).await.0 == 0).then_some(())).await;
    eventually("its delivery is over", async || (deployment.count(JOBS).await.0 == 0).then_some(())).await;
    drop(worker);
    let show = deployment.inferq(&["dead", "show", id.as_str(), "--output", "json"]);
    let shown: Value = serde_json::from_slice(&show.stdout).unwrap();
    assert!(shown["body"]["body"] == job["body"], "{}", String::from_utf8_lossy(&show.stderr));

    assert_eq!(deployment.inferq(&["dead", "replay", id.as_str()]).status.code(), Some(0));
    let name = format!("{TENANT}/{id}");
    let mut stored = Vec::new();
    bucket(&deployment, INPUTS_BUCKET).await.get(&name).await.unwrap().read_to_end(&mut stored).await.unwrap();
    assert!(serde_json::from_slice::<Value>(&stored).unwrap()["body"] == job["body"], "the body is another one");
    assert_eq!(deployment.count(&format!("OBJ_{DEAD_BUCKET}")).await.0, 0);
    let subject = format!("inferq.jobs.echo.default.{TENANT}.{id}");
    let again = deployment.stream(JOBS).await.direct_get_last_for_subject(subject).await.unwrap();
    assert_eq!(again.headers.get("Inferq-Body").unwrap().as_str(), name);
}

#[tokio::test]
async fn a_job_that_fills_its_message_can_be_given_up_and_replayed() {
    let registry = echo_registry(0, "attempts = 1").replace("echo = {", "echo = { faults = true,");
    let (deployment, worker) = Deployment::with_worker(&registry).await;
    let room = deployment.client.connection.client.max_payload() - chat("").to_string().len() - 200;
    let job = chat(&format!("!error!{}", "x".repeat(room)));
    let id = deployment.publish_raw(job.to_string().as_bytes(), &[]).await;
    assert_eq!(deployment.result(&id).await.1["response"]["status_code"], 500);
    drop(worker);
    let show = deployment.inferq(&["dead", "show", &id, "--output", "json"]);
    let shown: Value = serde_json::from_slice(&show.stdout).unwrap();
    assert!(shown["body"]["body"] == job["body"], "{}", String::from_utf8_lossy(&show.stderr));
    eventually("the failed delivery is over", async || (deployment.count(JOBS).await.0 == 0).then_some(())).await;
    assert_eq!(deployment.inferq(&["dead", "replay", &id]).status.code(), Some(0));
    assert_eq!((deployment.count(JOBS).await.0, deployment.count(&format!("OBJ_{DEAD_BUCKET}")).await.0), (1, 0));
}
