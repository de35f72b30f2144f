//! How long clients wait for their first token while others are served: ours through the gateway and NATS, llama.cpp's server.
//!
//! Requests come at random moments, whether those before them are answered or not.

use std::time::{Duration, Instant};

use futures::future::join_all;
use serde_json::json;

use crate::ours::{MODEL, file, registry};
use crate::peer::{FORMATS, Peer};
use crate::queue::{CLIENTS, CONTEXT, request};
use crate::report::{Report, Row, median};
use crate::support::{Deployment, Gateway, lasting};

const REQUESTS: usize = 40;
/// In a second: half of what the peer can do.
const RATE: f64 = 2.0;
const SEED: u64 = 6;
/// What is shown of a round's waits, as shares of them.
const SHOWN: [(&str, f64); 2] = [("first token, median", 0.5), ("first token, 95th percentile", 0.95)];

pub fn run(report: &mut Report, rounds: usize) {
    let peer = Peer::prepare(&file());
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let deployment = Deployment::new(&registry("int8")).await;
        let gateway = Gateway::open(&deployment).await;
        let mut waits = vec![Vec::new(); 1 + FORMATS.len()];
        for round in 1..=rounds {
            eprintln!("first token: round {round} of {rounds}");
            let worker = deployment.worker(MODEL).await;
            waits[0].push(measure(&gateway.url).await);
            drop(worker);
            for (format, waits) in FORMATS.iter().zip(&mut waits[1..]) {
                let server = peer.server(format, CLIENTS, CONTEXT);
                server.is_ready().await;
                waits.push(measure(&server.url).await);
            }
        }
        for (name, share) in SHOWN {
            let of = |rounds: &Vec<Vec<f64>>| median(rounds.iter().map(|waits| quantile(waits, share)));
            let peers = FORMATS.iter().zip(waits[1..].iter().map(of));
            let (format, best) = peers.min_by(|(_, a), (_, b)| a.total_cmp(b)).unwrap();
            report.add(Row::lower(name, "ms", of(&waits[0])).beside(format!("llama-server {format}"), best));
        }
    });
}

/// Milliseconds to the first token of each request, the shortest first.
async fn measure(url: &str) -> Vec<f64> {
    let client = reqwest::Client::new();
    let mut random = fastrand::Rng::with_seed(SEED);
    let mut at = 0.0;
    let began = Instant::now();
    let waits = (0..REQUESTS).map(|number| {
        // The times between requests of many who know nothing of each other.
        at -= (1.0 - random.f64()).ln() / RATE;
        let (client, moment) = (&client, began + Duration::from_secs_f64(at));
        async move {
            lasting(moment.saturating_duration_since(Instant::now())).await;
            first_token(client, url, number).await
        }
    });
    let mut waits = join_all(waits).await;
    waits.sort_by(f64::total_cmp);
    waits
}

async fn first_token(client: &reqwest::Client, url: &str, number: usize) -> f64 {
    let mut body = request(number);
    body["stream"] = json!(true);
    let started = Instant::now();
    let mut answer = client.post(format!("{url}/v1/completions")).json(&body).send().await.unwrap();
    assert!(answer.status().is_success(), "{}", answer.status());
    let (mut wait, mut received) = (None, Vec::new());
    while let Some(bytes) = answer.chunk().await.unwrap() {
        received.extend(bytes);
        if wait.is_none() && received.windows(5).any(|five| five == b"data:") {
            wait = Some(started.elapsed().as_secs_f64() * 1e3);
        }
    }
    wait.unwrap_or_else(|| panic!("an answer without a token: {}", String::from_utf8_lossy(&received)))
}

fn quantile(sorted: &[f64], share: f64) -> f64 {
    sorted[((sorted.len() - 1) as f64 * share).round() as usize]
}
