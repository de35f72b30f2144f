//! Weights of a decoder on their way to a GPU.

use candle_core::{DType, Device, Result, Tensor};

use super::model::{Linear, Norm};
use crate::engine::decoder::blueprint::Rotation;
use crate::engine::layers::{Affine, NormWeights};

/// Where weights go, and as what.
#[derive(Clone, Copy)]
pub struct Load<'a> {
    pub device: &'a Device,
    pub dtype: DType,
}

impl Load<'_> {
    pub fn table(self, values: &[f32], width: usize) -> Result<Tensor> {
        Tensor::from_slice(values, (values.len() / width, width), self.device)?.to_dtype(self.dtype)
    }

    pub fn linear(self, affine: &Affine) -> Result<Linear> {
        let bias = affine.bias.as_deref().map(|bias| Tensor::new(bias, self.device)?.to_dtype(self.dtype));
        Ok(Linear { weight: self.table(&affine.weight, affine.inputs)?.t()?, bias: bias.transpose()? })
    }

    pub fn norm(self, weights: &NormWeights) -> Result<Norm> {
        let vector = |values: &Vec<f32>| Tensor::new(&values[..], self.device);
        Ok(match weights {
            NormWeights::Rms { weight, epsilon } => {
                Norm { weight: vector(weight)?, bias: None, epsilon: *epsilon, centred: false }
            }
            NormWeights::Layer { weight, bias, epsilon } => {
                let bias = bias.as_ref().map(vector).transpose()?;
                Norm { weight: vector(weight)?, bias, epsilon: *epsilon, centred: true }
            }
        })
    }
}

/// By how much positions turn, which most layers of a model have in common.
#[derive(Default)]
pub struct Angles(Vec<(Rotation, [Tensor; 2])>);

impl Angles {
    pub fn of(&mut self, rotation: &Rotation, context: usize, load: Load<'_>) -> Result<[Tensor; 2]> {
        if let Some((_, known)) = self.0.iter().find(|(known, _)| known == rotation) {
            return Ok(known.clone());
        }
        let table = |of: fn(f64) -> f64| {
            let row = |position: usize| {
                rotation.frequencies.iter().map(move |angle| (of(position as f64 * angle) * rotation.scale) as f32)
            };
            let values: Vec<f32> = (0..context).flat_map(row).collect();
            Tensor::from_vec(values, (context, rotation.frequencies.len()), load.device)
        };
        let made = [table(f64::cos)?, table(f64::sin)?];
        self.0.push((rotation.clone(), made.clone()));
        Ok(made)
    }
}
