//! Prompts that begin with the same tokens: ours through NATS, llama.cpp's server with as many clients.

use std::time::Instant;

use futures::stream::{self, StreamExt};
use schemas::codec::Encoding;
use serde_json::{Value, json};

use crate::ours::{MODEL, file, registry};
use crate::peer::{FORMATS, Peer, Server};
use crate::report::{Report, Row, median};
use crate::support::{Deployment, tenant};

const PROMPTS: usize = 500;
pub const CLIENTS: usize = 32;
/// Of one place of the server.
pub const CONTEXT: usize = 512;

pub fn run(report: &mut Report, rounds: usize) {
    let peer = Peer::prepare(&file());
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let deployment = Deployment::new(&registry("int8")).await;
        let mut rates = Vec::new();
        // Which of its formats is its best one, the first round tells.
        let mut peers: Vec<(&str, Vec<f64>)> = FORMATS.map(|format| (format, Vec::new())).into();
        for round in 1..=rounds {
            let worker = deployment.worker(MODEL).await;
            rates.push(ours(&deployment).await);
            drop(worker);
            for (format, rates) in &mut peers {
                rates.push(theirs(&peer.server(format, CLIENTS, CONTEXT)).await);
            }
            eprintln!("shared prefix, round {round} of {rounds}: {:.0}, llama-server {peers:.0?}", rates[round - 1]);
            peers.sort_by(|(_, a), (_, b)| b[0].total_cmp(&a[0]));
            peers.truncate(1);
        }
        let (name, theirs) = peers.remove(0);
        let row = Row::higher("shared prefix", "tokens/s", median(rates.into_iter()));
        report.add(row.beside(format!("llama-server {name}"), median(theirs.into_iter())));
    });
}

/// Some 300 tokens that are the same for all, then what is asked; 32 to 96 tokens are wanted.
pub fn request(number: usize) -> Value {
    let rules = "You sort the letters that people write to a shop. Read each letter with care and say what it is about, \
                 in one short sentence, and then what the shop should do next. ";
    let prompt =
        format!("{}\nLetter {number}: my order {} has not come.\nAnswer:", rules.repeat(8), number * 7919 % 10_000);
    json!({ "model": MODEL, "prompt": prompt, "temperature": 0, "max_tokens": 32 + number * 37 % 65 })
}

async fn ours(deployment: &Deployment) -> f64 {
    let answer = |number| async move {
        let job = json!({ "url": "/v1/completions", "body": request(number) });
        let id = deployment.submit(&job, Encoding::Json).await;
        let result = deployment.client.wait(&tenant(), &id).await.unwrap();
        serde_json::to_value(result).unwrap()["response"]["body"].clone()
    };
    rate(answer).await
}

async fn theirs(server: &Server) -> f64 {
    server.is_ready().await;
    let client = reqwest::Client::new();
    let (client, url) = (&client, format!("{}/v1/completions", server.url));
    let url = &url;
    let answer = |number| async move {
        let body = serde_json::to_vec(&request(number)).unwrap();
        let post = client.post(url).header("content-type", "application/json").body(body);
        serde_json::from_slice(&post.send().await.unwrap().bytes().await.unwrap()).unwrap()
    };
    rate(answer).await
}

/// Tokens generated in a second.
async fn rate<F: Future<Output = Value>>(answer: impl Fn(usize) -> F) -> f64 {
    let started = Instant::now();
    let answers: Vec<Value> = stream::iter(0..PROMPTS).map(answer).buffer_unordered(CLIENTS).collect().await;
    let tokens = answers.iter().map(|answer| answer["usage"]["completion_tokens"].as_u64().unwrap()).sum::<u64>();
    tokens as f64 / started.elapsed().as_secs_f64()
}
