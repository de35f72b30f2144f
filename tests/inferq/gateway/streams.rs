//! Streams: no token twice and none left out, whoever dies meanwhile.

use futures::StreamExt;
use schemas::stream::JOBS;
use serde_json::{Value, json};

use crate::support::{Deployment, Gateway, echo_registry, eventually};

fn registry(step_milliseconds: u64) -> String {
    let limits = "in_flight = 64\nbatch = 64\nack_wait_seconds = 1";
    echo_registry(step_milliseconds, limits).replace("echo = {", "echo = { step_tokens = 1,")
}

fn body(text: &str) -> Value {
    let messages = json!([{ "role": "user", "content": text }]);
    let options = json!({ "include_usage": true });
    json!({ "model": "echo", "stream": true, "stream_options": options, "temperature": 0, "messages": messages })
}

/// One event: its id and its data.
#[derive(Clone, Debug, PartialEq)]
struct Event {
    id: Option<String>,
    data: String,
}

/// Reads events until `enough`, or to the end.
async fn events(answer: reqwest::Response, enough: impl Fn(&[Event]) -> bool) -> Vec<Event> {
    assert_eq!(answer.status(), 200);
    let (mut bytes, mut text, mut read) = (answer.bytes_stream(), Vec::new(), Vec::new());
    while let Some(Ok(part)) = bytes.next().await {
        text.extend_from_slice(&part);
        while let Some(end) = text.windows(2).position(|pair| pair == b"\n\n") {
            let event = String::from_utf8(text.drain(..end + 2).collect()).unwrap();
            let field = |name: &str| event.lines().find_map(|line| line.strip_prefix(name)).map(str::to_owned);
            if let Some(data) = field("data: ") {
                read.push(Event { id: field("id: "), data });
            }
        }
        if enough(&read) {
            break;
        }
    }
    read
}

/// What the chunks of events say together.
fn text(events: &[Event]) -> String {
    let chunks = events.iter().filter_map(|event| serde_json::from_str::<Value>(&event.data).ok());
    chunks.map(|chunk| chunk["choices"][0]["delta"]["content"].as_str().unwrap_or_default().to_owned()).collect()
}

#[tokio::test]
async fn a_stream_has_all_tokens_then_the_usage_and_an_end() {
    let (deployment, _worker) = Deployment::with_worker(&registry(5)).await;
    let gateway = Gateway::open(&deployment).await;
    let said = "Grüße, 世界 🌍: one token is one byte here";
    let answer = gateway.post("/v1/chat/completions", &body(said)).send().await.unwrap();
    assert_eq!(answer.headers()["content-type"], "text/event-stream");
    let events = events(answer, |_| false).await;
    assert_eq!(text(&events), said);
    let (done, rest) = events.split_last().unwrap();
    assert_eq!(done.data, "[DONE]");
    let usage: Value = serde_json::from_str(&rest.last().unwrap().data).unwrap();
    assert_eq!((&usage["choices"], &usage["usage"]["completion_tokens"]), (&json!([]), &json!(said.len())));
    let last: Value = serde_json::from_str(&rest[rest.len() - 2].data).unwrap();
    assert_eq!((&last["choices"][0]["finish_reason"], &last["usage"]), (&json!("stop"), &Value::Null));
}

#[tokio::test]
async fn a_stream_that_cannot_begin_has_a_status() {
    let (deployment, _worker) = Deployment::with_worker(&registry(5)).await;
    let gateway = Gateway::open(&deployment).await;
    let mut wrong = body("x");
    wrong["max_tokens"] = json!(-1);
    let answer = gateway.post("/v1/chat/completions", &wrong).send().await.unwrap();
    assert_eq!(answer.status(), 400);
    assert_eq!(answer.json::<Value>().await.unwrap()["error"]["param"], "max_tokens");
}

