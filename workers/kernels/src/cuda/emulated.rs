//! The processor in the place of a GPU: its kernels, compiled for it, on tensors in its own memory. For tests.

use std::cell::RefCell;
use std::ffi::{CString, c_char, c_void};

use candle_core::{CpuStorage, DType, Device, Result, Shape, Storage, Tensor, WithDType};

use super::launch::{Argument, Module};
use super::unsupported;

unsafe extern "C" {
    fn inferq_emulate(name: *const c_char, blocks: *const u32, threads: u32, arguments: *const *const c_void) -> bool;
}

thread_local! {
    /// What the graph that is being recorded does.
    static RECORDED: RefCell<Option<Vec<Act>>> = const { RefCell::new(None) };
}

pub fn open(_: usize) -> Result<Device> {
    Ok(Device::Cpu)
}

/// Numbers in memory that is used again.
#[derive(Debug)]
pub struct Numbers(Vec<u32>);

impl Numbers {
    /// Room for so many.
    pub fn new(count: usize, _: &Device) -> Result<Self> {
        Ok(Self(vec![u32::MAX; count]))
    }

    pub fn room(&self) -> usize {
        self.0.len()
    }

    pub fn write(&mut self, numbers: &[u32]) -> Result<()> {
        self.0[..numbers.len()].copy_from_slice(numbers);
        Ok(())
    }

    pub fn address(&self) -> u64 {
        self.0.as_ptr() as u64
    }
}

/// What was launched, to be done again: with the same arguments, on the same memory.
pub struct Graph(Vec<Act>);

#[derive(Debug)]
enum Act {
    /// Memory is taken, which nothing was written to.
    Take(Tensor),
    Launch(Launch),
    Multiply {
        rows: Tensor,
        matrix: Tensor,
        output: Tensor,
    },
}

#[derive(Debug)]
struct Launch {
    module: &'static str,
    name: String,
    blocks: [u32; 3],
    threads: u32,
    arguments: Vec<Argument>,
}

impl Graph {
    /// Records what is launched instead of doing it. All that it reads and writes must be there when it is done.
    pub fn record(_: &Device, launches: impl FnOnce() -> Result<()>) -> Result<Self> {
        RECORDED.set(Some(Vec::new()));
        let launched = launches();
        let acts = RECORDED.take().unwrap_or_default();
        launched.map(|()| Self(acts))
    }

    pub fn launch(&self) -> Result<()> {
        self.0.iter().try_for_each(Act::done)
    }
}

impl Act {
    /// What is to be done now: what is recorded is not.
    fn unless_recorded(self) -> Option<Self> {
        RECORDED.with_borrow_mut(|recorded| match recorded {
            Some(acts) => {
                acts.push(self);
                None
            }
            None => Some(self),
        })
    }

    fn done(&self) -> Result<()> {
        match self {
            Self::Take(tensor) => {
                // SAFETY: the tensor's memory, which kernels alone use. All bits are set in what is not a number.
                unsafe { (address(tensor)? as *mut u8).write_bytes(u8::MAX, bytes(tensor)) };
                Ok(())
            }
            // SAFETY: as it was when it was recorded; tensors that it took are kept.
            Self::Launch(launch) => unsafe { launch.done() },
            Self::Multiply { rows, matrix, output } => {
                let made = rows.matmul(matrix)?;
                // SAFETY: both are of one size and type, and kernels alone use the memory of the second.
                unsafe {
                    let (from, to) = (address(&made)? as *const u8, address(output)? as *mut u8);
                    to.copy_from_nonoverlapping(from, bytes(output));
                }
                Ok(())
            }
        }
    }
}

impl Launch {
    /// # Safety
    ///
    /// As of [`Kernel::launch`](super::launch::Kernel::launch).
    unsafe fn done(&self) -> Result<()> {
        let pointer = |argument: &Argument| match argument {
            Argument::Address(address) => std::ptr::from_ref(address).cast::<c_void>(),
            Argument::Count(count) => std::ptr::from_ref(count).cast(),
            Argument::Real(real) => std::ptr::from_ref(real).cast(),
        };
        let pointers: Vec<_> = self.arguments.iter().map(pointer).collect();
        let name = CString::new(&*self.name).map_err(candle_core::Error::wrap)?;
        // SAFETY: the caller says so; the pointers outlive the call.
        match unsafe { inferq_emulate(name.as_ptr(), self.blocks.as_ptr(), self.threads, pointers.as_ptr()) } {
            true => Ok(()),
            false => candle_core::bail!("{} has no kernel {}", self.module, self.name),
        }
    }
}

/// The product of rows and a matrix.
pub fn multiply(rows: &Tensor, matrix: &Tensor) -> Result<Tensor> {
    if RECORDED.with_borrow(Option::is_none) {
        return rows.matmul(matrix);
    }
    let output = empty((rows.dim(0)?, matrix.dim(1)?), rows.dtype(), rows.device())?;
    let act = Act::Multiply { rows: rows.clone(), matrix: matrix.clone(), output: output.clone() };
    act.unless_recorded();
    Ok(output)
}

/// # Safety
///
/// As of [`Kernel::launch`](super::launch::Kernel::launch).
pub unsafe fn launch(
    module: &'static Module,
    name: &str,
    _: &Device,
    blocks: [u32; 3],
    threads: u32,
    arguments: &[Argument],
) -> Result<()> {
    let launch = Launch { module: module.name, name: name.to_owned(), blocks, threads, arguments: arguments.to_vec() };
    Act::Launch(launch).unless_recorded().map_or(Ok(()), |act| act.done())
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

fn bytes(tensor: &Tensor) -> usize {
    tensor.elem_count() * tensor.dtype().size_in_bytes()
}

/// The values of a tensor, behind those that are there.
pub fn fetch<T: WithDType>(tensor: &Tensor, to: &mut Vec<T>) -> Result<()> {
    to.extend(tensor.flatten_all()?.to_vec1::<T>()?);
    Ok(())
}

/// A tensor that a kernel writes each value of before it is read: what it does not write is seen in the results.
pub fn empty(shape: impl Into<Shape>, dtype: DType, device: &Device) -> Result<Tensor> {
    let shape = shape.into();
    let tensor = match dtype {
        DType::U32 => Tensor::full(u32::MAX, shape, device)?,
        dtype => Tensor::full(f32::NAN, shape, device)?.to_dtype(dtype)?,
    };
    Act::Take(tensor.clone()).unless_recorded();
    Ok(tensor)
}
