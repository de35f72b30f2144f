//! A decoder on a GPU by candle, over packed spans of sequences, with weights in f32.
//!
//! Each sequence has a cache of its own, which is known by its first block: no block is shared here.

use std::collections::HashMap;
use std::slice::ChunksExact;

use candle_core::{D, Device, Result, Tensor};
use candle_nn::kv_cache::KvCache;
use candle_nn::ops::{layer_norm, rms_norm, sigmoid, softmax_last_dim};
use candle_nn::rotary_emb::rope;

use super::blueprint::{Dense, Experts, Function, Layer, Perceptron, Rotation, Shape, Source};
use super::executor::Input;
use crate::engine::LoadError;
use crate::engine::activate::activate;
use crate::engine::layers::{Affine, NormWeights};

/// Tokens a cache has room for at first, and by which it grows.
const CACHE_TOKENS: usize = 256;

pub struct Gpu {
    words: Tensor,
    positions: Option<Tensor>,
    layers: Vec<Ready>,
    norm: Norm,
    output: Linear,
    shape: Shape,
    caches: HashMap<u32, Cache>,
    logits: Vec<f32>,
}

struct Ready {
    parts: Layer<Linear, Norm>,
    /// Cosine and sine of every position.
    turns: Option<[Tensor; 2]>,
    /// `[heads, 1]`
    sinks: Option<Tensor>,
}

struct Linear {
    weight: Tensor,
    bias: Option<Tensor>,
}

enum Norm {
    Layer { weight: Tensor, bias: Tensor, epsilon: f32 },
    Rms { weight: Tensor, epsilon: f32 },
}

/// Keys and values of one sequence, a pair for each layer.
struct Cache(Vec<KvCache>);

/// An input and its cache.
struct Span<'a> {
    tokens: &'a [u32],
    start: usize,
    cache: Cache,
    wanted: usize,
}

impl Gpu {
    pub fn new(source: Source, device: &Device) -> std::result::Result<Self, LoadError> {
        let Source { shape, words, positions, layers, norm, output } = source;
        let ready = |layer| Ready::new(layer, &shape, device).map_err(LoadError::Device);
        let layers = layers.map(|layer| layer.and_then(ready)).collect::<std::result::Result<_, _>>()?;
        let table = |values: &[f32]| Tensor::from_slice(values, (values.len() / shape.hidden, shape.hidden), device);
        let rest = || {
            let words = table(&words)?;
            let output = match &output {
                Some(output) => Linear::new(output, device)?,
                // Small models score the next token by the words too.
                None => Linear { weight: words.clone(), bias: None },
            };
            Ok((words, positions.as_deref().map(table).transpose()?, Norm::new(&norm, device)?, output))
        };
        let (words, positions, norm, output) = rest().map_err(LoadError::Device)?;
        Ok(Self { words, positions, layers, norm, output, shape, caches: HashMap::new(), logits: Vec::new() })
    }

