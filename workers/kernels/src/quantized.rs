//! The same as `linear`, in int8: weights with a scale for each output, made when a model is loaded; inputs with a scale
//! and a zero point for each row, made as they come ("dynamic quantization").
//!
//! Inputs share a scale, so one large input makes the others coarse. Where it is known which inputs are large, they are
//! made smaller and their weights larger by as much (Xiao et al., 2023, "SmoothQuant"). And a row can be divided into groups
//! that have scales of their own, which takes a tenth more time.

use std::ops::Range;

use crate::activation::{Activation, finish};
use crate::buffer::Buffer;
use crate::dynamic::{self, Dynamic, HEIGHT, Places, QuantizedRows};
use crate::level::{Level, Work};
use crate::linear::{PANEL, padded};
use crate::simd::Simd;
use crate::team::{Pointer, Team};
use crate::tile::{Tiles, each_low_tile, each_tile};

/// Inputs are padded to this many, which a matrix tile takes at a time.
pub(crate) const DEPTH: usize = 64;
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
    /// Inputs that share a scale: a whole number of times `DEPTH`, or all.
    pub(crate) group: usize,
    /// Of a column's weights in each group: what a zero point adds to its products.
    totals: Buffer<i32>,
    bias: Buffer<f32>,
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
        let mut scales = Buffer::zeroed(columns);
        let balance = balance(weight, inputs, sizes);
        for (output, row) in weight.chunks_exact(inputs).enumerate() {
            let row: Vec<f32> = row.iter().zip(&balance).map(|(value, factor)| value / factor).collect();
            let most = row.iter().fold(0.0_f32, |most, value| most.max(value.abs()));
            let scale = if most > 0.0 { most / WEIGHT_MAX } else { 1.0 };
            let panel: &mut [i8] = &mut panels[output / PANEL * PANEL * depth..];
            for (input, value) in row.iter().enumerate() {
                let quantized = (value / scale).round() as i8;
                panel[(input / 4 * PANEL + output % PANEL) * 4 + input % 4] = quantized;
            }
            scales[output] = scale;
        }
        let (totals, bias) = (totals(&panels, depth, depth), padded(bias, outputs));
        Self { inputs, depth, outputs, panels, scales, balance, group: depth, totals, bias }
    }

    /// The same, with inputs in groups of at most so many.
    pub fn in_groups(mut self, most: usize) -> Self {
        let fits = |group: &usize| self.depth.is_multiple_of(*group) && *group <= most.max(DEPTH);
        let sizes = (DEPTH..=self.depth).step_by(DEPTH);
        self.group = sizes.filter(fits).max().expect("the depth is a multiple of DEPTH");
        self.totals = totals(&self.panels, self.depth, self.group);
        self
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
        dynamic::forward(self, None, level, input, output, activation, scratch);
    }

    /// The same, each thread of a team with its share: of the rows while they are quantized, then of the columns.
    pub fn forward_on(
        &self,
        team: &Team,
        level: Level,
        input: &[f32],
        output: &mut [f32],
        activation: Activation,
        scratch: &mut QuantizedRows,
    ) {
        dynamic::forward(self, Some(team), level, input, output, activation, scratch);
    }
}

impl Dynamic for QuantizedLinear {
    fn width(&self) -> (usize, usize) {
        (self.inputs, self.outputs)
    }

    fn room(&self) -> (usize, usize) {
        (self.depth, self.depth / self.group)
    }

    fn quantize(&self, level: Level, input: &[f32], places: Places, first: usize) {
        level.run(Quantize { linear: self, input, places, first, in_tiles: has_tiles(level) });
    }

    fn product(
        &self,
        level: Level,
        input: &QuantizedRows,
        output: Pointer<f32>,
        rows: usize,
        activation: Activation,
        columns: Range<usize>,
    ) {
        let output = output.get();
        let product = Product { linear: self, input, output, rows, activation, columns, at: (0, 0) };
        #[cfg(target_arch = "x86_64")]
        if has_tiles(level) {
            return level.run(crate::amx::Tiled(product));
        }
        level.run(product);
    }
}

