//! A decoder on a GPU: packed spans of sequences through candle's matrix products and kernels of our own, keys and values in
//! pages. Steps that continue texts are recorded and done again by one call.

mod graphs;
mod load;
mod mixture;
mod model;

use std::ops::Range;
use std::slice::ChunksExact;

use candle_core::{DType, Device, Result, Tensor};
use kernels::cuda::{Numbers, decoder as cuda, fetch};

use self::graphs::Graphs;
use self::model::{Key, Model};
use super::blueprint::Source;
use super::executor::{After, Input, Watched, draws};
use crate::engine::LoadError;

/// What there is room for from the start: numbers that tell of a step, and rows that logits are wanted of.
const NUMBERS: usize = 1 << 14;
const ROWS: usize = 64;

pub struct Gpu {
    model: Model,
    numbers: [Numbers; 2],
    results: Results,
    graphs: Graphs<Key>,
    /// What was brought here of the results.
    logits: Vec<f32>,
    tokens: Vec<u32>,
}

/// What a step comes to, where the GPU writes it: for each row after which something is wanted.
struct Results {
    scores: Tensor,
    /// How tokens are drawn, and which were.
    draws: Numbers,
    tokens: Tensor,
}

impl Results {
    fn new(rows: usize, vocabulary: usize, device: &Device) -> Result<Self> {
        Ok(Self {
            scores: Tensor::zeros((rows, vocabulary), DType::F32, device)?,
            draws: Numbers::new(rows * cuda::DRAW_NUMBERS, device)?,
            tokens: Tensor::zeros(rows, DType::U32, device)?,
        })
    }

    fn rows(&self) -> usize {
        self.tokens.elem_count()
    }
}

impl Gpu {
    pub fn new(source: Source, dtype: DType, blocks: usize, device: &Device) -> std::result::Result<Self, LoadError> {
        let model = Model::new(source, dtype, blocks, device)?;
        let room = || {
            let numbers = [Numbers::new(NUMBERS, device)?, Numbers::new(NUMBERS, device)?];
            Ok((numbers, Results::new(ROWS, model.vocabulary()?, device)?))
        };
        let (numbers, results) = room().map_err(LoadError::Device)?;
        Ok(Self { model, numbers, results, graphs: Graphs::default(), logits: Vec::new(), tokens: Vec::new() })
    }

    /// As [`Cpu::forward`](super::cpu::Cpu::forward).
    pub fn forward(&mut self, inputs: &[Input<'_>]) -> Result<ChunksExact<'_, f32>> {
        let count = self.step(inputs)?;
        self.logits.clear();
        self.bring(0..count)?;
        Ok(self.logits.chunks_exact(self.model.vocabulary()?))
    }

    /// As [`Executor::draw`](super::executor::Executor::draw): where a token is drawn, its logits stay where they are.
    pub fn draw(&mut self, inputs: &[Input<'_>]) -> Result<Vec<After<'_>>> {
        let count = self.step(inputs)?;
        self.logits.clear();
        self.tokens.clear();
        let is_drawn: Vec<bool> = draws(inputs).map(|draw| draw.is_some()).collect();
        if is_drawn.contains(&true) {
            fetch(&self.results.tokens.narrow(0, 0, count)?, &mut self.tokens)?;
        }
        let mut row = 0;
        for alike in is_drawn.chunk_by(|one, next| one == next) {
            if !alike[0] {
                self.bring(row..row + alike.len())?;
            }
            row += alike.len();
        }
        let mut logits = self.logits.chunks_exact(self.model.vocabulary()?);
        let after = is_drawn.into_iter().enumerate().map(|(row, is_drawn)| match is_drawn {
            true => After::Token(self.tokens[row]),
            false => After::Logits(logits.next().unwrap_or_default()),
        });
        Ok(after.collect())
    }

    /// Brings logits of rows here, where there are any.
    fn bring(&mut self, rows: Range<usize>) -> Result<()> {
        if rows.is_empty() {
            return Ok(());
        }
        fetch(&self.results.scores.narrow(0, rows.start, rows.len())?, &mut self.logits)
    }

    /// Computes the inputs, and says of how many rows there is something in the results.
    fn step(&mut self, inputs: &[Input<'_>]) -> Result<usize> {
        let wanted = wanted(inputs);
        if wanted.len() > self.results.rows() {
            let rows = wanted.len().next_power_of_two();
            self.results = Results::new(rows, self.model.vocabulary()?, self.model.device())?;
            // What was recorded writes to those before.
            self.graphs = Graphs::default();
        }
        let Self { model, numbers, results, graphs, .. } = self;
        let step = model.plan(inputs, numbers)?;
        results.draws.write(&draws(inputs).flat_map(cuda::numbers_of).collect::<Vec<_>>())?;
        let finish = |rows: &Tensor| {
            model.score(rows, &results.scores)?;
            cuda::draw(&results.scores, wanted.len(), &results.draws, &results.tokens)
        };
        let continues = inputs.iter().all(|input| input.tokens.len() == 1 && input.wanted == 1);
        if continues && model.is_straight(inputs.len()) {
            graphs.launch(step.key(), model.device(), || finish(&model.compute(&step, None)?))?;
        } else {
            let rows = model.compute(&step, None)?;
            if !wanted.is_empty() {
                finish(&rows.index_select(&Tensor::new(&wanted[..], rows.device())?, 0)?)?;
            }
        }
        Ok(wanted.len())
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
