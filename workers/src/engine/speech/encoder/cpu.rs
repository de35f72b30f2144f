//! Hearing on the processor.

use kernels::{Activation, Linear};
use rayon::prelude::*;
use schemas::registry::Dtype;

use super::super::files::Files;
use crate::engine::LoadError;
use crate::engine::encoder::cpu::{Body, Place};
use crate::engine::layers::Affine;
use crate::engine::weights::{Weights, exact};

/// Rows of a convolution that a thread computes at a time.
const BLOCK: usize = 125;
/// Inputs that share a scale in int8. With one scale for all, and what is too large for it known from other audio, words came
/// out wrong.
const GROUP: usize = 64;

#[derive(Debug)]
pub struct Cpu {
    convolutions: [Linear; 2],
    positions: Vec<f32>,
    body: Body,
    bands: usize,
    hidden: usize,
    rows: usize,
}

impl Cpu {
    pub fn new(files: &Files, dtype: Dtype) -> Result<Self, LoadError> {
        let (bands, hidden, rows) = (files.sizes.bands, files.sizes.hidden, files.sizes.heard);
        let convolutions = [exact(files.convolution("conv1", bands)?), exact(files.convolution("conv2", hidden)?)];
        let positions = files.positions()?;
        let make: fn(Affine) -> Weights = match dtype {
            Dtype::F32 => Weights::exact,
            Dtype::Int8 => |affine| Weights::quantized_in_groups(affine, GROUP),
            Dtype::F16 | Dtype::Bf16 => return Err(LoadError::NeedsGpu(dtype)),
            Dtype::Int4 => return Err(LoadError::NeedsDecoder(dtype)),
        };
        let body = Body::new(&files.encoder()?, |_| make)?;
        Ok(Self { convolutions, positions, body, bands, hidden, rows })
    }

    pub fn threads(&self) -> usize {
        self.body.threads()
    }

    pub fn run(&self, windows: &[Vec<f32>]) -> Vec<Vec<f32>> {
        let sizes = [self.bands, self.hidden];
        let convolved = |window: &Vec<f32>| convolve(&self.body, &self.convolutions, &self.positions, window, sizes);
        let made: Vec<Vec<f32>> = windows.iter().map(convolved).collect();
        let row = |Place { sequence, position }: Place, to: &mut [f32]| {
            to.copy_from_slice(&made[sequence][position * self.hidden..][..self.hidden]);
        };
        self.body.run(&vec![self.rows; windows.len()], row, <[f32]>::to_vec)
    }
}

/// Both convolutions, and the positions onto what they make.
fn convolve(
    body: &Body,
    [first, second]: &[Linear; 2],
    positions: &[f32],
    window: &[f32],
    [bands, hidden]: [usize; 2],
) -> Vec<f32> {
    let level = body.level();
    let frames = window.len() / bands;
    // A frame of nothing before and after.
    let mut padded = vec![0.0; (frames + 2) * bands];
    padded[bands..][..window.len()].copy_from_slice(window);
    let mut inner = vec![0.0; (frames + 2) * hidden];
    let mut rows = vec![0.0; frames / 2 * hidden];
    body.install(|| {
        let blocks = inner[hidden..(frames + 1) * hidden].par_chunks_mut(BLOCK * hidden);
        blocks.enumerate().for_each(|(block, to)| {
            let count = to.len() / hidden;
            let seen = gathered(&padded, bands, (0..count).map(|row| block * BLOCK + row));
            first.forward(level, &seen, to, Activation::Gelu);
        });
        rows.par_chunks_mut(BLOCK * hidden).enumerate().for_each(|(block, to)| {
            let count = to.len() / hidden;
            let seen = gathered(&inner, hidden, (0..count).map(|row| 2 * (block * BLOCK + row)));
            second.forward(level, &seen, to, Activation::Gelu);
            to.iter_mut().zip(&positions[block * BLOCK * hidden..]).for_each(|(to, more)| *to += more);
        });
    });
    rows
}

/// Three frames from each of these on.
fn gathered(frames: &[f32], width: usize, firsts: impl Iterator<Item = usize>) -> Vec<f32> {
    firsts.flat_map(|first| &frames[first * width..(first + 3) * width]).copied().collect()
}