#[cfg(target_arch = "x86_64")]
fn has_tiles(level: Level) -> bool {
    level.has_tiles()
}

#[cfg(not(target_arch = "x86_64"))]
fn has_tiles(_: Level) -> bool {
    false
}

/// Of each group, for each column.
fn totals(panels: &[i8], depth: usize, group: usize) -> Buffer<i32> {
    let columns = panels.len() / depth;
    let mut totals = Buffer::<i32>::zeroed(depth / group * columns);
    for (panel, weights) in panels.chunks_exact(depth * PANEL).enumerate() {
        for (input, line) in (0..).step_by(4).zip(weights.chunks_exact(4 * PANEL)) {
            let first = input / group * columns + panel * PANEL;
            for (total, four) in totals[first..first + PANEL].iter_mut().zip(line.chunks_exact(4)) {
                *total += four.iter().map(|weight| i32::from(*weight)).sum::<i32>();
            }
        }
    }
    totals
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
    places: Places,
    first: usize,
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
        let QuantizedLinear { inputs, depth, group, .. } = *self.linear;
        for (index, values) in self.input.chunks_exact(inputs).enumerate() {
            let row = self.first + index;
            for first in (0..depth).step_by(group) {
                let inputs = first.min(inputs)..inputs.min(first + group);
                // SAFETY: as promised by the caller.
                unsafe {
                    let (step, zero) = self.scale::<S>(&values[inputs.clone()], inputs.start);
                    *self.places.scales.add((row * depth + first) / group) = (step, zero);
                    for column in (first..first + group).step_by(DEPTH) {
                        let bytes = self.places.values.add(self.place(row, column));
                        let own = column.min(inputs.end)..inputs.end.min(column + DEPTH);
                        self.bytes::<S>(&values[own.clone()], own.start, (step, zero), bytes);
                    }
                }
            }
        }
    }
}

impl Quantize<'_> {
    /// Of some values, the first of which is the input `first`.
    #[inline(always)]
    unsafe fn scale<S: Simd>(&self, values: &[f32], first: usize) -> (f32, f32) {
        let balance = &self.linear.balance[first..];
        let whole = values.len() - values.len() % S::LANES;
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
            (step, (-least / step).round())
        }
    }

    /// Writes values, the first of which is the input `first`, and what is missing of `DEPTH`.
    #[inline(always)]
    unsafe fn bytes<S: Simd>(&self, values: &[f32], first: usize, (step, zero): (f32, f32), to: *mut u8) {
        let balance = &self.linear.balance[first..];
        let whole = values.len() - values.len() % S::LANES;
        // SAFETY: as promised by the caller; up to `whole` there are whole vectors, and there is room for `DEPTH` bytes.
        unsafe {
            let (inverse, limit) = (S::splat(1.0 / step), S::splat(S::ACTIVATION_MAX));
            for at in (0..whole).step_by(S::LANES) {
                let factor = S::mul(S::load(balance.as_ptr().add(at)), inverse);
                let value = S::mul_add(S::load(values.as_ptr().add(at)), factor, S::splat(zero));
                let value = S::min(S::max(S::round(value), S::splat(0.0)), limit);
                S::store_bytes(to.add(at), value);
            }
            let rest =
                values[whole..].iter().zip(&balance[whole..]).map(|(value, factor)| value * factor / step + zero);
            for (at, value) in (whole..DEPTH).zip(rest.chain(std::iter::repeat(0.0))) {
                *to.add(at) = value.round().clamp(0.0, S::ACTIVATION_MAX) as u8;
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
    /// Those that are wanted, in whole panels.
    pub columns: Range<usize>,
    /// Panel, and column in it.
    pub at: (usize, usize),
}

impl Product<'_> {
    /// What the sums of a group are in two vectors of columns of a row.
    #[inline(always)]
    pub(crate) unsafe fn scaled<S: Simd>(&self, sums: [S::F; 2], row: usize, group: usize) -> [S::F; 2] {
        let QuantizedLinear { depth, group: size, scales, totals, .. } = self.linear;
        let (scale, zero) = self.input.scales[row * (depth / size) + group];
        let first = group * scales.len() + self.at.0 * PANEL + self.at.1;
        // SAFETY: totals are padded to whole panels.
        unsafe {
            let (scale, zero, totals) = (S::splat(scale), S::splat(-zero), totals.as_ptr().add(first));
            let left = S::mul_add(zero, S::load_sums(totals), sums[0]);
            let right = S::mul_add(zero, S::load_sums(totals.add(S::LANES)), sums[1]);
            [S::mul(scale, left), S::mul(scale, right)]
        }
    }

    /// Stores outputs of a row.
    #[inline(always)]
    pub(crate) unsafe fn finish<S: Simd>(&self, values: [S::F; 2], row: usize) {
        let QuantizedLinear { outputs, scales, bias, .. } = self.linear;
        let first = self.at.0 * PANEL + self.at.1;
        // SAFETY: scales and bias are padded to whole panels.
        unsafe {
            let (scales, bias) = (scales.as_ptr().add(first), bias.as_ptr().add(first));
            let left = S::mul_add(values[0], S::load(scales), S::load(bias));
            let right = S::mul_add(values[1], S::load(scales.add(S::LANES)), S::load(bias.add(S::LANES)));
            let values = [left, right];
            finish::<S>(values, self.activation, self.output.add(row * outputs + first), outputs - first);
        }
    }
}

impl Work for Product<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(mut self) {
        for block in (0..self.rows).step_by(BLOCK) {
            let rows = block..self.rows.min(block + BLOCK);
            for first in self.columns.clone().step_by(2 * S::LANES) {
                self.at = (first / PANEL, first % PANEL);
                // SAFETY: the rows are there, and the panel is.
                unsafe {
                    match self.linear.group == self.linear.depth {
                        true => each_tile::<S, _>(rows.clone(), &mut self),
                        false => each_low_tile::<S, _>(rows.clone(), &mut self),
                    }
                };
            }
        }
    }
}

