//! What runs a model, and what it is asked.

use std::slice::ChunksExact;

use super::cpu::Cpu;
use super::gpu::Gpu;
use crate::engine::StepError;

/// Tokens of one sequence to compute after `start` of them.
#[derive(Debug)]
pub struct Input<'a> {
    pub tokens: &'a [u32],
    pub start: usize,
    /// Where keys and values of the sequence are kept, from its first token on.
    pub blocks: &'a [u32],
    /// After how many of its last tokens logits are wanted.
    pub wanted: usize,
}

/// What runs a model.
pub enum Executor {
    Cpu(Box<Cpu>),
    Gpu(Box<Gpu>),
}

impl Executor {
    /// Computes the inputs and gives, one after the other, the logits that are wanted.
    pub fn forward(&mut self, inputs: &[Input<'_>]) -> Result<ChunksExact<'_, f32>, StepError> {
        match self {
            Self::Cpu(cpu) => Ok(cpu.forward(inputs)),
            Self::Gpu(gpu) => gpu.forward(inputs).map_err(|error| StepError(error.to_string())),
        }
    }

    /// Whether sequences may share blocks.
    pub fn shares(&self) -> bool {
        matches!(self, Self::Cpu(_))
    }
}
