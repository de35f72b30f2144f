//! The happy path: every endpoint, both encodings, the log, the admin port.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use schemas::codec::Encoding;
use schemas::log::LogEvent;
use serde_json::{Value, json};

use futures::StreamExt;

use crate::support::{Deployment, chat, content, echo_registry, provenance, submission, tenant};

#[tokio::test]
async fn every_endpoint_answers_in_the_encoding_of_its_job() {
    let (deployment, _worker) = Deployment::with_worker(&echo_registry(0, "")).await;
    let embeddings = json!({ "url": "/v1/embeddings", "body": { "model": "echo", "input": ["a", "b"] } });
    let completions =
        json!({ "url": "/v1/completions", "body": { "model": "echo", "prompt": "abc", "max_tokens": 2 } });
    let documents = ["first", "second", "third"];
    let rerank = json!({ "url": "/v1/rerank", "body": { "model": "echo", "query": "q", "documents": documents, "top_n": 2, "return_documents": true } });
    let classify = json!({ "url": "/v1/classify", "body": { "model": "echo", "input": "a" } });
    for encoding in [Encoding::Json, Encoding::MessagePack] {
        for job in [&embeddings, &rerank, &classify, &chat("hi"), &completions] {
            let id = deployment.submit(job, encoding).await;
            let (headers, result) = deployment.result(id.as_str()).await;
            assert_eq!(headers.get("Content-Type").unwrap().as_str(), encoding.content_type());
            assert_eq!(headers.get("Inferq-Status").unwrap().as_str(), "200");
            assert_eq!(provenance(&headers).attempt, 1);
            assert_eq!(result["custom_id"], id.as_str(), "the job id stands in for a missing custom_id");
            assert_eq!(result["response"]["status_code"], 200, "{result}");
            check_body(job["url"].as_str().unwrap(), &result["response"]["body"]);
        }
    }
}

fn check_body(url: &str, body: &Value) {
    match url {
        "/v1/embeddings" => {
            assert_eq!(body["object"], "list");
            assert_eq!(body["data"][1]["index"], 1);
            assert_eq!(body["data"][1]["embedding"].as_array().unwrap().len(), 8);
            assert_eq!(body["usage"], json!({ "prompt_tokens": 2, "total_tokens": 2 }));
        }
        "/v1/rerank" => {
            let results = body["results"].as_array().unwrap();
            assert_eq!(results.len(), 2, "{body}");
            assert!(results[0]["relevance_score"].as_f64() >= results[1]["relevance_score"].as_f64());
            let index = results[0]["index"].as_u64().unwrap() as usize;
            assert_eq!(results[0]["document"]["text"], ["first", "second", "third"][index]);
            assert_eq!(body["usage"], json!({ "prompt_tokens": 19, "total_tokens": 19 }));
        }
        "/v1/classify" => {
            let probs = body["data"][0]["probs"].as_array().unwrap();
            let best = usize::from(probs[1].as_f64() > probs[0].as_f64());
            assert_eq!(body["data"][0]["label"], best.to_string());
            assert_eq!(body["data"][0]["num_classes"], 2);
            assert_eq!(body["usage"], json!({ "prompt_tokens": 1, "total_tokens": 1 }));
        }
        "/v1/chat/completions" => {
            assert_eq!(body["object"], "chat.completion");
            assert_eq!(body["choices"][0]["message"], json!({ "role": "assistant", "content": "hi", "refusal": null }));
            assert_eq!(body["choices"][0]["finish_reason"], "stop");
            assert_eq!(body["usage"], json!({ "prompt_tokens": 2, "completion_tokens": 2, "total_tokens": 4 }));
        }
        _ => {
            assert_eq!(body["object"], "text_completion");
            assert_eq!(body["choices"][0]["text"], "ab");
            assert_eq!(body["choices"][0]["finish_reason"], "length");
        }
    }
}

#[tokio::test]
async fn embeddings_take_text_and_tokens_and_answer_as_floats_or_base64() {
    let (deployment, _worker) = Deployment::with_worker(&echo_registry(0, "")).await;
    let mut vectors = Vec::new();
    for (input, format) in [(json!("ab"), "float"), (json!([97, 98]), "float"), (json!([[97, 98]]), "base64")] {
        let job =
            json!({ "url": "/v1/embeddings", "body": { "model": "echo", "input": input, "encoding_format": format } });
        let id = deployment.submit(&job, Encoding::Json).await;
        let (_, result) = deployment.result(id.as_str()).await;
        vectors.push(floats(&result["response"]["body"]["data"][0]["embedding"]));
    }
    assert_eq!(vectors[0].len(), 8);
    assert_eq!(vectors[0], vectors[1]);
    assert_eq!(vectors[0], vectors[2]);
}

fn floats(embedding: &Value) -> Vec<f32> {
    match embedding {
        Value::String(text) => {
            let bytes = STANDARD.decode(text).unwrap();
            bytes.chunks_exact(4).map(|chunk| f32::from_le_bytes(chunk.try_into().unwrap())).collect()
        }
        list => serde_json::from_value(list.clone()).unwrap(),
    }
}

