//! The same as `quantized`, with weights of four bits, as files of four bits have them: 32 inputs of an output share a scale
//! and what is added to all of them. Of the inputs as many share a scale too.
//!
//! For one row a sixth of what f32 takes has to be read, and little else takes time then. For many rows the bits are
//! spread to bytes once, in a strip that stays in the first-level cache.

use std::mem::MaybeUninit;
use std::ops::Range;

use half::f16;

use crate::activation::{Activation, finish};
use crate::buffer::Buffer;
use crate::dynamic::{self, Dynamic, Places, QuantizedRows};
use crate::level::{Level, Work};
use crate::linear::{PANEL, padded};
use crate::simd::Simd;
use crate::team::{Pointer, Team};
use crate::tile::{Tiles, each_low_tile};

pub(crate) mod blocks;

use blocks::Block;

/// Inputs that share a scale.
pub(crate) const GROUP: usize = 32;
/// Bytes that the weights of a group and a panel take.
const GROUP_BYTES: usize = GROUP / 2 * PANEL;
/// Groups that are spread at a time.
const STRIP: usize = 8;
/// Rows that are taken through all panels together.
const BLOCK: usize = 96;
const INPUT_MAX: f32 = 127.0;

/// Weights of four bits, in panels.
#[derive(Clone, Debug)]
pub struct Int4Linear {
    inputs: usize,
    outputs: usize,
    /// In each row, the last one perhaps of fewer inputs.
    groups: usize,
    /// `[panel][group][eight inputs][column][four inputs]`: four in the lower halves of bytes, four in the upper ones.
    panels: Buffer<u8>,
    /// Of f16, `[panel][group][column]`: what the codes' numbers are multiplied by, and what is added then.
    scales: Buffer<u16>,
    least: Buffer<u16>,
    /// The number that each code stands for, at most 127.
    numbers: [u8; 16],
    bias: Buffer<f32>,
}

impl Int4Linear {
    /// The nearest to weights `[outputs, inputs]` that four bits can be.
    ///
    /// # Panics
    /// As [`Linear::new`](crate::Linear::new).
    pub fn new(weight: &[f32], bias: Option<&[f32]>, inputs: usize) -> Self {
        let near = |values: &[f32]| Some(blocks::even(values).unwrap_or_else(|| blocks::nearest(values)));
        Self::of(weight, bias, inputs, blocks::EVEN, near).expect("something is always the nearest")
    }

    /// Weights that are of four bits already: each 32 on a grid of 16 steps, or numbers of MXFP4.
    ///
    /// # Panics
    /// As [`Linear::new`](crate::Linear::new).
    pub fn exact(weight: &[f32], bias: Option<&[f32]>, inputs: usize) -> Option<Self> {
        Self::of(weight, bias, inputs, blocks::EVEN, blocks::even)
            .or_else(|| Self::of(weight, bias, inputs, blocks::FLOATS, blocks::floats))
    }

