//! How far the positions of models turn that were stretched to longer texts than they first read.

use std::f64::consts::{PI, TAU};

use super::blueprint::Rotation;

/// A way to stretch positions, as `rope_parameters` or `rope_scaling` of a `config.json` has it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Scaling {
    None,
    /// All positions are so many times as near (Chen et al., 2023).
    Linear {
        factor: f64,
    },
    /// Slow turns are stretched, fast ones are not, with a slope between (Llama 3.1).
    Llama3 {
        factor: f64,
        slow: f64,
        fast: f64,
        context: f64,
    },
    /// The same by a ramp over the pairs of values, and all become longer (Peng et al., 2023).
    Yarn {
        factor: f64,
        slow: f64,
        fast: f64,
        context: f64,
        scale: Option<f64>,
        truncate: bool,
    },
}

impl Rotation {
    /// For heads of `size` values.
    pub fn new(size: usize, base: f64, scaling: Scaling) -> Self {
        let mut frequencies: Vec<f64> = (0..size / 2).map(|at| base.powf(-2.0 * at as f64 / size as f64)).collect();
        let mut scale = 1.0;
        match scaling {
            Scaling::None => {}
            Scaling::Linear { factor } => frequencies.iter_mut().for_each(|frequency| *frequency /= factor),
            Scaling::Llama3 { factor, slow, fast, context } => {
                for frequency in &mut frequencies {
                    let turns = context * *frequency / TAU;
                    let kept = ((turns - slow) / (fast - slow)).clamp(0.0, 1.0);
                    *frequency *= kept + (1.0 - kept) / factor;
                }
            }
            Scaling::Yarn { factor, slow, fast, context, scale: given, truncate } => {
                // The pair that turns so many times within the context.
                let place = |turns: f64| size as f64 * (context / (turns * 2.0 * PI)).ln() / (2.0 * base.ln());
                let (mut low, mut high) = (place(fast), place(slow));
                if truncate {
                    (low, high) = (low.floor(), high.ceil());
                }
                let (low, mut high) = (low.max(0.0), high.min(size as f64 - 1.0));
                if low == high {
                    high += 0.001;
                }
                for (at, frequency) in frequencies.iter_mut().enumerate() {
                    let stretched = ((at as f64 - low) / (high - low)).clamp(0.0, 1.0);
                    *frequency *= 1.0 - stretched + stretched / factor;
                }
                scale = given.unwrap_or_else(|| if factor > 1.0 { 0.1 * factor.ln() + 1.0 } else { 1.0 });
            }
        }
        Self { frequencies, scale }
    }
}
