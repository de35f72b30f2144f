//! What runs a model, and what it is asked.

use std::slice::ChunksExact;

use candle_core::{DType, Device};
use kernels::Pages;
use schemas::registry::Dtype;

use super::blueprint::{Shape, Source};
use super::cpu::Cpu;
#[cfg(feature = "cuda")]
use super::gpu::Gpu;
use crate::engine::{LoadError, StepError};

/// Tokens of one sequence to compute after `start` of them.
#[derive(Debug)]
pub struct Input<'a> {
    pub tokens: &'a [u32],
    pub start: usize,
    /// Where keys and values of the sequence are kept, from its first token on.
    pub blocks: &'a [u32],
    /// After how many of its last tokens logits are wanted.
    pub wanted: usize,
    /// What it attends to beside itself, for models that do.
    pub memory: Memory<'a>,
}

/// Rows of another sequence, as [`Cpu::remember`] has kept them.
#[derive(Clone, Copy, Debug, Default)]
pub struct Memory<'a> {
    pub blocks: &'a [u32],
    pub rows: usize,
}

/// What runs a model.
pub enum Executor {
    Cpu(Box<Cpu>),
    #[cfg(feature = "cuda")]
    Gpu(Box<Gpu>),
}

impl Executor {
    /// With room for that many blocks of keys and values.
    pub fn new(source: Source, dtype: Dtype, blocks: usize, device: &Device) -> Result<Self, LoadError> {
        match device {
            #[cfg(feature = "cuda")]
            Device::Cuda(_) => {
                let gpu = Gpu::new(source, gpu_type(dtype)?, blocks, device)?;
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

    /// Computes the inputs and gives, one after the other, the logits that are wanted.
    pub fn forward(&mut self, inputs: &[Input<'_>]) -> Result<ChunksExact<'_, f32>, StepError> {
        match self {
            Self::Cpu(cpu) => Ok(cpu.forward(inputs)),
            #[cfg(feature = "cuda")]
            Self::Gpu(gpu) => gpu.forward(inputs).map_err(|error| StepError(error.to_string())),
        }
    }
}

/// Bytes that a layer takes for a block of keys and values.
pub fn block_bytes(shape: &Shape, dtype: Dtype, device: &Device) -> Result<usize, LoadError> {
    let in_f16 = Pages::block_bytes(shape.key_heads, shape.head_size);
    Ok(match device.is_cpu() {
        true => in_f16,
        false => in_f16 / DType::F16.size_in_bytes() * gpu_type(dtype)?.size_in_bytes(),
    })
}

fn gpu_type(dtype: Dtype) -> Result<DType, LoadError> {
    match dtype {
        Dtype::F32 => Ok(DType::F32),
        Dtype::F16 => Ok(DType::F16),
        Dtype::Bf16 => Ok(DType::BF16),
        Dtype::Int8 => Err(LoadError::NeedsCpu(dtype)),
    }
}
