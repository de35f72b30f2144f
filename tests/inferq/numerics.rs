//! Real models through the whole system, against reference implementations. `tests/golden` has the reference answers and
//! the scripts that made them.

use std::collections::HashMap;

use connect::Connection;
use schemas::codec::Encoding;
use serde_json::{Value, json};

use crate::support::{Deployment, content, eventually, program, provenance, root, run};
use crate::tokens::chunks;

const EMBEDDER: &str = "all-MiniLM-L6-v2";
const GENERATOR: &str = "SmolLM2-135M-Instruct";

fn golden(name: &str) -> Value {
    let path = root().join("tests/golden").join(name);
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

async fn deployment() -> Deployment {
    Deployment::new(&std::fs::read_to_string(root().join("workers/models.toml")).unwrap()).await
}

async fn answer(deployment: &Deployment, url: &str, body: Value) -> Value {
    let id = deployment.submit(&json!({ "url": url, "body": body }), Encoding::Json).await;
    let (_, result) = deployment.result(id.as_str()).await;
    assert_eq!(result["response"]["status_code"], 200, "{result}");
    result["response"]["body"].clone()
}

fn floats(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|number| number.as_f64().unwrap()).collect()
}

fn cosine(a: &[f64], b: &[f64]) -> f64 {
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

#[tokio::test]
async fn embeddings_equal_those_of_sentence_transformers() {
    let deployment = deployment().await;
    let _worker = deployment.worker(EMBEDDER).await;
    let golden = golden("embeddings.json");
    let cases = golden["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 50);
    let texts: Vec<&str> = cases.iter().map(|case| case["text"].as_str().unwrap()).collect();
    let body = answer(
        &deployment,
        "/v1/embeddings",
        json!({ "model": EMBEDDER, "input": texts, "truncate_prompt_tokens": -1 }),
    )
    .await;
    let tokens: u64 = cases.iter().map(|case| case["tokens"].as_u64().unwrap()).sum();
    assert_eq!(body["usage"]["prompt_tokens"], tokens, "the texts were split into other tokens");
    for (case, data) in cases.iter().zip(body["data"].as_array().unwrap()) {
        let similarity = cosine(&floats(&case["embedding"]), &floats(&data["embedding"]));
        assert!(similarity > 0.99999, "{similarity} for {}", case["text"]);
    }
    // The same by token ids, of which one is too long to be taken without being told to cut it.
    for case in cases.iter().take(5) {
        let body =
            answer(&deployment, "/v1/embeddings", json!({ "model": EMBEDDER, "input": case["token_ids"] })).await;
        assert!(cosine(&floats(&case["embedding"]), &floats(&body["data"][0]["embedding"])) > 0.99999);
    }
    let long = cases.iter().find(|case| case["truncated"] == true).unwrap();
    let job = json!({ "url": "/v1/embeddings", "body": { "model": EMBEDDER, "input": long["text"] } });
    let id = deployment.submit(&job, Encoding::Json).await;
    let (_, refused) = deployment.result(id.as_str()).await;
    let error = &refused["response"]["body"]["error"];
    assert_eq!(error["code"], "context_length_exceeded", "{refused}");
    assert!(error["message"].as_str().unwrap().contains("at most 256"), "{refused}");
    wrong_endpoint(&deployment).await;
}

async fn wrong_endpoint(deployment: &Deployment) {
    let job = json!({ "url": "/v1/chat/completions", "body": { "model": EMBEDDER, "messages": [] } });
    let id = deployment.submit(&job, Encoding::Json).await;
    let (_, refused) = deployment.result(id.as_str()).await;
    let error = &refused["response"]["body"]["error"];
    assert_eq!(error["code"], "unsupported_endpoint", "{refused}");
    assert!(error["message"].as_str().unwrap().contains("it serves /v1/embeddings"), "{refused}");
}

#[tokio::test]
async fn greedy_completions_equal_those_of_transformers() {
    let deployment = deployment().await;
    let _worker = deployment.worker(GENERATOR).await;
    let golden = golden("completions.json");
    let cases = golden["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 10);
    let bodies = cases.iter().map(|case| {
        let (url, field) =
            if case["kind"] == "chat" { ("/v1/chat/completions", "messages") } else { ("/v1/completions", "prompt") };
        let mut body = json!({ "model": GENERATOR, "temperature": 0, "max_tokens": 48 });
        body[field] = case[field].clone();
        answer(&deployment, url, body)
    });
    // Together, so that the batch is ragged.
    let bodies = futures::future::join_all(bodies).await;
    for (case, body) in cases.iter().zip(bodies) {
        let choice = &body["choices"][0];
        let text = choice["text"].as_str().or(choice["message"]["content"].as_str()).unwrap();
        let count = |key: &str| case[key].as_array().unwrap().len() as u64;
        assert_eq!(
            body["usage"]["prompt_tokens"],
            count("prompt_token_ids"),
            "the prompt was split into other tokens: {case}"
        );
        assert_eq!(text, case["text"].as_str().unwrap(), "all 48 tokens, or up to the end of the text");
        assert_eq!(body["usage"]["completion_tokens"], count("token_ids"));
    }
    seeds_repeat(&deployment).await;
}

/// The same seed gives the same text, another seed another.
async fn seeds_repeat(deployment: &Deployment) {
    let mut texts = HashMap::new();
    for seed in [1, 1, 2] {
        let body = json!({ "model": GENERATOR, "prompt": "Once upon a time", "temperature": 1.2, "top_p": 0.95, "seed": seed, "max_tokens": 12 });
        let text = answer(deployment, "/v1/completions", body).await["choices"][0]["text"].as_str().unwrap().to_owned();
        assert_eq!(texts.entry(seed).or_insert_with(|| text.clone()), &text);
    }
    assert_ne!(texts[&1], texts[&2]);
}

#[tokio::test]
async fn gguf_text_is_split_as_the_models_own_tokenizer_does() {
    let registry = root().join("workers/models.toml");
    let fetch = ["fetch", "--model", GENERATOR, "--registry", registry.to_str().unwrap()];
    let output = run(&program("inferq-worker"), &fetch, &[]);
    assert!(output.status.success());
    let file = String::from_utf8(output.stdout).unwrap();
    let registry = schemas::registry::Registry::parse(&std::fs::read_to_string(registry).unwrap()).unwrap();
    let loaded = workers::engine::load(registry.model(GENERATOR).unwrap(), Some(file.trim().as_ref())).unwrap();
    let golden = golden("completions.json");
    let tokenizations = golden["tokenizations"].as_array().unwrap();
    assert_eq!(tokenizations.len(), 20);
    for case in tokenizations {
        let tokens = loaded.text.encode_prompt(case["text"].as_str().unwrap()).unwrap();
        assert_eq!(json!(tokens), case["token_ids"], "{}", case["text"]);
    }
}

#[tokio::test]
async fn both_models_serve_one_batch_file() {
    let deployment = deployment().await;
    let _workers = (deployment.worker(EMBEDDER).await, deployment.worker(GENERATOR).await);
    let input = root().join("tests/demo/batch.jsonl");
    let output = deployment.folder.path().join("out.jsonl");
    let run = deployment.inferq(&["batch", "run", input.to_str().unwrap(), "-o", output.to_str().unwrap()]);
    assert_eq!(run.status.code(), Some(0), "{}", String::from_utf8_lossy(&run.stderr));
    let rows = std::fs::read_to_string(&input).unwrap().lines().count();
    assert_eq!(std::fs::read_to_string(&output).unwrap().lines().count(), rows);
    let Connection { client, jetstream, .. } = &deployment.client.connection;
    eventually("nothing is left", async || {
        let status = producer::status::status(client, jetstream).await.unwrap();
        status.lanes.iter().all(|lane| lane.lag == 0).then_some(())
    })
    .await;
}

/// A chat that streams; `sampling` is what it says of temperature and seed.
fn streaming_job(sampling: &Value) -> Value {
    let mut body = json!({
        "model": GENERATOR, "stream": true, "max_tokens": 64,
        "messages": [{ "role": "user", "content": "Tell me a long story about a queue and a worker." }],
    });
    body.as_object_mut().unwrap().extend(sampling.as_object().unwrap().clone());
    json!({ "url": "/v1/chat/completions", "body": body })
}

#[tokio::test]
async fn a_story_goes_on_as_its_killed_worker_would_have_told_it() {
    let registry = std::fs::read_to_string(root().join("workers/models.toml")).unwrap();
    // Nothing may come from the cache here.
    let registry = registry
        .replace("[models.limits]\n", "[models.cache]\nenabled = false\n[models.limits]\nack_wait_seconds = 1\n");
    assert!(registry.contains("ack_wait_seconds = 1"));
    let deployment = Deployment::new(&registry).await;
    let mut worker = deployment.worker(GENERATOR).await;
    for sampling in [json!({ "temperature": 0 }), json!({ "temperature": 0.9, "seed": 11 })] {
        let job = streaming_job(&sampling);
        let whole = deployment.submit(&job, Encoding::Json).await;
        let wanted = content(&deployment.result(whole.as_str()).await.1).to_owned();
        assert!(wanted.len() > 100, "{wanted:?}");
        let id = deployment.submit(&job, Encoding::Json).await;
        eventually("a part of it is told", async || (chunks(&deployment, id.as_str()).await.len() >= 4).then_some(()))
            .await;
        worker.signal("-KILL");
        let before = chunks(&deployment, id.as_str()).await;
        let told: String = before.iter().map(|(_, chunk)| chunk.text()).collect();
        assert!(wanted.starts_with(&told) && told.len() < wanted.len(), "{told:?} of {wanted:?}");
        worker = deployment.worker(GENERATOR).await;
        let (headers, result) = deployment.result(id.as_str()).await;
        assert_eq!(content(&result), wanted, "{sampling}");
        assert_eq!(provenance(&headers).attempt, 2);
        let after = chunks(&deployment, id.as_str()).await;
        assert_eq!(after[..before.len()], before[..], "published chunks have changed");
        assert_eq!(after.iter().map(|(_, chunk)| chunk.text()).collect::<String>(), wanted);
    }
}

#[tokio::test]
async fn an_answer_follows_its_schema_and_says_how_probable_it_was() {
    let deployment = deployment().await;
    let _worker = deployment.worker(GENERATOR).await;
    let schema = json!({
        "type": "object",
        "properties": {
            "animal": { "type": "string", "maxLength": 20 },
            "legs": { "type": "integer", "minimum": 0, "maximum": 8 },
        },
        "required": ["animal", "legs"], "additionalProperties": false,
    });
    let ask = |n: u64, format: Value| {
        json!({
            "model": GENERATOR, "messages": [{ "role": "user", "content": "Name an animal and count its legs." }],
            "max_tokens": 60, "seed": 5, "n": n, "logprobs": true, "top_logprobs": 2, "response_format": format,
        })
    };
    let format =
        json!({ "type": "json_schema", "json_schema": { "name": "animal", "schema": schema, "strict": true } });
    let body = answer(&deployment, "/v1/chat/completions", ask(4, format)).await;
    let choices = body["choices"].as_array().unwrap();
    assert_eq!(choices.len(), 4);
    for choice in choices {
        assert_eq!(choice["finish_reason"], "stop", "{choice}");
        let text = choice["message"]["content"].as_str().unwrap();
        let said: Value = serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"));
        assert!(said["animal"].is_string() && (0..=8).contains(&said["legs"].as_i64().unwrap()), "{said}");
        let tokens = choice["logprobs"]["content"].as_array().unwrap();
        let bytes = |token: &Value| serde_json::from_value::<Vec<u8>>(token["bytes"].clone()).unwrap();
        assert_eq!(tokens.iter().flat_map(bytes).collect::<Vec<u8>>(), text.as_bytes());
        assert!(tokens.iter().all(|token| token["top_logprobs"].as_array().unwrap().len() == 2));
    }
    let single = answer(&deployment, "/v1/chat/completions", ask(1, json!({ "type": "json_object" }))).await;
    assert_eq!(single["usage"]["prompt_tokens"], body["usage"]["prompt_tokens"], "a prompt counts once");
    let wrong = json!({ "type": "json_schema", "json_schema": { "name": "x", "schema": { "type": "strange" } } });
    let job = json!({ "url": "/v1/chat/completions", "body": ask(1, wrong) });
    let id = deployment.submit(&job, Encoding::Json).await;
    let (_, refused) = deployment.result(id.as_str()).await;
    assert_eq!(refused["response"]["status_code"], 400, "{refused}");
    let error = &refused["response"]["body"]["error"];
    assert_eq!(error["param"], "body.response_format.json_schema.schema", "{refused}");
}

/// For keys and values of some 700 tokens of this model.
const LITTLE_MEMORY: &str = "\nbatch = 16\nkv_cache_mebibytes = 16\n";

#[tokio::test]
async fn a_flood_of_long_prompts_is_answered_within_the_memory_for_keys() {
    let registry = std::fs::read_to_string(root().join("workers/models.toml")).unwrap();
    assert!(registry.contains("\nbatch = 16\n"));
    let deployment = Deployment::new(&registry.replacen("\nbatch = 16\n", LITTLE_MEMORY, 1)).await;
    let _worker = deployment.worker(GENERATOR).await;
    let ask = |number: usize, words: usize| {
        let prompt = format!("List {number}:{}", " one two three four".repeat(words / 4));
        json!({ "model": GENERATOR, "prompt": prompt, "temperature": 0, "max_tokens": 40 })
    };
    let mut ids = Vec::new();
    for number in 0..20 {
        let job = json!({ "url": "/v1/completions", "body": ask(number, 280) });
        ids.push(deployment.submit(&job, Encoding::Json).await);
    }
    for id in ids {
        let (_, result) = deployment.result(id.as_str()).await;
        let usage = &result["response"]["body"]["usage"];
        assert_eq!(usage["completion_tokens"], 40, "{result}");
        assert!(usage["prompt_tokens"].as_u64().unwrap() > 280, "{result}");
    }
    let job = json!({ "url": "/v1/completions", "body": ask(0, 1000) });
    let id = deployment.submit(&job, Encoding::Json).await;
    let (_, refused) = deployment.result(id.as_str()).await;
    assert_eq!(refused["response"]["body"]["error"]["code"], "context_length_exceeded", "{refused}");
}