    /// As [`Cpu::forward`](super::cpu::Cpu::forward).
    pub fn forward(&mut self, inputs: &[Input<'_>]) -> Result<ChunksExact<'_, f32>> {
        let empty = || Cache(self.layers.iter().map(|_| KvCache::new(1, CACHE_TOKENS)).collect());
        let mut spans: Vec<Span<'_>> = Vec::with_capacity(inputs.len());
        for &Input { tokens, start, blocks, wanted } in inputs {
            let known = self.caches.remove(&blocks[0]).filter(|_| start > 0);
            spans.push(Span { tokens, start, cache: known.unwrap_or_else(empty), wanted });
        }
        let logits = self.compute(&mut spans);
        self.caches.extend(inputs.iter().zip(spans).map(|(input, span)| (input.blocks[0], span.cache)));
        self.logits = logits?;
        Ok(self.logits.chunks_exact(self.output.weight.dim(0)?))
    }

    fn compute(&self, spans: &mut [Span<'_>]) -> Result<Vec<f32>> {
        let device = self.words.device();
        let tokens: Vec<u32> = spans.iter().flat_map(|span| span.tokens.iter().copied()).collect();
        let places: Vec<u32> =
            spans.iter().flat_map(|span| span.start as u32..(span.start + span.tokens.len()) as u32).collect();
        let places = Tensor::new(places, device)?;
        let mut hidden = self.words.index_select(&Tensor::new(tokens, device)?, 0)?;
        if self.shape.word_scale != 1.0 {
            hidden = (hidden * f64::from(self.shape.word_scale))?;
        }
        if let Some(positions) = &self.positions {
            hidden = (hidden + positions.index_select(&places, 0)?)?;
        }
        for (index, layer) in self.layers.iter().enumerate() {
            hidden = layer.forward(&hidden, spans, index, &places, &self.shape)?;
        }
        self.logits(&hidden, spans)
    }

    fn logits(&self, hidden: &Tensor, spans: &[Span<'_>]) -> Result<Vec<f32>> {
        let mut end = 0;
        let mut wanted = Vec::new();
        for span in spans {
            end += span.tokens.len();
            wanted.extend((end - span.wanted) as u32..end as u32);
        }
        if wanted.is_empty() {
            return Ok(Vec::new());
        }
        let hidden = hidden.index_select(&Tensor::new(wanted, hidden.device())?, 0)?;
        let logits = self.output.forward(&self.norm.apply(&hidden)?)?;
        capped(logits, self.shape.logit_cap)?.flatten_all()?.to_vec1()
    }
}

impl Ready {
    fn new(layer: Layer<Affine, NormWeights>, shape: &Shape, device: &Device) -> Result<Self> {
        let turns = layer.rotation.as_ref().map(|rotation| turns(rotation, shape, device)).transpose()?;
        let sinks = layer.sinks.as_deref().map(|sinks| Tensor::new(sinks, device)?.reshape((sinks.len(), 1)));
        let sinks = sinks.transpose()?;
        let parts = layer.try_map(|affine| Linear::new(&affine, device), |norm| Norm::new(&norm, device))?;
        Ok(Self { parts, turns, sinks })
    }

    fn forward(
        &self,
        hidden: &Tensor,
        spans: &mut [Span<'_>],
        index: usize,
        places: &Tensor,
        shape: &Shape,
    ) -> Result<Tensor> {
        let parts = &self.parts;
        let projected = parts.projection.forward(&parts.norm.apply(hidden)?)?;
        let (query, key, value) = self.split(&projected, places, shape)?;
        let mut start = 0;
        let mut attended = Vec::with_capacity(spans.len());
        for span in spans.iter_mut() {
            let count = span.tokens.len();
            let rows = |tensor: &Tensor| tensor.narrow(1, start, count)?.contiguous();
            let (keys, values) = span.cache.0[index].append(&rows(&key)?, &rows(&value)?)?;
            attended.push(shape.attend(
                &rows(&query)?,
                &keys,
                &values,
                span.start,
                (parts.window, self.sinks.as_ref()),
            )?);
            start += count;
        }
        let output = parts.output.forward(&Tensor::cat(&attended, 0)?)?;
        let hidden = (hidden + normed(output, parts.output_norm.as_ref())?)?;
        let rows = parts.perceptron_norm.apply(&hidden)?;
        let made = match &parts.perceptron {
            Perceptron::Dense(dense) => dense.forward(&rows)?,
            Perceptron::Experts(experts) => experts.forward(&rows)?,
        };
        hidden + normed(made, parts.down_norm.as_ref())?
    }

    /// Query, key and value as `[heads, tokens, head size]`, the first two normed and turned.
    fn split(&self, projected: &Tensor, places: &Tensor, shape: &Shape) -> Result<(Tensor, Tensor, Tensor)> {
        let tokens = projected.dim(0)?;
        let part = |first: usize, heads: usize, norm: Option<&Norm>| {
            let columns = projected.narrow(1, first * shape.head_size, heads * shape.head_size)?;
            let heads = columns.reshape((tokens, heads, shape.head_size))?;
            normed(heads, norm)?.transpose(0, 1)?.contiguous()
        };
        let [query_norm, key_norm] = match &self.parts.head_norms {
            Some([query, key]) => [Some(query), Some(key)],
            None => [None, None],
        };
        let (query, key) = (part(0, shape.heads, query_norm)?, part(shape.heads, shape.key_heads, key_norm)?);
        let value = part(shape.heads + shape.key_heads, shape.key_heads, None)?;
        let Some([cosines, sines]) = &self.turns else { return Ok((query, key, value)) };
        let (cosines, sines) = (cosines.index_select(places, 0)?, sines.index_select(places, 0)?);
        let turned = |tensor: Tensor| rope(&tensor.unsqueeze(0)?, &cosines, &sines)?.squeeze(0);
        Ok((turned(query)?, turned(key)?, value))
    }
}

impl Shape {
    /// Grouped-query attention (Ainslie et al., 2023) of one span, whose first token stands at `start`.
    fn attend(
        &self,
        query: &Tensor,
        keys: &Tensor,
        values: &Tensor,
        start: usize,
        (window, sinks): (Option<usize>, Option<&Tensor>),
    ) -> Result<Tensor> {
        let (count, length) = (query.dim(1)?, keys.dim(1)?);
        let group = self.heads / self.key_heads;
        // The heads of a group share their keys, so they are rows of one product.
        let query = query.reshape((self.key_heads, group * count, self.head_size))?;
        let scores = (query.matmul(&keys.transpose(1, 2)?)? * f64::from(self.attention_scale))?;
        let mut scores = capped(scores, self.attention_cap)?;
        if count > 1 || window.is_some_and(|window| window < length) {
            let mask = mask(start, count, window, scores.device())?;
            let rows = scores.reshape((self.key_heads, group, count, length))?.broadcast_add(&mask)?;
            scores = rows.reshape((self.key_heads, group * count, length))?;
        }
        let shares = match sinks {
            None => softmax_last_dim(&scores)?,
            Some(sinks) => {
                let beside = sinks.broadcast_as((self.heads, count))?.reshape((self.key_heads, group * count, 1))?;
                let all = Tensor::cat(&[&scores, &beside], D::Minus1)?;
                softmax_last_dim(&all)?.narrow(D::Minus1, 0, length)?.contiguous()?
            }
        };
        let mixed = shares.matmul(&values.contiguous()?)?;
        mixed.reshape((self.heads, count, self.head_size))?.transpose(0, 1)?.contiguous()?.flatten_from(1)
    }
}

impl Dense<Linear> {
    fn forward(&self, rows: &Tensor) -> Result<Tensor> {
        let wide = self.up.forward(rows)?;
        let halves = || -> Result<[Tensor; 2]> {
            let width = wide.dim(D::Minus1)? / 2;
            let half = |first| wide.narrow(D::Minus1, first, width)?.contiguous();
            Ok([half(0)?, half(width)?])
        };
        let inner = match self.function {
            Function::Plain(activation) => activate(activation, &wide)?,
            Function::Gated(activation) => {
                let [gates, values] = halves()?;
                (activate(activation, &gates)? * values)?
            }
            Function::Clamped { alpha, limit } => {
                let [gates, values] = halves()?;
                let gates = gates.minimum(f64::from(limit))?;
                let shares = sigmoid(&(&gates * f64::from(alpha))?)?;
                ((gates * shares)? * (values.clamp(-limit, limit)? + 1.0)?)?
            }
        };
        self.down.forward(&inner)
    }
}

impl Experts<Linear> {
    fn forward(&self, rows: &Tensor) -> Result<Tensor> {
        let scores: Vec<f32> = self.router.forward(rows)?.flatten_all()?.to_vec1()?;
        let mut sum = rows.zeros_like()?;
        for (expert, share) in self.experts.iter().zip(self.share_out(&scores)) {
            if share.is_empty() {
                continue;
            }
            let (own, weights): (Vec<u32>, Vec<f32>) =
                share.into_iter().map(|(row, weight)| (row as u32, weight)).unzip();
            let (own, weights) = (Tensor::new(own, rows.device())?, Tensor::new(weights, rows.device())?);
            let answers = expert.forward(&rows.index_select(&own, 0)?)?.broadcast_mul(&weights.unsqueeze(1)?)?;
            sum = sum.index_add(&own, &answers, 0)?;
        }
        Ok(sum)
    }
}

impl Linear {
    fn new(affine: &Affine, device: &Device) -> Result<Self> {
        let shape = (affine.weight.len() / affine.inputs, affine.inputs);
        let bias = affine.bias.as_deref().map(|bias| Tensor::new(bias, device)).transpose()?;
        Ok(Self { weight: Tensor::from_slice(&affine.weight, shape, device)?, bias })
    }

    fn forward(&self, input: &Tensor) -> Result<Tensor> {
        let output = input.matmul(&self.weight.t()?)?;
        match &self.bias {
            Some(bias) => output.broadcast_add(bias),
            None => Ok(output),
        }
    }
}

impl Norm {
    fn new(weights: &NormWeights, device: &Device) -> Result<Self> {
        Ok(match weights {
            NormWeights::Rms { weight, epsilon } => {
                Self::Rms { weight: Tensor::new(&weight[..], device)?, epsilon: *epsilon }
            }
            NormWeights::Layer { weight, bias, epsilon } => {
                let zeros = vec![0.0; weight.len()];
                let bias = Tensor::new(bias.as_deref().unwrap_or(&zeros), device)?;
                Self::Layer { weight: Tensor::new(&weight[..], device)?, bias, epsilon: *epsilon }
            }
        })
    }

    fn apply(&self, rows: &Tensor) -> Result<Tensor> {
        let rows = rows.contiguous()?;
        match self {
            Self::Rms { weight, epsilon } => rms_norm(&rows, weight, *epsilon),
            Self::Layer { weight, bias, epsilon } => layer_norm(&rows, weight, bias, *epsilon),
        }
    }
}

fn normed(rows: Tensor, norm: Option<&Norm>) -> Result<Tensor> {
    norm.map_or(Ok(rows.clone()), |norm| norm.apply(&rows))
}

fn capped(scores: Tensor, cap: Option<f32>) -> Result<Tensor> {
    match cap.map(f64::from) {
        Some(cap) => (scores / cap)?.tanh()? * cap,
        None => Ok(scores),
    }
}

fn turns(rotation: &Rotation, shape: &Shape, device: &Device) -> Result<[Tensor; 2]> {
    let table = |of: fn(f64) -> f64| {
        let row = |position: usize| {
            rotation.frequencies.iter().map(move |angle| (of(position as f64 * angle) * rotation.scale) as f32)
        };
        let values: Vec<f32> = (0..shape.context).flat_map(row).collect();
        Tensor::from_vec(values, (shape.context, rotation.frequencies.len()), device)
    };
    Ok([table(f64::cos)?, table(f64::sin)?])
}

/// Minus infinity where a token would see one that comes after it, or one that is out of its window.
fn mask(start: usize, count: usize, window: Option<usize>, device: &Device) -> Result<Tensor> {
    let length = start + count;
    let cell = |place: usize| {
        let (query, key) = (start + place / length, place % length);
        let is_hidden = key > query || window.is_some_and(|window| key + window <= query);
        if is_hidden { f32::NEG_INFINITY } else { 0.0 }
    };
    Tensor::from_vec((0..count * length).map(cell).collect(), (count, length), device)
}
