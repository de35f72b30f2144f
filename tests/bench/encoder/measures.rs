//! Rates, latencies and memory.

use std::process::Command;

use crate::engines::{Engine, F32, INT8, OPENVINO_DEFAULT, Ours, Peer, model_folder};
use crate::environment::Environment;
use crate::report::{Report, Row, median};
use crate::work::Work;

const PER_SECOND: &str = "embeddings/s";
const MIB: f64 = (1 << 20) as f64;

/// The medians of one case, by the engine's name.
struct Medians(Vec<(&'static str, f64)>);

impl Medians {
    fn of(&self, name: &str) -> f64 {
        self.0.iter().find(|(engine, _)| *engine == name).unwrap().1
    }

    fn best(&self, names: &[&'static str]) -> (&'static str, f64) {
        names.iter().map(|name| (*name, self.of(name))).max_by(|(_, a), (_, b)| a.total_cmp(b)).unwrap()
    }
}

/// Takes turns, as often as there are rounds.
fn alternate(engines: &mut [Engine], rounds: usize, mut measure: impl FnMut(&mut Engine) -> f64) -> Medians {
    let mut measured = vec![Vec::new(); engines.len()];
    for round in 0..=rounds {
        for (engine, values) in engines.iter_mut().zip(&mut measured) {
            let value = measure(engine);
            // The first round warms up.
            if round > 0 {
                values.push(value);
            }
        }
    }
    let names = engines.iter().map(Engine::name);
    Medians(names.zip(measured.into_iter().map(|values| median(values.into_iter()))).collect())
}

pub fn throughput(report: &mut Report, rounds: usize) {
    let (environment, folder) = (Environment::prepare(), model_folder());
    let mut engines: Vec<Engine> = ["f32", "int8"].map(|dtype| Engine::Ours(dtype, Ours::load(&folder, dtype))).into();
    let peers = F32.into_iter().chain(INT8).chain([OPENVINO_DEFAULT]);
    engines.extend(peers.map(|name| Engine::Peer(Peer::start(&environment, name, &folder))));
    let mixed = Work::mixed(256);
    let cases = [
        ("64", Work::of_length(64, 256)),
        ("128", Work::of_length(128, 128)),
        ("mixed", mixed.clone()),
        ("mixed, peers sort", Work { sorted: true, ..mixed }),
    ];
    for (case, work) in cases {
        let medians = alternate(&mut engines, rounds, |engine| engine.rate(&work));
        let all: Vec<String> = medians.0.iter().map(|(name, rate)| format!("{name} {rate:.1}")).collect();
        eprintln!("{case}: {}", all.join(", "));
        for (ours, peers) in [("f32", &F32[..]), ("int8", &INT8[..])] {
            let (peer, rate) = medians.best(peers);
            let row = Row::higher(format!("{ours} {case}"), PER_SECOND, medians.of(ours)).beside(peer, rate);
            report.add(row);
        }
        for (ours, peer) in [("f32", "candle"), ("int8", INT8[0]), ("int8", OPENVINO_DEFAULT)] {
            let row = Row::higher(format!("{ours} {case}, {peer}"), PER_SECOND, medians.of(ours));
            report.add(row.beside(peer, medians.of(peer)));
        }
    }
}

pub fn latency(report: &mut Report, rounds: usize) {
    let (environment, folder) = (Environment::prepare(), model_folder());
    let mut engines: Vec<Engine> = ["f32", "int8"].map(|dtype| Engine::Ours(dtype, Ours::load(&folder, dtype))).into();
    let peers = [F32[1], INT8[0]].map(|name| Engine::Peer(Peer::start(&environment, name, &folder)));
    engines.extend(peers);
    for length in [16, 64, 256] {
        let work = Work::of_length(length, 100);
        let medians = alternate(&mut engines, rounds, |engine| median(engine.times(&work).into_iter()));
        for (ours, peer) in [("f32", F32[1]), ("int8", INT8[0])] {
            let case = format!("{ours}, one text of {length}");
            report.add(Row::lower(case, "p50 ms", medians.of(ours) * 1e3).beside(peer, medians.of(peer) * 1e3));
        }
    }
}

/// The peak of a process that has embedded texts of all lengths.
pub fn memory(report: &mut Report) {
    let (environment, folder) = (Environment::prepare(), model_folder());
    for (ours, peer) in [("f32", F32[1]), ("int8", INT8[0])] {
        let own = Command::new(std::env::current_exe().unwrap()).args(["--memory-of", ours]).output().unwrap();
        let own: f64 = String::from_utf8(own.stdout).unwrap().trim().parse().unwrap();
        let mut process = Peer::start(&environment, peer, &folder);
        let peak = loads().map(|work| process.run(&work).peak_bytes).into_iter().max().unwrap() as f64;
        report.add(Row::lower(ours, "peak MiB", own / MIB).beside(peer, peak / MIB));
    }
}

/// Of this process, for the one that started it.
pub fn tell_memory(dtype: &str) {
    let mut ours = Ours::load(&model_folder(), dtype);
    for work in loads() {
        ours.run(&work.sequences);
    }
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    println!("{}", peak.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024);
}

fn loads() -> [Work; 2] {
    [Work::of_length(64, 256), Work::mixed(256)]
}
