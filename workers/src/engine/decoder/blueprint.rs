//! What a decoder is made of, whatever its family and the format of its files.
//!
//! `L` is a linear layer and `N` a norm: as read from files, or as an executor has made of them.

pub use kernels::Function;

use crate::engine::LoadError;
use crate::engine::layers::{Affine, NormWeights};
use crate::engine::progress::Progress;

/// A model's weights, in f32.
pub struct Source {
    pub shape: Shape,
    /// Whether the files have weights of four bits; what else they have was not meant to be so coarse.
    pub has_four_bits: bool,
    /// `[vocabulary, hidden]`
    pub words: Vec<f32>,
    /// `[positions, hidden]`, for models that learn them.
    pub positions: Option<Vec<f32>>,
    pub layers: Layers,
    pub norm: NormWeights,
    /// What scores the next token, where it is not the words.
    pub output: Option<Affine>,
}

/// Layers that are read as they are asked for, so that they need not be in memory together.
pub struct Layers {
    next: usize,
    count: usize,
    progress: Progress,
    read: Box<dyn FnMut(usize) -> Read>,
}

type Read = Result<Layer<Affine, NormWeights>, LoadError>;

impl Layers {
    pub fn new(count: usize, read: impl FnMut(usize) -> Read + 'static) -> Self {
        Self { next: 0, count, progress: Progress::of(count), read: Box::new(read) }
    }
}

impl Iterator for Layers {
    type Item = Read;

    fn next(&mut self) -> Option<Read> {
        let index = self.next;
        self.next += 1;
        self.progress.tell(index);
        (index < self.count).then(|| (self.read)(index))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = self.count.saturating_sub(self.next);
        (left, Some(left))
    }
}

impl ExactSizeIterator for Layers {}

/// What all layers of a model share.
#[derive(Clone, Debug)]
pub struct Shape {
    pub hidden: usize,
    /// Of queries.
    pub heads: usize,
    /// Of keys and values.
    pub key_heads: usize,
    /// Values of a head.
    pub head_size: usize,
    /// The most tokens of one sequence.
    pub context: usize,
    /// What the vectors of words are multiplied by.
    pub word_scale: f32,
    /// What the products of queries and keys are multiplied by.
    pub attention_scale: f32,
    /// What no product of a query and a key can exceed, by tanh.
    pub attention_cap: Option<f32>,
    /// What no logit can exceed, by tanh.
    pub logit_cap: Option<f32>,
}

/// A layer: attention, then a perceptron, each added to what went in.
#[derive(Clone, Debug)]
pub struct Layer<L, N, P = Perceptron<L>> {
    pub norm: N,
    /// Queries, keys and values in one.
    pub projection: L,
    /// Of each head of queries and of keys.
    pub head_norms: Option<[N; 2]>,
    pub rotation: Option<Rotation>,
    /// How many tokens back a token sees, itself counted.
    pub window: Option<usize>,
    /// For each head of queries the score of something that is seen beside the tokens, and is nothing.
    pub sinks: Option<Vec<f32>>,
    pub output: L,
    /// Before the output is added.
    pub output_norm: Option<N>,
    /// What is taken from another sequence, between attention and perceptron.
    pub cross: Option<Cross<L, N>>,
    pub perceptron_norm: N,
    pub perceptron: P,
    /// Before what comes down is added.
    pub down_norm: Option<N>,
}

/// Attention to the rows of another sequence, the memory.
#[derive(Clone, Debug)]
pub struct Cross<L, N> {
    pub norm: N,
    pub query: L,
    /// Keys and values of the memory in one.
    pub memory: L,
    pub output: L,
}

/// What follows attention.
#[derive(Clone, Debug)]
pub enum Perceptron<L> {
    Dense(Dense<L>),
    Experts(Experts<L>),
}

#[derive(Clone, Debug)]
pub struct Dense<L> {
    /// Where it is gated, gate and value in one.
    pub up: L,
    pub function: Function,
    pub down: L,
}

