//! An encoder on a GPU, by candle. It does the same as `cpu`, on the packed rows of a batch; attention and pooling are
//! kernels of our own. It runs on a processor too, slowly, by which it is tested.

mod attention;
mod packed;
#[cfg(feature = "cuda")]
mod rowwise;

use std::collections::HashMap;

use candle_core::{D, DType, Device, Result, Tensor};
use candle_nn::ops::{layer_norm, rms_norm};
use kernels::{Activation, Level, Linear};
use schemas::registry::Dtype;

use self::attention::Attention;
use self::packed::{Packed, Pool};
#[cfg(feature = "cuda")]
use self::rowwise::{Activate, Sum};
use super::Input;
use super::blueprint::{Head, Layer, Shape};
use super::cpu::Layers;
use super::family::Model;
use super::pooling::finish;
use crate::engine::LoadError;
use crate::engine::activate::activate;
use crate::engine::layers::{Affine, NormWeights};
use crate::engine::progress::Progress;
use crate::engine::weights::{exact, norm};

/// Values of the largest head that the kernels have room for.
const HEAD_MAX: usize = 256;

#[derive(Debug)]
pub struct Gpu {
    body: Body,
    words: Tensor,
    positions: Option<Tensor>,
    /// Rows for the first and the second text of a pair.
    types: Option<Tensor>,
    embedding_norm: Option<Norm>,
    /// What follows pooling is done on the processor.
    head: Head<Linear, kernels::Norm>,
}

/// The layers of a model, whatever it is that goes into them.
#[derive(Debug)]
pub struct Body {
    device: Device,
    dtype: DType,
    shape: Shape,
    layers: Vec<Layer<Dense, Norm>>,
    final_norm: Option<Norm>,
    /// `[heads, distances]`, where distance is told of in scores.
    distance_bias: Option<Tensor>,
}

#[derive(Debug)]
pub struct Dense {
    /// `[inputs, outputs]`
    weight: Tensor,
    bias: Option<Tensor>,
}

#[derive(Debug)]
enum Norm {
    Layer { weight: Tensor, bias: Tensor, epsilon: f32 },
    Rms { weight: Tensor, epsilon: f32 },
}

/// What the layers share of a batch.
pub struct Batch {
    packed: Packed,
    positions: Vec<u32>,
    /// By the base of rotary positions: cosines and sines for each row.
    turns: HashMap<u64, (Tensor, Tensor)>,
}

impl Gpu {
    pub fn new(
        model: Model,
        head: Head<Affine, NormWeights>,
        dtype: DType,
        device: &Device,
    ) -> std::result::Result<Self, LoadError> {
        let failed = LoadError::Device;
        let body = Body::new(&model, dtype, device)?;
        let table = |values: &[f32]| body.table(values);
        let embedding = &model.embedding;
        Ok(Self {
            words: table(&embedding.words).map_err(failed)?,
            positions: embedding.positions.as_deref().map(table).transpose().map_err(failed)?,
            types: embedding.types.as_ref().map(|types| table(&types.concat())).transpose().map_err(failed)?,
            embedding_norm: embedding
                .norm
                .clone()
                .map(|weights| Norm::new(weights, dtype, device))
                .transpose()
                .map_err(failed)?,
            head: head.map(exact, norm),
            body,
        })
    }

