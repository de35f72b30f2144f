//! Prompts and generations in a second.

use crate::ours::{Ours, file};
use crate::peer::{FORMATS, Peer};
use crate::report::{Report, Row, median};

/// Tokens of the prompts of sequences that generate, and what each generates.
const PROMPT: usize = 16;
const GENERATED: usize = 128;

/// What the model is computed in here, the first of which is shown beside each format of the peer.
const TYPES: [&str; 3] = ["int8", "int4", "f32"];

#[derive(Clone, Copy)]
enum Case {
    Prompt(usize),
    Generate(usize),
}

const CASES: [Case; 5] =
    [Case::Prompt(128), Case::Prompt(512), Case::Generate(1), Case::Generate(8), Case::Generate(32)];

impl Case {
    fn name(self) -> String {
        match self {
            Self::Prompt(length) => format!("prompt {length}"),
            Self::Generate(1) => "decode 1 sequence".to_owned(),
            Self::Generate(count) => format!("decode {count} sequences"),
        }
    }

    fn ours(self, ours: &mut Ours) -> f64 {
        match self {
            Self::Prompt(length) => ours.prompt(length),
            Self::Generate(count) => ours.generate(count, PROMPT, GENERATED),
        }
    }

    fn peer(self, peer: &Peer, format: &str) -> f64 {
        match self {
            Self::Prompt(length) => peer.prompt(format, length),
            Self::Generate(count) => peer.generate(format, count, PROMPT, GENERATED),
        }
    }
}

/// What a text is repeated from, at most so many tokens at a time.
const GUESSES: usize = 12;
const TEXT: &str = "Jobs wait in a queue until a worker has room for them. Each of them is kept until its result is stored, so that \
                    none is lost when a machine fails, and none is done twice. Workers take as many as their batch has places for, \
                    and while one answers, others read. When nothing waits any more, the last worker of a model ends, and the first \
                    job that comes later starts one again.";

pub fn run(report: &mut Report, rounds: usize) {
    compare(report, rounds);
    repeat(report, rounds);
}

/// A sequence that repeats its prompt, with guesses and without.
fn repeat(report: &mut Report, rounds: usize) {
    let mut ours = [Ours::guessing("int8", GUESSES), Ours::load("int8")];
    let mut measured = [Vec::new(), Vec::new()];
    for _ in 0..rounds {
        measured.iter_mut().zip(&mut ours).for_each(|(all, ours)| all.push(ours.repeat(TEXT, GENERATED / 2)));
    }
    let [guessing, plain] = measured.map(|rates| median(rates.into_iter()));
    report.add(Row::higher("repeat a prompt, with lookup", "tokens/s", guessing).beside("without", plain));
}

fn compare(report: &mut Report, rounds: usize) {
    let peer = Peer::prepare(&file());
    let mut ours = TYPES.map(Ours::load);
    for case in CASES {
        let mut measured = vec![Vec::new(); ours.len() + FORMATS.len()];
        for round in 0..=rounds {
            eprintln!("{}: round {round} of {rounds}", case.name());
            let own = ours.iter_mut().map(|ours| case.ours(ours));
            let values: Vec<f64> = own.chain(FORMATS.iter().map(|format| case.peer(&peer, format))).collect();
            // The first round warms up.
            if round > 0 {
                measured.iter_mut().zip(values).for_each(|(all, value)| all.push(value));
            }
        }
        let medians: Vec<f64> = measured.into_iter().map(|values| median(values.into_iter())).collect();
        let (own, peers) = medians.split_at(ours.len());
        let of_format = || FORMATS.iter().zip(peers).map(|(format, rate)| (format!("llama.cpp {format}"), *rate));
        let (name, best) = of_format().max_by(|(_, a), (_, b)| a.total_cmp(b)).unwrap();
        let row = |case: String, rate: f64| Row::higher(case, "tokens/s", rate);
        report.add(row(case.name(), own[0]).beside(name.clone(), best));
        for (dtype, rate) in TYPES.iter().zip(own).skip(1) {
            report.add(row(format!("{}, {dtype}", case.name()), *rate).beside(name.clone(), best));
        }
        for (name, rate) in of_format() {
            report.add(row(format!("{}, its formats", case.name()), own[0]).beside(name, rate));
        }
    }
}
