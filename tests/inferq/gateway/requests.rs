//! Requests that wait for their answer, and jobs that nobody waits for.

use schemas::stream::{JOBS, RESULTS};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::{Certificates, Deployment, Gateway, PATIENCE, chat, content, echo_registry, eventually};

#[tokio::test]
async fn every_endpoint_of_workers_answers_by_http() {
    let (deployment, _worker) = Deployment::with_worker(&echo_registry(0, "")).await;
    let gateway = Gateway::open(&deployment).await;
    let ask = async |path: &str, body: Value| {
        let answer = gateway.post(path, &body).header("x-request-id", "mine").send().await.unwrap();
        assert_eq!((answer.status().as_u16(), &answer.headers()["x-request-id"]), (200, &"mine".parse().unwrap()));
        assert!(answer.headers().contains_key("x-inferq-job-id"));
        answer.json::<Value>().await.unwrap()
    };
    let chat = ask("/v1/chat/completions", chat("hello")["body"].clone()).await;
    assert_eq!(chat["choices"][0]["message"]["content"], "hello");
    let completion = ask("/v1/completions", json!({ "model": "echo", "prompt": "hi" })).await;
    assert_eq!(completion["choices"][0]["text"], "hi");
    let embedding = ask("/v1/embeddings", json!({ "model": "echo", "input": ["a", "b"] })).await;
    assert_eq!(embedding["data"].as_array().unwrap().len(), 2);
    let ranking = ask("/v1/rerank", json!({ "model": "echo", "query": "q", "documents": ["a", "b"] })).await;
    assert_eq!(ranking["results"].as_array().unwrap().len(), 2);
    ask("/v1/classify", json!({ "model": "echo", "input": "a" })).await;
    let metrics = reqwest::get(format!("{}/metrics", gateway.admin)).await.unwrap().text().await.unwrap();
    assert!(
        metrics.contains("gen_ai_server_request_duration_seconds_count{gen_ai_operation_name=\"chat\"} 1"),
        "{metrics}"
    );
}

#[tokio::test]
async fn what_is_wrong_is_told_by_openais_error_objects() {
    let (deployment, _worker) = Deployment::with_worker(&echo_registry(0, "")).await;
    let gateway = Gateway::start(&deployment, &["--keys", "off", "--body-mebibytes", "1"]).await;
    let ask = async |path: &str, body: String| {
        let answer = gateway.request(reqwest::Method::POST, path).body(body).send().await.unwrap();
        let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
        assert!(headers.contains_key("x-request-id"));
        (status, answer.json::<Value>().await.unwrap()["error"].clone())
    };
    let chat = "/v1/chat/completions";
    let (status, error) = ask(chat, "{".to_owned()).await;
    assert_eq!(
        (status, &error["code"], &error["type"]),
        (400, &json!("invalid_json"), &json!("invalid_request_error"))
    );
    let (status, error) = ask(chat, json!({ "model": "nobody", "messages": [] }).to_string()).await;
    assert_eq!((status, &error["code"], &error["param"]), (404, &json!("model_not_found"), &json!("model")));
    let (status, error) = ask(chat, json!({ "model": "echo", "messages": [], "temperature": 9 }).to_string()).await;
    assert_eq!(status, 400);
    assert!(error["param"] == "messages" || error["param"] == "temperature", "{error}");
    let (status, error) = ask(chat, "x".repeat(2 << 20)).await;
    assert_eq!((status, &error["code"]), (413, &json!("request_too_large")));
    let (status, error) = ask("/v1/nothing", String::new()).await;
    assert_eq!((status, &error["code"]), (404, &json!("unknown_url")));
    assert_eq!(gateway.get(chat).send().await.unwrap().status(), 405);
    assert_eq!(gateway.get("/v1/models/nobody").send().await.unwrap().status(), 404);
    assert_eq!(gateway.get("/v1/jobs/nobody").send().await.unwrap().status(), 404);
    assert_eq!(gateway.get("/v1/jobs/no%20body").send().await.unwrap().status(), 400);
}

