//! Kernels for GPUs, which are launched between candle's operations.
//!
//! With the feature `emulated` in the place of `cuda` those of decoders run on the processor, so that they and what launches
//! them are tested where there is no GPU.

pub mod decoder;
#[cfg_attr(not(feature = "cuda"), path = "cuda/emulated.rs")]
mod device;
#[cfg(feature = "cuda")]
pub mod encoder;
pub mod experts;
mod launch;

pub use device::{Graph, Numbers, fetch, multiply, open};

use candle_core::{DType, Error, Tensor};

use crate::Activation;

/// Of a block, as in the kernels.
const THREADS: u32 = 128;
const WARPS: usize = THREADS as usize / 32;

/// A norm's weights on the GPU.
#[derive(Clone, Copy, Debug)]
pub struct Norm<'a> {
    pub weight: &'a Tensor,
    pub bias: Option<&'a Tensor>,
    pub epsilon: f32,
    /// Whether the mean is taken away first.
    pub centred: bool,
}

/// As `common.cuh` numbers them.
fn number(activation: Activation) -> i32 {
    match activation {
        Activation::None => 0,
        Activation::Gelu => 1,
        Activation::GeluTanh => 2,
        Activation::Silu => 3,
        Activation::Relu => 4,
        Activation::Tanh => 5,
        Activation::QuickGelu => 6,
    }
}

/// Of a pointer.
const NULL: u64 = 0;

fn unsupported(dtype: DType) -> Error {
    Error::Msg(format!("no kernel computes in {dtype:?}"))
}
