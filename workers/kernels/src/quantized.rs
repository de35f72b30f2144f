//! The same as `linear`, in int8: weights with a scale for each output, made when a model is loaded; inputs with a scale
//! and a zero point for each row, made as they come ("dynamic quantization").
//!
//! A row has one scale, so one large input makes all others coarse. Where it is known which inputs are large, they are
//! made smaller and their weights larger by as much (Xiao et al., 2023, "SmoothQuant").

use crate::activation::{Activation, finish};
use crate::buffer::Buffer;
use crate::level::{Level, Work};
use crate::linear::{PANEL, padded};
use crate::simd::Simd;
use crate::tile::{Tiles, each_tile};

/// Inputs are padded to this many, which a matrix tile takes at a time.
pub(crate) const DEPTH: usize = 64;
/// Rows are padded to this many, which a matrix tile has.
pub(crate) const HEIGHT: usize = 16;
const BLOCK: usize = 192;
const WEIGHT_MAX: f32 = 127.0;

/// Quantized weights of a linear layer, in panels.
#[derive(Clone, Debug)]
pub struct QuantizedLinear {
    inputs: usize,
    pub(crate) depth: usize,
    pub(crate) outputs: usize,
    /// `[panel][input / 4][column][input % 4]`, as four products are summed at a time.
    pub(crate) panels: Buffer<i8>,
    scales: Buffer<f32>,
    /// What inputs are multiplied by before they are quantized.
    balance: Vec<f32>,
    /// Of a column's weights: what a zero point adds to its products.
    totals: Buffer<i32>,
    bias: Buffer<f32>,
}

/// Rows of bytes, which a thread uses again.
#[derive(Debug, Default)]
pub struct QuantizedRows {
    /// One after the other; for matrix tiles in blocks of 16 rows by 64 bytes, as a tile is read.
    pub(crate) values: Buffer<u8>,
    /// Scale and zero point of each row.
    scales: Vec<(f32, f32)>,
}

impl QuantizedLinear {
    /// `weight` is `[outputs, inputs]`. `sizes` are how large each input is expected to be, where that is known.
    ///
    /// # Panics
    /// As [`Linear::new`](crate::Linear::new), or if there is not a size for each input.
    pub fn new(weight: &[f32], bias: Option<&[f32]>, inputs: usize, sizes: Option<&[f32]>) -> Self {
        let outputs = weight.len() / inputs;
        assert_eq!(outputs * inputs, weight.len(), "weights are a matrix");
        let (depth, columns) = (inputs.next_multiple_of(DEPTH), outputs.next_multiple_of(PANEL));
        let mut panels = Buffer::zeroed(columns * depth);
        let (mut scales, mut totals) = (Buffer::zeroed(columns), Buffer::zeroed(columns));
        let balance = balance(weight, inputs, sizes);
        for (output, row) in weight.chunks_exact(inputs).enumerate() {
            let row: Vec<f32> = row.iter().zip(&balance).map(|(value, factor)| value / factor).collect();
            let most = row.iter().fold(0.0_f32, |most, value| most.max(value.abs()));
            let scale = if most > 0.0 { most / WEIGHT_MAX } else { 1.0 };
            let panel: &mut [i8] = &mut panels[output / PANEL * PANEL * depth..];
            for (input, value) in row.iter().enumerate() {
                let quantized = (value / scale).round() as i8;
                panel[(input / 4 * PANEL + output % PANEL) * 4 + input % 4] = quantized;
                totals[output] += i32::from(quantized);
            }
            scales[output] = scale;
        }
        Self { inputs, depth, outputs, panels, scales, balance, totals, bias: padded(bias, outputs) }
    }

