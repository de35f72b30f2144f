//! The decoder of this project, in this process.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use schemas::registry::Registry;
use workers::engine::decoder::Decoder;
use workers::engine::text::Text;
use workers::engine::{Engine, Goal, SamplingParams, Sequence, SequenceId};

use crate::demo;

pub const MODEL: &str = "SmolLM2-135M-Instruct";

/// The registry of the demo, with the model in that type and as many places as the peer has.
pub fn registry(dtype: &str) -> String {
    let registry = demo::registry(MODEL, dtype);
    let limits = "[models.limits]\nin_flight = 16\nbatch = 16";
    assert!(registry.contains(limits), "the registry of the demo is as it was");
    registry.replace(limits, "[models.limits]\nin_flight = 64\nbatch = 32")
}

/// The model's file.
pub fn file() -> PathBuf {
    demo::fetched(MODEL)
}

pub struct Ours {
    pub text: Arc<Text>,
    pub decoder: Decoder,
}

impl Ours {
    pub fn load(dtype: &str) -> Self {
        let registry = Registry::parse(&registry(dtype)).unwrap();
        let (text, decoder) = Decoder::load_on_processor(&file(), registry.model(MODEL).unwrap()).unwrap();
        Self { text, decoder }
    }

    /// Prompt tokens in a second, of one prompt of words that were never seen.
    pub fn prompt(&mut self, length: usize) -> f64 {
        let started = Instant::now();
        self.add(1, length, 1);
        while !self.decoder.is_idle() {
            self.decoder.step().unwrap();
        }
        self.decoder.finished();
        self.decoder.made();
        length as f64 / started.elapsed().as_secs_f64()
    }

    /// Tokens in a second of sequences that generate together, once all prompts are read.
    pub fn generate(&mut self, count: usize, length: usize, generated: usize) -> f64 {
        self.add(count, length, generated);
        let mut made = 0;
        while made < count {
            self.decoder.step().unwrap();
            made += self.decoder.made().len();
        }
        let (started, mut after) = (Instant::now(), 0);
        while !self.decoder.is_idle() {
            self.decoder.step().unwrap();
            after += self.decoder.made().len();
        }
        self.decoder.finished();
        after as f64 / started.elapsed().as_secs_f64()
    }

    fn add(&mut self, count: usize, length: usize, generated: usize) {
        let params = SamplingParams { temperature: 0.0, max_tokens: generated, ..SamplingParams::default() };
        for id in 0..count {
            let tokens = (0..length).map(|_| fastrand::u32(1000..40_000)).collect();
            let sequence = Sequence::new(tokens, Goal::Generate(params.clone()));
            self.decoder.add(SequenceId(id as u64), Arc::new(sequence));
        }
    }
}
