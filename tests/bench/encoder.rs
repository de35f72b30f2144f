//! `make bench-encoder`: the encoder beside the engines people would take instead, on all-MiniLM-L6-v2.
//!
//! Peers are processes that are driven by lines of JSON (`encoder/peers.py`, `encoder/candle`) and stopped while it is not
//! their turn, so that none disturbs another. Rounds alternate and medians are compared: this machine may be faster now
//! than in a minute.
//!
//! `make bench-encoder BENCH_ARGS="latency --rounds 3"` runs one part alone.

#[path = "../inferq/support/mod.rs"]
#[allow(dead_code, unused_imports, reason = "the tests use more of it")]
mod support;

#[path = "encoder/accuracy.rs"]
mod accuracy;
#[path = "demo.rs"]
mod demo;
#[path = "encoder/engines.rs"]
mod engines;
#[path = "encoder/environment.rs"]
mod environment;
#[path = "encoder/measures.rs"]
mod measures;
#[path = "encoder/queue.rs"]
mod queue;
#[path = "queue/report.rs"]
#[allow(dead_code, reason = "the other benchmark uses more of it")]
mod report;
#[path = "encoder/work.rs"]
mod work;

use clap::Parser;
use report::Report;

/// The encoder beside its peers.
#[derive(Parser)]
struct Args {
    /// What to measure; all of it unless given.
    parts: Vec<Part>,
    /// How often each measurement is made; odd, as medians are shown.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Only for a process of this program's own: the memory of the engine in that type.
    #[arg(long, hide = true)]
    memory_of: Option<String>,
    /// What cargo gives to every benchmark.
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Clone, Copy, PartialEq, clap::ValueEnum)]
enum Part {
    Throughput,
    Latency,
    Memory,
    Accuracy,
    Queue,
}

fn main() {
    let args = Args::parse();
    if let Some(dtype) = args.memory_of {
        return measures::tell_memory(&dtype);
    }
    let is_wanted = |part| args.parts.is_empty() || args.parts.contains(&part);
    let mut report = Report::default();
    if is_wanted(Part::Throughput) {
        measures::throughput(&mut report, args.rounds);
    }
    if is_wanted(Part::Latency) {
        measures::latency(&mut report, args.rounds);
    }
    if is_wanted(Part::Memory) {
        measures::memory(&mut report);
    }
    if is_wanted(Part::Accuracy) {
        accuracy::run(&mut report);
    }
    if is_wanted(Part::Queue) {
        queue::run(&mut report, args.rounds);
    }
    report.write("encoder");
}
