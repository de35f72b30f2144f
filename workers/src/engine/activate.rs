//! Activations of tensors.

use candle_core::{Result, Tensor};
use candle_nn::ops::{sigmoid, silu};
use kernels::Activation;

pub fn activate(activation: Activation, rows: &Tensor) -> Result<Tensor> {
    match activation {
        Activation::None => Ok(rows.clone()),
        Activation::Gelu => rows.gelu_erf(),
        Activation::GeluTanh => rows.gelu(),
        Activation::Silu => silu(rows),
        Activation::Relu => rows.relu(),
        Activation::Tanh => rows.tanh(),
        Activation::QuickGelu => rows * sigmoid(&(rows * 1.702)?)?,
    }
}
