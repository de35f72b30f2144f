//! The layers of an encoder on whatever computes them, for models whose rows are made elsewhere.

use candle_core::{DType, Device};
use kernels::Level;
use schemas::registry::Dtype;

use super::cpu::{self, Layers, Place};
use super::gpu;
use crate::engine::weights::Weights;
use crate::engine::{LoadError, StepError};

#[derive(Debug)]
pub enum Body {
    Cpu(cpu::Body),
    Gpu(gpu::Body),
}

impl Body {
    /// On that device. In int8 so many inputs share a scale.
    pub fn new(model: &impl Layers, dtype: Dtype, group: usize, device: &Device) -> Result<Self, LoadError> {
        if !device.is_cpu() {
            return gpu::Body::new(model, gpu::type_of(dtype)?, device).map(Self::Gpu);
        }
        let body = match dtype {
            Dtype::F32 => cpu::Body::new(model, |_| Weights::exact),
            Dtype::Int8 => cpu::Body::new(model, |_| move |affine| Weights::quantized_in_groups(affine, group)),
            Dtype::F16 | Dtype::Bf16 => Err(LoadError::NeedsGpu(dtype)),
            Dtype::Int4 => Err(LoadError::NeedsDecoder(dtype)),
        };
        body.map(Self::Cpu)
    }

    /// By candle on a processor, which does what it does on a GPU.
    #[cfg(test)]
    pub fn by_candle(model: &impl Layers) -> Result<Self, LoadError> {
        gpu::Body::new(model, DType::F32, &Device::Cpu).map(Self::Gpu)
    }

    pub fn level(&self) -> Level {
        match self {
            Self::Cpu(body) => body.level(),
            Self::Gpu(_) => Level::best(),
        }
    }

    /// Does something on the threads of a processor.
    pub fn install<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        match self {
            Self::Cpu(body) => body.install(work),
            Self::Gpu(_) => work(),
        }
    }

    /// As [`cpu::Body::run`].
    pub fn run<T: Send>(
        &self,
        lengths: &[usize],
        embed: impl Fn(Place, &mut [f32]) + Sync,
        made: impl Fn(&[f32]) -> T + Sync,
    ) -> Result<Vec<T>, StepError> {
        match self {
            Self::Cpu(body) => Ok(body.run(lengths, embed, made)),
            Self::Gpu(body) => on_gpu(body, lengths, embed, made).map_err(|error| StepError(error.to_string())),
        }
    }
}

fn on_gpu<T>(
    body: &gpu::Body,
    lengths: &[usize],
    embed: impl Fn(Place, &mut [f32]),
    made: impl Fn(&[f32]) -> T,
) -> candle_core::Result<Vec<T>> {
    let width = body.width();
    let places = lengths.iter().enumerate();
    let places = places.flat_map(|(sequence, length)| (0..*length).map(move |position| Place { sequence, position }));
    let mut rows = vec![0.0; lengths.iter().sum::<usize>() * width];
    rows.chunks_exact_mut(width).zip(places).for_each(|(row, place)| embed(place, row));
    let rows = body.run(body.table(&rows)?, &mut body.batch(lengths.iter().copied())?)?;
    let rows: Vec<f32> = rows.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?;
    let mut rest = &rows[..];
    let take = |length: &usize| {
        let (own, more) = rest.split_at(length * width);
        rest = more;
        made(own)
    };
    Ok(lengths.iter().map(take).collect())
}
