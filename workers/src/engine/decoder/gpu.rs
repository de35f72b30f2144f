//! A decoder on a GPU: packed spans of sequences through candle's matrix products and kernels of our own, keys and values in
//! pages.
//!
//! What is added up from layer to layer is in f32, whatever type the products have.

mod mixture;

use std::slice::ChunksExact;

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::ops::softmax_last_dim;
use kernels::cuda::decoder::{self as cuda, Added, Heads, Pages, Plan, Sight, Span, Turn};
use kernels::cuda::{Norm as NormView, fetch};

use self::mixture::Mixture;
use super::blueprint::{Dense, Layer, Perceptron, Rotation, Shape, Source};
use super::executor::{Input, Watched};
use crate::engine::LoadError;
use crate::engine::layers::{Affine, NormWeights};

pub struct Gpu {
    shape: Shape,
    heads: Heads,
    dtype: DType,
    words: Tensor,
    positions: Option<Tensor>,
    layers: Vec<Ready>,
    norm: Norm,
    output: Linear,
    logits: Vec<f32>,
}

struct Ready {
    parts: Layer<Linear, Norm, Ask>,
    /// Cosine and sine of every position.
    angles: Option<[Tensor; 2]>,
    /// In f32.
    sinks: Option<Tensor>,
    pages: Pages,
}

/// What follows attention.
enum Ask {
    One(Dense<Linear>),
    Several(Box<Mixture>),
}

struct Linear {
    /// `[inputs, outputs]`
    weight: Tensor,
    bias: Option<Tensor>,
}

/// In f32.
struct Norm {
    weight: Tensor,
    bias: Option<Tensor>,
    epsilon: f32,
    centred: bool,
}

/// What a layer's part made, to be added to what went in.
type Made = (Tensor, Option<Tensor>);

impl Gpu {
    pub fn new(source: Source, dtype: DType, blocks: usize, device: &Device) -> std::result::Result<Self, LoadError> {
        let Source { shape, has_four_bits: _, words, positions, layers, norm, output } = source;
        let heads = Heads {
            heads: shape.heads,
            key_heads: shape.key_heads,
            size: shape.head_size,
            scale: shape.attention_scale,
            cap: shape.attention_cap,
        };
        if !heads.fit(dtype) {
            let reason = format!("heads of {} values are not computed on a GPU", shape.head_size);
            return Err(LoadError::Device(candle_core::Error::Msg(reason)));
        }
        let load = Load { device, dtype };
        let mut angles = Angles::default();
        let mut ready = |layer| Ready::new(layer, &mut angles, &shape, &heads, blocks, load).map_err(LoadError::Device);
        let layers = layers.map(|layer| layer.and_then(&mut ready)).collect::<std::result::Result<_, _>>()?;
        let rest = || {
            let words = load.table(&words, shape.hidden)?;
            let output = match &output {
                Some(output) => load.linear(output)?,
                // Small models score the next token by the words too.
                None => Linear { weight: words.t()?, bias: None },
            };
            let positions = positions.as_deref().map(|positions| load.table(positions, shape.hidden)).transpose()?;
            Ok((words, positions, load.norm(&norm)?, output))
        };
        let (words, positions, norm, output) = rest().map_err(LoadError::Device)?;
        Ok(Self { shape, heads, dtype, words, positions, layers, norm, output, logits: Vec::new() })
    }

