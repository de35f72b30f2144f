//! The Llama architecture (Touvron et al., 2023) on a GPU by candle, over packed spans of sequences, with weights in f32.
//!
//! Each sequence has a cache of its own, which is known by its first block: no block is shared here.
//! GGUF stores the rows of query and key so that the two halves of a rotation are neighbours.

use std::collections::HashMap;
use std::slice::ChunksExact;

use candle_core::{D, Device, Result, Tensor};
use candle_nn::kv_cache::KvCache;
use candle_nn::ops::{rms_norm, silu, softmax_last_dim};
use candle_nn::rotary_emb::rope_i;

use super::model::{Input, Shape};
use crate::engine::LoadError;
use crate::engine::gguf::Gguf;

/// Tokens a cache has room for at first, and by which it grows.
const CACHE_TOKENS: usize = 256;

pub struct Llama {
    embeddings: Tensor,
    layers: Vec<Layer>,
    norm: Tensor,
    output: Tensor,
    rotation: Rotation,
    shape: Shape,
    caches: HashMap<u32, Cache>,
    logits: Vec<f32>,
}

/// Keys and values of one sequence, a pair for each layer.
struct Cache(Vec<KvCache>);

/// An input and its cache.
struct Span<'a> {
    tokens: &'a [u32],
    start: usize,
    cache: Cache,
    wants_logits: bool,
}

struct Layer {
    attention_norm: Tensor,
    query_key_value: Tensor,
    attention_output: Tensor,
    feed_forward_norm: Tensor,
    gate_up: Tensor,
    down: Tensor,
}

/// Cosine and sine of every position.
struct Rotation {
    cos: Tensor,
    sin: Tensor,
}

impl Llama {
    pub fn load(file: &mut Gguf) -> std::result::Result<Self, LoadError> {
        let layers = file.number("llama.block_count")?;
        let shape = Shape::read(file)?;
        let base = file.float("llama.rope.freq_base").unwrap_or(10_000.0);
        let rotation = Rotation::new(base, &shape, file.device()).map_err(|error| file.error(error))?;
        let embeddings = file.tensor("token_embd.weight")?;
        // Small models use the embeddings to score the next token too.
        let output = if file.has_tensor("output.weight") { file.tensor("output.weight")? } else { embeddings.clone() };
        let layers = (0..layers).map(|index| Layer::load(file, index)).collect::<std::result::Result<_, _>>()?;
        let norm = file.tensor("output_norm.weight")?;
        let (caches, logits) = (HashMap::new(), Vec::new());
        Ok(Self { embeddings, layers, norm, output, rotation, shape, caches, logits })
    }

