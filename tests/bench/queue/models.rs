//! The models of the demo through the whole system: embeddings and tokens in a second.

use std::time::Instant;

use futures::stream::{self, StreamExt};
use schemas::codec::Encoding;
use serde_json::{Value, json};

use crate::report::{Report, Row, median};
use crate::support::{Deployment, root};

const ROUNDS: usize = 3;
const EMBEDDINGS: usize = 256;
const COMPLETIONS: usize = 16;
const COMPLETION_TOKENS: usize = 48;
const CONCURRENT: usize = 64;

pub async fn run(report: &mut Report) {
    let registry = std::fs::read_to_string(root().join("workers/models.toml")).unwrap();
    // Each round asks the same: the engine is to be measured, not the cache.
    let registry = registry.replace("[[models]]\n", "[[models]]\ncache.enabled = false\n");
    let deployment = Deployment::new(&registry).await;
    {
        let _worker = deployment.worker("all-MiniLM-L6-v2").await;
        // About 64 tokens each.
        let text = |number: usize| format!("{number} {}", "the quick brown fox jumps over the lazy dog ".repeat(7));
        let job = |number| json!({ "url": "/v1/embeddings", "body": { "model": "all-MiniLM-L6-v2", "input": text(number), "encoding_format": "base64" } });
        let rate = measure(&deployment, EMBEDDINGS, job, |_| 1).await;
        report.add(Row::higher("all-MiniLM-L6-v2", "embeddings/s", rate));
    }
    let _worker = deployment.worker("SmolLM2-135M-Instruct").await;
    let prompt = |number: usize| format!("Story number {number}: once upon a time");
    let job = |number| json!({ "url": "/v1/completions", "body": { "model": "SmolLM2-135M-Instruct", "prompt": prompt(number), "temperature": 0, "max_tokens": COMPLETION_TOKENS } });
    let tokens = |result: &Value| result["response"]["body"]["usage"]["completion_tokens"].as_u64().unwrap();
    let rate = measure(&deployment, COMPLETIONS, job, tokens).await;
    report.add(Row::higher("SmolLM2-135M-Instruct", "tokens/s", rate));
}

/// Units per second over jobs that are sent together, the median of several rounds.
async fn measure(
    deployment: &Deployment,
    jobs: usize,
    job: impl Fn(usize) -> Value,
    units: impl Fn(&Value) -> u64,
) -> f64 {
    let mut rates = Vec::new();
    for _ in 0..ROUNDS {
        let started = Instant::now();
        let results = stream::iter(0..jobs).map(|number| {
            let job = job(number);
            async move {
                let id = deployment.submit(&job, Encoding::Json).await;
                let result = deployment.client.wait(&crate::support::tenant(), &id).await.unwrap();
                serde_json::to_value(result).unwrap()
            }
        });
        let results: Vec<Value> = results.buffer_unordered(CONCURRENT).collect().await;
        let total: u64 = results.iter().map(&units).sum();
        rates.push(total as f64 / started.elapsed().as_secs_f64());
    }
    median(rates.into_iter())
}