    /// As [`Cpu::forward`](super::cpu::Cpu::forward).
    pub fn forward(&mut self, inputs: &[Input<'_>]) -> Result<ChunksExact<'_, f32>> {
        match self.compute(inputs, None)? {
            Some(logits) => fetch(&logits, &mut self.logits)?,
            None => self.logits.clear(),
        }
        Ok(self.logits.chunks_exact(self.words.dim(0)?))
    }

    /// As [`Cpu::remember`](super::cpu::Cpu::remember).
    pub fn remember(&self, rows: &Tensor, blocks: &[u32]) -> Result<()> {
        let plan = Plan::keeping(rows.dim(0)?, blocks, rows.device())?;
        for Ready { parts, pages, .. } in &self.layers {
            let Some(cross) = &parts.cross else { continue };
            pages.keep(&plan, &cross.memory.multiply(rows)?, &self.heads, cross.memory.bias.as_ref())?;
        }
        Ok(())
    }

    /// As [`Cpu::watch`](super::cpu::Cpu::watch).
    pub fn watch(&self, input: Input<'_>, mut watched: Watched) -> Result<Watched> {
        self.compute(&[input], Some(&mut watched))?;
        Ok(watched)
    }

    fn compute(&self, inputs: &[Input<'_>], mut watched: Option<&mut Watched>) -> Result<Option<Tensor>> {
        let mut spans = Vec::with_capacity(inputs.len());
        spans.extend(inputs.iter().map(|&Input { tokens, start, blocks, .. }| Span { tokens, start, blocks }));
        let plan = Plan::new(&spans, &self.heads, self.words.device())?;
        let memories = inputs.iter().map(|input| (input.tokens.len(), input.memory.rows, input.memory.blocks));
        let across = match self.layers.iter().any(|layer| layer.parts.cross.is_some()) {
            true => Some(Plan::across(memories, &self.heads, self.words.device())?),
            false => None,
        };
        let hidden = plan.embed(&self.words, self.positions.as_ref(), self.shape.word_scale)?;
        let mut last: Option<(Made, Option<&Norm>)> = None;
        for (index, layer) in self.layers.iter().enumerate() {
            let rows = self.join(&hidden, last.as_ref(), &layer.parts.norm)?;
            let mut seen = (layer.attend(&rows, &plan, &self.heads)?, layer.parts.output_norm.as_ref());
            if let (Some(cross), Some(across)) = (&layer.parts.cross, &across) {
                let rows = self.join(&hidden, Some(&seen), &cross.norm)?;
                let queries = cross.query.forward(&rows)?;
                if let (Some(watched), [input]) = (&mut watched, inputs) {
                    watched.look(index, &queries, &self.heads, &layer.pages, input.memory.blocks)?;
                }
                let found = layer.pages.see(across, &queries, &self.heads, Sight { window: None, sinks: None })?;
                seen = ((cross.output.multiply(&found)?, cross.output.bias.clone()), None);
            }
            let rows = self.join(&hidden, Some(&seen), &layer.parts.perceptron_norm)?;
            let made = match &layer.parts.perceptron {
                Ask::One(dense) => dense.forward(&rows)?,
                Ask::Several(mixture) => (mixture.forward(&rows)?, None),
            };
            last = Some((made, layer.parts.down_norm.as_ref()));
        }
        self.score(&self.join(&hidden, last.as_ref(), &self.norm)?, inputs)
    }

    fn join(&self, hidden: &Tensor, made: Option<&(Made, Option<&Norm>)>, norm: &Norm) -> Result<Tensor> {
        let added = made.map(|((rows, bias), norm)| Added { rows, bias: bias.as_ref(), norm: norm.map(Norm::view) });
        cuda::join(hidden, added, norm.view(), self.dtype)
    }

    /// The logits that are wanted, in f32.
    fn score(&self, rows: &Tensor, inputs: &[Input<'_>]) -> Result<Option<Tensor>> {
        let mut end = 0;
        let mut wanted = Vec::new();
        for input in inputs {
            end += input.tokens.len();
            wanted.extend((end - input.wanted) as u32..end as u32);
        }
        if wanted.is_empty() {
            return Ok(None);
        }
        let rows = match wanted.len() == end {
            true => rows.clone(),
            false => rows.index_select(&Tensor::new(wanted, rows.device())?, 0)?,
        };
        let logits = self.output.forward(&rows)?.to_dtype(DType::F32)?;
        match self.shape.logit_cap.map(f64::from) {
            Some(cap) => ((logits / cap)?.tanh()? * cap).map(Some),
            None => Ok(Some(logits)),
        }
    }
}

impl Watched {
    /// Notes how much of its memory each row sees, by those of the heads that are in this layer.
    fn look(&mut self, layer: usize, queries: &Tensor, heads: &Heads, pages: &Pages, blocks: &[u32]) -> Result<()> {
        let blocks = Tensor::new(blocks, queries.device())?;
        for ((_, head), weights) in self.heads.iter().zip(&mut self.weights).filter(|((of, _), _)| *of == layer) {
            let keys = pages.keys_of(&blocks, *head)?.narrow(0, 0, self.rows)?.to_dtype(DType::F32)?;
            let own = queries.narrow(1, head * heads.size, heads.size)?.contiguous()?.to_dtype(DType::F32)?;
            let scores = (own.matmul(&keys.t()?)? * f64::from(heads.scale))?;
            weights.extend(softmax_last_dim(&scores)?.flatten_all()?.to_vec1::<f32>()?);
        }
        Ok(())
    }
}

impl Ready {
    fn new(
        layer: Layer<Affine, NormWeights>,
        angles: &mut Angles,
        shape: &Shape,
        heads: &Heads,
        blocks: usize,
        load: Load<'_>,
    ) -> Result<Self> {
        let angles = layer.rotation.as_ref().map(|rotation| angles.of(rotation, shape.context, load)).transpose()?;
        let sinks = layer.sinks.as_deref().map(|sinks| Tensor::new(sinks, load.device)).transpose()?;
        let linear = |affine: Affine| load.linear(&affine);
        let ask = |perceptron| match perceptron {
            Perceptron::Dense(dense) => Ok(Ask::One(dense.try_map(linear)?)),
            Perceptron::Experts(experts) => Mixture::new(experts, load).map(Box::new).map(Ask::Several),
        };
        let parts = layer.try_map(linear, |norm| load.norm(&norm), ask)?;
        let pages = Pages::new(blocks, heads, load.dtype, load.device)?;
        Ok(Self { parts, angles, sinks, pages })
    }

    fn attend(&self, rows: &Tensor, plan: &Plan, heads: &Heads) -> Result<Made> {
        let Layer { projection, head_norms, window, output, .. } = &self.parts;
        let turn = Turn {
            bias: projection.bias.as_ref(),
            norms: head_norms.as_ref().map(|[query, key]| [query.view(), key.view()]),
            angles: self.angles.as_ref(),
        };
        let sight = Sight { window: *window, sinks: self.sinks.as_ref() };
        let seen = self.pages.attend(plan, &projection.multiply(rows)?, heads, turn, sight)?;
        Ok((output.multiply(&seen)?, output.bias.clone()))
    }
}

impl Dense<Linear> {
    fn forward(&self, rows: &Tensor) -> Result<Made> {
        let inner = cuda::activate(self.function, &self.up.multiply(rows)?, self.up.bias.as_ref())?;
        Ok((self.down.multiply(&inner)?, self.down.bias.clone()))
    }
}

impl Linear {
    fn multiply(&self, rows: &Tensor) -> Result<Tensor> {
        rows.matmul(&self.weight)
    }

    fn forward(&self, rows: &Tensor) -> Result<Tensor> {
        let output = self.multiply(rows)?;
        self.bias.as_ref().map_or(Ok(output.clone()), |bias| output.broadcast_add(bias))
    }
}

impl Norm {
    fn view(&self) -> NormView<'_> {
        NormView { weight: &self.weight, bias: self.bias.as_ref(), epsilon: self.epsilon, centred: self.centred }
    }
}

/// Where weights go, and as what.
#[derive(Clone, Copy)]
struct Load<'a> {
    device: &'a Device,
    dtype: DType,
}

impl Load<'_> {
    fn table(self, values: &[f32], width: usize) -> Result<Tensor> {
        Tensor::from_slice(values, (values.len() / width, width), self.device)?.to_dtype(self.dtype)
    }

    fn linear(self, affine: &Affine) -> Result<Linear> {
        let bias = affine.bias.as_deref().map(|bias| Tensor::new(bias, self.device)?.to_dtype(self.dtype));
        Ok(Linear { weight: self.table(&affine.weight, affine.inputs)?.t()?, bias: bias.transpose()? })
    }

    fn norm(self, weights: &NormWeights) -> Result<Norm> {
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
struct Angles(Vec<(Rotation, [Tensor; 2])>);

impl Angles {
    fn of(&mut self, rotation: &Rotation, context: usize, load: Load<'_>) -> Result<[Tensor; 2]> {
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
