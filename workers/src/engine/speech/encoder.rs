//! The half of a speech model that hears: windows of 30 seconds to a row for every 20 milliseconds.

mod cpu;
mod gpu;

use candle_core::{DType, Device};
use schemas::registry::Dtype;

use self::cpu::Cpu;
use self::gpu::Gpu;
use super::files::Files;
use crate::engine::decoder::executor::{Rows, is_gpu};
use crate::engine::encoder::gpu::type_of;
use crate::engine::{LoadError, StepError};

/// Windows that a GPU hears at a time.
const GPU_WINDOWS: usize = 8;

#[derive(Debug)]
pub struct Encoder {
    executor: Executor,
    /// Rows of a window.
    pub rows: usize,
    /// Windows that are heard at a time.
    pub windows: usize,
}

#[derive(Debug)]
enum Executor {
    Cpu(Cpu),
    Gpu(Gpu),
}

impl Encoder {
    pub fn new(files: &Files, dtype: Dtype, device: &Device) -> Result<Self, LoadError> {
        if is_gpu(device) {
            return Self::by_candle(files, type_of(dtype)?, device);
        }
        let cpu = Cpu::new(files, dtype)?;
        Ok(Self { windows: cpu.threads(), executor: Executor::Cpu(cpu), rows: files.sizes.heard })
    }

    /// On a device of candle's. On a processor it does what it does on a GPU.
    pub fn by_candle(files: &Files, dtype: DType, device: &Device) -> Result<Self, LoadError> {
        let gpu = Gpu::new(files, dtype, device)?;
        Ok(Self { executor: Executor::Gpu(gpu), rows: files.sizes.heard, windows: GPU_WINDOWS })
    }

    /// Frames of a window.
    pub fn frames(&self) -> usize {
        2 * self.rows
    }

    /// `windows` are `[frames, bands]` each; the rows of each come back.
    pub fn run(&self, windows: &[Vec<f32>]) -> Result<Vec<Rows>, StepError> {
        match &self.executor {
            _ if windows.is_empty() => Ok(Vec::new()),
            Executor::Cpu(cpu) => Ok(cpu.run(windows).into_iter().map(Rows::Host).collect()),
            Executor::Gpu(gpu) => gpu.run(windows).map_err(|error| StepError(error.to_string())),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn candle_hears_the_same_as_the_kernels() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/speech/whisper");
        let files = Files::open(&folder).unwrap();
        let kernels = Encoder::new(&files, Dtype::F32, &Device::Cpu).unwrap();
        let candle = Encoder::by_candle(&files, DType::F32, &Device::Cpu).unwrap();
        let mut random = fastrand::Rng::with_seed(7);
        let mut window = || (0..kernels.frames() * files.sizes.bands).map(|_| random.f32() * 2.0 - 1.0).collect();
        let windows: Vec<Vec<f32>> = vec![window(), window(), window()];
        let (expected, ours) = (kernels.run(&windows).unwrap(), candle.run(&windows).unwrap());
        for (expected, ours) in expected.iter().zip(&ours) {
            let (expected, ours) = (expected.values().unwrap(), ours.values().unwrap());
            assert_eq!(expected.len(), ours.len());
            let apart = ours.iter().zip(&*expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(apart < 1e-4, "{apart}");
        }
    }
}
