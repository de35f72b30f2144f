//! What becomes of jobs that fail, kill, expire, or come again.

use std::time::{Duration, Instant};

use schemas::codec::Encoding;
use schemas::stream::{DEAD, JOBS};
use serde_json::{Value, json};

use crate::support::{Deployment, TENANT, chat, content, echo_registry, eventually, provenance};

/// An echo model whose prompts may ask for faults.
fn faulty(step_milliseconds: u64, limits: &str) -> String {
    let registry = echo_registry(step_milliseconds, limits);
    registry.replace("echo = {", "echo = { faults = true,")
}

fn header<'a>(headers: &'a async_nats::HeaderMap, name: &str) -> &'a str {
    headers.get(name).map_or("", |value| value.as_str())
}

async fn dead_letter(deployment: &Deployment, id: &str) -> async_nats::HeaderMap {
    let subject = format!("inferq.dead.echo.default.{TENANT}.{id}");
    deployment.stream(DEAD).await.direct_get_last_for_subject(subject).await.unwrap().headers
}

async fn is_empty(deployment: &Deployment) {
    eventually("the queue is empty", async || (deployment.count(JOBS).await.0 == 0).then_some(())).await;
}

#[tokio::test]
async fn a_bad_job_ends_with_the_dead_letters_and_its_neighbours_are_answered_at_once() {
    for fault in ["!panic!", "!error!"] {
        let deployment = Deployment::new(&faulty(20, "batch = 32\nattempts = 2")).await;
        let mut ids = Vec::new();
        for number in 0..32 {
            let text = if number == 13 { fault.to_owned() } else { number.to_string() };
            ids.push(deployment.submit(&chat(&text), Encoding::Json).await.to_string());
        }
        let _worker = deployment.worker("echo").await;
        for (number, id) in ids.iter().enumerate() {
            let (headers, result) = deployment.result(id).await;
            if number == 13 {
                assert_eq!(result["response"]["status_code"], 500, "{result}");
                assert_eq!(result["response"]["body"]["error"]["code"], "attempts_exhausted");
                assert_eq!(provenance(&headers).attempt, 2);
            } else {
                assert_eq!(content(&result), number.to_string());
                assert_eq!(provenance(&headers).attempt, 1, "a neighbour has lost an attempt");
            }
        }
        let dead = dead_letter(&deployment, &ids[13]).await;
        assert_eq!(header(&dead, "Inferq-Dead-Class"), "poison");
        assert!(header(&dead, "Inferq-Dead-Reason").contains("the prompt asked for"));
        let log: Value = serde_json::from_str(header(&dead, "Inferq-Dead-Log")).unwrap();
        let events: Vec<&str> =
            log.as_array().unwrap().iter().map(|record| record["event"].as_str().unwrap()).collect();
        assert_eq!(events, ["queued", "started", "retried", "started"], "{log}");
        assert_eq!(deployment.count(DEAD).await.0, 1);
        is_empty(&deployment).await;
    }
}

#[tokio::test]
async fn a_job_that_kills_every_worker_it_meets_is_given_up_and_nobody_else_is() {
    let deployment = Deployment::new(&faulty(50, "in_flight = 16\nbatch = 4\nack_wait_seconds = 1")).await;
    let mut ids = Vec::new();
    for number in 0..24 {
        let text = if number == 5 { "!abort!".to_owned() } else { number.to_string() };
        ids.push(deployment.submit(&chat(&text), Encoding::Json).await.to_string());
    }
    let mut worker = deployment.worker("echo").await;
    let mut deaths = 0;
    eventually("all are answered", async || {
        if worker.has_ended() {
            deaths += 1;
            worker = deployment.spawn_worker("echo", &[]);
        }
        (deployment.count(JOBS).await.0 == 0).then_some(())
    })
    .await;
    assert_eq!(deaths, 3, "one for each attempt");
    for (number, id) in ids.iter().enumerate() {
        let (_, result) = deployment.result(id).await;
        let status = if number == 5 { 500 } else { 200 };
        assert_eq!(result["response"]["status_code"], status, "{number}: {result}");
    }
    assert_eq!(header(&dead_letter(&deployment, &ids[5]).await, "Inferq-Dead-Class"), "poison");
    assert_eq!(deployment.count(DEAD).await.0, 1);
}

