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
#[path = "queue/fairness.rs"]
mod fairness;
#[path = "queue/models.rs"]
mod models;
#[path = "queue/ours.rs"]
mod ours;
#[path = "queue/report.rs"]
mod report;

use std::time::Duration;

use ours::{Jobs, Ours};
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
        fairness::run(&mut report).await;
        models::run(&mut report).await;
        report
    });
    report.write("queue");
}

async fn echo(report: &mut Report) {
    let ours = Ours::start(Jobs::Random).await;
    let cold = Ours::start(Jobs::Cold).await;
    let stored = Ours::start(Jobs::ColdAndStored).await;
    let bare = bare::Bare::start().await;
    let (mut our_rounds, mut bare_rounds, mut cold_rounds, mut stored_rounds) = (vec![], vec![], vec![], vec![]);
    for round in 0..ROUNDS {
        our_rounds.push(ours.measure(round).await);
        bare_rounds.push(bare.measure(round).await);
        cold_rounds.push(cold.measure(round).await);
        stored_rounds.push(stored.measure(round).await);
        let rate = |rounds: &[Measured]| rounds.last().unwrap().jobs_per_second;
        eprintln!(
            "round {}: {:.0} jobs/s, bare {:.0}, cold cache {:.0}, cold and stored {:.0}",
            round + 1,
            rate(&our_rounds),
            rate(&bare_rounds),
            rate(&cold_rounds),
            rate(&stored_rounds)
        );
    }
    let rate = |rounds: &[Measured]| median(rounds.iter().map(|round| round.jobs_per_second));
    report.add(Row::higher("echo", "jobs/s", rate(&our_rounds)).beside("bare JetStream", rate(&bare_rounds)));
    let uncached = rate(&our_rounds);
    report.add(Row::higher("echo, cold cache", "jobs/s", rate(&cold_rounds)).beside("echo", uncached));
    report.add(Row::higher("echo, cold and stored", "jobs/s", rate(&stored_rounds)).beside("echo", uncached));
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
