//! Bad input gets an answer that names field and value, and the worker lives on.

use producer::SubmitError;
use schemas::codec::Encoding;
use serde_json::{Value, json};

use crate::support::{Deployment, chat, content, echo_registry, eventually, submission};

/// A payload with what its error must say.
struct Case {
    payload: Vec<u8>,
    status: u16,
    code: &'static str,
    param: Option<&'static str>,
    /// Part of the message.
    says: &'static str,
}

fn case(
    payload: impl AsRef<[u8]>,
    status: u16,
    code: &'static str,
    param: Option<&'static str>,
    says: &'static str,
) -> Case {
    Case { payload: payload.as_ref().to_vec(), status, code, param, says }
}

fn embed(body: Value) -> String {
    json!({ "custom_id": "mine", "url": "/v1/embeddings", "body": body }).to_string()
}

fn rerank(mut body: Value) -> String {
    body["model"] = json!("echo");
    json!({ "custom_id": "mine", "url": "/v1/rerank", "body": body }).to_string()
}

fn chat_with(field: &str, value: Value) -> String {
    let mut job = chat("hi");
    job["body"][field] = value;
    job.to_string()
}

fn tools(function: Value) -> Value {
    json!([{ "type": "function", "function": function }])
}

fn chat_of(message: Value) -> String {
    json!({ "url": "/v1/chat/completions", "body": { "model": "echo", "messages": [message] } }).to_string()
}

