//! A mixture of experts on a GPU.

use candle_core::{Result, Tensor};
use kernels::Function;
use kernels::cuda::decoder as cuda;
use kernels::cuda::experts::{Choice, Stack};

use super::load::Load;
use super::model::Linear;
use crate::engine::decoder::blueprint::Experts;
use crate::engine::layers::Affine;

/// Rows of an expert, in the mean, up to which all experts are asked at once; more are worth products of their own.
const FEW: usize = 8;

pub struct Mixture {
    router: Linear,
    up: Stack,
    down: Stack,
    function: Function,
    /// Experts of the model, and of a row.
    experts: usize,
    each: usize,
    normalized: bool,
}

impl Mixture {
    pub fn new(Experts { router, experts, each, normalized }: Experts<Affine>, load: Load<'_>) -> Result<Self> {
        let Some(first) = experts.first() else { candle_core::bail!("a mixture has no experts") };
        let (function, ups, downs) =
            (first.function, experts.iter().map(|dense| &dense.up), experts.iter().map(|dense| &dense.down));
        Ok(Self {
            router: load.linear(&router)?,
            up: stack(ups, load)?,
            down: stack(downs, load)?,
            function,
            experts: experts.len(),
            each,
            normalized,
        })
    }

    /// Whether so many rows ask all experts at once.
    pub fn asks_all(&self, rows: usize) -> bool {
        rows * self.each <= FEW * self.experts && self.up.is_even() && self.down.is_even()
    }

    pub fn forward(&self, rows: &Tensor) -> Result<Tensor> {
        let scores = self.router.multiply(rows)?;
        let choice = Choice::new(&scores, self.router.bias.as_ref(), self.each, self.normalized)?;
        if !self.asks_all(rows.dim(0)?) {
            return self.ask_each(rows, &choice);
        }
        let inner = cuda::activate(self.function, &self.up.multiply(rows, &choice, self.each)?, None)?;
        choice.combine(&self.down.multiply(&inner, &choice, 1)?)
    }

    /// One expert after the other.
    fn ask_each(&self, rows: &Tensor, choice: &Choice) -> Result<Tensor> {
        let mut sum = rows.zeros_like()?;
        for (expert, (own, weights)) in choice.shares()?.into_iter().enumerate() {
            if own.is_empty() {
                continue;
            }
            let own = Tensor::new(own, rows.device())?;
            let weights = Tensor::new(weights, rows.device())?.to_dtype(rows.dtype())?.unsqueeze(1)?;
            let ((up, up_bias), (down, bias)) = (self.up.of(expert)?, self.down.of(expert)?);
            let inner = rows.index_select(&own, 0)?.matmul(&up)?;
            let made = cuda::activate(self.function, &inner, up_bias.as_ref())?.matmul(&down)?;
            let made = bias.map_or(Ok(made.clone()), |bias| made.broadcast_add(&bias))?;
            sum = sum.index_add(&own, &made.broadcast_mul(&weights)?, 0)?;
        }
        Ok(sum)
    }
}

fn stack<'a>(affines: impl Iterator<Item = &'a Affine> + Clone, load: Load<'_>) -> Result<Stack> {
    let matrices: Vec<&[f32]> = affines.clone().map(|affine| affine.weight.as_slice()).collect();
    let biases = affines.clone().map(|affine| affine.bias.as_deref()).collect::<Option<Vec<_>>>();
    let inputs = affines.clone().next().map_or(1, |affine| affine.inputs);
    Stack::new(&matrices, biases, inputs, load.dtype, load.device)
}
