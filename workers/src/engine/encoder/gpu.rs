//! An encoder on a GPU, by candle. It does the same as `cpu`: what is said of tokens one by one is computed on the packed
//! rows of a batch. Attention is computed on groups of sequences of about the same length, padded to the longest of each.

use std::collections::HashMap;
use std::ops::Range;

use candle_core::{D, DType, Device, Result, Tensor};
use candle_nn::ops::{layer_norm, rms_norm, silu, softmax_last_dim};
use kernels::{Activation, Level, Linear};

use super::Input;
use super::blueprint::{Affine, Head, Layer, NormWeights, Shape};
use super::cpu::{exact, norm};
use super::family::Model;
use super::pooling::pool;
use crate::engine::LoadError;

/// Sequences are of one group while the longest is at most so many times as long as the shortest, and some tokens more.
const STRETCH: f64 = 1.25;
const STRETCH_TOKENS: usize = 8;
/// Scores of a group: heads times the squares of lengths.
const SCORES_MAX: usize = 1 << 28;
/// What hides a key. The least f16 is no smaller.
const HIDDEN: f32 = -65_504.0;

#[derive(Debug)]
pub struct Gpu {
    device: Device,
    dtype: DType,
    shape: Shape,
    words: Tensor,
    positions: Option<Tensor>,
    /// Rows for the first and the second text of a pair.
    types: Option<Tensor>,
    embedding_norm: Option<Norm>,
    layers: Vec<Layer<Dense, Norm>>,
    final_norm: Option<Norm>,
    /// Pooling is done on the processor.
    head: Head<Linear, kernels::Norm>,
}

#[derive(Debug)]
struct Dense {
    /// `[inputs, outputs]`
    weight: Tensor,
    bias: Option<Tensor>,
}

#[derive(Debug)]
enum Norm {
    Layer { weight: Tensor, bias: Tensor, epsilon: f32 },
    Rms { weight: Tensor, epsilon: f32 },
}

/// Sequences of about the same length, one after the other in the packed rows.
struct Group {
    rows: Range<usize>,
    count: usize,
    longest: usize,
    /// For each place of the padded group its row in the group, and for each row its place.
    spread: Tensor,
    gather: Tensor,
    lengths: Vec<usize>,
}

/// Rows of a batch, and what layers share of it.
struct Batch {
    groups: Vec<Group>,
    positions: Vec<u32>,
    /// By the base of rotary positions: cosines and sines for each row.
    turns: HashMap<u64, (Tensor, Tensor)>,
    /// By window: for each group what is added to its scores.
    masks: HashMap<Option<usize>, Vec<Tensor>>,
}

impl Gpu {
    pub fn new(
        model: Model,
        head: Head<Affine, NormWeights>,
        dtype: DType,
        device: &Device,
    ) -> std::result::Result<Self, LoadError> {
        let failed = LoadError::Device;
        let (hidden, shape) = (model.shape.hidden, model.shape.clone());
        let table = |values: &[f32]| {
            Tensor::from_slice(values, (values.len() / hidden, hidden), device).and_then(|table| table.to_dtype(dtype))
        };
        let norm_of = |weights| Norm::new(weights, dtype, device);
        let embedding = &model.embedding;
        let mut layers = Vec::with_capacity(model.layers);
        for index in 0..model.layers {
            let made = model.layer(index)?.map(|affine| Dense::new(affine, dtype, device), norm_of);
            layers.push(made.transpose().map_err(failed)?);
        }
        Ok(Self {
            words: table(&embedding.words).map_err(failed)?,
            positions: embedding.positions.as_deref().map(table).transpose().map_err(failed)?,
            types: embedding.types.as_ref().map(|types| table(&types.concat())).transpose().map_err(failed)?,
            embedding_norm: embedding.norm.clone().map(norm_of).transpose().map_err(failed)?,
            final_norm: model.final_norm.clone().map(norm_of).transpose().map_err(failed)?,
            layers,
            head: head.map(exact, norm),
            device: device.clone(),
            dtype,
            shape,
        })
    }

