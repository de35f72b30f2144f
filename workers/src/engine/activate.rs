//! Activations of tensors.

use candle_core::{Result, Tensor};
use candle_nn::ops::silu;
use kernels::Activation;

pub fn activate(activation: Activation, rows: &Tensor) -> Result<Tensor> {
    match activation {
        Activation::None => Ok(rows.clone()),
        Activation::Gelu => rows.gelu_erf(),
        Activation::GeluTanh => rows.gelu(),
        Activation::Silu => silu(rows),
        Activation::Relu => rows.relu(),
        Activation::Tanh => rows.tanh(),
    }
}
