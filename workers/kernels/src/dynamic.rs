//! What layers have in common that quantize inputs as they come ("dynamic quantization"), whatever their weights are.

use std::ops::Range;

use crate::activation::Activation;
use crate::buffer::Buffer;
use crate::level::Level;
use crate::linear::PANEL;
use crate::team::{Pointer, Team, share};

/// Rows are padded to this many, which a matrix tile has.
pub(crate) const HEIGHT: usize = 16;
/// Rows that one thread quantizes sooner than several.
const ALONE: usize = 64;

/// Rows of bytes, which a thread uses again.
#[derive(Debug, Default)]
pub struct QuantizedRows {
    /// One after the other; for matrix tiles in blocks of 16 rows by 64 bytes, as a tile is read.
    pub(crate) values: Buffer<u8>,
    /// Of each group of each row a scale and, as its layer wants it, a zero point or what its values add up to.
    pub(crate) scales: Vec<(f32, f32)>,
}

/// Where rows are written to, by several threads: each has rows of its own.
#[derive(Clone, Copy)]
pub(crate) struct Places {
    pub values: *mut u8,
    pub scales: *mut (f32, f32),
}

// SAFETY: see `Places`.
unsafe impl Sync for Places {}
// SAFETY: see `Places`.
unsafe impl Send for Places {}

pub(crate) trait Dynamic: Sync {
    /// Inputs and outputs of a row.
    fn width(&self) -> (usize, usize);

    /// Bytes and scales that a row becomes.
    fn room(&self) -> (usize, usize);

    /// Rows that become those from `first` on: a whole number of tiles.
    fn quantize(&self, level: Level, input: &[f32], places: Places, first: usize);

    /// `columns` are whole panels but for the last.
    fn product(
        &self,
        level: Level,
        input: &QuantizedRows,
        output: Pointer<f32>,
        rows: usize,
        activation: Activation,
        columns: Range<usize>,
    );
}

/// Rows of inputs to as many rows of outputs: on this thread, or on those of a team, each with its share of the rows while they
/// are quantized and then of the columns.
pub(crate) fn forward(
    layer: &impl Dynamic,
    team: Option<&Team>,
    level: Level,
    input: &[f32],
    output: &mut [f32],
    activation: Activation,
    scratch: &mut QuantizedRows,
) {
    let (inputs, outputs) = layer.width();
    let rows = input.len() / inputs;
    assert_eq!(input.len(), rows * inputs, "whole rows go in");
    assert_eq!(output.len(), rows * outputs, "there is room for each row");
    let (bytes, scales) = layer.room();
    scratch.values.resize(rows.next_multiple_of(HEIGHT) * bytes);
    scratch.scales.resize(rows * scales, (0.0, 0.0));
    let places = Places { values: scratch.values.as_mut_ptr(), scales: scratch.scales.as_mut_ptr() };
    match team {
        Some(team) if rows >= ALONE => team.run(|part| {
            let own = share(rows, HEIGHT, team.threads(), part);
            layer.quantize(level, &input[own.start * inputs..own.end * inputs], places, own.start);
        }),
        _ => layer.quantize(level, input, places, 0),
    }
    let (scratch, output) = (&*scratch, Pointer(output.as_mut_ptr()));
    match team {
        Some(team) => team.run(|part| {
            let columns = share(outputs, PANEL, team.threads(), part);
            layer.product(level, scratch, output, rows, activation, columns);
        }),
        None => layer.product(level, scratch, output, rows, activation, 0..outputs),
    }
}