fn cases() -> Vec<Case> {
    let model = "echo";
    let value = "invalid_value";
    vec![
        case("{\"url\":", 400, "invalid_body", None, "EOF"),
        case("", 400, "invalid_body", None, "EOF"),
        case(b"{\"url\":\"\xff\",\"body\":{}}", 400, "invalid_body", None, "url: invalid unicode"),
        case("[1]", 400, value, Some("[0]"), "1"),
        case("{\"body\":{}}", 400, value, None, "url"),
        case("{\"url\":7,\"body\":{}}", 400, value, Some("url"), "7"),
        case("{\"method\":\"GET\",\"url\":\"/v1/embeddings\",\"body\":{}}", 400, value, Some("method"), "GET"),
        case("{\"url\":\"/v1/nope\",\"body\":{}}", 404, "unknown_url", Some("url"), "\"/v1/nope\""),
        case(embed(json!({ "input": "x" })), 400, value, Some("body.model"), "missing"),
        case(embed(json!({ "model": "other", "input": "x" })), 404, "model_not_found", Some("body.model"), "\"other\""),
        case(embed(json!({ "model": model })), 400, value, Some("body"), "input"),
        case(embed(json!({ "model": model, "input": "" })), 400, "empty_input", Some("body.input"), "empty"),
        case(embed(json!({ "model": model, "input": [] })), 400, value, Some("body.input"), "empty array"),
        case(embed(json!({ "model": model, "input": ["a", ""] })), 400, "empty_input", Some("body.input[1]"), "empty"),
        case(
            embed(json!({ "model": model, "input": ["a", 7] })),
            400,
            value,
            Some("body.input[1]"),
            "7 is not a string",
        ),
        case(rerank(json!({ "query": "", "documents": ["a"] })), 400, "empty_input", Some("body.query"), "is empty"),
        case(rerank(json!({ "query": "q", "documents": [] })), 400, value, Some("body.documents"), "empty array"),
        case(
            rerank(json!({ "query": "q", "documents": ["a", ""] })),
            400,
            "empty_input",
            Some("body.documents[1]"),
            "is empty",
        ),
        case(
            rerank(json!({ "query": "q", "documents": ["a", { "title": "b" }] })),
            400,
            value,
            Some("body.documents[1]"),
            "has no string `text`",
        ),
        case(
            rerank(json!({ "query": "q", "documents": ["a", "x".repeat(30)] })),
            400,
            "context_length_exceeded",
            Some("body.documents[1]"),
            "31 tokens",
        ),
        case(
            rerank(json!({ "query": "q".repeat(30), "documents": ["a"], "truncate_prompt_tokens": -1 })),
            400,
            "context_length_exceeded",
            Some("body.query"),
            "at most 30",
        ),
        case(
            rerank(json!({ "query": "q", "documents": ["a", "b", "c", "d", "e"] })),
            400,
            value,
            Some("body.documents"),
            "5 inputs",
        ),
        case(rerank(json!({ "query": "q", "documents": ["a"], "top_n": 0 })), 400, value, Some("body.top_n"), "0"),
        case(
            embed(json!({ "model": model, "input": "a", "prompt_name": "query" })),
            400,
            value,
            Some("body.prompt_name"),
            "this model has no prompts",
        ),
        case(embed(json!({ "model": model, "input": [1, 999] })), 400, value, Some("body.input[1]"), "999"),
        case(
            embed(json!({ "model": model, "input": ["a", "b", "c", "d", "e"] })),
            400,
            value,
            Some("body.input"),
            "5 inputs",
        ),
        case(
            embed(json!({ "model": model, "input": "a", "encoding_format": "hex" })),
            400,
            value,
            Some("body.encoding_format"),
            "hex",
        ),
        case(embed(json!({ "model": model, "input": "a", "dimensions": 4 })), 400, value, Some("body.dimensions"), "4"),
        case(
            embed(json!({ "model": model, "input": "x".repeat(31) })),
            400,
            "context_length_exceeded",
            Some("body.input"),
            "31 tokens",
        ),
        case(
            json!({ "url": "/v1/chat/completions", "body": { "model": model, "messages": [] } }).to_string(),
            400,
            "empty_input",
            Some("body.messages"),
            "empty",
        ),
        case(
            chat("a prompt of forty characters, or nearly so").to_string(),
            400,
            "context_length_exceeded",
            Some("body.messages"),
            "42 tokens",
        ),
        case(
            chat_with("messages", json!([{ "role": "robot", "content": "x" }])),
            400,
            value,
            Some("body.messages[0].role"),
            "robot",
        ),
        case(
            chat_with("messages", json!([{ "role": "user" }])),
            400,
            value,
            Some("body.messages[0].content"),
            "missing",
        ),
        case(
            chat_with("messages", json!([{ "role": "user", "content": [{ "type": "image_url" }] }])),
            400,
            value,
            Some("body.messages[0].content[0]"),
            "image_url",
        ),
        case(chat_with("temperature", json!(3)), 400, value, Some("body.temperature"), "3"),
        case(chat_with("temperature", json!("hot")), 400, value, Some("body.temperature"), "hot"),
        case(chat_with("top_p", json!(0)), 400, value, Some("body.top_p"), "0"),
        case(chat_with("max_tokens", json!(0)), 400, value, Some("body.max_tokens"), "0"),
        case(chat_with("max_completion_tokens", json!(99)), 400, value, Some("body.max_completion_tokens"), "99"),
        case(chat_with("n", json!(0)), 400, value, Some("body.n"), "0"),
        case(chat_with("n", json!(129)), 400, value, Some("body.n"), "129"),
        case(chat_with("n", json!(5)), 400, value, Some("body.n"), "5 answers to 1 prompts"),
        case(chat_with("min_p", json!(1.5)), 400, value, Some("body.min_p"), "1.5"),
        case(chat_with("top_k", json!(-2)), 400, value, Some("body.top_k"), "-2"),
        case(chat_with("presence_penalty", json!(-3)), 400, value, Some("body.presence_penalty"), "-3"),
        case(chat_with("logit_bias", json!({"999": 1})), 400, value, Some("body.logit_bias.999"), "999"),
        case(chat_with("logit_bias", json!({"1": 101})), 400, value, Some("body.logit_bias.1"), "101"),
        case(chat_with("logit_bias", json!({"1": "x"})), 400, value, Some("body.logit_bias.1"), "x"),
        case(chat_with("top_logprobs", json!(2)), 400, value, Some("body.top_logprobs"), "logprobs"),
        case(chat_with("logprobs", json!(2)), 400, value, Some("body.logprobs"), "2"),
        case(
            chat_with("repetition_penalty", json!(1.1)),
            400,
            "unsupported_value",
            Some("body.repetition_penalty"),
            "1.1",
        ),
        case(chat_with("tools", json!([{}])), 400, value, Some("body.tools[0]"), "type"),
        case(
            chat_with("tools", json!([{ "type": "custom" }])),
            400,
            "unsupported_value",
            Some("body.tools[0].type"),
            "\"custom\"",
        ),
        case(
            chat_with("tools", tools(json!({ "name": "a b" }))),
            400,
            value,
            Some("body.tools[0].function.name"),
            "a b",
        ),
        case(
            chat_with("tools", tools(json!({ "name": "a", "parameters": { "type": "array" } }))),
            400,
            value,
            Some("body.tools[0].function.parameters"),
            "object",
        ),
        case(chat_with("tool_choice", json!("required")), 400, value, Some("body.tool_choice"), "no tools"),
        case(chat_with("tool_choice", json!("any")), 400, value, Some("body.tool_choice"), "\"required\""),
        case(
            chat_of(json!({ "role": "tool", "content": "x" })),
            400,
            value,
            Some("body.messages[0].tool_call_id"),
            "missing",
        ),
        case(
            chat_of(json!({ "role": "assistant", "tool_calls": [
                { "id": "c", "type": "function", "function": { "name": "a", "arguments": "{" } },
            ] })),
            400,
            value,
            Some("body.messages[0].tool_calls[0].function.arguments"),
            "not JSON",
        ),
        case(chat_with("stop", json!(["a", "b", "c", "d", "e"])), 400, value, Some("body.stop"), "5 stop strings"),
    ]
}

