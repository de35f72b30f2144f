//! What is done to each row by itself: norms, and rotary positions.

use crate::level::{Level, Work};
use crate::simd::Simd;

/// A norm over the values of a row.
#[derive(Clone, Debug)]
pub struct Norm {
    weight: Vec<f32>,
    bias: Option<Vec<f32>>,
    epsilon: f32,
    kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// To the mean 0 and the variance 1.
    Layer,
    /// To the root mean square 1.
    Rms,
}

impl Norm {
    /// Ba et al., 2016.
    pub fn layer(weight: Vec<f32>, bias: Option<Vec<f32>>, epsilon: f32) -> Self {
        assert!(bias.as_ref().is_none_or(|bias| bias.len() == weight.len()), "as many biases as weights");
        Self { weight, bias, epsilon, kind: Kind::Layer }
    }

    /// Zhang and Sennrich, 2019.
    pub fn rms(weight: Vec<f32>, epsilon: f32) -> Self {
        Self { weight, bias: None, epsilon, kind: Kind::Rms }
    }

    /// Values of a row.
    pub fn width(&self) -> usize {
        self.weight.len()
    }

    /// Norms rows where they stand.
    pub fn apply(&self, level: Level, rows: &mut [f32]) {
        assert_eq!(rows.len() % self.width(), 0, "rows are whole");
        level.run(Normed { norm: self, rows, added: None });
    }

    /// Adds rows to others and norms the sum, which stays in `rows`.
    pub fn add_and_apply(&self, level: Level, rows: &mut [f32], added: &[f32]) {
        assert_eq!(rows.len() % self.width(), 0, "rows are whole");
        assert_eq!(rows.len(), added.len(), "each row has one that is added");
        level.run(Normed { norm: self, rows, added: Some(added) });
    }
}

struct Normed<'a> {
    norm: &'a Norm,
    rows: &'a mut [f32],
    added: Option<&'a [f32]>,
}

impl Work for Normed<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let width = self.norm.width();
        for (index, row) in self.rows.chunks_exact_mut(width).enumerate() {
            if let Some(added) = self.added {
                row.iter_mut().zip(&added[index * width..]).for_each(|(value, added)| *value += added);
            }
            // SAFETY: as promised by the caller.
            unsafe {
                let mean = match self.norm.kind {
                    Kind::Layer => fold::<S>(row, 0.0, false) / width as f32,
                    Kind::Rms => 0.0,
                };
                let variance = fold::<S>(row, mean, true) / width as f32;
                let scale = 1.0 / (variance + self.norm.epsilon).sqrt();
                match &self.norm.bias {
                    Some(bias) => {
                        for ((value, weight), bias) in row.iter_mut().zip(&self.norm.weight).zip(bias) {
                            *value = (*value - mean) * scale * weight + bias;
                        }
                    }
                    None => {
                        for (value, weight) in row.iter_mut().zip(&self.norm.weight) {
                            *value = (*value - mean) * scale * weight;
                        }
                    }
                }
            }
        }
    }
}

/// The sum of what is above `mean`, or of its squares.
#[inline(always)]
unsafe fn fold<S: Simd>(row: &[f32], mean: f32, squared: bool) -> f32 {
    let whole = row.len() - row.len() % S::LANES;
    // SAFETY: as promised by the caller, and a whole vector is left.
    let sum = unsafe {
        let mut sum = S::splat(0.0);
        for at in (0..whole).step_by(S::LANES) {
            let value = S::sub(S::load(row.as_ptr().add(at)), S::splat(mean));
            sum = if squared { S::mul_add(value, value, sum) } else { S::add(sum, value) };
        }
        S::sum(sum)
    };
    let rest = row[whole..].iter().map(|value| if squared { (value - mean).powi(2) } else { value - mean });
    sum + rest.sum::<f32>()
}

/// Sines and cosines of rotary positions (Su et al., 2021), in the halves that Hugging Face's models turn.
#[derive(Clone, Debug)]
pub struct Rotary {
    half: usize,
    /// For each position the cosines, then the sines, of its angles.
    turns: Vec<f32>,
}

impl Rotary {
    /// For heads of `size` values, at positions below `positions`.
    pub fn new(size: usize, positions: usize, theta: f64) -> Self {
        let frequencies: Vec<f64> = (0..size / 2).map(|at| theta.powf(-2.0 * at as f64 / size as f64)).collect();
        Self::of(&frequencies, positions, 1.0)
    }

    /// For heads whose pairs of values turn by these angles from one position to the next, and become `scale` times as
    /// long.
    pub fn of(frequencies: &[f64], positions: usize, scale: f64) -> Self {
        let turn = |position: usize| {
            let angle = move |frequency: &f64| position as f64 * frequency;
            let cosines = frequencies.iter().map(move |frequency| (angle(frequency).cos() * scale) as f32);
            cosines.chain(frequencies.iter().map(move |frequency| (angle(frequency).sin() * scale) as f32))
        };
        Self { half: frequencies.len(), turns: (0..positions).flat_map(turn).collect() }
    }

    /// Turns the heads that stand next to each other in `heads`.
    pub fn turn(&self, heads: &mut [f32], position: usize) {
        let half = self.half;
        let (cosines, sines) = self.turns[position * 2 * half..][..2 * half].split_at(half);
        for head in heads.chunks_exact_mut(2 * half) {
            let (left, right) = head.split_at_mut(half);
            for at in 0..half {
                let (x, y) = (left[at], right[at]);
                left[at] = x * cosines[at] - y * sines[at];
                right[at] = y * cosines[at] + x * sines[at];
            }
        }
    }
}
