//! The layers of a decoder on a GPU.
//!
//! What is added up from layer to layer is in f32, whatever type the products have.

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::ops::softmax_last_dim;
use kernels::cuda::decoder::{self as cuda, Added, Heads, Pages, Plan, Sight, Span, Turn};
use kernels::cuda::{Norm as NormView, Numbers, multiply};
use kernels::{Activation, Function};

use super::load::{Angles, Load};
use super::mixture::Mixture;
use crate::engine::LoadError;
use crate::engine::decoder::blueprint::{Dense, Layer, Perceptron, Shape, Source};
use crate::engine::decoder::executor::{Input, Watched};
use crate::engine::layers::{Affine, NormWeights};

pub struct Model {
    shape: Shape,
    heads: Heads,
    words: Tensor,
    positions: Option<Tensor>,
    layers: Vec<Ready>,
    norm: Norm,
    output: Linear,
}

/// What is computed next.
pub struct Step<'a> {
    plan: Plan<'a>,
    across: Option<Plan<'a>>,
}

/// Steps with equal keys launch the same.
pub type Key = (cuda::Key, Option<cuda::Key>);

impl Step<'_> {
    pub fn key(&self) -> Key {
        (self.plan.key(), self.across.as_ref().map(Plan::key))
    }
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

pub struct Linear {
    /// `[inputs, outputs]`
    pub weight: Tensor,
    pub bias: Option<Tensor>,
}

/// In f32.
pub struct Norm {
    pub weight: Tensor,
    pub bias: Option<Tensor>,
    pub epsilon: f32,
    pub centred: bool,
}

/// What a layer's part made, to be added to what went in.
type Made = (Tensor, Option<Tensor>);

impl Model {
    pub fn new(source: Source, dtype: DType, blocks: usize, device: &Device) -> std::result::Result<Self, LoadError> {
        let Source { shape, has_four_bits: _, words, positions, layers, norm, output } = source;
        let heads = Heads {
            heads: shape.heads,
            key_heads: shape.key_heads,
            size: shape.head_size,
            dtype,
            scale: shape.attention_scale,
            cap: shape.attention_cap,
        };
        if !heads.fit() {
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
        Ok(Self { shape, heads, words, positions, layers, norm, output })
    }

    pub fn device(&self) -> &Device {
        self.words.device()
    }

    /// Tokens that there are scores for.
    pub fn vocabulary(&self) -> Result<usize> {
        self.output.weight.dim(1)
    }

    /// Tells the kernels what is computed next. The second numbers are for models that look across.
    pub fn plan<'a>(&self, inputs: &[Input<'_>], [numbers, others]: &'a mut [Numbers; 2]) -> Result<Step<'a>> {
        let mut spans = Vec::with_capacity(inputs.len());
        spans.extend(inputs.iter().map(|&Input { tokens, start, blocks, .. }| Span { tokens, start, blocks }));
        let plan = Plan::new(&spans, &self.heads, numbers, self.device())?;
        let memories = inputs.iter().map(|input| (input.tokens.len(), input.memory.rows, input.memory.blocks));
        let across = match self.layers.iter().any(|layer| layer.parts.cross.is_some()) {
            true => Some(Plan::across(memories, &self.heads, others, self.device())?),
            false => None,
        };
        Ok(Step { plan, across })
    }

    /// Whether so many rows are computed without asking the GPU for anything in between.
    pub fn is_straight(&self, rows: usize) -> bool {
        self.layers.iter().all(|layer| match &layer.parts.perceptron {
            Ask::One(_) => true,
            Ask::Several(mixture) => mixture.asks_all(rows),
        })
    }

    /// Keeps rows as what sequences attend to beside themselves.
    pub fn remember(&self, rows: &Tensor, blocks: &[u32], numbers: &mut Numbers) -> Result<()> {
        let plan = Plan::keeping(rows.dim(0)?, blocks, numbers, self.device())?;
        for Ready { parts, pages, .. } in &self.layers {
            let Some(cross) = &parts.cross else { continue };
            pages.keep(&plan, &cross.memory.multiply(rows)?, &self.heads, cross.memory.bias.as_ref())?;
        }
        Ok(())
    }

    /// The rows of a step after all layers, `[rows, hidden]`. Who looks across tells in which blocks the memory is.
    pub fn compute(&self, step: &Step<'_>, mut watched: Option<(&mut Watched, &[u32])>) -> Result<Tensor> {
        let Step { plan, across } = step;
        let hidden = plan.embed(&self.words, self.positions.as_ref(), self.shape.word_scale)?;
        let mut last: Option<(Made, Option<&Norm>)> = None;
        for (index, layer) in self.layers.iter().enumerate() {
            let rows = self.join(&hidden, last.as_ref(), &layer.parts.norm)?;
            let mut seen = (layer.attend(&rows, plan, &self.heads)?, layer.parts.output_norm.as_ref());
            if let (Some(cross), Some(across)) = (&layer.parts.cross, across) {
                let rows = self.join(&hidden, Some(&seen), &cross.norm)?;
                let queries = cross.query.forward(&rows)?;
                if let Some((watched, blocks)) = &mut watched {
                    watched.look(index, &queries, &self.heads, &layer.pages, blocks)?;
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
        self.join(&hidden, last.as_ref(), &self.norm)
    }

    fn join(&self, hidden: &Tensor, made: Option<&(Made, Option<&Norm>)>, norm: &Norm) -> Result<Tensor> {
        let added = made.map(|((rows, bias), norm)| Added { rows, bias: bias.as_ref(), norm: norm.map(Norm::view) });
        cuda::join(hidden, added, norm.view(), self.heads.dtype)
    }

    /// The logits after rows, to the first rows of `scores`.
    pub fn score(&self, rows: &Tensor, scores: &Tensor) -> Result<()> {
        cuda::score(&self.output.multiply(rows)?, self.output.bias.as_ref(), self.shape.logit_cap, scores)
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
        let pages = Pages::new(blocks, heads, load.device)?;
        Ok(Self { parts, angles, sinks, pages })
    }

    fn attend(&self, rows: &Tensor, plan: &Plan<'_>, heads: &Heads) -> Result<Made> {
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
    pub fn multiply(&self, rows: &Tensor) -> Result<Tensor> {
        multiply(rows, &self.weight)
    }

    fn forward(&self, rows: &Tensor) -> Result<Tensor> {
        let output = self.multiply(rows)?;
        match &self.bias {
            Some(bias) => cuda::activate(Function::Plain(Activation::None), &output, Some(bias)),
            None => Ok(output),
        }
    }
}

impl Norm {
    fn view(&self) -> NormView<'_> {
        NormView { weight: &self.weight, bias: self.bias.as_ref(), epsilon: self.epsilon, centred: self.centred }
    }
}
