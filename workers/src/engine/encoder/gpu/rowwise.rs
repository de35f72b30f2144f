//! What is said of rows one by one, in one pass over them, as operations of candle's on a GPU.

use candle_core::{CpuStorage, CudaStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor};
use kernels::Activation;
use kernels::cuda::encoder as cuda;

/// `f(x + bias)`; where it is gated, times `x + bias` of the other half.
pub struct Activate<'a> {
    pub bias: Option<&'a Tensor>,
    pub activation: Activation,
    pub gated: bool,
}

impl CustomOp1 for Activate<'_> {
    fn name(&self) -> &'static str {
        "activate"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        candle_core::bail!("{} is for GPUs", self.name())
    }

    fn cuda_fwd(&self, rows: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        cuda::activate((rows, layout), self.bias, self.activation, self.gated)
    }
}

/// `norm(x + bias + added)`, or the sum alone.
pub struct Sum<'a> {
    pub bias: Option<&'a Tensor>,
    pub norm: Option<&'a super::Norm>,
}

impl Sum<'_> {
    fn norm(&self) -> Option<kernels::cuda::Norm<'_>> {
        self.norm.map(super::Norm::kernel)
    }
}

impl CustomOp1 for Sum<'_> {
    fn name(&self) -> &'static str {
        "norm"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        candle_core::bail!("a norm of this kind is for GPUs")
    }

    fn cuda_fwd(&self, rows: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        cuda::sum((rows, layout), None, self.bias, self.norm())
    }
}

impl CustomOp2 for Sum<'_> {
    fn name(&self) -> &'static str {
        "sum"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        candle_core::bail!("a sum of this kind is for GPUs")
    }

    fn cuda_fwd(
        &self,
        rows: &CudaStorage,
        layout: &Layout,
        added: &CudaStorage,
        added_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        cuda::sum((rows, layout), Some((added, added_layout)), self.bias, self.norm())
    }
}