    pub fn outputs(&self) -> usize {
        self.outputs
    }

    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// Rows of inputs to as many rows of outputs.
    pub fn forward(
        &self,
        level: Level,
        input: &[f32],
        output: &mut [f32],
        activation: Activation,
        scratch: &mut QuantizedRows,
    ) {
        let rows = input.len() / self.inputs;
        assert_eq!(input.len(), rows * self.inputs, "whole rows go in");
        assert_eq!(output.len(), rows * self.outputs, "there is room for each row");
        scratch.values.resize(rows.next_multiple_of(HEIGHT) * self.depth);
        scratch.scales.resize(rows, (0.0, 0.0));
        #[cfg(target_arch = "x86_64")]
        let in_tiles = level.has_tiles();
        #[cfg(not(target_arch = "x86_64"))]
        let in_tiles = false;
        level.run(Quantize { linear: self, input, rows: scratch, in_tiles });
        let product =
            Product { linear: self, input: scratch, output: output.as_mut_ptr(), rows, activation, at: (0, 0) };
        #[cfg(target_arch = "x86_64")]
        if in_tiles {
            return level.run(crate::amx::Tiled(product));
        }
        level.run(product);
    }
}

/// For each input, what makes it as large as the largest of its weights.
fn balance(weight: &[f32], inputs: usize, sizes: Option<&[f32]>) -> Vec<f32> {
    let Some(sizes) = sizes else { return vec![1.0; inputs] };
    assert_eq!(sizes.len(), inputs, "a size for each input");
    let mut largest = vec![0.0_f32; inputs];
    for row in weight.chunks_exact(inputs) {
        largest.iter_mut().zip(row).for_each(|(largest, value)| *largest = largest.max(value.abs()));
    }
    let factor = |(weight, size): (&f32, &f32)| match *weight > 0.0 && *size > 0.0 {
        true => (weight / size).sqrt(),
        false => 1.0,
    };
    largest.iter().zip(sizes).map(factor).collect()
}

struct Quantize<'a> {
    linear: &'a QuantizedLinear,
    input: &'a [f32],
    rows: &'a mut QuantizedRows,
    in_tiles: bool,
}

impl Quantize<'_> {
    /// Where 64 bytes of a row begin.
    #[inline(always)]
    fn place(&self, row: usize, column: usize) -> usize {
        let depth = self.linear.depth;
        match self.in_tiles {
            true => (row - row % HEIGHT) * depth + column * HEIGHT + row % HEIGHT * DEPTH,
            false => row * depth + column,
        }
    }
}

impl Work for Quantize<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let QuantizedLinear { inputs, depth, balance, .. } = self.linear;
        for (row, values) in self.input.chunks_exact(*inputs).enumerate() {
            let whole = inputs - inputs % S::LANES;
            // SAFETY: as promised by the caller; up to `whole` there are whole vectors.
            unsafe {
                // 0 is in the range, so that the zero point is too.
                let (mut least, mut most) = (S::splat(0.0), S::splat(0.0));
                for at in (0..whole).step_by(S::LANES) {
                    let value = S::mul(S::load(values.as_ptr().add(at)), S::load(balance.as_ptr().add(at)));
                    (least, most) = (S::min(least, value), S::max(most, value));
                }
                let (mut least, mut most) = (S::least(least), S::greatest(most));
                for (value, factor) in values[whole..].iter().zip(&balance[whole..]) {
                    (least, most) = (least.min(value * factor), most.max(value * factor));
                }
                let step = ((most - least) / S::ACTIVATION_MAX).max(f32::MIN_POSITIVE);
                let zero = (-least / step).round();
                self.rows.scales[row] = (step, zero);
                let (inverse, limit) = (S::splat(1.0 / step), S::splat(S::ACTIVATION_MAX));
                for column in (0..*depth).step_by(DEPTH) {
                    let place = self.place(row, column);
                    let bytes = &mut self.rows.values[place..place + DEPTH];
                    let end = whole.min(column + DEPTH);
                    for at in (column..end).step_by(S::LANES) {
                        let factor = S::mul(S::load(balance.as_ptr().add(at)), inverse);
                        let value = S::mul_add(S::load(values.as_ptr().add(at)), factor, S::splat(zero));
                        let value = S::min(S::max(S::round(value), S::splat(0.0)), limit);
                        S::store_bytes(bytes.as_mut_ptr().add(at - column), value);
                    }
                    for at in end.max(column)..column + DEPTH {
                        let value = values.get(at).map_or(0.0, |value| value * balance[at] / step + zero);
                        bytes[at - column] = value.round().clamp(0.0, S::ACTIVATION_MAX) as u8;
                    }
                }
            }
        }
    }
}