    /// One vector for each input, as [`Cpu::run`](super::cpu::Cpu::run) gives it.
    pub fn run(&self, inputs: &[Input<'_>]) -> Result<Vec<Vec<f32>>> {
        let mut batch = self.body.batch(inputs.iter().map(|input| input.tokens.len()))?;
        let rows = self.body.run(self.embed(inputs, &batch)?, &mut batch)?;
        let pooled = rows.apply_op1_no_bwd(&Pool { packed: &batch.packed, poolings: &self.head.pooling })?;
        Ok(pooled.to_vec2::<f32>()?.into_iter().map(|vector| finish(Level::best(), &self.head, vector)).collect())
    }

    fn embed(&self, inputs: &[Input<'_>], batch: &Batch) -> Result<Tensor> {
        let ids = |ids: Vec<u32>| Tensor::new(ids, &self.body.device);
        let tokens = inputs.iter().flat_map(|input| input.tokens.iter().copied()).collect();
        let mut hidden = self.words.index_select(&ids(tokens)?, 0)?;
        if let Some(table) = &self.positions {
            hidden = (hidden + table.index_select(&ids(batch.positions.clone())?, 0)?)?;
        }
        if let Some(table) = &self.types {
            let kind = |input: &Input<'_>, at: usize| u32::from(input.pair_at.is_some_and(|pair_at| at >= pair_at));
            let kinds = inputs.iter().flat_map(|input| (0..input.tokens.len()).map(move |at| kind(input, at)));
            hidden = (hidden + table.index_select(&ids(kinds.collect())?, 0)?)?;
        }
        applied(&self.embedding_norm, &hidden)
    }
}

impl Body {
    pub fn new(model: &impl Layers, dtype: DType, device: &Device) -> std::result::Result<Self, LoadError> {
        let (failed, shape) = (LoadError::Device, model.shape().clone());
        if shape.size > HEAD_MAX {
            let message = format!("heads of {} values are too large; {HEAD_MAX} is the most", shape.size);
            return Err(failed(candle_core::Error::Msg(message)));
        }
        let norm_of = |weights| Norm::new(weights, dtype, device);
        let distances = |bias: &[Vec<f32>]| Tensor::from_vec(bias.concat(), (bias.len(), bias[0].len()), device);
        let (mut layers, mut progress) = (Vec::with_capacity(model.count()), Progress::of(model.count()));
        for index in 0..model.count() {
            progress.tell(index);
            let made = model.layer(index)?.map(|affine| Dense::new(affine, dtype, device), norm_of);
            layers.push(made.transpose().map_err(failed)?);
        }
        Ok(Self {
            final_norm: model.final_norm()?.map(norm_of).transpose().map_err(failed)?,
            distance_bias: shape.distance_bias.as_deref().map(distances).transpose().map_err(failed)?,
            device: device.clone(),
            dtype,
            shape,
            layers,
        })
    }

    /// Values of a row.
    pub fn width(&self) -> usize {
        self.shape.hidden
    }

    /// Rows as wide as those of the model, on its device and in its type.
    pub fn table(&self, values: &[f32]) -> Result<Tensor> {
        let width = self.shape.hidden;
        Tensor::from_slice(values, (values.len() / width, width), &self.device)?.to_dtype(self.dtype)
    }

    /// Of sequences of these lengths.
    pub fn batch(&self, lengths: impl Iterator<Item = usize>) -> Result<Batch> {
        let packed = Packed::new(lengths, &self.device)?;
        Ok(Batch { positions: packed.positions(), packed, turns: HashMap::new() })
    }

    /// The rows of all sequences, one after the other, through all layers.
    pub fn run(&self, mut hidden: Tensor, batch: &mut Batch) -> Result<Tensor> {
        for layer in &self.layers {
            let input = applied(&layer.norm, &hidden)?;
            let projected = self.project(layer, &input, batch)?;
            let mixed = layer.output.product(&self.attend(layer, &projected, batch)?)?;
            hidden = layer.output.added(&mixed, &hidden, layer.output_norm.as_ref())?;
            let input = applied(&layer.perceptron_norm, &hidden)?;
            let inner = layer.up.activated(&layer.up.product(&input)?, layer.activation, layer.gated)?;
            hidden = layer.down.added(&layer.down.product(&inner)?, &hidden, layer.down_norm.as_ref())?;
        }
        applied(&self.final_norm, &hidden)
    }

    /// Queries, keys and values of all rows, `[rows, heads, size]`, with their positions.
    fn project(&self, layer: &Layer<Dense, Norm>, input: &Tensor, batch: &mut Batch) -> Result<[Tensor; 3]> {
        let Shape { heads, kv_heads, size, .. } = self.shape;
        let projected = layer.projection.activated(&layer.projection.product(input)?, Activation::None, false)?;
        let rows = projected.dim(0)?;
        let part = |from: usize, heads: usize| projected.reshape((rows, (), size))?.narrow(1, from, heads);
        let [mut queries, mut keys] = [part(0, heads)?, part(heads, kv_heads)?];
        if let Some([query_norm, key_norm]) = &layer.head_norms {
            (queries, keys) = (query_norm.apply(&queries.contiguous()?)?, key_norm.apply(&keys.contiguous()?)?);
        }
        if let Some(base) = layer.rotary {
            let (cosines, sines) = batch.turn(base, size, self.dtype, &self.device)?;
            (queries, keys) = (turned(&queries, &cosines, &sines)?, turned(&keys, &cosines, &sines)?);
        }
        Ok([queries, keys, part(heads + kv_heads, kv_heads)?])
    }

    fn attend(
        &self,
        layer: &Layer<Dense, Norm>,
        [queries, keys, values]: &[Tensor; 3],
        batch: &Batch,
    ) -> Result<Tensor> {
        let (shape, bias, window) = (&self.shape, self.distance_bias.as_ref(), layer.window);
        queries.apply_op3_no_bwd(keys, values, &Attention { packed: &batch.packed, shape, bias, window })
    }
}

/// What a GPU computes in.
pub fn type_of(dtype: Dtype) -> std::result::Result<DType, LoadError> {
    match dtype {
        Dtype::F32 => Ok(DType::F32),
        Dtype::F16 => Ok(DType::F16),
        Dtype::Bf16 => Ok(DType::BF16),
        Dtype::Int8 | Dtype::Int4 => Err(LoadError::NeedsCpu(dtype)),
    }
}

impl Batch {
    fn turn(&mut self, base: f64, size: usize, dtype: DType, device: &Device) -> Result<(Tensor, Tensor)> {
        if let Some((cosines, sines)) = self.turns.get(&base.to_bits()) {
            return Ok((cosines.clone(), sines.clone()));
        }
        let half = size / 2;
        let angle = |position: u32, at: usize| f64::from(position) / base.powf(2.0 * at as f64 / size as f64);
        let angles: Vec<f64> =
            self.positions.iter().flat_map(|&position| (0..half).map(move |at| angle(position, at))).collect();
        let table = |of: fn(f64) -> f64| {
            let values: Vec<f32> = angles.iter().map(|&angle| of(angle) as f32).collect();
            Tensor::from_vec(values, (self.positions.len(), 1, half), device)?.to_dtype(dtype)
        };
        let made = (table(f64::cos)?, table(f64::sin)?);
        self.turns.insert(base.to_bits(), made.clone());
        Ok(made)
    }
}

impl Dense {
    pub fn new(Affine { weight, bias, inputs }: Affine, dtype: DType, device: &Device) -> Result<Self> {
        let outputs = weight.len() / inputs;
        let weight = Tensor::from_vec(weight, (outputs, inputs), device)?.t()?.contiguous()?.to_dtype(dtype)?;
        let bias = bias.map(|bias| Tensor::new(bias, device)?.to_dtype(dtype)).transpose()?;
        Ok(Self { weight, bias })
    }

    /// Of rows and weights, without the bias.
    pub fn product(&self, rows: &Tensor) -> Result<Tensor> {
        rows.matmul(&self.weight)
    }

    fn biased(&self, product: &Tensor) -> Result<Tensor> {
        self.bias.as_ref().map_or_else(|| Ok(product.clone()), |bias| product.broadcast_add(bias))
    }

    /// The product with the bias, activated; where it is gated, times its other half.
    pub fn activated(&self, product: &Tensor, activation: Activation, gated: bool) -> Result<Tensor> {
        #[cfg(feature = "cuda")]
        if product.device().is_cuda() {
            return match (&self.bias, activation, gated) {
                (None, Activation::None, false) => Ok(product.clone()),
                (bias, ..) => product.apply_op1_no_bwd(&Activate { bias: bias.as_ref(), activation, gated }),
            };
        }
        let biased = self.biased(product)?;
        if !gated {
            return activate(activation, &biased);
        }
        let half = biased.dim(1)? / 2;
        activate(activation, &biased.narrow(1, 0, half)?.contiguous()?)? * biased.narrow(1, half, half)?
    }

    /// The product with the bias, added to what went in before; then a norm.
    fn added(&self, product: &Tensor, before: &Tensor, norm: Option<&Norm>) -> Result<Tensor> {
        #[cfg(feature = "cuda")]
        if product.device().is_cuda() {
            return product.apply_op2_no_bwd(before, &Sum { bias: self.bias.as_ref(), norm });
        }
        let sum = (self.biased(product)? + before)?;
        norm.map_or(Ok(sum.clone()), |norm| norm.apply(&sum))
    }
}

impl Norm {
    fn new(weights: NormWeights, dtype: DType, device: &Device) -> Result<Self> {
        let tensor = |values: Vec<f32>| Tensor::new(values, device)?.to_dtype(dtype);
        Ok(match weights {
            NormWeights::Layer { weight, bias, epsilon } => {
                let bias = bias.unwrap_or_else(|| vec![0.0; weight.len()]);
                Self::Layer { weight: tensor(weight)?, bias: tensor(bias)?, epsilon }
            }
            NormWeights::Rms { weight, epsilon } => Self::Rms { weight: tensor(weight)?, epsilon },
        })
    }

    fn apply(&self, rows: &Tensor) -> Result<Tensor> {
        #[cfg(feature = "cuda")]
        if rows.device().is_cuda() {
            return rows.apply_op1_no_bwd(&Sum { bias: None, norm: Some(self) });
        }
        match self {
            Self::Layer { weight, bias, epsilon } => layer_norm(rows, weight, bias, *epsilon),
            Self::Rms { weight, epsilon } => rms_norm(rows, weight, *epsilon),
        }
    }

    #[cfg(feature = "cuda")]
    fn kernel(&self) -> kernels::cuda::Norm<'_> {
        match self {
            Self::Layer { weight, bias, epsilon } => {
                kernels::cuda::Norm { weight, bias: Some(bias), epsilon: *epsilon, centred: true }
            }
            Self::Rms { weight, epsilon } => {
                kernels::cuda::Norm { weight, bias: None, epsilon: *epsilon, centred: false }
            }
        }
    }
}

fn applied(norm: &Option<Norm>, rows: &Tensor) -> Result<Tensor> {
    norm.as_ref().map_or_else(|| Ok(rows.clone()), |norm| norm.apply(rows))
}

/// Heads with their halves turned.
fn turned(heads: &Tensor, cosines: &Tensor, sines: &Tensor) -> Result<Tensor> {
    let half = heads.dim(D::Minus1)? / 2;
    let (left, right) = (heads.narrow(D::Minus1, 0, half)?, heads.narrow(D::Minus1, half, half)?);
    let new_left = (left.broadcast_mul(cosines)? - right.broadcast_mul(sines)?)?;
    let new_right = (right.broadcast_mul(cosines)? + left.broadcast_mul(sines)?)?;
    Tensor::cat(&[new_left, new_right], D::Minus1)
}

#[cfg(all(test, feature = "cuda"))]
mod tests;
