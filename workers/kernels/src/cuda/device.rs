//! The GPU itself, by candle's driver.

use candle_core::backend::{BackendDevice, BackendStorage};
use candle_core::cuda_backend::cudarc::driver::sys::{
    CUgraphInstantiate_flags, CUmemPool_attribute, CUstreamCaptureMode,
};
use candle_core::cuda_backend::cudarc::driver::{
    CudaGraph, CudaSlice, DevicePtr, DeviceRepr, LaunchConfig, PushKernelArg, result,
};
use candle_core::cuda_backend::{CudaDType, WrapErr};
use candle_core::op::BackpropOp;
use candle_core::{CudaDevice, CudaStorage, DType, Device, Result, Shape, Storage, Tensor};
use half::{bf16, f16};

use super::launch::{Argument, Module};
use super::unsupported;

/// The GPU of that number, with one stream that all threads share.
pub fn open(ordinal: usize) -> Result<Device> {
    let device = CudaDevice::new_with_stream(ordinal)?;
    // SAFETY: what is in the memory of this device is only used on its one stream. Without events there is one call less
    // to the driver for each read and write, and launches can be recorded.
    unsafe { device.disable_event_tracking() };
    let stream = device.cuda_stream();
    // SAFETY: the device is that of the stream, and the attribute is a number of 64 bits.
    unsafe {
        // A GPU without a pool has nothing to keep.
        if let Ok(pool) = result::device::get_default_mem_pool(stream.context().cu_device()) {
            // Memory that was given back stays with the program, which would else ask for it anew at each step.
            let mut kept = u64::MAX;
            let threshold = CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
            result::mem_pool::set_attribute(pool, threshold, (&raw mut kept).cast()).w()?;
        }
    }
    Ok(Device::Cuda(device))
}

/// Numbers for the GPU, in memory that is used again.
#[derive(Debug)]
pub struct Numbers(CudaSlice<u32>);

impl Numbers {
    /// Room for so many.
    pub fn new(count: usize, device: &Device) -> Result<Self> {
        device.as_cuda_device()?.alloc_zeros(count).map(Self)
    }

    pub fn room(&self) -> usize {
        self.0.len()
    }

    /// What was launched before reads the numbers before.
    pub fn write(&mut self, numbers: &[u32]) -> Result<()> {
        if numbers.is_empty() {
            return Ok(());
        }
        let stream = self.0.stream().clone();
        stream.memcpy_htod(numbers, &mut self.0.slice_mut(..numbers.len())).w()
    }

    pub fn address(&self) -> u64 {
        self.0.device_ptr(self.0.stream()).0
    }
}

/// Launches that the GPU does one after the other by one call.
pub struct Graph(CudaGraph);

// SAFETY: a graph may be used by any thread; by one at a time, since there is one of it.
unsafe impl Send for Graph {}

impl Graph {
    /// Records what is launched instead of doing it. All that it reads and writes must be there when it is done.
    pub fn record(device: &Device, launches: impl FnOnce() -> Result<()>) -> Result<Self> {
        let stream = device.as_cuda_device()?.cuda_stream();
        stream.begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).w()?;
        let launched = launches();
        // In any case: until then the stream does nothing.
        let recorded = stream.end_capture(CUgraphInstantiate_flags(0)).w();
        let recorded = launched.and(recorded);
        if recorded.is_err() {
            // Memory of what could not be recorded was not given back, which would be told to who comes next.
            stream.context().check_err().ok();
        }
        match recorded? {
            Some(graph) => Ok(Self(graph)),
            None => candle_core::bail!("nothing was launched"),
        }
    }

    pub fn launch(&self) -> Result<()> {
        self.0.launch().w()
    }
}

/// The product of rows and a matrix.
pub fn multiply(rows: &Tensor, matrix: &Tensor) -> Result<Tensor> {
    rows.matmul(matrix)
}

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

/// Of a tensor's first value. All that uses it runs on the device's one stream, and so before the memory is given back.
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

/// The values of a tensor, behind those that are there, in memory that is used again.
pub fn fetch<T: CudaDType + DeviceRepr + Default>(tensor: &Tensor, to: &mut Vec<T>) -> Result<()> {
    let (storage, layout) = tensor.storage_and_layout();
    let (Storage::Cuda(storage), Some((start, end))) = (&*storage, layout.contiguous_offsets()) else {
        candle_core::bail!("a tensor is not on the GPU, or lies as {layout:?}")
    };
    let before = to.len();
    to.resize_with(before + end - start, T::default);
    let values = storage.as_cuda_slice::<T>()?.slice(start..end);
    storage.device().cuda_stream().memcpy_dtoh(&values, &mut to[before..]).w()
}

/// A tensor that a kernel writes each value of before it is read.
pub fn empty(shape: impl Into<Shape>, dtype: DType, device: &Device) -> Result<Tensor> {
    let shape = shape.into();
    // SAFETY: as this function's callers have it.
    let storage = unsafe { device.as_cuda_device()?.alloc_uninit(&shape, dtype)? };
    Ok(Tensor::from_storage(Storage::Cuda(storage), shape, BackpropOp::none(), false))
}