#[tokio::test]
async fn a_step_that_hangs_ends_the_worker_and_its_jobs_are_tried_elsewhere() {
    let registry = faulty(0, "in_flight = 4\nbatch = 1\nattempts = 2\nack_wait_seconds = 600\nstep_seconds = 1");
    let deployment = Deployment::new(&registry).await;
    let hanging = deployment.submit(&chat("!hang!"), Encoding::Json).await;
    let waiting = deployment.submit(&chat("waiting"), Encoding::Json).await;
    for _ in 0..2 {
        let mut worker = deployment.worker("echo").await;
        assert_eq!(worker.exit_code().await, Some(1));
    }
    let _worker = deployment.worker("echo").await;
    assert_eq!(content(&deployment.result(waiting.as_str()).await.1), "waiting");
    let (_, result) = deployment.result(hanging.as_str()).await;
    assert_eq!(result["response"]["status_code"], 500, "{result}");
}

#[tokio::test]
async fn a_job_may_ask_for_fewer_attempts_but_not_for_more_than_the_model_allows() {
    let (deployment, _worker) = Deployment::with_worker(&faulty(0, "attempts = 2")).await;
    let job = chat("!error!").to_string();
    for (asked, given) in [("1", 1), ("9", 2)] {
        let id = deployment.publish_raw(job.as_bytes(), &[("Inferq-Max-Attempts", asked)]).await;
        let (headers, _) = deployment.result(&id).await;
        assert_eq!(provenance(&headers).attempt, given);
    }
    let id = deployment.publish_raw(job.as_bytes(), &[("Inferq-Max-Attempts", "none")]).await;
    let (_, result) = deployment.result(&id).await;
    assert_eq!(result["response"]["body"]["error"]["param"], "Inferq-Max-Attempts", "{result}");
}

#[tokio::test]
async fn a_running_job_expires_at_its_deadline_and_makes_room() {
    let registry = echo_registry(100, "batch = 1").replace("echo = {", "echo = { step_tokens = 1,");
    let (deployment, _worker) = Deployment::with_worker(&registry).await;
    // A thousand steps of a tenth of a second each.
    let long = chat(&"x".repeat(1000)).to_string();
    let started = Instant::now();
    let id = deployment.publish_raw(long.as_bytes(), &[("Inferq-Timeout", "1.5")]).await;
    let (headers, result) = deployment.result(&id).await;
    assert_eq!(result["response"], Value::Null);
    assert_eq!(result["error"]["code"], "batch_expired");
    assert_eq!(header(&headers, "Inferq-Status"), "408");
    assert!(started.elapsed() >= Duration::from_millis(1500));
    let after = deployment.submit(&chat("y"), Encoding::Json).await;
    assert_eq!(content(&deployment.result(after.as_str()).await.1), "y");
    assert!(started.elapsed() < Duration::from_secs(50), "the expired job was still computed");
    assert_eq!(header(&dead_letter(&deployment, &id).await, "Inferq-Dead-Class"), "expired");
}