pub(crate) struct Product<'a> {
    pub linear: &'a QuantizedLinear,
    pub input: &'a QuantizedRows,
    pub output: *mut f32,
    pub rows: usize,
    pub activation: Activation,
    /// Panel, and column in it.
    pub at: (usize, usize),
}

impl Product<'_> {
    /// Turns sums of two vectors of columns into outputs of a row.
    #[inline(always)]
    pub(crate) unsafe fn finish<S: Simd>(&self, sums: [S::F; 2], row: usize) {
        let QuantizedLinear { outputs, scales, totals, bias, .. } = self.linear;
        let first = self.at.0 * PANEL + self.at.1;
        let (scale, zero) = self.input.scales[row];
        // SAFETY: scales, totals and bias are padded to whole panels.
        unsafe {
            let (scale, zero) = (S::splat(scale), S::splat(-zero));
            let [left, right] = [first, first + S::LANES].map(|at| Column {
                total: totals.as_ptr().wrapping_add(at),
                scale: scales.as_ptr().wrapping_add(at),
                bias: bias.as_ptr().wrapping_add(at),
            });
            let values = [left.output::<S>(sums[0], scale, zero), right.output::<S>(sums[1], scale, zero)];
            finish::<S>(values, self.activation, self.output.add(row * outputs + first), outputs - first);
        }
    }
}

/// What the sums of a vector of columns are finished with.
struct Column {
    total: *const i32,
    scale: *const f32,
    bias: *const f32,
}

impl Column {
    #[inline(always)]
    unsafe fn output<S: Simd>(&self, sums: S::F, scale: S::F, zero: S::F) -> S::F {
        // SAFETY: as promised by the caller.
        unsafe {
            let sums = S::mul_add(zero, S::load_sums(self.total), sums);
            S::mul_add(sums, S::mul(scale, S::load(self.scale)), S::load(self.bias))
        }
    }
}

impl Work for Product<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(mut self) {
        for block in (0..self.rows).step_by(BLOCK) {
            let rows = block..self.rows.min(block + BLOCK);
            for first in (0..self.linear.outputs).step_by(2 * S::LANES) {
                self.at = (first / PANEL, first % PANEL);
                // SAFETY: the rows are there, and the panel is.
                unsafe { each_tile::<S, _>(rows.clone(), &mut self) };
            }
        }
    }
}

impl Tiles for Product<'_> {
    #[inline(always)]
    unsafe fn tile<S: Simd, const R: usize>(&mut self, row: usize) {
        let QuantizedLinear { depth, panels, .. } = self.linear;
        let mut sums = [[unsafe { S::zero() }; 2]; R];
        // SAFETY: rows and panels are padded to the depth.
        unsafe {
            let input = self.input.values.as_ptr().add(row * depth);
            let panel = panels.as_ptr().add(self.at.0 * depth * PANEL + self.at.1 * 4);
            for quad in 0..depth / 4 {
                let weights = panel.add(quad * PANEL * 4);
                for (r, [x, y]) in sums.iter_mut().enumerate() {
                    let four = input.add(r * depth + quad * 4).cast::<u32>().read_unaligned();
                    *x = S::dot(*x, four, weights);
                    *y = S::dot(*y, four, weights.add(4 * S::LANES));
                }
            }
            for (r, [x, y]) in sums.into_iter().enumerate() {
                self.finish::<S>([S::to_f32(x), S::to_f32(y)], row + r);
            }
        }
    }
}