impl Tiles for Product<'_> {
    #[inline(always)]
    unsafe fn tile<S: Simd, const R: usize>(&mut self, row: usize) {
        let QuantizedLinear { depth, group, panels, .. } = self.linear;
        // SAFETY: rows and panels are padded to the depth.
        unsafe {
            let input = self.input.values.as_ptr().add(row * depth);
            let panel = panels.as_ptr().add(self.at.0 * depth * PANEL + self.at.1 * 4);
            let mut values = sums::<S, R>(input, *depth, panel, 0..*group);
            for (r, value) in values.iter_mut().enumerate() {
                *value = self.scaled::<S>(*value, row + r, 0);
            }
            for first in (*group..*depth).step_by(*group) {
                let sums = sums::<S, R>(input, *depth, panel, first..first + group);
                for (r, (value, sums)) in values.iter_mut().zip(sums).enumerate() {
                    let more = self.scaled::<S>(sums, row + r, first / group);
                    *value = [S::add(value[0], more[0]), S::add(value[1], more[1])];
                }
            }
            for (r, value) in values.into_iter().enumerate() {
                self.finish::<S>(value, row + r);
            }
        }
    }
}

/// Of the products of some inputs of `R` rows and two vectors of columns.
#[inline(always)]
unsafe fn sums<S: Simd, const R: usize>(
    input: *const u8,
    depth: usize,
    panel: *const i8,
    inputs: Range<usize>,
) -> [[S::F; 2]; R] {
    // SAFETY: as promised by the caller.
    unsafe {
        let mut sums = [[S::zero(); 2]; R];
        for quad in inputs.start / 4..inputs.end / 4 {
            let weights = panel.add(quad * PANEL * 4);
            for (r, [x, y]) in sums.iter_mut().enumerate() {
                let four = input.add(r * depth + quad * 4).cast::<u32>().read_unaligned();
                *x = S::dot(*x, four, weights);
                *y = S::dot(*y, four, weights.add(4 * S::LANES));
            }
        }
        let mut values = [[S::splat(0.0); 2]; R];
        for (value, sums) in values.iter_mut().zip(sums) {
            *value = [S::to_f32(sums[0]), S::to_f32(sums[1])];
        }
        values
    }
}
