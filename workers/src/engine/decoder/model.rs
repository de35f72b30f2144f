//! What executors share: a model's shape, and what they are asked.

use std::slice::ChunksExact;

use super::cpu::Cpu;
use super::gpu::Llama;
use crate::engine::gguf::Gguf;
use crate::engine::{LoadError, StepError};

/// Of a model of the Llama family.
#[derive(Clone, Debug)]
pub struct Shape {
    pub hidden: usize,
    pub heads: usize,
    pub key_heads: usize,
    pub head_size: usize,
    /// The most tokens of one sequence.
    pub context: usize,
    pub epsilon: f32,
}

impl Shape {
    pub fn read(file: &Gguf) -> Result<Self, LoadError> {
        let architecture = file.string("general.architecture")?;
        if architecture != "llama" {
            return Err(file.error(format!("general.architecture: {architecture:?} is not supported; llama is")));
        }
        let heads = file.number("llama.attention.head_count")?;
        let shape = Self {
            hidden: file.number("llama.embedding_length")?,
            heads,
            key_heads: file.number("llama.attention.head_count_kv").unwrap_or(heads),
            head_size: file.number("llama.rope.dimension_count")?,
            context: file.number("llama.context_length")?,
            epsilon: file.float("llama.attention.layer_norm_rms_epsilon")?,
        };
        match shape.key_heads > 0 && heads % shape.key_heads == 0 && heads * shape.head_size == shape.hidden {
            true => Ok(shape),
            false => Err(file.error(format!(
                "{heads} heads of {} with {} for keys do not make {}",
                shape.head_size, shape.key_heads, shape.hidden
            ))),
        }
    }
}

/// Tokens of one sequence to compute after `start` of them.
#[derive(Debug)]
pub struct Input<'a> {
    pub tokens: &'a [u32],
    pub start: usize,
    /// Where keys and values of the sequence are kept, from its first token on.
    pub blocks: &'a [u32],
    pub wants_logits: bool,
}

/// What runs a model.
pub enum Executor {
    Cpu(Box<Cpu>),
    Gpu(Box<Llama>),
}

impl Executor {
    /// Computes the inputs and gives, one after the other, the logits after the last token of those that want them.
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
