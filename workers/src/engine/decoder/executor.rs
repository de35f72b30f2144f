//! What runs a model, and what it is asked.

use std::slice::ChunksExact;

use std::borrow::Cow;

use candle_core::{DType, Device, Tensor};
use kernels::{Draw, Pages};
use rayon::prelude::*;
use schemas::registry::Dtype;

use super::blueprint::{Shape, Source};
use super::cpu::Cpu;
#[cfg(feature = "gpu")]
use super::gpu::Gpu;
use crate::engine::encoder::gpu::type_of;
use crate::engine::{LoadError, StepError, sampling};

/// Tokens of one sequence to compute after `start` of them.
#[derive(Debug)]
pub struct Input<'a> {
    pub tokens: &'a [u32],
    pub start: usize,
    /// Where keys and values of the sequence are kept, from its first token on.
    pub blocks: &'a [u32],
    /// After how many of its last tokens logits are wanted.
    pub wanted: usize,
    /// How the token after its last one is drawn, where that takes no more than logits.
    pub draw: Option<Draw>,
    /// What it attends to beside itself, for models that do.
    pub memory: Memory<'a>,
}

/// What is wanted of a token.
#[derive(Clone, Copy, Debug)]
pub enum After<'a> {
    Logits(&'a [f32]),
    /// What was drawn.
    Token(u32),
}

/// Of each token after which something is wanted, how the next is drawn.
pub fn draws<'a>(inputs: &'a [Input<'_>]) -> impl Iterator<Item = Option<Draw>> + 'a {
    inputs.iter().flat_map(|input| (0..input.wanted).map(|at| input.draw.filter(|_| at + 1 == input.wanted)))
}

/// Rows of another sequence, as [`Cpu::remember`] has kept them.
#[derive(Clone, Copy, Debug, Default)]
pub struct Memory<'a> {
    pub blocks: &'a [u32],
    pub rows: usize,
}

/// The rows of another sequence, `[rows, hidden]`, where they were made.
#[derive(Debug)]
pub enum Rows {
    Host(Vec<f32>),
    Device(Tensor),
}

impl Rows {
    pub fn values(&self) -> Result<Cow<'_, [f32]>, StepError> {
        match self {
            Self::Host(values) => Ok(Cow::Borrowed(values)),
            Self::Device(tensor) => {
                let values = tensor.to_dtype(DType::F32).and_then(|rows| rows.flatten_all()?.to_vec1());
                values.map(Cow::Owned).map_err(failed)
            }
        }
    }
}

/// Where heads of cross-attention look: for each, by its layer and number, how much each row of a batch sees of each row
/// of its memory.
#[derive(Debug)]
pub struct Watched {
    pub(super) heads: Vec<(usize, usize)>,
    /// Rows of the memory that count.
    pub(super) rows: usize,
    pub weights: Vec<Vec<f32>>,
}

impl Watched {
    fn of(heads: &[(usize, usize)], rows: usize) -> Self {
        Self { heads: heads.to_vec(), rows, weights: vec![Vec::new(); heads.len()] }
    }
}

fn failed(error: candle_core::Error) -> StepError {
    StepError(error.to_string())
}

/// What runs a model.
pub enum Executor {
    Cpu(Box<Cpu>),
    #[cfg(feature = "gpu")]
    Gpu(Box<Gpu>),
}

impl Executor {
    /// With room for that many blocks of keys and values.
    pub fn new(source: Source, dtype: Dtype, blocks: usize, device: &Device) -> Result<Self, LoadError> {
        match device {
            #[cfg(feature = "gpu")]
            device if is_gpu(device) => {
                let gpu = Gpu::new(source, type_of(dtype)?, blocks, device)?;
                tracing::info!(blocks, "decoder is ready");
                Ok(Self::Gpu(Box::new(gpu)))
            }
            _ => {
                let cpu = Cpu::new(source, dtype, blocks)?;
                tracing::info!(level = cpu.level().name(), blocks, "decoder is ready");
                Ok(Self::Cpu(Box::new(cpu)))
            }
        }
    }

    /// Tokens of prompts in one step. Others wait for it, so there are fewer of them where they take longer.
    pub fn step_tokens(&self) -> usize {
        match self {
            Self::Cpu(_) => 512,
            #[cfg(feature = "gpu")]
            Self::Gpu(_) => 2048,
        }
    }

    /// Computes the inputs and gives, one after the other, the logits that are wanted.
    pub fn forward(&mut self, inputs: &[Input<'_>]) -> Result<ChunksExact<'_, f32>, StepError> {
        match self {
            Self::Cpu(cpu) => Ok(cpu.forward(inputs)),
            #[cfg(feature = "gpu")]
            Self::Gpu(gpu) => gpu.forward(inputs).map_err(failed),
        }
    }

    /// As [`forward`](Self::forward), and draws where that is asked for.
    pub fn draw(&mut self, inputs: &[Input<'_>]) -> Result<Vec<After<'_>>, StepError> {
        match self {
            Self::Cpu(cpu) => {
                let logits: Vec<_> = cpu.forward(inputs).zip(draws(inputs)).collect();
                let drawn = |(logits, draw): (_, Option<Draw>)| {
                    draw.map_or(After::Logits(logits), |draw| After::Token(sampling::drawn(logits, draw)))
                };
                // Vocabularies are large. For one alone no other thread is woken.
                Ok(match logits.len() {
                    1 => logits.into_iter().map(drawn).collect(),
                    _ => logits.into_par_iter().map(drawn).collect(),
                })
            }
            #[cfg(feature = "gpu")]
            Self::Gpu(gpu) => gpu.draw(inputs).map_err(failed),
        }
    }

    /// Keeps rows as what sequences attend to beside themselves.
    pub fn remember(&mut self, rows: &Rows, blocks: &[u32]) -> Result<(), StepError> {
        match (self, rows) {
            (Self::Cpu(cpu), rows) => cpu.remember(&rows.values()?, blocks),
            #[cfg(feature = "gpu")]
            (Self::Gpu(gpu), Rows::Device(rows)) => gpu.remember(rows, blocks).map_err(failed)?,
            #[cfg(feature = "gpu")]
            (Self::Gpu(_), Rows::Host(_)) => return Err(StepError("rows are not on the GPU".to_owned())),
        }
        Ok(())
    }

    /// Computes one input and tells where heads look, each a layer and a number, among the first rows of its memory.
    pub fn watch(
        &mut self,
        input: Input<'_>,
        heads: &[(usize, usize)],
        rows: usize,
    ) -> Result<Vec<Vec<f32>>, StepError> {
        let watched = Watched::of(heads, rows);
        match self {
            Self::Cpu(cpu) => Ok(cpu.watch(input, watched).weights),
            #[cfg(feature = "gpu")]
            Self::Gpu(gpu) => Ok(gpu.watch(input, watched).map_err(failed)?.weights),
        }
    }
}

/// Whether kernels for GPUs run there.
pub fn is_gpu(device: &Device) -> bool {
    device.is_cuda() || cfg!(all(feature = "emulated", not(feature = "cuda")))
}

/// Bytes that a layer takes for a block of keys and values.
pub fn block_bytes(shape: &Shape, dtype: Dtype, device: &Device) -> Result<usize, LoadError> {
    let in_f16 = Pages::block_bytes(shape.key_heads, shape.head_size);
    Ok(match is_gpu(device) {
        true => in_f16 / DType::F16.size_in_bytes() * type_of(dtype)?.size_in_bytes(),
        false => in_f16,
    })
}
