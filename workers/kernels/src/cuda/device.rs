//! The GPU itself, by candle's driver.

use candle_core::backend::{BackendDevice, BackendStorage};
use candle_core::cuda_backend::cudarc::driver::{DevicePtr, LaunchConfig, PushKernelArg};
use candle_core::cuda_backend::{CudaDType, WrapErr};
use candle_core::op::BackpropOp;
use candle_core::{CudaStorage, DType, Device, Result, Shape, Storage, Tensor};
use half::{bf16, f16};

use super::launch::{Argument, Module};
use super::unsupported;

/// # Safety
///
/// As of [`Kernel::launch`](super::launch::Kernel::launch).
pub unsafe fn launch(
    module: &Module,
    name: &str,
    device: &Device,
    [x, y, z]: [u32; 3],
    threads: u32,
    arguments: &[Argument],
) -> Result<()> {
    let function = device.as_cuda_device()?.get_or_load_custom_func(name, module.name, module.ptx)?;
    let mut builder = function.builder();
    for argument in arguments {
        match argument {
            Argument::Address(address) => builder.arg(address),
            Argument::Count(count) => builder.arg(count),
            Argument::Real(real) => builder.arg(real),
        };
    }
    let config = LaunchConfig { grid_dim: (x, y, z), block_dim: (threads, 1, 1), shared_mem_bytes: 0 };
    // SAFETY: the caller says so.
    unsafe { builder.launch(config).w()? };
    Ok(())
}

/// Of a tensor's first value. All that uses it runs on the one stream there is, and so before the memory is given back.
pub fn address(tensor: &Tensor) -> Result<u64> {
    let (storage, layout) = tensor.storage_and_layout();
    let Storage::Cuda(storage) = &*storage else { candle_core::bail!("a tensor is not on the GPU") };
    fn start<T: CudaDType>(storage: &CudaStorage, offset: usize) -> Result<u64> {
        let slice = storage.as_cuda_slice::<T>()?;
        let (address, _) = slice.device_ptr(slice.stream());
        Ok(address + (offset * size_of::<T>()) as u64)
    }
    if !layout.is_contiguous() {
        candle_core::bail!("no kernel takes rows that lie as {layout:?}");
    }
    let offset = layout.start_offset();
    match storage.dtype() {
        DType::F32 => start::<f32>(storage, offset),
        DType::F16 => start::<f16>(storage, offset),
        DType::BF16 => start::<bf16>(storage, offset),
        DType::U32 => start::<u32>(storage, offset),
        DType::U8 => start::<u8>(storage, offset),
        other => Err(unsupported(other)),
    }
}

/// The values of a tensor, to memory that is used again.
pub fn fetch(tensor: &Tensor, to: &mut Vec<f32>) -> Result<()> {
    let (storage, layout) = tensor.storage_and_layout();
    let (Storage::Cuda(storage), Some((start, end))) = (&*storage, layout.contiguous_offsets()) else {
        candle_core::bail!("a tensor is not on the GPU, or lies as {layout:?}")
    };
    to.resize(end - start, 0.0);
    storage.device().memcpy_dtoh(&storage.as_cuda_slice::<f32>()?.slice(start..end), to)
}

/// A tensor that a kernel writes each value of before it is read.
pub fn empty(shape: impl Into<Shape>, dtype: DType, device: &Device) -> Result<Tensor> {
    let shape = shape.into();
    // SAFETY: as this function's callers have it.
    let storage = unsafe { device.as_cuda_device()?.alloc_uninit(&shape, dtype)? };
    Ok(Tensor::from_storage(Storage::Cuda(storage), shape, BackpropOp::none(), false))
}