/// A mixture of experts (Shazeer et al., 2017): each row goes to those that the router gives the highest scores, and the sum of
/// what they make of it is weighted by the softmax of the scores.
#[derive(Clone, Debug)]
pub struct Experts<L> {
    pub router: L,
    pub experts: Vec<Dense<L>>,
    /// How many a row goes to.
    pub each: usize,
    /// Whether the weights of those are made to sum up to 1.
    pub normalized: bool,
}

/// Rotary positions (Su et al., 2021).
#[derive(Clone, Debug, PartialEq)]
pub struct Rotation {
    /// The angles by which each pair of values turns from one position to the next.
    pub frequencies: Vec<f64>,
    /// How much longer they become.
    pub scale: f64,
}

impl<L, N> Layer<L, N> {
    /// The same layer, of other makings.
    pub fn try_map<M, O, P, E>(
        self,
        linear: impl Fn(L) -> Result<M, E>,
        norm: impl Fn(N) -> Result<O, E>,
        perceptron: impl FnOnce(Perceptron<L>) -> Result<P, E>,
    ) -> Result<Layer<M, O, P>, E> {
        let head_norms = match self.head_norms {
            Some([query, key]) => Some([norm(query)?, norm(key)?]),
            None => None,
        };
        Ok(Layer {
            norm: norm(self.norm)?,
            projection: linear(self.projection)?,
            head_norms,
            rotation: self.rotation,
            window: self.window,
            sinks: self.sinks,
            output: linear(self.output)?,
            output_norm: self.output_norm.map(&norm).transpose()?,
            cross: match self.cross {
                Some(Cross { norm: own, query, memory, output }) => Some(Cross {
                    norm: norm(own)?,
                    query: linear(query)?,
                    memory: linear(memory)?,
                    output: linear(output)?,
                }),
                None => None,
            },
            perceptron_norm: norm(self.perceptron_norm)?,
            perceptron: perceptron(self.perceptron)?,
            down_norm: self.down_norm.map(&norm).transpose()?,
        })
    }
}

impl<L> Perceptron<L> {
    pub fn try_map<M, E>(self, linear: impl Fn(L) -> Result<M, E>) -> Result<Perceptron<M>, E> {
        Ok(match self {
            Self::Dense(dense) => Perceptron::Dense(dense.try_map(&linear)?),
            Self::Experts(Experts { router, experts, each, normalized }) => {
                let experts = experts.into_iter().map(|dense| dense.try_map(&linear)).collect::<Result<_, _>>()?;
                Perceptron::Experts(Experts { router: linear(router)?, experts, each, normalized })
            }
        })
    }
}

impl<L> Dense<L> {
    pub fn try_map<M, E>(self, linear: impl Fn(L) -> Result<M, E>) -> Result<Dense<M>, E> {
        Ok(Dense { up: linear(self.up)?, function: self.function, down: linear(self.down)? })
    }
}

impl<L> Experts<L> {
    /// The rows that each expert gets, with their weights.
    pub fn share_out(&self, scores: &[f32]) -> Vec<Vec<(usize, f32)>> {
        let mut shares = vec![Vec::new(); self.experts.len()];
        for (row, scores) in scores.chunks_exact(self.experts.len()).enumerate() {
            let most = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let mut ranked: Vec<(usize, f32)> = scores.iter().map(|score| (score - most).exp()).enumerate().collect();
            let all: f32 = ranked.iter().map(|(_, weight)| weight).sum();
            ranked.sort_by(|a, b| b.1.total_cmp(&a.1));
            ranked.truncate(self.each);
            let chosen: f32 = ranked.iter().map(|(_, weight)| weight).sum();
            let whole = if self.normalized { chosen } else { all };
            ranked.into_iter().for_each(|(expert, weight)| shares[expert].push((row, weight / whole)));
        }
        shares
    }
}

impl Shape {
    /// Of a model without any of the rarer parts.
    pub fn plain(hidden: usize, [heads, key_heads]: [usize; 2], head_size: usize, context: usize) -> Self {
        Self {
            hidden,
            heads,
            key_heads,
            head_size,
            context,
            word_scale: 1.0,
            attention_scale: 1.0 / (head_size as f32).sqrt(),
            attention_cap: None,
            logit_cap: None,
        }
    }
}
