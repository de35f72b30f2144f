//! Token streams: no reader ever sees a part twice, and another worker goes on where one has died.

use std::pin::pin;

use futures::{StreamExt, TryStreamExt};
use producer::cancel::Cancellation;
use schemas::chunk::Chunk;
use schemas::stream::TOKENS;
use schemas::subject::JobId;
use serde_json::json;

use crate::support::{Deployment, TENANT, content, echo_registry, eventually, provenance, tenant};

fn registry(step_milliseconds: u64) -> String {
    let registry = echo_registry(step_milliseconds, "in_flight = 4\nack_wait_seconds = 1");
    registry.replace("echo = {", "echo = { step_tokens = 1,")
}

fn streamed(text: &str) -> String {
    json!({
        "url": "/v1/chat/completions",
        "body": { "model": "echo", "stream": true, "temperature": 0, "messages": [{ "role": "user", "content": text }] },
    })
    .to_string()
}

/// All chunks of a job with their numbers.
pub async fn chunks(deployment: &Deployment, id: &str) -> Vec<(u64, Chunk)> {
    let stream = deployment.stream(TOKENS).await;
    let subject = format!("inferq.tokens.{TENANT}.{id}");
    let (mut chunks, mut after) = (Vec::new(), 0);
    while let Ok(message) = stream.direct_get_next_for_subject(subject.as_str(), Some(after + 1)).await {
        after = message.sequence;
        let number = message.headers.get("Inferq-Chunk").unwrap().as_str().parse().unwrap();
        chunks.push((number, serde_json::from_slice(&message.payload).unwrap()));
    }
    chunks
}

/// Checks that the chunks are whole and in order, and gives their text.
fn text(chunks: &[(u64, Chunk)]) -> String {
    assert!(chunks.iter().zip(0..).all(|((number, _), place)| *number == place), "numbers have gaps");
    let (last, others) = chunks.split_last().unwrap();
    assert_eq!(last.1.finish_reason(), Some("stop"));
    assert!(others.iter().all(|(_, chunk)| chunk.finish_reason().is_none()));
    chunks.iter().map(|(_, chunk)| chunk.text()).collect()
}

#[tokio::test]
async fn chunks_add_up_to_the_answer() {
    let (deployment, _worker) = Deployment::with_worker(&registry(10)).await;
    let said = "Grüße, 世界 🌍: one token is one byte here";
    let id = deployment.publish_raw(streamed(said).as_bytes(), &[]).await;
    assert_eq!(content(&deployment.result(&id).await.1), said);
    let chunks = chunks(&deployment, &id).await;
    assert!(chunks.len() > 3, "{} chunks", chunks.len());
    assert_eq!(text(&chunks), said);
    let Chunk::Chat(first) = &chunks[0].1 else { panic!("{chunks:?}") };
    assert_eq!(first.id, format!("chatcmpl-{id}"));
    assert!(first.choices[0].delta.role.is_some());
}

#[tokio::test]
async fn a_generation_goes_on_where_its_killed_worker_stood() {
    let (deployment, worker) = Deployment::with_worker(&registry(20)).await;
    let said: String = ('a'..='z').cycle().take(200).collect();
    let id = deployment.publish_raw(streamed(&said).as_bytes(), &[]).await;
    eventually("some chunks are there", async || (chunks(&deployment, &id).await.len() >= 5).then_some(())).await;
    worker.signal("-KILL");
    let before = chunks(&deployment, &id).await;
    let _second = deployment.worker("echo").await;
    let (headers, result) = deployment.result(&id).await;
    assert_eq!(content(&result), said);
    assert_eq!(provenance(&headers).attempt, 2);
    let after = chunks(&deployment, &id).await;
    assert_eq!(after[..before.len()], before[..], "published chunks have changed");
    assert_eq!(text(&after), said);
}

#[tokio::test]
async fn two_workers_on_one_job_publish_each_part_once() {
    let (deployment, first) = Deployment::with_worker(&registry(20)).await;
    let said: String = ('a'..='z').cycle().take(250).collect();
    let id = deployment.publish_raw(streamed(&said).as_bytes(), &[]).await;
    eventually("some chunks are there", async || (chunks(&deployment, &id).await.len() >= 5).then_some(())).await;
    // Silent for longer than ack_wait: the server gives the job to the second one, and then both run it.
    first.signal("-STOP");
    let _second = deployment.worker("echo").await;
    let published = chunks(&deployment, &id).await.len();
    eventually("the second goes on", async || (chunks(&deployment, &id).await.len() > published + 3).then_some(()))
        .await;
    first.signal("-CONT");
    assert_eq!(content(&deployment.result(&id).await.1), said);
    assert_eq!(text(&chunks(&deployment, &id).await), said);
}

