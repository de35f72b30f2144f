//! A launch in the making: a kernel's name and its arguments.

use candle_core::{DType, Device, Result, Tensor};

use super::device::{address, launch};
use super::{NULL, Norm, unsupported};

/// Compiled kernels.
#[derive(Debug)]
pub struct Module {
    pub name: &'static str,
    #[cfg(feature = "cuda")]
    pub ptx: &'static str,
}

pub struct Kernel<'a> {
    module: &'static Module,
    name: String,
    device: &'a Device,
    arguments: Vec<Argument>,
}

#[derive(Clone, Copy, Debug)]
pub enum Argument {
    Address(u64),
    Count(i32),
    Real(f32),
}

impl<'a> Kernel<'a> {
    /// That kernel, for the type of that tensor.
    pub fn new(module: &'static Module, name: &str, like: &'a Tensor) -> Result<Self> {
        Self::with_suffix(module, name, like, "")
    }

    pub fn with_suffix(module: &'static Module, name: &str, like: &'a Tensor, suffix: &str) -> Result<Self> {
        let dtype = match like.dtype() {
            DType::F32 => "f32",
            DType::F16 => "f16",
            DType::BF16 => "bf16",
            other => return Err(unsupported(other)),
        };
        Ok(Self { module, name: format!("{name}_{dtype}{suffix}"), device: like.device(), arguments: Vec::new() })
    }

    pub fn tensor(self, tensor: &Tensor) -> Result<Self> {
        Ok(self.address(address(tensor)?))
    }

    pub fn optional(self, tensor: Option<&Tensor>) -> Result<Self> {
        Ok(self.address(tensor.map_or(Ok(NULL), address)?))
    }

    pub fn norm(self, norm: Option<Norm<'_>>) -> Result<Self> {
        let new = self.optional(norm.map(|norm| norm.weight))?.optional(norm.and_then(|norm| norm.bias))?;
        let (epsilon, centred) = norm.map_or((0.0, false), |norm| (norm.epsilon, norm.centred));
        Ok(new.real(epsilon).count(usize::from(centred)))
    }

    pub fn address(self, address: u64) -> Self {
        self.with(Argument::Address(address))
    }

    pub fn count(self, count: usize) -> Self {
        self.with(Argument::Count(count as i32))
    }

    pub fn real(self, real: f32) -> Self {
        self.with(Argument::Real(real))
    }

    fn with(mut self, argument: Argument) -> Self {
        self.arguments.push(argument);
        self
    }

    /// # Safety
    ///
    /// The arguments must be those that the kernel has, and what it reads and writes must be there.
    pub unsafe fn launch(self, blocks: [usize; 3], threads: u32) -> Result<()> {
        // SAFETY: the caller says so.
        unsafe {
            launch(self.module, &self.name, self.device, blocks.map(|count| count as u32), threads, &self.arguments)
        }
    }
}
