//! From the vectors of a sequence's tokens to one: pooling, and what a model does after it.

use kernels::{Level, Linear, Norm};

use super::blueprint::{Head, Pooling, Step};

/// `rows` are the tokens' vectors, one after the other.
pub fn pool(level: Level, head: &Head<Linear, Norm>, rows: &[f32], width: usize) -> Vec<f32> {
    let vector = head.pooling.iter().flat_map(|pooling| pooling.of(rows, width)).collect();
    finish(level, head, vector)
}

/// What follows pooling.
pub fn finish(level: Level, head: &Head<Linear, Norm>, mut vector: Vec<f32>) -> Vec<f32> {
    for step in &head.steps {
        match step {
            Step::Linear(linear, activation) => {
                let mut output = vec![0.0; linear.outputs()];
                linear.forward(level, &vector, &mut output, *activation);
                vector = output;
            }
            Step::Norm(norm) => norm.apply(level, &mut vector),
            Step::Normalize => normalize(&mut vector),
        }
    }
    vector
}

/// To the length 1.
pub fn normalize(vector: &mut [f32]) {
    let length = vector.iter().map(|value| value * value).sum::<f32>().sqrt().max(f32::MIN_POSITIVE);
    vector.iter_mut().for_each(|value| *value /= length);
}

impl Pooling {
    pub fn of(self, rows: &[f32], width: usize) -> Vec<f32> {
        let length = rows.len() / width;
        let sum = |weight: fn(usize) -> f32| {
            let mut sum = vec![0.0; width];
            for (token, row) in rows.chunks_exact(width).enumerate() {
                sum.iter_mut().zip(row).for_each(|(sum, value)| *sum += weight(token) * value);
            }
            sum
        };
        let over = |sum: Vec<f32>, weight: f32| sum.into_iter().map(|value| value / weight).collect();
        match self {
            Self::Cls => rows[..width].to_vec(),
            Self::Last => rows[rows.len() - width..].to_vec(),
            Self::Mean => over(sum(|_| 1.0), length as f32),
            Self::MeanSqrtLength => over(sum(|_| 1.0), (length as f32).sqrt()),
            Self::WeightedMean => over(sum(|token| (token + 1) as f32), (length * (length + 1) / 2) as f32),
            Self::Max => {
                let mut most = rows[..width].to_vec();
                for row in rows.chunks_exact(width) {
                    most.iter_mut().zip(row).for_each(|(most, value)| *most = most.max(*value));
                }
                most
            }
        }
    }
}