    fn of(
        weight: &[f32],
        bias: Option<&[f32]>,
        inputs: usize,
        numbers: [u8; 16],
        block: impl Fn(&[f32]) -> Option<Block>,
    ) -> Option<Self> {
        let (outputs, groups) = (weight.len() / inputs, inputs.div_ceil(GROUP));
        assert_eq!(outputs * inputs, weight.len(), "weights are a matrix");
        let columns = outputs.next_multiple_of(PANEL);
        let mut panels = Buffer::zeroed(columns * groups * GROUP / 2);
        let (mut scales, mut least) = (Buffer::zeroed(columns * groups), Buffer::zeroed(columns * groups));
        for (output, row) in weight.chunks_exact(inputs).enumerate() {
            for (group, values) in row.chunks(GROUP).enumerate() {
                let Block { scale, least: lowest, codes } = block(values)?;
                let place = output / PANEL * groups + group;
                scales[place * PANEL + output % PANEL] = f16::from_f32(scale).to_bits();
                least[place * PANEL + output % PANEL] = f16::from_f32(lowest).to_bits();
                let bytes = &mut panels[place * GROUP_BYTES..(place + 1) * GROUP_BYTES];
                for (input, code) in codes.into_iter().enumerate() {
                    let byte = (input / 8 * PANEL + output % PANEL) * 4 + input % 4;
                    bytes[byte] |= code << (input / 4 % 2 * 4);
                }
            }
        }
        Some(Self { inputs, outputs, groups, panels, scales, least, numbers, bias: padded(bias, outputs) })
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

impl Dynamic for Int4Linear {
    fn width(&self) -> (usize, usize) {
        (self.inputs, self.outputs)
    }

    fn room(&self) -> (usize, usize) {
        (self.groups * GROUP, self.groups)
    }

    fn quantize(&self, level: Level, input: &[f32], places: Places, first: usize) {
        level.run(Quantize { linear: self, input, places, first: first * self.groups });
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
        level.run(Product { linear: self, input, output: output.get(), rows, activation, columns });
    }
}

/// Rows to signed bytes, and for each group a scale and what its numbers add up to.
struct Quantize<'a> {
    linear: &'a Int4Linear,
    input: &'a [f32],
    places: Places,
    /// The group that the first of them becomes.
    first: usize,
}

impl Work for Quantize<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let groups = self.input.chunks_exact(self.linear.inputs).flat_map(|row| row.chunks(GROUP));
        for (group, values) in (self.first..).zip(groups) {
            let mut whole = [0.0; GROUP];
            whole[..values.len()].copy_from_slice(values);
            // SAFETY: there is room for each group.
            unsafe { *self.places.scales.add(group) = bytes::<S>(&whole, self.places.values.add(group * GROUP)) };
        }
    }
}

#[inline(always)]
unsafe fn bytes<S: Simd>(values: &[f32; GROUP], to: *mut u8) -> (f32, f32) {
    // SAFETY: as promised by the caller; a vector divides a group.
    unsafe {
        let from = values.as_ptr();
        let mut most = S::splat(0.0);
        for at in (0..GROUP).step_by(S::LANES) {
            most = S::max(most, S::abs(S::load(from.add(at))));
        }
        let step = (S::greatest(most) / INPUT_MAX).max(f32::MIN_POSITIVE);
        let (inverse, half) = (S::splat(1.0 / step), S::splat(128.0));
        let mut total = S::splat(0.0);
        for at in (0..GROUP).step_by(S::LANES) {
            let value = S::round(S::mul(S::load(from.add(at)), inverse));
            total = S::add(total, value);
            S::store_bytes(to.add(at), S::add(value, half));
        }
        // From numbers with 128 added to signed ones.
        for eight in (0..GROUP).step_by(8) {
            let place = to.add(eight).cast::<u64>();
            place.write_unaligned(place.read_unaligned() ^ 0x8080_8080_8080_8080);
        }
        (step, step * S::sum(total))
    }
}

struct Product<'a> {
    linear: &'a Int4Linear,
    input: &'a QuantizedRows,
    output: *mut f32,
    rows: usize,
    activation: Activation,
    /// Those that are wanted, in whole panels.
    columns: Range<usize>,
}

/// Weights as bytes, `[group][four inputs][column][input]`, of two vectors of columns.
#[repr(C, align(64))]
struct Bytes([u8; STRIP * GROUP * PANEL]);

/// What the groups before come to, `[row][column]`.
#[repr(C, align(64))]
struct Sums([[f32; PANEL]; BLOCK]);

impl Work for Product<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let (mut bytes, mut sums) = (MaybeUninit::<Bytes>::uninit(), MaybeUninit::<Sums>::uninit());
        let Int4Linear { groups, outputs, bias, .. } = self.linear;
        for first_row in (0..self.rows).step_by(BLOCK) {
            let rows = first_row..self.rows.min(first_row + BLOCK);
            for column in self.columns.clone().step_by(2 * S::LANES) {
                let (bytes, sums) = (bytes.as_mut_ptr().cast::<u8>(), sums.as_mut_ptr().cast::<f32>());
                for first in (0..*groups).step_by(STRIP) {
                    let own = first..(*groups).min(first + STRIP);
                    // SAFETY: rows and columns are there, panels and bias are padded to whole ones; the strip holds the groups
                    // that it was filled with, and sums are written by the first groups.
                    unsafe {
                        self.spread::<S>(column, own.clone(), bytes);
                        let mut tiles = Strip { product: &self, column, groups: own, bytes, sums, first_row };
                        each_low_tile::<S, _>(rows.clone(), &mut tiles);
                    }
                }
                for row in rows.clone() {
                    // SAFETY: the same.
                    unsafe {
                        let (from, bias) = (sums.add((row - first_row) * PANEL), bias.as_ptr().add(column));
                        let left = S::add(S::load(from), S::load(bias));
                        let right = S::add(S::load(from.add(S::LANES)), S::load(bias.add(S::LANES)));
                        let to = self.output.add(row * outputs + column);
                        finish::<S>([left, right], self.activation, to, outputs - column);
                    }
                }
            }
        }
    }
}