const LIMITS: &str = "prompt_tokens = 30\ninputs = 4\ncompletion_tokens = 20";

#[tokio::test]
async fn every_mistake_is_answered_with_field_and_value() {
    let (deployment, _worker) = Deployment::with_worker(&echo_registry(0, LIMITS)).await;
    for Case { payload, status, code, param, says } in cases() {
        let shown = String::from_utf8_lossy(&payload).into_owned();
        let id = deployment.publish_raw(&payload, &[]).await;
        let (headers, result) = deployment.result(&id).await;
        let error = &result["response"]["body"]["error"];
        assert_eq!(result["response"]["status_code"], status, "{shown}: {result}");
        assert_eq!(headers.get("Inferq-Status").unwrap().as_str(), status.to_string());
        assert_eq!(error["type"], "invalid_request_error", "{shown}: {result}");
        assert_eq!(error["code"], code, "{shown}: {result}");
        assert_eq!(error["param"].as_str(), param, "{shown}: {result}");
        assert!(error["message"].as_str().unwrap().contains(says), "{shown}: {result}");
        let custom_id = if shown.contains("\"mine\"") { "mine" } else { &id };
        assert_eq!(result["custom_id"], custom_id, "{shown}");
    }
    let id = deployment.submit(&chat("still alive"), Encoding::Json).await;
    assert_eq!(content(&deployment.result(id.as_str()).await.1), "still alive");
    eventually("all are acknowledged", async || (deployment.in_flight().await == 0).then_some(())).await;
}

#[tokio::test]
async fn bad_headers_and_ids_are_answered_too() {
    let (deployment, _worker) = Deployment::with_worker(&echo_registry(0, "")).await;
    let payload = chat("hi").to_string();
    let cases = [
        (("Content-Type", "text/plain"), 415, "unsupported_content_type", "Content-Type", "text/plain"),
        (("Inferq-Deadline", "tomorrow"), 400, "invalid_value", "Inferq-Deadline", "\"tomorrow\""),
    ];
    for (header, status, code, param, says) in cases {
        let id = deployment.publish_raw(payload.as_bytes(), &[header]).await;
        let (_, result) = deployment.result(&id).await;
        let error = &result["response"]["body"]["error"];
        assert_eq!(
            (&result["response"]["status_code"], &error["code"], &error["param"]),
            (&json!(status), &json!(code), &json!(param))
        );
        assert!(error["message"].as_str().unwrap().contains(says), "{result}");
    }
    let long = "x".repeat(129);
    for (id, says) in [("a/b", "'/'"), ("ünder", "'ü'"), (long.as_str(), "129 bytes")] {
        deployment.publish_as(id, payload.as_bytes(), &[]).await;
        let (_, result) = deployment.result(id).await;
        let error = &result["response"]["body"]["error"];
        assert_eq!((&error["code"], &error["param"]), (&json!("invalid_value"), &json!("job_id")), "{result}");
        assert!(error["message"].as_str().unwrap().contains(says), "{result}");
    }
}

#[tokio::test]
async fn msgpack_mistakes_are_answered_in_msgpack() {
    let (deployment, _worker) = Deployment::with_worker(&echo_registry(0, "")).await;
    let unreadable: &[u8] = b"\x82\xa3url\xa1\xff\xa4body\x80";
    for payload in [unreadable, b"\xc1", &rmp_serde::to_vec_named(&json!({ "url": 7, "body": {} })).unwrap()] {
        let id = deployment.publish_raw(payload, &[("Content-Type", "application/msgpack")]).await;
        let (headers, result) = deployment.result(&id).await;
        assert_eq!(headers.get("Content-Type").unwrap().as_str(), "application/msgpack");
        assert_eq!(result["response"]["status_code"], 400, "{result}");
    }
}

#[tokio::test]
async fn a_job_past_its_deadline_is_not_run() {
    let (deployment, _worker) = Deployment::with_worker(&echo_registry(0, "")).await;
    let id =
        deployment.publish_raw(chat("hi").to_string().as_bytes(), &[("Inferq-Deadline", "2020-01-01T00:00:00Z")]).await;
    let (_, result) = deployment.result(&id).await;
    assert_eq!(result["response"], Value::Null);
    assert_eq!(result["error"]["code"], "batch_expired");
    assert!(result["error"]["message"].as_str().unwrap().contains("2020-01-01T00:00:00Z"));
}

#[tokio::test]
async fn an_unknown_model_is_refused_at_publish_with_the_known_ones() {
    let deployment = Deployment::new(&echo_registry(0, "")).await;
    let mut job = chat("hi");
    job["body"]["model"] = json!("gpt-9");
    let error = deployment.client.submit(&submission(&job, Encoding::Json)).await.unwrap_err();
    assert!(matches!(error, SubmitError::UnknownModel { .. }), "{error}");
    assert!(error.to_string().contains("\"gpt-9\"") && error.to_string().contains("echo (default)"), "{error}");
}