#[tokio::test]
async fn who_waits_too_long_is_told_the_job_and_finds_its_result() {
    let deployment = Deployment::new(&echo_registry(0, "")).await;
    let gateway = Gateway::start(&deployment, &["--keys", "off", "--timeout-seconds", "1"]).await;
    let answer = gateway.post("/v1/chat/completions", &chat("late")["body"]).send().await.unwrap();
    assert_eq!((answer.status().as_u16(), &answer.headers()["x-should-retry"]), (504, &"false".parse().unwrap()));
    let job_id = answer.headers()["x-inferq-job-id"].to_str().unwrap().to_owned();
    let job = gateway.get(&format!("/v1/jobs/{job_id}")).send().await.unwrap().json::<Value>().await.unwrap();
    assert_eq!((&job["status"], &job["position"]), (&json!("queued"), &json!(1)));
    let _worker = deployment.worker("echo").await;
    let result = eventually("the job is answered", async || {
        let job = gateway.get(&format!("/v1/jobs/{job_id}")).send().await.unwrap().json::<Value>().await.unwrap();
        (job["status"] == "completed").then(|| job["result"].clone())
    })
    .await;
    assert_eq!(content(&result), "late");
}

#[tokio::test]
async fn the_job_of_a_caller_that_left_is_cancelled() {
    let deployment = Deployment::new(&echo_registry(0, "")).await;
    let gateway = Gateway::open(&deployment).await;
    let request = gateway.post("/v1/chat/completions", &chat("never")["body"]);
    let waiting = tokio::spawn(request.send());
    eventually("the job is queued", async || (deployment.count(JOBS).await.0 == 1).then_some(())).await;
    waiting.abort();
    eventually("the job is gone", async || (deployment.count(JOBS).await.0 == 0).then_some(())).await;
    assert_eq!(deployment.count(RESULTS).await.0, 1);
}

#[tokio::test]
async fn one_idempotency_key_is_one_job() {
    let (deployment, _worker) = Deployment::with_worker(&echo_registry(0, "")).await;
    let gateway = Gateway::open(&deployment).await;
    let ask = async |text: &str| {
        let request = gateway.post("/v1/chat/completions", &chat(text)["body"]).header("idempotency-key", "k-1");
        let answer = request.send().await.unwrap();
        (answer.status().as_u16(), answer.headers()["x-inferq-job-id"].clone())
    };
    let (first, again) = tokio::join!(ask("once"), ask("once"));
    assert_eq!((first.0, &first), (200, &again));
    assert_eq!(ask("once").await, first);
    assert_eq!(deployment.count(RESULTS).await.0, 1);
    assert_eq!(ask("other").await, (422, first.1));
}

#[tokio::test]
async fn a_full_queue_says_when_to_come_again() {
    let registry = format!("{}\n[storage]\njobs_bytes = 4096\n", echo_registry(0, ""));
    let deployment = Deployment::new(&registry).await;
    let gateway = Gateway::open(&deployment).await;
    let job = chat(&"x".repeat(1000));
    let refused = eventually("the queue is full", async || {
        let answer = gateway.post("/v1/jobs", &job).send().await.unwrap();
        (answer.status() != 202).then_some(answer)
    })
    .await;
    assert_eq!(refused.status(), 503);
    assert!(refused.headers()["retry-after"].to_str().unwrap().parse::<u64>().unwrap() >= 1);
    assert_eq!(refused.json::<Value>().await.unwrap()["error"]["code"], "queue_full");
}