impl Product<'_> {
    /// Some groups of two vectors of columns.
    #[inline(always)]
    unsafe fn spread<S: Simd>(&self, column: usize, groups: Range<usize>, mut to: *mut u8) {
        let Int4Linear { groups: all, panels, numbers, .. } = self.linear;
        let vector = 4 * S::LANES;
        // SAFETY: as promised by the caller.
        unsafe {
            for group in groups {
                let place = column / PANEL * all + group;
                let mut from = panels.as_ptr().add(place * GROUP_BYTES + column % PANEL * 4);
                for _ in 0..GROUP / 8 {
                    S::spread(from, numbers, to, to.add(2 * vector));
                    S::spread(from.add(vector), numbers, to.add(vector), to.add(3 * vector));
                    (from, to) = (from.add(4 * PANEL), to.add(4 * vector));
                }
            }
        }
    }
}

/// Two vectors of f16.
#[inline(always)]
unsafe fn two<S: Simd>(of: &[u16], place: usize) -> [S::F; 2] {
    // SAFETY: as promised by the caller.
    unsafe {
        let from = of.as_ptr().add(place);
        [S::load_half(from), S::load_half(from.add(S::LANES))]
    }
}

/// Some groups of two vectors of columns.
struct Strip<'a> {
    product: &'a Product<'a>,
    column: usize,
    groups: Range<usize>,
    bytes: *const u8,
    sums: *mut f32,
    /// The first that has a place in `sums`.
    first_row: usize,
}

impl Tiles for Strip<'_> {
    #[inline(always)]
    unsafe fn tile<S: Simd, const R: usize>(&mut self, row: usize) {
        let Int4Linear { groups: all, scales, least, .. } = self.product.linear;
        let QuantizedRows { values, scales: steps } = self.product.input;
        // SAFETY: as promised by the one who fills the strip.
        unsafe {
            let to = self.sums.add((row - self.first_row) * PANEL);
            let mut sums = [[S::splat(0.0); 2]; R];
            if self.groups.start > 0 {
                for (r, sums) in sums.iter_mut().enumerate() {
                    let from = to.add(r * PANEL);
                    *sums = [S::load(from), S::load(from.add(S::LANES))];
                }
            }
            let mut weights = self.bytes;
            for group in self.groups.clone() {
                let mut products = [[S::zero(); 2]; R];
                for four in 0..GROUP / 4 {
                    for (r, [x, y]) in products.iter_mut().enumerate() {
                        let place = ((row + r) * all + group) * GROUP + 4 * four;
                        let inputs = values.as_ptr().add(place).cast::<u32>().read_unaligned();
                        *x = S::dot_signed(*x, inputs, weights);
                        *y = S::dot_signed(*y, inputs, weights.add(4 * S::LANES));
                    }
                    weights = weights.add(8 * S::LANES);
                }
                let place = (self.column / PANEL * all + group) * PANEL + self.column % PANEL;
                let (scales, least) = (two::<S>(scales, place), two::<S>(least, place));
                for (r, (sums, products)) in sums.iter_mut().zip(products).enumerate() {
                    let (step, total) = *steps.as_ptr().add((row + r) * all + group);
                    let (step, total) = (S::splat(step), S::splat(total));
                    for side in 0..2 {
                        let products = S::to_f32(products[side]);
                        let scaled = S::mul_add(products, S::mul(scales[side], step), sums[side]);
                        sums[side] = S::mul_add(least[side], total, scaled);
                    }
                }
            }
            for (r, [left, right]) in sums.into_iter().enumerate() {
                S::store(to.add(r * PANEL), left);
                S::store(to.add(r * PANEL + S::LANES), right);
            }
        }
    }
}
