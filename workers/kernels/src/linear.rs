//! `y = f(x · Wᵀ + b)` for rows `x`, in f32.

use std::ops::Range;

use crate::activation::{Activation, finish};
use crate::buffer::Buffer;
use crate::level::{Level, Work};
use crate::simd::Simd;
use crate::team::{Pointer, Team, share};
use crate::tile::{Matrix, Tiles, each_tile, product};

/// Columns of a panel, in which weights stand next to each other as they are used.
pub(crate) const PANEL: usize = 32;
/// Rows that are taken through all panels together, so that they stay in the second-level cache.
const BLOCK: usize = 96;

/// Weights of a linear layer, in panels.
#[derive(Clone, Debug)]
pub struct Linear {
    inputs: usize,
    outputs: usize,
    /// `[panel][input][column]`; columns beyond the outputs are 0.
    panels: Buffer<f32>,
    bias: Buffer<f32>,
}

impl Linear {
    /// `weight` is `[outputs, inputs]`, as PyTorch has it.
    ///
    /// # Panics
    /// If `bias` has not a value for each output, or `weight` is not a matrix of that width.
    pub fn new(weight: &[f32], bias: Option<&[f32]>, inputs: usize) -> Self {
        let outputs = weight.len() / inputs;
        assert_eq!(outputs * inputs, weight.len(), "weights are a matrix");
        let mut panels = Buffer::zeroed(outputs.div_ceil(PANEL) * PANEL * inputs);
        for (output, row) in weight.chunks_exact(inputs).enumerate() {
            let panel = &mut panels[output / PANEL * PANEL * inputs..];
            for (input, value) in row.iter().enumerate() {
                panel[input * PANEL + output % PANEL] = *value;
            }
        }
        Self { inputs, outputs, panels, bias: padded(bias, outputs) }
    }

    pub fn outputs(&self) -> usize {
        self.outputs
    }

    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// Rows of inputs to as many rows of outputs.
    pub fn forward(&self, level: Level, input: &[f32], output: &mut [f32], activation: Activation) {
        let rows = self.rows(input, output);
        self.product(level, input, output.as_mut_ptr(), rows, activation, 0..self.outputs);
    }

    /// The same, each thread of a team with its share of the columns.
    pub fn forward_on(&self, team: &Team, level: Level, input: &[f32], output: &mut [f32], activation: Activation) {
        let (rows, output) = (self.rows(input, output), Pointer(output.as_mut_ptr()));
        team.run(|part| {
            let columns = share(self.outputs, PANEL, team.threads(), part);
            self.product(level, input, output.get(), rows, activation, columns);
        });
    }

    fn rows(&self, input: &[f32], output: &[f32]) -> usize {
        let rows = input.len() / self.inputs;
        assert_eq!(input.len(), rows * self.inputs, "whole rows go in");
        assert_eq!(output.len(), rows * self.outputs, "there is room for each row");
        rows
    }

    fn product(
        &self,
        level: Level,
        input: &[f32],
        output: *mut f32,
        rows: usize,
        activation: Activation,
        columns: Range<usize>,
    ) {
        let input = Matrix::of(input, self.inputs);
        level.run(Product { linear: self, input, output, rows, activation, columns, panel: 0, column: 0 });
    }
}

/// The bias of each column of each panel.
pub(crate) fn padded(bias: Option<&[f32]>, outputs: usize) -> Buffer<f32> {
    let mut padded = Buffer::zeroed(outputs.next_multiple_of(PANEL));
    if let Some(bias) = bias {
        padded[..outputs].copy_from_slice(bias);
    }
    padded
}

struct Product<'a> {
    linear: &'a Linear,
    input: Matrix<f32>,
    output: *mut f32,
    rows: usize,
    activation: Activation,
    /// Those that are wanted, in whole panels.
    columns: Range<usize>,
    panel: usize,
    column: usize,
}

impl Work for Product<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(mut self) {
        for block in (0..self.rows).step_by(BLOCK) {
            let rows = block..self.rows.min(block + BLOCK);
            for panel in self.columns.start / PANEL..self.columns.end.div_ceil(PANEL) {
                self.panel = panel;
                for column in (0..PANEL).step_by(2 * S::LANES) {
                    self.column = column;
                    // SAFETY: the rows are there, and the panel is.
                    unsafe { each_tile::<S, _>(rows.clone(), &mut self) };
                }
            }
        }
    }
}

impl Tiles for Product<'_> {
    #[inline(always)]
    unsafe fn tile<S: Simd, const R: usize>(&mut self, row: usize) {
        let Linear { inputs, outputs, panels, bias } = self.linear;
        let first = self.panel * PANEL + self.column;
        if first >= *outputs {
            return;
        }
        // SAFETY: panels are padded to whole ones, and so is the bias.
        unsafe {
            let bias = bias.as_ptr().add(first);
            let start = [[S::load(bias), S::load(bias.add(S::LANES))]; R];
            let panel = Matrix::of(panels, PANEL).at(self.panel * inputs, self.column);
            let sums = product::<S, R>(self.input.at(row, 0), panel, *inputs, start);
            for (r, sums) in sums.into_iter().enumerate() {
                let to = self.output.add((row + r) * outputs + first);
                finish::<S>(sums, self.activation, to, outputs - first);
            }
        }
    }
}
