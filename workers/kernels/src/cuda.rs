//! Kernels for GPUs, which are launched between candle's operations.

pub mod decoder;
pub mod encoder;

use candle_core::cuda_backend::CudaDType;
use candle_core::cuda_backend::cudarc::driver::{CudaView, DeviceRepr, LaunchArgs, LaunchConfig, PushKernelArg};
use candle_core::{CudaStorage, DType, Error, Layout, Result, Storage, StorageRef, Tensor};

use crate::Activation;

/// Of a block, as in the kernels.
const THREADS: u32 = 128;

/// Values and how they lie, as an operation gets them.
pub type Part<'a> = (&'a CudaStorage, &'a Layout);

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
    }
}

/// Of a pointer.
const NULL: u64 = 0;

fn optional<'a, T: DeviceRepr>(builder: &mut LaunchArgs<'a>, view: Option<&'a CudaView<'_, T>>) {
    match view {
        Some(view) => builder.arg(view),
        None => builder.arg(&NULL),
    };
}

fn grid((x, y): (usize, usize)) -> LaunchConfig {
    LaunchConfig { grid_dim: (x as u32, y as u32, 1), block_dim: (THREADS, 1, 1), shared_mem_bytes: 0 }
}

fn view<'a, T: CudaDType>((storage, layout): Part<'a>) -> Result<CudaView<'a, T>> {
    Ok(storage.as_cuda_slice::<T>()?.slice(layout.start_offset()..))
}

/// A tensor that a kernel reads beside what its operation was handed.
type Held<'a> = (StorageRef<'a>, &'a Layout);

fn held<'a, T: CudaDType>((storage, layout): &'a Held<'_>) -> Result<CudaView<'a, T>> {
    match &**storage {
        Storage::Cuda(storage) => view((storage, layout)),
        Storage::Cpu(_) | Storage::Metal(_) => Err(Error::Msg("is not on the GPU".to_owned())),
    }
}

fn unsupported(dtype: DType) -> Error {
    Error::Msg(format!("no kernel computes in {dtype:?}"))
}
