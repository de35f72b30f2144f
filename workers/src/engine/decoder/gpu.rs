//! A decoder on a GPU: packed spans of sequences through candle's matrix products and kernels of our own, keys and values in
//! pages. Steps that continue texts are recorded and done again by one call.

mod graphs;
mod load;
mod mixture;
mod model;

use std::slice::ChunksExact;

use candle_core::{DType, Device, Result, Tensor};
use kernels::cuda::{Numbers, fetch};

use self::graphs::Graphs;
use self::model::{Key, Model};
use super::blueprint::Source;
use super::executor::{Input, Watched};
use crate::engine::LoadError;

/// What there is room for from the start: numbers that tell of a step, and rows that logits are wanted of.
const NUMBERS: usize = 1 << 14;
const ROWS: usize = 64;

pub struct Gpu {
    model: Model,
    numbers: [Numbers; 2],
    /// Logits where the GPU writes them, and where they are brought to.
    scores: Tensor,
    logits: Vec<f32>,
    graphs: Graphs<Key>,
}

impl Gpu {
    pub fn new(source: Source, dtype: DType, blocks: usize, device: &Device) -> std::result::Result<Self, LoadError> {
        let model = Model::new(source, dtype, blocks, device)?;
        let room = || {
            let numbers = [Numbers::new(NUMBERS, device)?, Numbers::new(NUMBERS, device)?];
            Ok((numbers, model.room(ROWS)?))
        };
        let (numbers, scores) = room().map_err(LoadError::Device)?;
        Ok(Self { model, numbers, scores, logits: Vec::new(), graphs: Graphs::default() })
    }

    /// As [`Cpu::forward`](super::cpu::Cpu::forward).
    pub fn forward(&mut self, inputs: &[Input<'_>]) -> Result<ChunksExact<'_, f32>> {
        let wanted = wanted(inputs);
        if wanted.len() > self.scores.dim(0)? {
            self.scores = self.model.room(wanted.len().next_power_of_two())?;
            // What was recorded writes to those before.
            self.graphs = Graphs::default();
        }
        let Self { model, numbers, scores, graphs, .. } = self;
        let step = model.plan(inputs, numbers)?;
        let continues = inputs.iter().all(|input| input.tokens.len() == 1 && input.wanted == 1);
        if continues && model.is_straight(inputs.len()) {
            graphs.launch(step.key(), model.device(), || model.score(&model.compute(&step, None)?, scores))?;
        } else {
            let rows = model.compute(&step, None)?;
            if !wanted.is_empty() {
                let rows = rows.index_select(&Tensor::new(&wanted[..], rows.device())?, 0)?;
                model.score(&rows, scores)?;
            }
        }
        match wanted.len() {
            0 => self.logits.clear(),
            count => fetch(&self.scores.narrow(0, 0, count)?, &mut self.logits)?,
        }
        Ok(self.logits.chunks_exact(self.scores.dim(1)?))
    }

    /// As [`Cpu::remember`](super::cpu::Cpu::remember).
    pub fn remember(&mut self, rows: &Tensor, blocks: &[u32]) -> Result<()> {
        self.model.remember(rows, blocks, &mut self.numbers[0])
    }

    /// As [`Cpu::watch`](super::cpu::Cpu::watch).
    pub fn watch(&mut self, input: Input<'_>, mut watched: Watched) -> Result<Watched> {
        let blocks = input.memory.blocks;
        let step = self.model.plan(&[input], &mut self.numbers)?;
        self.model.compute(&step, Some((&mut watched, blocks)))?;
        Ok(watched)
    }
}

/// Of the rows of a step, those after which logits are wanted.
fn wanted(inputs: &[Input<'_>]) -> Vec<u32> {
    let ends = inputs.iter().scan(0, |end, input| {
        *end += input.tokens.len();
        Some((*end - input.wanted) as u32..*end as u32)
    });
    ends.flatten().collect()
}
