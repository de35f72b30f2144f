//! `make bench`: what the queue costs beside bare JetStream, and what the two models of the demo do.
//!
//! The peer of the echo path does the same operations on streams and a consumer of the same settings, by the same client
//! library, with none of our code: publish with ack, pull, publish the result with ack, ack. Both workers are processes
//! of their own; rounds alternate; medians are compared.

#[path = "../inferq/support/mod.rs"]
#[allow(dead_code, unused_imports, reason = "the tests use more of it")]
mod support;

#[path = "queue/bare.rs"]
mod bare;
#[path = "queue/models.rs"]
mod models;
#[path = "queue/ours.rs"]
mod ours;
#[path = "queue/report.rs"]
mod report;

use std::time::Duration;

use report::{Report, Row, median};

const ROUNDS: usize = 5;
const JOBS: usize = 20_000;
const LONE_JOBS: usize = 300;
const BODY_BYTES: usize = 1024;
/// Jobs published and not answered, at most.
const WINDOW: usize = 2048;
/// Jobs a worker holds at a time, ours and the bare one.
const IN_FLIGHT: usize = 256;

/// What one round measured.
struct Measured {
    jobs_per_second: f64,
    /// Of jobs sent one at a time.
    lone: Vec<Duration>,
}

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    if let Ok(url) = std::env::var(bare::WORKER_URL) {
        return runtime.block_on(bare::work(&url));
    }
    let report = runtime.block_on(async {
        let mut report = Report::default();
        echo(&mut report).await;
        models::run(&mut report).await;
        report
    });
    report.write("queue");
}

async fn echo(report: &mut Report) {
    let ours = ours::Ours::start().await;
    let bare = bare::Bare::start().await;
    let (mut our_rounds, mut bare_rounds) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        our_rounds.push(ours.measure(round).await);
        bare_rounds.push(bare.measure(round).await);
        let rate = |rounds: &[Measured]| rounds.last().unwrap().jobs_per_second;
        eprintln!("round {}: {:.0} jobs/s, bare {:.0} jobs/s", round + 1, rate(&our_rounds), rate(&bare_rounds));
    }
    let rate = |rounds: &[Measured]| median(rounds.iter().map(|round| round.jobs_per_second));
    report.add(Row::higher("echo", "jobs/s", rate(&our_rounds)).beside("bare JetStream", rate(&bare_rounds)));
    for (metric, quantile) in [("p50 latency ms", 0.5), ("p99 latency ms", 0.99)] {
        let latency = |rounds: &[Measured]| median(rounds.iter().map(|round| at(&round.lone, quantile)));
        report.add(Row::lower("echo", metric, latency(&our_rounds)).beside("bare JetStream", latency(&bare_rounds)));
    }
}

/// A quantile in milliseconds.
fn at(latencies: &[Duration], quantile: f64) -> f64 {
    let mut sorted = latencies.to_vec();
    sorted.sort_unstable();
    sorted[((sorted.len() - 1) as f64 * quantile).round() as usize].as_secs_f64() * 1e3
}
