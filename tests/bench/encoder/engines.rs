//! The engines: ours in this process, peers in theirs.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::time::Instant;

use schemas::registry::Registry;
use workers::engine::{self, Goal, Output, Sequence, SequenceId, text::Text};

use crate::demo;
use crate::environment::Environment;
use crate::support::signal;
use crate::work::{Answer, Work};

pub const MODEL: &str = "all-MiniLM-L6-v2";
/// Those of `peers.py`, and candle's own.
pub const F32: [&str; 5] = ["torch", "onnxruntime", "openvino", "ctranslate2", "candle"];
pub const INT8: [&str; 2] = ["onnxruntime-int8", "ctranslate2-int8"];
/// In bf16 where the processor has it.
pub const OPENVINO_DEFAULT: &str = "openvino-default";

/// The registry of the demo, with the model in that type.
pub fn registry(dtype: &str) -> String {
    demo::registry(MODEL, dtype)
}

/// The folder of the model's files.
pub fn model_folder() -> PathBuf {
    demo::fetched(MODEL)
}

/// The engine of this project.
pub struct Ours {
    pub text: Arc<Text>,
    engine: Box<dyn engine::Engine + Send>,
}

impl Ours {
    pub fn load(folder: &Path, dtype: &str) -> Self {
        let registry = Registry::parse(&registry(dtype)).unwrap();
        let loaded = engine::load(registry.model(MODEL).unwrap(), Some(folder)).unwrap();
        Self { text: loaded.text, engine: loaded.engine }
    }

    pub fn run(&mut self, sequences: &[Vec<u32>]) -> Vec<Vec<f32>> {
        for (id, tokens) in (0..).zip(sequences) {
            self.engine.add(SequenceId(id), Arc::new(Sequence::new(tokens.clone(), Goal::Embed)));
        }
        let mut outputs = Vec::with_capacity(sequences.len());
        while !self.engine.is_idle() {
            self.engine.step().unwrap();
            outputs.extend(self.engine.finished());
        }
        outputs.sort_by_key(|(id, _)| *id);
        let vector = |(_, output)| match output {
            Output::Embedding(vector) => vector,
            Output::Scores(_) | Output::Completion { .. } | Output::Transcript(_) => {
                panic!("embeddings were asked for")
            }
        };
        outputs.into_iter().map(vector).collect()
    }
}

/// Another engine. It stands still unless it is asked something.
pub struct Peer {
    pub name: &'static str,
    process: Child,
    questions: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Peer {
    pub fn start(environment: &Environment, name: &'static str, folder: &Path) -> Self {
        eprintln!("starting {name}");
        let mut command: Command = environment.peer(name, folder);
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let (questions, answers) = (process.stdin.take().unwrap(), BufReader::new(process.stdout.take().unwrap()));
        let mut peer = Self { name, process, questions, answers };
        peer.line();
        signal("-STOP", peer.process.id());
        peer
    }

    pub fn run(&mut self, work: &Work) -> Answer {
        signal("-CONT", self.process.id());
        writeln!(self.questions, "{}", serde_json::to_string(work).unwrap()).unwrap();
        let answer = serde_json::from_str(&self.line()).unwrap();
        signal("-STOP", self.process.id());
        answer
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        assert!(!line.is_empty(), "{} has ended; run it by hand to see why", self.name);
        line
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// An engine that takes turns with others.
pub enum Engine {
    Ours(&'static str, Ours),
    Peer(Peer),
}

impl Engine {
    pub fn name(&self) -> &'static str {
        match self {
            Self::Ours(dtype, _) => dtype,
            Self::Peer(peer) => peer.name,
        }
    }

    /// Sequences in a second.
    pub fn rate(&mut self, work: &Work) -> f64 {
        match self {
            Self::Ours(_, ours) => {
                let started = Instant::now();
                ours.run(&work.sequences);
                work.sequences.len() as f64 / started.elapsed().as_secs_f64()
            }
            Self::Peer(peer) => {
                // Candle takes several times as long as all others.
                let count = if peer.name == "candle" { work.batch * 2 } else { work.sequences.len() };
                let work = work.part(count);
                work.sequences.len() as f64 / peer.run(&work).seconds
            }
        }
    }

    /// Of single sequences, one after the other.
    pub fn times(&mut self, work: &Work) -> Vec<f64> {
        match self {
            Self::Ours(_, ours) => {
                let time = |sequence: &Vec<u32>| {
                    let started = Instant::now();
                    ours.run(std::slice::from_ref(sequence));
                    started.elapsed().as_secs_f64()
                };
                work.sequences.iter().map(time).collect()
            }
            Self::Peer(peer) => peer.run(&Work { batch: 1, ..work.clone() }).times,
        }
    }
}