/// What a client reads from a chunk on, to the end.
async fn read(deployment: &Deployment, id: &str, from: u64) -> Vec<(u64, Chunk)> {
    let id = JobId::new(id).unwrap();
    deployment.client.tokens(&tenant(), &id, from).await.unwrap().try_collect().await.unwrap()
}

#[tokio::test]
async fn a_client_reads_chunks_as_they_come_and_again_from_any_of_them() {
    let (deployment, worker) = Deployment::with_worker(&registry(20)).await;
    let said: String = ('a'..='z').cycle().take(150).collect();
    let id = deployment.publish_raw(streamed(&said).as_bytes(), &[]).await;
    let job_id = JobId::new(id.as_str()).unwrap();
    let mut coming = pin!(deployment.client.tokens(&tenant(), &job_id, 0).await.unwrap());
    let mut live = Vec::new();
    while live.len() < 5 {
        live.push(coming.next().await.unwrap().unwrap());
    }
    assert!(deployment.client.result(&tenant(), &job_id).await.unwrap().is_none(), "it is read while it is made");
    worker.signal("-KILL");
    let _second = deployment.worker("echo").await;
    while let Some(chunk) = coming.next().await {
        live.push(chunk.unwrap());
    }
    assert_eq!(text(&live), said);
    assert_eq!(read(&deployment, &id, 0).await, live);
    assert_eq!(read(&deployment, &id, 3).await, live[3..]);
    assert_eq!(read(&deployment, &id, 10_000).await, []);
}

#[tokio::test]
async fn a_stream_without_a_last_chunk_ends_with_the_result() {
    let (deployment, _worker) = Deployment::with_worker(&registry(50)).await;
    let id = deployment.publish_raw(streamed(&"x".repeat(2000)).as_bytes(), &[]).await;
    let job_id = JobId::new(id.as_str()).unwrap();
    let mut chunks = pin!(deployment.client.tokens(&tenant(), &job_id, 0).await.unwrap());
    chunks.next().await.unwrap().unwrap();
    assert_eq!(deployment.client.cancel(&tenant(), &job_id).await.unwrap(), Cancellation::Cancelled);
    while let Some(chunk) = chunks.next().await {
        assert_eq!(chunk.unwrap().1.finish_reason(), None);
    }
}

#[tokio::test]
async fn an_answer_is_printed_as_it_is_made_and_again() {
    let (deployment, _worker) = Deployment::with_worker(&registry(10)).await;
    let said = "Grüße, 世界 🌍: one token is one byte here";
    let submit = ["submit", "--model", "echo", "--set", "temperature=0", "--stream", "--message"];
    let streamed = deployment.inferq(&[&submit[..], &[said, "--id", "a"]].concat());
    let stdout = |output: &std::process::Output| String::from_utf8(output.stdout.clone()).unwrap();
    assert_eq!((streamed.status.code(), stdout(&streamed)), (Some(0), format!("{said}\n")));
    assert_eq!(stdout(&deployment.inferq(&["tokens", "a"])), format!("{said}\n"));
    let all = chunks(&deployment, "a").await;
    let rest = stdout(&deployment.inferq(&["tokens", "a", "--from", "2", "--output", "json"]));
    let rest: Vec<Chunk> = rest.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(rest.len() + 2 == all.len() && rest.iter().zip(&all[2..]).all(|(chunk, (_, other))| chunk == other));

    let failed = deployment.inferq(&[&submit[..], &["x", "--set", "max_tokens=-1"]].concat());
    assert_eq!((failed.status.code(), stdout(&failed)), (Some(1), String::new()));
    let errors = String::from_utf8_lossy(&failed.stderr).into_owned();
    assert!(errors.contains("failed with status 400: body.max_tokens"), "{errors}");
    let unknown = deployment.inferq(&["tokens", "nope"]);
    assert_eq!(unknown.status.code(), Some(1));
}