#[tokio::test]
async fn a_job_is_accepted_followed_and_cancelled() {
    let deployment = Deployment::new(&echo_registry(0, "")).await;
    let gateway = Gateway::open(&deployment).await;
    let create = async || {
        let answer = gateway.post("/v1/jobs", &chat("hello")).send().await.unwrap();
        assert_eq!(answer.status(), 202);
        let place = answer.headers()["location"].to_str().unwrap().to_owned();
        assert_eq!(place, format!("/v1/jobs/{}", answer.json::<Value>().await.unwrap()["id"].as_str().unwrap()));
        place
    };
    let (answered, cancelled) = (create().await, create().await);
    let delete = async |place: &str| gateway.request(reqwest::Method::DELETE, place).send().await.unwrap();
    let job = delete(&cancelled).await.json::<Value>().await.unwrap();
    assert_eq!((&job["status"], &job["result"]["error"]["code"]), (&json!("cancelled"), &json!("batch_cancelled")));
    let _worker = deployment.worker("echo").await;
    let log = gateway.get(&format!("{answered}/events")).send().await.unwrap().text().await.unwrap();
    let events: Vec<&str> = log.lines().filter_map(|line| line.strip_prefix("event: ")).collect();
    assert_eq!(events, ["queued", "started", "finished"], "{log}");
    assert_eq!(delete(&answered).await.status(), 409);
    assert_eq!(delete("/v1/jobs/nobody").await.status(), 404);
}

#[tokio::test]
async fn slow_clients_hold_up_nobody_and_are_given_up() {
    let registry = echo_registry(5, "in_flight = 64").replace("echo = {", "echo = { step_tokens = 1,");
    let (deployment, _worker) = Deployment::with_worker(&registry).await;
    let gateway = Gateway::open(&deployment).await;
    let address = gateway.url.strip_prefix("http://").unwrap();
    let body = json!({ "model": "echo", "stream": true, "messages": [{ "role": "user", "content": "x".repeat(500) }] });
    let (head, body) =
        ("POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n", body.to_string());
    let mut slow = Vec::new();
    for number in 0..300 {
        let mut connection = TcpStream::connect(address).await.unwrap();
        let sent = match number % 3 {
            // A head that does not end, a body that does not come, an answer that is not read.
            0 => head.to_owned(),
            1 => format!("{head}Content-Length: 1000\r\n\r\n"),
            _ => format!("{head}Content-Length: {}\r\n\r\n{body}", body.len()),
        };
        connection.write_all(sent.as_bytes()).await.unwrap();
        slow.push(connection);
    }
    for number in 0..20 {
        let answer = gateway.post("/v1/chat/completions", &chat(&number.to_string())["body"]).send().await.unwrap();
        assert_eq!(answer.status(), 200);
    }
    let mut rest = Vec::new();
    let closed = tokio::time::timeout(PATIENCE, slow[0].read_to_end(&mut rest)).await;
    assert!(closed.is_ok(), "a head that does not end is given up");
}

#[tokio::test]
async fn the_api_is_behind_tls_where_there_is_a_certificate() {
    let deployment = Deployment::new(&echo_registry(0, "")).await;
    let files = Certificates::new();
    let [certificate, key] = ["server.pem", "server.key"].map(|name| files.file(name).display().to_string());
    let gateway = Gateway::start(&deployment, &["--keys", "off", "--tls-cert", &certificate, "--tls-key", &key]).await;
    let url = gateway.url.replacen("http:", "https:", 1) + "/v1/models";
    let authority = reqwest::Certificate::from_pem(&std::fs::read(files.file("ca.pem")).unwrap()).unwrap();
    let client = reqwest::Client::builder().tls_certs_only([authority]).build().unwrap();
    assert_eq!(client.get(&url).send().await.unwrap().json::<Value>().await.unwrap()["data"][0]["id"], "echo");
    assert!(reqwest::get(&url).await.is_err(), "an authority that nobody knows is believed");
    assert!(gateway.get("/v1/models").send().await.is_err(), "it answers without TLS, too");
}

#[tokio::test]
async fn web_pages_may_ask_only_where_they_are_named() {
    let deployment = Deployment::new(&echo_registry(0, "")).await;
    let flags = ["--keys", "off", "--cors-origin", "https://a.example"];
    let (closed, open) = (Gateway::open(&deployment).await, Gateway::start(&deployment, &flags).await);
    let allowed = async |gateway: &Gateway, origin: &str| {
        let answer = gateway.get("/v1/models").header("origin", origin).send().await.unwrap();
        answer.headers().get("access-control-allow-origin").is_some_and(|allowed| allowed == origin)
    };
    assert!(allowed(&open, "https://a.example").await);
    assert!(!allowed(&open, "https://b.example").await);
    assert!(!allowed(&closed, "https://a.example").await);
}
