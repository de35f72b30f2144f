//! The processor in the place of a GPU: its kernels, compiled for it, on tensors in its own memory. For tests.

use std::ffi::{CString, c_char, c_void};

use candle_core::{CpuStorage, DType, Device, Result, Shape, Storage, Tensor};

use super::launch::{Argument, Module};
use super::unsupported;

unsafe extern "C" {
    fn inferq_emulate(name: *const c_char, blocks: *const u32, threads: u32, arguments: *const *const c_void) -> bool;
}

/// # Safety
///
/// As of [`Kernel::launch`](super::launch::Kernel::launch).
pub unsafe fn launch(
    module: &Module,
    name: &str,
    _: &Device,
    blocks: [u32; 3],
    threads: u32,
    arguments: &[Argument],
) -> Result<()> {
    let pointer = |argument: &Argument| match argument {
        Argument::Address(address) => std::ptr::from_ref(address).cast::<c_void>(),
        Argument::Count(count) => std::ptr::from_ref(count).cast(),
        Argument::Real(real) => std::ptr::from_ref(real).cast(),
    };
    let pointers: Vec<_> = arguments.iter().map(pointer).collect();
    let name_of_kernel = CString::new(name).map_err(candle_core::Error::wrap)?;
    // SAFETY: the caller says so; the pointers outlive the call.
    match unsafe { inferq_emulate(name_of_kernel.as_ptr(), blocks.as_ptr(), threads, pointers.as_ptr()) } {
        true => Ok(()),
        false => candle_core::bail!("{} has no kernel {name}", module.name),
    }
}

/// Of a tensor's first value. Kernels write to it; nothing else has the tensor then.
pub fn address(tensor: &Tensor) -> Result<u64> {
    let (storage, layout) = tensor.storage_and_layout();
    let Storage::Cpu(storage) = &*storage else { candle_core::bail!("a tensor is not in memory") };
    if !layout.is_contiguous() {
        candle_core::bail!("no kernel takes rows that lie as {layout:?}");
    }
    let offset = layout.start_offset();
    Ok(match storage {
        CpuStorage::F32(values) => values[offset..].as_ptr() as u64,
        CpuStorage::F16(values) => values[offset..].as_ptr() as u64,
        CpuStorage::BF16(values) => values[offset..].as_ptr() as u64,
        CpuStorage::U32(values) => values[offset..].as_ptr() as u64,
        CpuStorage::U8(values) => values[offset..].as_ptr() as u64,
        _ => return Err(unsupported(tensor.dtype())),
    })
}

/// The values of a tensor, to memory that is used again.
pub fn fetch(tensor: &Tensor, to: &mut Vec<f32>) -> Result<()> {
    to.clear();
    to.extend(tensor.flatten_all()?.to_vec1::<f32>()?);
    Ok(())
}

/// A tensor that a kernel writes each value of before it is read: what it does not write is seen in the results.
pub fn empty(shape: impl Into<Shape>, dtype: DType, device: &Device) -> Result<Tensor> {
    let shape = shape.into();
    match dtype {
        DType::U32 => Tensor::full(u32::MAX, shape, device),
        dtype => Tensor::full(f32::NAN, shape, device)?.to_dtype(dtype),
    }
}