    /// As [`Cpu::forward`](super::cpu::Cpu::forward).
    pub fn forward(&mut self, inputs: &[Input<'_>]) -> Result<ChunksExact<'_, f32>> {
        let empty = || Cache(self.layers.iter().map(|_| KvCache::new(1, CACHE_TOKENS)).collect());
        let mut spans: Vec<Span<'_>> = Vec::with_capacity(inputs.len());
        for &Input { tokens, start, blocks, wants_logits } in inputs {
            let known = self.caches.remove(&blocks[0]).filter(|_| start > 0);
            spans.push(Span { tokens, start, cache: known.unwrap_or_else(empty), wants_logits });
        }
        let logits = self.compute(&mut spans);
        self.caches.extend(inputs.iter().zip(spans).map(|(input, span)| (input.blocks[0], span.cache)));
        self.logits = logits?;
        Ok(self.logits.chunks_exact(self.output.dim(0)?))
    }

    fn compute(&self, spans: &mut [Span<'_>]) -> Result<Vec<f32>> {
        let tokens: Vec<u32> = spans.iter().flat_map(|span| span.tokens.iter().copied()).collect();
        let places: Vec<u32> =
            spans.iter().flat_map(|span| span.start as u32..(span.start + span.tokens.len()) as u32).collect();
        let device = self.embeddings.device();
        let places = Tensor::new(places, device)?;
        let rotation = Rotation {
            cos: self.rotation.cos.index_select(&places, 0)?,
            sin: self.rotation.sin.index_select(&places, 0)?,
        };
        let mut hidden = self.embeddings.index_select(&Tensor::new(tokens, device)?, 0)?;
        for (index, layer) in self.layers.iter().enumerate() {
            hidden = layer.forward(&hidden, spans, index, &rotation, &self.shape)?;
        }
        self.logits(&hidden, spans)
    }

    fn logits(&self, hidden: &Tensor, spans: &[Span<'_>]) -> Result<Vec<f32>> {
        let mut end = 0;
        let mut last = Vec::new();
        for span in spans {
            end += span.tokens.len();
            if span.wants_logits {
                last.push(end as u32 - 1);
            }
        }
        if last.is_empty() {
            return Ok(Vec::new());
        }
        let hidden = hidden.index_select(&Tensor::new(last, hidden.device())?, 0)?;
        linear(&rms_norm(&hidden, &self.norm, self.shape.epsilon)?, &self.output)?.flatten_all()?.to_vec1()
    }
}

impl Layer {
    fn load(file: &mut Gguf, index: usize) -> std::result::Result<Self, LoadError> {
        let mut joined = |parts: &[&str]| {
            let tensors = parts.iter().map(|part| file.tensor(&format!("blk.{index}.{part}.weight")));
            let tensors = tensors.collect::<std::result::Result<Vec<_>, _>>()?;
            Tensor::cat(&tensors, 0).map_err(|error| file.error(error))
        };
        Ok(Self {
            attention_norm: joined(&["attn_norm"])?,
            query_key_value: joined(&["attn_q", "attn_k", "attn_v"])?,
            attention_output: joined(&["attn_output"])?,
            feed_forward_norm: joined(&["ffn_norm"])?,
            gate_up: joined(&["ffn_gate", "ffn_up"])?,
            down: joined(&["ffn_down"])?,
        })
    }

    fn forward(
        &self,
        hidden: &Tensor,
        spans: &mut [Span<'_>],
        index: usize,
        rotation: &Rotation,
        shape: &Shape,
    ) -> Result<Tensor> {
        let projected = linear(&rms_norm(hidden, &self.attention_norm, shape.epsilon)?, &self.query_key_value)?;
        let (query, key, value) = shape.split(&projected, rotation)?;
        let mut start = 0;
        let mut attended = Vec::with_capacity(spans.len());
        for span in spans.iter_mut() {
            let count = span.tokens.len();
            let rows = |tensor: &Tensor| tensor.narrow(1, start, count)?.contiguous();
            let (keys, values) = span.cache.0[index].append(&rows(&key)?, &rows(&value)?)?;
            attended.push(shape.attend(&rows(&query)?, &keys, &values, span.start)?);
            start += count;
        }
        let hidden = (hidden + linear(&Tensor::cat(&attended, 0)?, &self.attention_output)?)?;
        let gate_up = linear(&rms_norm(&hidden, &self.feed_forward_norm, shape.epsilon)?, &self.gate_up)?;
        let halves = gate_up.chunk(2, D::Minus1)?;
        let activated = (silu(&halves[0].contiguous()?)? * &halves[1])?;
        hidden + linear(&activated, &self.down)?
    }
}

impl Shape {
    /// Query, key and value as `[heads, tokens, head size]`, the first two rotated.
    fn split(&self, projected: &Tensor, rotation: &Rotation) -> Result<(Tensor, Tensor, Tensor)> {
        let tokens = projected.dim(0)?;
        let part = |first: usize, heads: usize| {
            let columns = projected.narrow(1, first * self.head_size, heads * self.head_size)?;
            columns.reshape((tokens, heads, self.head_size))?.transpose(0, 1)?.contiguous()
        };
        let rotate = |tensor: Tensor| rope_i(&tensor.unsqueeze(0)?, &rotation.cos, &rotation.sin)?.squeeze(0);
        let query = rotate(part(0, self.heads)?)?;
        let key = rotate(part(self.heads, self.key_heads)?)?;
        Ok((query, key, part(self.heads + self.key_heads, self.key_heads)?))
    }

    /// Grouped-query attention (Ainslie et al., 2023) of one span, whose first token stands at `start`.
    fn attend(&self, query: &Tensor, keys: &Tensor, values: &Tensor, start: usize) -> Result<Tensor> {
        let (count, length) = (query.dim(1)?, keys.dim(1)?);
        let group = self.heads / self.key_heads;
        // The heads of a group share their keys, so they are rows of one product.
        let query = query.reshape((self.key_heads, group * count, self.head_size))?;
        let mut scores = (query.matmul(&keys.transpose(1, 2)?)? * (1.0 / (self.head_size as f64).sqrt()))?;
        if count > 1 {
            let mask = mask(start, count, scores.device())?;
            let rows = scores.reshape((self.key_heads, group, count, length))?.broadcast_add(&mask)?;
            scores = rows.reshape((self.key_heads, group * count, length))?;
        }
        let mixed = softmax_last_dim(&scores)?.matmul(&values.contiguous()?)?;
        mixed.reshape((self.heads, count, self.head_size))?.transpose(0, 1)?.contiguous()?.flatten_from(1)
    }
}

impl Rotation {
    fn new(base: f32, shape: &Shape, device: &Device) -> Result<Self> {
        let frequency = |pair: usize| base.powf(-2.0 * pair as f32 / shape.head_size as f32);
        let frequencies: Vec<f32> = (0..shape.head_size / 2).map(frequency).collect();
        let frequencies = Tensor::new(frequencies, device)?.unsqueeze(0)?;
        let places =
            Tensor::arange(0, shape.context as u32, device)?.to_dtype(candle_core::DType::F32)?.unsqueeze(1)?;
        let angles = places.matmul(&frequencies)?;
        Ok(Self { cos: angles.cos()?, sin: angles.sin()? })
    }
}

/// Minus infinity where a token would see one that comes after it.
fn mask(start: usize, count: usize, device: &Device) -> Result<Tensor> {
    let length = start + count;
    let cell = |place: usize| if place % length > start + place / length { f32::NEG_INFINITY } else { 0.0 };
    Tensor::from_vec((0..count * length).map(cell).collect(), (count, length), device)
}

fn linear(input: &Tensor, weight: &Tensor) -> Result<Tensor> {
    input.matmul(&weight.t()?)
}
