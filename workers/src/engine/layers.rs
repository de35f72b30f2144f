//! What models of all kinds are made of, as it is read from files: linear layers and norms.

use super::LoadError;
use super::tensors::Tensors;

/// Of a linear layer, `[outputs, inputs]`.
#[derive(Clone, Debug)]
pub struct Affine {
    pub weight: Vec<f32>,
    pub bias: Option<Vec<f32>>,
    pub inputs: usize,
}

/// Of a norm.
#[derive(Clone, Debug)]
pub enum NormWeights {
    Layer { weight: Vec<f32>, bias: Option<Vec<f32>>, epsilon: f32 },
    Rms { weight: Vec<f32>, epsilon: f32 },
}

/// A linear layer and whether it has a bias.
pub fn affine(tensors: &Tensors, name: &str, shape: [usize; 2], biased: bool) -> Result<Affine, LoadError> {
    let weight = tensors.matrix(&format!("{name}.weight"), shape)?;
    let bias = biased.then(|| tensors.vector(&format!("{name}.bias"), shape[0])).transpose()?;
    Ok(Affine { weight, bias, inputs: shape[1] })
}

/// Several layers over the same inputs as one.
pub fn join(parts: Vec<Affine>) -> Affine {
    let inputs = parts[0].inputs;
    let mut joined = Affine { weight: Vec::new(), bias: parts[0].bias.is_some().then(Vec::new), inputs };
    for part in parts {
        joined.weight.extend(part.weight);
        joined.bias.iter_mut().zip(part.bias).for_each(|(bias, more)| bias.extend(more));
    }
    joined
}

pub fn layer_norm(tensors: &Tensors, name: &str, width: usize, epsilon: f64) -> Result<NormWeights, LoadError> {
    let bias = format!("{name}.bias");
    Ok(NormWeights::Layer {
        weight: tensors.vector(&format!("{name}.weight"), width)?,
        bias: tensors.has(&bias).then(|| tensors.vector(&bias, width)).transpose()?,
        epsilon: epsilon as f32,
    })
}
