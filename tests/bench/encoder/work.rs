//! What engines are asked: sequences of random tokens, the same in every run.

use serde::{Deserialize, Serialize};

/// Tokens of the model: those around a text, and those a text may have.
const BEGIN: u32 = 101;
const END: u32 = 102;
const WORDS: std::ops::Range<u32> = 1000..29_000;
/// Of the natural logarithm of a length: texts of 49 tokens in the median, a few as long as the model takes.
const MEAN: f64 = 3.9;
const DEVIATION: f64 = 0.65;

/// A line that a peer reads.
#[derive(Clone, Serialize)]
pub struct Work {
    pub sequences: Vec<Vec<u32>>,
    /// Of the peers, which pad; ours takes what waits.
    pub batch: usize,
    /// Whether a peer may put the sequences in the order of their lengths.
    pub sorted: bool,
    pub vectors: bool,
}

/// The line that it answers with.
#[derive(Deserialize)]
pub struct Answer {
    pub seconds: f64,
    /// Of each batch.
    pub times: Vec<f64>,
    #[serde(default)]
    pub vectors: Vec<Vec<f32>>,
    pub peak_bytes: u64,
}

impl Work {
    pub fn new(sequences: Vec<Vec<u32>>) -> Self {
        Self { sequences, batch: 32, sorted: false, vectors: false }
    }

    pub fn of_length(length: usize, count: usize) -> Self {
        let mut random = fastrand::Rng::with_seed(length as u64);
        Self::new((0..count).map(|_| sequence(&mut random, length)).collect())
    }

    /// Lengths as they are in the world: log-normal, 8 to 256.
    pub fn mixed(count: usize) -> Self {
        let mut random = fastrand::Rng::with_seed(1);
        let length = |random: &mut fastrand::Rng| {
            // Box and Muller.
            let (radius, angle) = ((-2.0 * (1.0 - random.f64()).ln()).sqrt(), std::f64::consts::TAU * random.f64());
            (MEAN + DEVIATION * radius * angle.cos()).exp().clamp(8.0, 256.0) as usize
        };
        let lengths: Vec<usize> = (0..count).map(|_| length(&mut random)).collect();
        Self::new(lengths.into_iter().map(|length| sequence(&mut random, length)).collect())
    }

    /// The first of it, for an engine that would take too long with all.
    pub fn part(&self, count: usize) -> Self {
        let sequences = self.sequences.iter().take(count).cloned().collect();
        Self { sequences, ..self.clone() }
    }
}

fn sequence(random: &mut fastrand::Rng, length: usize) -> Vec<u32> {
    let mut tokens: Vec<u32> = (0..length).map(|_| random.u32(WORDS)).collect();
    tokens[0] = BEGIN;
    tokens[length - 1] = END;
    tokens
}