#[tokio::test]
async fn the_log_of_a_job_tells_its_life_in_order() {
    let (deployment, _worker) = Deployment::with_worker(&echo_registry(0, "")).await;
    let id = deployment.submit(&chat("hi"), Encoding::Json).await;
    let messages = deployment.client.logs(&tenant(), &id, true).await.unwrap();
    let records = std::pin::pin!(messages).next().await.unwrap().unwrap();
    let [queued, started, finished] = records.as_slice() else { panic!("{records:?}") };
    assert!(matches!(&queued.event, LogEvent::Queued { lane } if lane == "default"));
    assert!(matches!(started.event, LogEvent::Started { queue_seconds } if queue_seconds < 60.0));
    let LogEvent::Finished { status_code: 200, usage: Some(usage), .. } = finished.event else {
        panic!("{finished:?}")
    };
    assert_eq!((usage.prompt_tokens, usage.completion_tokens), (2, Some(2)));
    assert!(queued.time <= started.time && started.time <= finished.time);
    assert!(records.iter().all(|record| record.attempt == 1 && record.job_id == id.as_str() && record.model == "echo"));
}

#[tokio::test]
async fn a_long_job_has_a_log_before_it_ends() {
    let (deployment, _worker) = Deployment::with_worker(&echo_registry(3_000, "")).await;
    let id = deployment.submit(&chat("hi"), Encoding::Json).await;
    let mut messages = Box::pin(deployment.client.logs(&tenant(), &id, true).await.unwrap());
    let first = messages.next().await.unwrap().unwrap();
    assert!(matches!(first.last().unwrap().event, LogEvent::Started { .. }), "{first:?}");
    assert!(deployment.client.result(&tenant(), &id).await.unwrap().is_none());
    let second = messages.next().await.unwrap().unwrap();
    assert!(matches!(second.last().unwrap().event, LogEvent::Finished { .. }), "{second:?}");
}

#[tokio::test]
async fn a_result_is_copied_to_an_allowed_reply_subject_and_to_no_other() {
    let (deployment, _worker) = Deployment::with_worker(&echo_registry(0, "")).await;
    let client = &deployment.client.connection.client;
    let inbox = client.new_inbox();
    let mut allowed = client.subscribe(inbox.clone()).await.unwrap();
    let mut forbidden = client.subscribe("elsewhere.>").await.unwrap();
    let payload = chat("hi").to_string();
    let refused = deployment.publish_raw(payload.as_bytes(), &[("Inferq-Reply-To", "elsewhere.x")]).await;
    deployment.result(&refused).await;
    let id = deployment.publish_raw(payload.as_bytes(), &[("Inferq-Reply-To", &inbox)]).await;
    let copy = allowed.next().await.unwrap();
    let copied: Value = serde_json::from_slice(&copy.payload).unwrap();
    assert_eq!(copied, deployment.result(&id).await.1);
    // Both results were handled by the same worker in turn, so a wrong copy would be here by now.
    client.flush().await.unwrap();
    assert!(futures::FutureExt::now_or_never(forbidden.next()).is_none());
}

#[tokio::test]
async fn a_second_job_with_the_same_id_is_a_duplicate() {
    let deployment = Deployment::new(&echo_registry(0, "")).await;
    let submission = submission(&chat("hi"), Encoding::Json);
    assert_eq!(deployment.client.submit(&submission).await.unwrap(), producer::Submitted::Queued);
    assert_eq!(deployment.client.submit(&submission).await.unwrap(), producer::Submitted::Duplicate);
    assert_eq!(deployment.count(schemas::stream::JOBS).await.0, 1);
    let _worker = deployment.worker("echo").await;
    assert_eq!(content(&deployment.result(submission.address.job_id.as_str()).await.1), "hi");
}

#[tokio::test]
async fn the_admin_port_tells_health_and_metrics() {
    let deployment = Deployment::new(&echo_registry(0, "")).await;
    let address = format!("127.0.0.1:{}", free_port());
    let _worker = deployment.worker_with("echo", &["--admin", &address]).await;
    let get = async |path: &str| {
        let response = reqwest::get(format!("http://{address}{path}")).await.unwrap();
        (response.status().as_u16(), response.text().await.unwrap())
    };
    assert_eq!(get("/livez").await.0, 200);
    assert_eq!(get("/readyz").await.0, 200);
    let id = deployment.submit(&chat("hi"), Encoding::Json).await;
    deployment.result(id.as_str()).await;
    let wanted = "inferq_deliveries_total{outcome=\"completed\",model=\"echo\"} 1";
    crate::support::eventually("the delivery is counted", async || {
        get("/metrics").await.1.contains(wanted).then_some(())
    })
    .await;
    let metrics = get("/metrics").await.1;
    assert!(metrics.contains("inferq_tokens_total{kind=\"completion\",model=\"echo\"} 2"), "{metrics}");
    assert!(metrics.contains("inferq_nats_connected{model=\"echo\"} 1"), "{metrics}");
}

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}
