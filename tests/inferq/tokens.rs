//! Token streams: no reader ever sees a part twice, and another worker goes on where one has died.

use schemas::chunk::Chunk;
use schemas::stream::TOKENS;
use serde_json::json;

use crate::support::{Deployment, TENANT, content, echo_registry, eventually};

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
async fn chunks(deployment: &Deployment, id: &str) -> Vec<(u64, Chunk)> {
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
    assert_eq!(headers.get("Inferq-Attempt").unwrap().as_str(), "2");
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
