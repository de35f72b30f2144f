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
        Self::of(&registry(dtype))
    }

    /// One that guesses at most so many tokens at a time.
    pub fn guessing(dtype: &str, tokens: usize) -> Self {
        let line = format!("dtype = \"{dtype}\"\n");
        let registry = registry(dtype);
        assert!(registry.contains(&line), "the registry says the type in a line of its own");
        Self::of(&registry.replace(&line, &format!("{line}prompt_lookup_tokens = {tokens}\n")))
    }

    fn of(registry: &str) -> Self {
        let registry = Registry::parse(registry).unwrap();
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
        self.rate(count)
    }

    /// Tokens in a second of one sequence that says again what stands in its prompt twice.
    pub fn repeat(&mut self, text: &str, generated: usize) -> f64 {
        let tokens = self.text.encode(&format!("{text}\n\n{text}\n\n")).unwrap();
        self.add_one(SequenceId(0), tokens, generated);
        self.rate(1)
    }

    /// Once all prompts are read.
    fn rate(&mut self, count: usize) -> f64 {
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
        for id in 0..count {
            let tokens = (0..length).map(|_| fastrand::u32(1000..40_000)).collect();
            self.add_one(SequenceId(id as u64), tokens, generated);
        }
    }

    fn add_one(&mut self, id: SequenceId, tokens: Vec<u32>, generated: usize) {
        let params = SamplingParams { temperature: 0.0, max_tokens: generated, ..SamplingParams::default() };
        self.decoder.add(id, Arc::new(Sequence::new(tokens, Goal::Generate(params))));
    }
}
