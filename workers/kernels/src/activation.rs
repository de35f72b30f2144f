//! What is done with a sum before it is stored.

use crate::level::{Level, Work};
use crate::math::{gelu, gelu_tanh, quick_gelu, silu, tanh};
use crate::simd::Simd;

/// The function after a linear layer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Activation {
    #[default]
    None,
    /// By the error function: exact.
    Gelu,
    /// By tanh: what some models were trained with.
    GeluTanh,
    Silu,
    Relu,
    Tanh,
    /// x · sigmoid(1.702 x), by which the first CLIP models approximate Gelu.
    QuickGelu,
}

/// What a perceptron does between going up and coming down.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Function {
    Plain(Activation),
    /// f(gate) · value
    Gated(Activation),
    /// gate · sigmoid(alpha · gate) · (value + 1), neither larger than the limit.
    Clamped {
        alpha: f32,
        limit: f32,
    },
}

impl Activation {
    #[inline(always)]
    pub(crate) unsafe fn of<S: Simd>(self, x: S::F) -> S::F {
        // SAFETY: as promised by the caller.
        unsafe {
            match self {
                Self::None => x,
                Self::Gelu => gelu::<S>(x),
                Self::GeluTanh => gelu_tanh::<S>(x),
                Self::Silu => silu::<S>(x),
                Self::Relu => S::max(x, S::splat(0.0)),
                Self::Tanh => tanh::<S>(x),
                Self::QuickGelu => quick_gelu::<S>(x),
            }
        }
    }
}

/// Stores two vectors, or as much of them as there are columns.
#[inline(always)]
pub(crate) unsafe fn finish<S: Simd>(sums: [S::F; 2], activation: Activation, to: *mut f32, columns: usize) {
    // SAFETY: as promised by the caller.
    unsafe {
        let [x, y] = [activation.of::<S>(sums[0]), activation.of::<S>(sums[1])];
        if columns >= 2 * S::LANES {
            S::store(to, x);
            S::store(to.add(S::LANES), y);
        } else {
            let mut both = [0.0; 32];
            S::store(both.as_mut_ptr(), x);
            S::store(both.as_mut_ptr().add(S::LANES), y);
            std::ptr::copy_nonoverlapping(both.as_ptr(), to, columns);
        }
    }
}

/// Gated rows, `[rows, 2 · width]`, of which the first half goes through the activation: `f(a) · b` to `[rows, width]`.
pub fn gate(level: Level, input: &[f32], output: &mut [f32], width: usize, activation: Activation) {
    assert_eq!(input.len(), 2 * output.len(), "two go in for each that comes out");
    assert_eq!(output.len() % width, 0, "whole rows come out");
    level.run(Gate { input, output, width, activation });
}

struct Gate<'a> {
    input: &'a [f32],
    output: &'a mut [f32],
    width: usize,
    activation: Activation,
}

impl Work for Gate<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let width = self.width;
        for (input, output) in self.input.chunks_exact(2 * width).zip(self.output.chunks_exact_mut(width)) {
            let (gates, values) = input.split_at(width);
            let whole = width - width % S::LANES;
            for at in (0..whole).step_by(S::LANES) {
                // SAFETY: a whole vector is left in all three.
                unsafe {
                    let gate = self.activation.of::<S>(S::load(gates.as_ptr().add(at)));
                    S::store(output.as_mut_ptr().add(at), S::mul(gate, S::load(values.as_ptr().add(at))));
                }
            }
            for at in whole..width {
                let mut lanes = [0.0; 16];
                // SAFETY: no vector is longer than 16.
                unsafe { S::store(lanes.as_mut_ptr(), self.activation.of::<S>(S::splat(gates[at]))) };
                output[at] = lanes[0] * values[at];
            }
        }
    }
}