#[tokio::test]
async fn a_reader_that_was_cut_off_goes_on_at_another_gateway() {
    let (deployment, _worker) = Deployment::with_worker(&registry(10)).await;
    let (one, other) = (Gateway::open(&deployment).await, Gateway::open(&deployment).await);
    let said: String = ('a'..='z').cycle().take(300).collect();
    let answer = one.post("/v1/chat/completions", &body(&said)).send().await.unwrap();
    let before = events(answer, |events| events.len() >= 4).await;
    let id = before.last().unwrap().id.clone().unwrap();
    let resume = async |id: &str| {
        let request = other.request(reqwest::Method::POST, "/v1/chat/completions");
        request.header("last-event-id", id).send().await.unwrap()
    };
    let after = events(resume(&id).await, |_| false).await;
    assert_eq!(text(&before) + &text(&after), said);
    assert_eq!(after.last().unwrap().data, "[DONE]");
    // After the last chunk, what follows it is told again.
    let last = after.iter().rev().find_map(|event| event.id.clone()).unwrap();
    let end = events(resume(&last).await, |_| false).await;
    assert_eq!((text(&end), end.len()), (String::new(), 2));
    assert_eq!(other.get("/v1/jobs/x/tokens").header("last-event-id", "x").send().await.unwrap().status(), 400);
    let all = other.get(&format!("/v1/jobs/{}/tokens", id.split('/').next().unwrap())).send().await.unwrap();
    assert_eq!(text(&events(all, |_| false).await), said);
}

#[tokio::test]
async fn a_stream_whose_reader_stays_away_is_cancelled() {
    let (deployment, _worker) = Deployment::with_worker(&registry(50)).await;
    let gateway = Gateway::start(&deployment, &["--keys", "off", "--resume-seconds", "1"]).await;
    let answer = gateway.post("/v1/chat/completions", &body(&"x".repeat(4000))).send().await.unwrap();
    let read = events(answer, |events| !events.is_empty()).await;
    let job_id = read[0].id.clone().unwrap().split('/').next().unwrap().to_owned();
    eventually("the job is cancelled", async || {
        let job = gateway.get(&format!("/v1/jobs/{job_id}")).send().await.unwrap().json::<Value>().await.unwrap();
        (job["status"] == "cancelled").then_some(())
    })
    .await;
    let events = events(gateway.get(&format!("/v1/jobs/{job_id}/tokens")).send().await.unwrap(), |_| false).await;
    let error: Value = serde_json::from_str(&events.last().unwrap().data).unwrap();
    assert_eq!(error["error"]["code"], "job_cancelled");
}

#[tokio::test]
async fn fifty_streams_go_on_when_their_worker_is_killed() {
    let (deployment, worker) = Deployment::with_worker(&registry(10)).await;
    let gateway = Gateway::open(&deployment).await;
    let said = |number: usize| format!("{number} says {}", "abcdefghij ".repeat(20));
    let answers = futures::future::join_all(
        (0..50).map(|number| gateway.post("/v1/chat/completions", &body(&said(number))).send()),
    )
    .await;
    worker.signal("-KILL");
    let second = deployment.worker("echo");
    let (_second, read) = tokio::join!(
        second,
        futures::future::join_all(answers.into_iter().map(|answer| events(answer.unwrap(), |_| false)))
    );
    for (number, events) in read.iter().enumerate() {
        assert_eq!(text(events), said(number));
        assert_eq!(events.last().unwrap().data, "[DONE]");
    }
    assert_eq!(deployment.count(JOBS).await.0, 0);
}

#[tokio::test]
async fn a_gateway_that_stops_lets_its_streams_end() {
    let (deployment, _worker) = Deployment::with_worker(&registry(10)).await;
    let mut gateway = Gateway::open(&deployment).await;
    let said = "abcdefghij ".repeat(15);
    let answer = gateway.post("/v1/chat/completions", &body(&said)).send().await.unwrap();
    gateway.signal("-TERM");
    let read = events(answer, |_| false).await;
    assert_eq!((text(&read), read.last().unwrap().data.as_str()), (said, "[DONE]"));
    assert_eq!(gateway.exit_code().await, Some(0));
}
