//! Hearing by candle: convolutions as products of three frames each.

use candle_core::{DType, Device, Result, Tensor};
use kernels::Activation;

use super::super::files::Files;
use crate::engine::LoadError;
use crate::engine::decoder::executor::Rows;
use crate::engine::encoder::gpu::{Body, Dense};

#[derive(Debug)]
pub struct Gpu {
    convolutions: [Dense; 2],
    /// `[rows, hidden]`
    positions: Tensor,
    body: Body,
    bands: usize,
    dtype: DType,
    device: Device,
}

impl Gpu {
    pub fn new(files: &Files, dtype: DType, device: &Device) -> std::result::Result<Self, LoadError> {
        let (bands, hidden) = (files.sizes.bands, files.sizes.hidden);
        let dense =
            |name, inputs| Dense::new(files.convolution(name, inputs)?, dtype, device).map_err(LoadError::Device);
        let convolutions = [dense("conv1", bands)?, dense("conv2", hidden)?];
        let body = Body::new(&files.encoder()?, dtype, device)?;
        let positions = body.table(&files.positions()?).map_err(LoadError::Device)?;
        Ok(Self { convolutions, positions, body, bands, dtype, device: device.clone() })
    }

    pub fn run(&self, windows: &[Vec<f32>]) -> Result<Vec<Rows>> {
        let (count, rows) = (windows.len(), self.positions.dim(0)?);
        let frames = Tensor::from_vec(windows.concat(), (count, 2 * rows, self.bands), &self.device)?;
        let [first, second] = &self.convolutions;
        let inner = convolve(first, &frames.to_dtype(self.dtype)?, 1)?;
        let heard = convolve(second, &inner, 2)?.broadcast_add(&self.positions)?;
        let mut batch = self.body.batch(std::iter::repeat_n(rows, count))?;
        let made = self.body.run(heard.reshape((count * rows, ()))?, &mut batch)?;
        (0..count).map(|window| made.narrow(0, window * rows, rows).map(Rows::Device)).collect()
    }
}

/// Of `[windows, frames, width]`, each with a frame of nothing before and after; every frame or every second one.
fn convolve(dense: &Dense, frames: &Tensor, stride: usize) -> Result<Tensor> {
    let (windows, count, width) = frames.dims3()?;
    let padded = frames.pad_with_zeros(1, 1, 1)?;
    let part = |at: usize| {
        let part = padded.narrow(1, at, count)?.reshape((windows, count / stride, stride, width))?;
        part.narrow(2, 0, 1)?.squeeze(2)
    };
    let seen = Tensor::cat(&[part(0)?, part(1)?, part(2)?], 2)?;
    let product = dense.product(&seen.reshape((windows * (count / stride), 3 * width))?)?;
    dense.activated(&product, Activation::Gelu, false)?.reshape((windows, count / stride, ()))
}