    /// One vector for each input, as [`Cpu::run`](super::cpu::Cpu::run) gives it.
    pub fn run(&self, inputs: &[Input<'_>]) -> Result<Vec<Vec<f32>>> {
        let mut order: Vec<usize> = (0..inputs.len()).collect();
        order.sort_by_key(|&index| inputs[index].tokens.len());
        let sorted: Vec<Input<'_>> = order.iter().map(|&index| inputs[index]).collect();
        let rows = self.rows(&sorted)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
        let (mut vectors, mut start) = (vec![Vec::new(); inputs.len()], 0);
        for (index, input) in order.into_iter().zip(sorted) {
            let end = start + input.tokens.len() * self.shape.hidden;
            vectors[index] = pool(Level::best(), &self.head, &rows[start..end], self.shape.hidden);
            start = end;
        }
        Ok(vectors)
    }

    /// The vectors of all tokens.
    fn rows(&self, inputs: &[Input<'_>]) -> Result<Tensor> {
        let mut batch = self.batch(inputs)?;
        let mut hidden = self.embed(inputs, &batch)?;
        for layer in &self.layers {
            let input = applied(&layer.norm, &hidden)?;
            let projected = self.project(layer, &input, &mut batch)?;
            let mixed = layer.output.forward(&self.attend(layer, &projected, &mut batch)?)?;
            hidden = applied(&layer.output_norm, &(hidden + mixed)?)?;
            let input = applied(&layer.perceptron_norm, &hidden)?;
            let mut inner = layer.up.forward(&input)?;
            inner = match layer.gated {
                true => {
                    let half = inner.dim(1)? / 2;
                    (activate(layer.activation, &inner.narrow(1, 0, half)?.contiguous()?)?
                        * inner.narrow(1, half, half)?)?
                }
                false => activate(layer.activation, &inner)?,
            };
            hidden = applied(&layer.down_norm, &(hidden + layer.down.forward(&inner)?)?)?;
        }
        applied(&self.final_norm, &hidden)
    }

    fn embed(&self, inputs: &[Input<'_>], batch: &Batch) -> Result<Tensor> {
        let ids = |ids: Vec<u32>| Tensor::new(ids, &self.device);
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

    /// Queries, keys and values of all rows, `[rows, heads, size]`, with their positions.
    fn project(&self, layer: &Layer<Dense, Norm>, input: &Tensor, batch: &mut Batch) -> Result<[Tensor; 3]> {
        let Shape { heads, kv_heads, size, .. } = self.shape;
        let projected = layer.projection.forward(input)?;
        let rows = projected.dim(0)?;
        let part = |from: usize, heads: usize| {
            projected.narrow(1, from * size, heads * size)?.contiguous()?.reshape((rows, heads, size))
        };
        let [mut queries, mut keys] = [part(0, heads)?, part(heads, kv_heads)?];
        if let Some([query_norm, key_norm]) = &layer.head_norms {
            (queries, keys) = (query_norm.apply(&queries)?, key_norm.apply(&keys)?);
        }
        if let Some(base) = layer.rotary {
            let (cosines, sines) = batch.turn(base, size, self.dtype, &self.device)?;
            (queries, keys) = (turned(&queries, &cosines, &sines)?, turned(&keys, &cosines, &sines)?);
        }
        Ok([queries, keys, part(heads + kv_heads, kv_heads)?])
    }

    fn attend(&self, layer: &Layer<Dense, Norm>, parts: &[Tensor; 3], batch: &mut Batch) -> Result<Tensor> {
        let Shape { heads, kv_heads, size, .. } = self.shape;
        batch.mask(layer.window, &self.shape, &self.device)?;
        let mut mixed = Vec::with_capacity(batch.groups.len());
        for (group, mask) in batch.groups.iter().zip(&batch.masks[&layer.window]) {
            let padded = |rows: &Tensor, heads: usize| {
                let rows = rows.narrow(0, group.rows.start, group.rows.len())?.contiguous()?;
                let spread = rows.index_select(&group.spread, 0)?.reshape((group.count, group.longest, heads, size))?;
                spread.transpose(1, 2)?.contiguous()
            };
            let shared = |rows: &Tensor| repeated(&padded(rows, kv_heads)?, heads / kv_heads);
            let [queries, keys, values] = [padded(&parts[0], heads)?, shared(&parts[1])?, shared(&parts[2])?];
            let scores = (queries.matmul(&keys.t()?)?.to_dtype(DType::F32)? / (size as f64).sqrt())?;
            let shares = softmax_last_dim(&scores.broadcast_add(mask)?)?.to_dtype(self.dtype)?;
            let places = shares.matmul(&values)?.transpose(1, 2)?.contiguous()?;
            let places = places.reshape((group.count * group.longest, heads * size))?;
            mixed.push(places.index_select(&group.gather, 0)?);
        }
        Tensor::cat(&mixed, 0)
    }

    fn batch(&self, sorted: &[Input<'_>]) -> Result<Batch> {
        let lengths: Vec<usize> = sorted.iter().map(|input| input.tokens.len()).collect();
        let positions = lengths.iter().flat_map(|&length| 0..length as u32).collect();
        let (mut groups, mut rest, mut start) = (Vec::new(), &lengths[..], 0);
        while let Some(&shortest) = rest.first() {
            let most = (shortest as f64 * STRETCH) as usize + STRETCH_TOKENS;
            let room = |&(index, &length): &(usize, &usize)| {
                index == 0 || length <= most && (index + 1) * length * length * self.shape.heads <= SCORES_MAX
            };
            let (group, later) = rest.split_at(rest.iter().enumerate().take_while(room).count());
            let group = Group::new(group, start, &self.device)?;
            (start, rest) = (group.rows.end, later);
            groups.push(group);
        }
        Ok(Batch { groups, positions, turns: HashMap::new(), masks: HashMap::new() })
    }
}

impl Group {
    /// Of sequences of these lengths, ordered, whose rows begin at `start`.
    fn new(lengths: &[usize], start: usize, device: &Device) -> Result<Self> {
        let longest = lengths[lengths.len() - 1];
        let (mut spread, mut gather, mut row) = (Vec::new(), Vec::new(), 0);
        for (index, &length) in lengths.iter().enumerate() {
            // Padding may be any row: it is not seen, and what it sees is dropped.
            spread.extend((0..longest).map(|at| row + at.min(length - 1) as u32));
            gather.extend((0..length).map(|at| (index * longest + at) as u32));
            row += length as u32;
        }
        let (spread, gather) = (Tensor::new(spread, device)?, Tensor::new(gather, device)?);
        Ok(Self {
            rows: start..start + row as usize,
            count: lengths.len(),
            longest,
            spread,
            gather,
            lengths: lengths.into(),
        })
    }

    /// What is added to the scores of its sequences.
    fn mask(&self, window: Option<usize>, shape: &Shape, device: &Device) -> Result<Tensor> {
        let longest = self.longest;
        let sees = |query: usize, key: usize, length: usize| {
            key < length && (!shape.causal || key <= query) && window.is_none_or(|window| query.abs_diff(key) <= window)
        };
        let each = |&length: &usize| {
            let row =
                move |query: usize| (0..longest).map(move |key| if sees(query, key, length) { 0.0 } else { HIDDEN });
            (0..longest).flat_map(row).collect::<Vec<f32>>()
        };
        let mask = Tensor::from_vec(
            self.lengths.iter().flat_map(each).collect::<Vec<f32>>(),
            (self.count, 1, longest, longest),
            device,
        )?;
        let Some(bias) = &shape.distance_bias else { return Ok(mask) };
        let of_head = |bias: &Vec<f32>| {
            let middle = bias.len() / 2;
            (0..longest).flat_map(|query| bias[middle - query..middle - query + longest].to_vec()).collect::<Vec<f32>>()
        };
        let bias: Vec<f32> = bias.iter().flat_map(of_head).collect();
        mask.broadcast_add(&Tensor::from_vec(bias, (1, shape.heads, longest, longest), device)?)
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

    fn mask(&mut self, window: Option<usize>, shape: &Shape, device: &Device) -> Result<()> {
        if !self.masks.contains_key(&window) {
            let masks = self.groups.iter().map(|group| group.mask(window, shape, device)).collect::<Result<_>>()?;
            self.masks.insert(window, masks);
        }
        Ok(())
    }
}

impl Dense {
    fn new(Affine { weight, bias, inputs }: Affine, dtype: DType, device: &Device) -> Result<Self> {
        let outputs = weight.len() / inputs;
        let weight = Tensor::from_vec(weight, (outputs, inputs), device)?.t()?.contiguous()?.to_dtype(dtype)?;
        let bias = bias.map(|bias| Tensor::new(bias, device)?.to_dtype(dtype)).transpose()?;
        Ok(Self { weight, bias })
    }

    fn forward(&self, rows: &Tensor) -> Result<Tensor> {
        let product = rows.matmul(&self.weight)?;
        self.bias.iter().try_fold(product, |product, bias| product.broadcast_add(bias))
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
        match self {
            Self::Layer { weight, bias, epsilon } => layer_norm(rows, weight, bias, *epsilon),
            Self::Rms { weight, epsilon } => rms_norm(rows, weight, *epsilon),
        }
    }
}

fn applied(norm: &Option<Norm>, rows: &Tensor) -> Result<Tensor> {
    norm.as_ref().map_or_else(|| Ok(rows.clone()), |norm| norm.apply(rows))
}

fn activate(activation: Activation, rows: &Tensor) -> Result<Tensor> {
    match activation {
        Activation::None => Ok(rows.clone()),
        Activation::Gelu => rows.gelu_erf(),
        Activation::GeluTanh => rows.gelu(),
        Activation::Silu => silu(rows),
        Activation::Relu => rows.relu(),
        Activation::Tanh => rows.tanh(),
    }
}

/// Heads with their halves turned.
fn turned(heads: &Tensor, cosines: &Tensor, sines: &Tensor) -> Result<Tensor> {
    let half = heads.dim(D::Minus1)? / 2;
    let (left, right) = (heads.narrow(D::Minus1, 0, half)?, heads.narrow(D::Minus1, half, half)?);
    let new_left = (left.broadcast_mul(cosines)? - right.broadcast_mul(sines)?)?;
    let new_right = (right.broadcast_mul(cosines)? + left.broadcast_mul(sines)?)?;
    Tensor::cat(&[new_left, new_right], D::Minus1)
}

/// Each head of keys or values for as many heads of queries as share it.
fn repeated(heads: &Tensor, times: usize) -> Result<Tensor> {
    if times == 1 {
        return Ok(heads.clone());
    }
    let (count, kv_heads, length, size) = heads.dims4()?;
    let wide = heads.unsqueeze(2)?.expand((count, kv_heads, times, length, size))?;
    wide.contiguous()?.reshape((count, kv_heads * times, length, size))
}
