//! Linear layers and norms as processors compute them.
//!
//! For int8 an encoder's layer is made twice. The first one computes in f32 and watches how large its inputs become; with
//! that known, the second one loses little. A decoder's inputs are divided into groups instead.

use std::sync::Mutex;

use kernels::{Activation, Int4Linear, Level, Linear, Norm, QuantizedLinear, QuantizedRows, Team};

use super::layers::{Affine, NormWeights};

/// A layer that has fewer outputs than one for so many inputs decides much and costs little: it chooses experts.
const FEW: usize = 12;

/// A linear layer in the type it is computed in.
#[derive(Debug)]
pub enum Weights {
    F32(Linear),
    Int8(QuantizedLinear),
    Int4(Int4Linear),
    /// In f32, with how large each input was.
    Watched(Linear, Mutex<Vec<f32>>),
}

impl Weights {
    pub fn exact(affine: Affine) -> Self {
        Self::F32(exact(affine))
    }

    pub fn watched(affine: Affine) -> Self {
        let sizes = Mutex::new(vec![0.0; affine.inputs]);
        Self::Watched(exact(affine), sizes)
    }

    pub fn quantized(Affine { weight, bias, inputs }: Affine, sizes: &[f32]) -> Self {
        Self::Int8(QuantizedLinear::new(&weight, bias.as_deref(), inputs, Some(sizes)))
    }

    /// With inputs in groups of at most so many, each with a scale of its own.
    pub fn quantized_in_groups(Affine { weight, bias, inputs }: Affine, most: usize) -> Self {
        Self::Int8(QuantizedLinear::new(&weight, bias.as_deref(), inputs, None).in_groups(most))
    }

    /// In four bits where it is so already, or where it may be rounded; with int8 in groups elsewhere.
    pub fn four_bits(affine: Affine, may_round: bool, most: usize) -> Self {
        let Affine { weight, bias, inputs } = &affine;
        match Int4Linear::exact(weight, bias.as_deref(), *inputs) {
            Some(linear) => Self::Int4(linear),
            None if may_round && weight.len() * FEW >= inputs * inputs => {
                Self::Int4(Int4Linear::new(weight, bias.as_deref(), *inputs))
            }
            None => Self::quantized_in_groups(affine, most),
        }
    }

    /// How large each input was.
    pub fn sizes(&self) -> Vec<f32> {
        match self {
            Self::Watched(_, sizes) => sizes.lock().expect("nothing panics while it holds this").clone(),
            Self::F32(_) | Self::Int8(_) | Self::Int4(_) => Vec::new(),
        }
    }

    pub fn inputs(&self) -> usize {
        match self {
            Self::F32(linear) | Self::Watched(linear, _) => linear.inputs(),
            Self::Int8(linear) => linear.inputs(),
            Self::Int4(linear) => linear.inputs(),
        }
    }

    pub fn outputs(&self) -> usize {
        match self {
            Self::F32(linear) | Self::Watched(linear, _) => linear.outputs(),
            Self::Int8(linear) => linear.outputs(),
            Self::Int4(linear) => linear.outputs(),
        }
    }

    /// On all threads of a team, or on this one alone.
    pub fn forward(
        &self,
        team: Option<&Team>,
        level: Level,
        rows: &[f32],
        to: &mut [f32],
        function: Activation,
        scratch: &mut QuantizedRows,
    ) {
        self.watch(rows);
        match (self, team) {
            (Self::Int8(linear), None) => linear.forward(level, rows, to, function, scratch),
            (Self::Int8(linear), Some(team)) => linear.forward_on(team, level, rows, to, function, scratch),
            (Self::Int4(linear), None) => linear.forward(level, rows, to, function, scratch),
            (Self::Int4(linear), Some(team)) => linear.forward_on(team, level, rows, to, function, scratch),
            (Self::F32(linear) | Self::Watched(linear, _), None) => linear.forward(level, rows, to, function),
            (Self::F32(linear) | Self::Watched(linear, _), Some(team)) => {
                linear.forward_on(team, level, rows, to, function);
            }
        }
    }

    fn watch(&self, rows: &[f32]) {
        let Self::Watched(linear, sizes) = self else { return };
        let mut sizes = sizes.lock().expect("nothing panics while it holds this");
        for row in rows.chunks_exact(linear.inputs()) {
            sizes.iter_mut().zip(row).for_each(|(size, value)| *size = size.max(value.abs()));
        }
    }
}

pub fn exact(Affine { weight, bias, inputs }: Affine) -> Linear {
    Linear::new(&weight, bias.as_deref(), inputs)
}

pub fn norm(weights: NormWeights) -> Norm {
    match weights {
        NormWeights::Layer { weight, bias, epsilon } => Norm::layer(weight, bias, epsilon),
        NormWeights::Rms { weight, epsilon } => Norm::rms(weight, epsilon),
    }
}
