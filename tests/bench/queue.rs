//! `make bench`: what the queue costs beside bare JetStream, and what the two models of the demo do.
//!
//! The peer of the echo path does the same operations on streams and a consumer of the same settings, by the same client
//! library, with none of our code: publish with ack, pull, publish the result with ack, ack. Both workers are processes
//! of their own; rounds alternate; medians are compared.
//!
//! `make bench BENCH_ARGS=echo` runs one case alone: `echo`, `cache`, `fairness` or `models`.

#[path = "../inferq/support/mod.rs"]
#[allow(dead_code, unused_imports, reason = "the tests use more of it")]
mod support;

#[path = "queue/bare.rs"]
mod bare;
#[path = "queue/cpu.rs"]
mod cpu;
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
    /// Processor time of a job, in microseconds: of the server, the worker and the producer.
    cpu: [f64; 3],
    /// Of jobs sent one at a time.
    lone: Vec<Duration>,
}

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    if let Ok(url) = std::env::var(bare::WORKER_URL) {
        return runtime.block_on(bare::work(&url));
    }
    let wanted: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    let known = ["echo", "cache", "fairness", "models"];
    if let Some(unknown) = wanted.iter().find(|name| !known.contains(&name.as_str())) {
        eprintln!("{unknown:?} is no case; they are {}", known.join(", "));
        std::process::exit(64);
    }
    let is_wanted = |name: &str| wanted.is_empty() || wanted.iter().any(|wanted| wanted == name);
    let report = runtime.block_on(async {
        let mut report = Report::default();
        if is_wanted("echo") {
            echo(&mut report).await;
        }
        if is_wanted("cache") {
            cache(&mut report).await;
        }
        if is_wanted("fairness") {
            fairness::run(&mut report).await;
        }
        if is_wanted("models") {
            models::run(&mut report).await;
        }
        report
    });
    report.write("queue");
}

async fn echo(report: &mut Report) {
    let ours = Ours::start(Jobs::Random).await;
    let bare = bare::Bare::start().await;
    let (mut our_rounds, mut bare_rounds) = (vec![], vec![]);
    for round in 0..ROUNDS {
        our_rounds.push(ours.measure(round).await);
        bare_rounds.push(bare.measure(round).await);
        eprintln!("round {}: {}, bare {}", round + 1, our_rounds[round], bare_rounds[round]);
    }
    report.add(Row::higher("echo", "jobs/s", rate(&our_rounds)).beside("bare JetStream", rate(&bare_rounds)));
    let cpu = |rounds: &[Measured]| median(rounds.iter().map(|round| round.cpu.iter().sum()));
    report.add(Row::lower("echo", "cpu us/job", cpu(&our_rounds)).beside("bare JetStream", cpu(&bare_rounds)));
    for (metric, quantile) in [("p50 latency ms", 0.5), ("p99 latency ms", 0.99)] {
        let latency = |rounds: &[Measured]| median(rounds.iter().map(|round| at(&round.lone, quantile)));
        report.add(Row::lower("echo", metric, latency(&our_rounds)).beside("bare JetStream", latency(&bare_rounds)));
    }
}

/// What a cache that has none of the answers costs.
async fn cache(report: &mut Report) {
    let without = Ours::start(Jobs::Random).await;
    let cold = Ours::start(Jobs::Cold).await;
    let stored = Ours::start(Jobs::ColdAndStored).await;
    let (mut without_rounds, mut cold_rounds, mut stored_rounds) = (vec![], vec![], vec![]);
    for round in 0..ROUNDS {
        without_rounds.push(without.measure(round).await);
        cold_rounds.push(cold.measure(round).await);
        stored_rounds.push(stored.measure(round).await);
        let [without, cold, stored] = [&without_rounds[round], &cold_rounds[round], &stored_rounds[round]];
        eprintln!("round {}: {without}, cold cache {cold}, cold and stored {stored}", round + 1);
    }
    let without = rate(&without_rounds);
    report.add(Row::higher("echo, cold cache", "jobs/s", rate(&cold_rounds)).beside("echo", without));
    report.add(Row::higher("echo, cold and stored", "jobs/s", rate(&stored_rounds)).beside("echo", without));
}

fn rate(rounds: &[Measured]) -> f64 {
    median(rounds.iter().map(|round| round.jobs_per_second))
}

impl std::fmt::Display for Measured {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [server, worker, producer] = self.cpu;
        write!(f, "{:.0} jobs/s (cpu us/job: {server:.0} + {worker:.0} + {producer:.0})", self.jobs_per_second)
    }
}

/// A quantile in milliseconds.
fn at(latencies: &[Duration], quantile: f64) -> f64 {
    let mut sorted = latencies.to_vec();
    sorted.sort_unstable();
    sorted[((sorted.len() - 1) as f64 * quantile).round() as usize].as_secs_f64() * 1e3
}
