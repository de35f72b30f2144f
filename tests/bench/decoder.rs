//! `make bench-decoder`: the decoder beside llama.cpp, on SmolLM2-135M-Instruct from one Q4_1 file.
//!
//! llama.cpp computes that file and two others that its own `llama-quantize` makes of it, for whose formats it has its best
//! kernels. Its programs are started anew for each measurement; rounds alternate and medians are compared.
//!
//! `make bench-decoder BENCH_ARGS="rates --rounds 3"` runs one part alone.

#[path = "../inferq/support/mod.rs"]
#[allow(dead_code, unused_imports, reason = "the tests use more of it")]
mod support;

#[path = "demo.rs"]
mod demo;
#[path = "decoder/latency.rs"]
mod latency;
#[path = "decoder/ours.rs"]
mod ours;
#[path = "decoder/peer.rs"]
mod peer;
#[path = "decoder/quality.rs"]
mod quality;
#[path = "decoder/queue.rs"]
mod queue;
#[path = "decoder/rates.rs"]
mod rates;
#[path = "queue/report.rs"]
#[allow(dead_code, reason = "the other benchmark uses more of it")]
mod report;

use clap::Parser;
use report::Report;

/// The decoder beside llama.cpp.
#[derive(Parser)]
struct Args {
    /// What to measure; all of it unless given.
    parts: Vec<Part>,
    /// How often each measurement is made; odd, as medians are shown.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// What cargo gives to every benchmark.
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Clone, Copy, PartialEq, clap::ValueEnum)]
enum Part {
    Rates,
    Quality,
    Queue,
    Latency,
}

fn main() {
    let args = Args::parse();
    let is_wanted = |part| args.parts.is_empty() || args.parts.contains(&part);
    let mut report = Report::default();
    if is_wanted(Part::Rates) {
        rates::run(&mut report, args.rounds);
    }
    if is_wanted(Part::Quality) {
        quality::run(&mut report);
    }
    if is_wanted(Part::Queue) {
        queue::run(&mut report, args.rounds);
    }
    if is_wanted(Part::Latency) {
        latency::run(&mut report, args.rounds);
    }
    report.write("decoder");
}
