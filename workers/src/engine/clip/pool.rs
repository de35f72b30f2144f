//! From the rows of an image to its vector.

use kernels::{Activation, Level, Linear, Norm};

#[derive(Debug)]
pub enum Pool {
    /// CLIP: the first row, normed and projected.
    First { norm: Norm, projection: Linear },
    /// SigLIP: what a learned row sees of all others, and a perceptron.
    Attention(Box<Probe>),
}

#[derive(Debug)]
pub struct Probe {
    /// As it is asked with: projected and scaled.
    pub query: Vec<f32>,
    pub heads: usize,
    pub keys: Linear,
    pub values: Linear,
    pub output: Linear,
    pub norm: Norm,
    pub up: Linear,
    pub activation: Activation,
    pub down: Linear,
}

impl Pool {
    pub fn pool(&self, level: Level, rows: &[f32]) -> Vec<f32> {
        match self {
            Self::First { norm, projection } => {
                let mut first = rows[..norm.width()].to_vec();
                norm.apply(level, &mut first);
                forward(level, projection, &first, Activation::None)
            }
            Self::Attention(probe) => probe.pool(level, rows),
        }
    }
}

impl Probe {
    fn pool(&self, level: Level, rows: &[f32]) -> Vec<f32> {
        let width = self.query.len();
        let size = width / self.heads;
        let keys = forward(level, &self.keys, rows, Activation::None);
        let values = forward(level, &self.values, rows, Activation::None);
        let mut seen = vec![0.0; width];
        for head in 0..self.heads {
            let own = head * size..(head + 1) * size;
            let score = |key: &[f32]| -> f32 {
                key[own.clone()].iter().zip(&self.query[own.clone()]).map(|(a, b)| a * b).sum()
            };
            let scores: Vec<f32> = keys.chunks_exact(width).map(score).collect();
            let most = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let weights: Vec<f32> = scores.iter().map(|score| (score - most).exp()).collect();
            let whole: f32 = weights.iter().sum();
            for (weight, value) in weights.iter().zip(values.chunks_exact(width)) {
                let value = &value[own.clone()];
                seen[own.clone()].iter_mut().zip(value).for_each(|(to, value)| *to += weight / whole * value);
            }
        }
        let mut vector = forward(level, &self.output, &seen, Activation::None);
        let mut inner = vector.clone();
        self.norm.apply(level, &mut inner);
        let inner = forward(level, &self.up, &inner, self.activation);
        let more = forward(level, &self.down, &inner, Activation::None);
        vector.iter_mut().zip(more).for_each(|(to, more)| *to += more);
        vector
    }
}

pub fn forward(level: Level, linear: &Linear, rows: &[f32], activation: Activation) -> Vec<f32> {
    let mut made = vec![0.0; rows.len() / linear.inputs() * linear.outputs()];
    linear.forward(level, rows, &mut made, activation);
    made
}