#[tokio::test]
async fn a_running_job_is_cancelled_within_a_step_and_makes_room() {
    let registry = echo_registry(100, "batch = 1").replace("echo = {", "echo = { step_tokens = 1,");
    let (deployment, _worker) = Deployment::with_worker(&registry).await;
    let id = deployment.submit(&chat(&"x".repeat(1000)), Encoding::Json).await;
    eventually("the job runs", async || (deployment.in_flight().await == 1).then_some(())).await;
    let started = Instant::now();
    let output = deployment.inferq(&["cancel", id.as_str()]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let (headers, result) = deployment.result(id.as_str()).await;
    assert_eq!(result["error"]["code"], "batch_cancelled");
    assert_eq!(header(&headers, "Inferq-Status"), "499");
    let after = deployment.submit(&chat("y"), Encoding::Json).await;
    assert_eq!(content(&deployment.result(after.as_str()).await.1), "y");
    assert!(started.elapsed() < Duration::from_secs(50), "the cancelled job was still computed");
    is_empty(&deployment).await;
}

#[tokio::test]
async fn the_same_id_again_gets_the_stored_answer() {
    use futures::StreamExt;
    let (deployment, _worker) = Deployment::with_worker(&echo_registry(0, "")).await;
    deployment.publish_as("again", chat("first").to_string().as_bytes(), &[]).await;
    assert_eq!(content(&deployment.result("again").await.1), "first");
    is_empty(&deployment).await;
    let mut live = deployment.client.connection.client.subscribe(format!("inferq.live.{TENANT}.again")).await.unwrap();
    // Without a message id, as after the window in which the stream remembers ids.
    deployment.publish_as("again", chat("second").to_string().as_bytes(), &[]).await;
    let told = tokio::time::timeout(crate::support::PATIENCE, live.next()).await.unwrap().unwrap();
    let result: Value = serde_json::from_slice(&told.payload).unwrap();
    assert_eq!(content(&result), "first");
    is_empty(&deployment).await;
    assert_eq!(content(&deployment.result("again").await.1), "first");
}

#[tokio::test]
async fn a_result_says_how_it_was_made() {
    let (deployment, _worker) = Deployment::with_worker(&echo_registry(0, "")).await;
    let id = deployment.submit(&chat("hi"), Encoding::Json).await;
    let (headers, _) = deployment.result(id.as_str()).await;
    let made = provenance(&headers);
    assert_eq!((made.attempt, made.quantization.as_str(), made.cache), (1, "f32", None));
    assert!(!made.worker.is_empty() && made.engine.starts_with("inferq/") && made.seed.is_some(), "{made:?}");
    let seconds = [Some(made.queue_seconds), made.prefill_seconds, made.decode_seconds];
    assert!(seconds.iter().all(|seconds| seconds.is_some_and(|seconds| (0.0..60.0).contains(&seconds))), "{made:?}");
    let greedy = json!({ "url": "/v1/completions", "body": { "model": "echo", "prompt": "x", "temperature": 0 } });
    let id = deployment.submit(&greedy, Encoding::Json).await;
    assert_eq!(provenance(&deployment.result(id.as_str()).await.0).seed, None, "greedy jobs draw nothing");
}

#[tokio::test]
async fn refused_jobs_are_kept_as_invalid() {
    let (deployment, _worker) = Deployment::with_worker(&echo_registry(0, "")).await;
    let id = deployment.publish_raw(b"{", &[]).await;
    deployment.result(&id).await;
    let dead = dead_letter(&deployment, &id).await;
    assert_eq!(header(&dead, "Inferq-Dead-Class"), "invalid");
    assert!(header(&dead, "Inferq-Dead-Reason").contains("cannot be read"));
}

#[tokio::test]
async fn a_job_that_fails_before_it_comes_to_the_engine_uses_up_its_attempts_too() {
    let (deployment, _worker) = Deployment::with_worker(&echo_registry(0, "")).await;
    let jetstream = &deployment.client.connection.jetstream;
    jetstream.delete_object_store(schemas::stream::INPUTS_BUCKET).await.unwrap();
    deployment.publish_as("large", b"", &[("Inferq-Body", "default/large")]).await;
    let (headers, result) = deployment.result("large").await;
    assert_eq!(result["response"]["status_code"], 500, "{result}");
    assert_eq!(provenance(&headers).attempt, 3);
    assert_eq!(header(&dead_letter(&deployment, "large").await, "Inferq-Dead-Class"), "exhausted");
}

#[tokio::test]
async fn what_a_job_asked_of_its_own_stream_is_not_asked_of_the_dead_letters() {
    let (deployment, _worker) = Deployment::with_worker(&echo_registry(0, "")).await;
    let id = deployment.publish_raw(b"{", &[("Nats-Expected-Stream", JOBS), ("Inferq-Cost", "7")]).await;
    deployment.result(&id).await;
    let dead = dead_letter(&deployment, &id).await;
    assert_eq!((header(&dead, "Nats-Expected-Stream"), header(&dead, "Inferq-Cost")), ("", "7"));
}
