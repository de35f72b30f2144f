//! What an encoder is made of, whatever its family: the words the families are told in, and both executors read.
//!
//! `L` is a linear layer and `N` a norm: as read from files, or as an executor has made of them.

use std::sync::Arc;

use kernels::Activation;

/// What all layers of a model share.
#[derive(Clone, Debug)]
pub struct Shape {
    pub hidden: usize,
    pub heads: usize,
    pub kv_heads: usize,
    /// Values of a head.
    pub size: usize,
    pub causal: bool,
    /// Tokens of the longest sequence.
    pub positions: usize,
    /// For each head, what is added to a score by the distance of key and query, as in `kernels::Attention`.
    pub distance_bias: Option<Arc<[Vec<f32>]>>,
}

/// Tables that tokens become vectors by. A vector is the sum of a row of each.
#[derive(Clone, Debug)]
pub struct Embedding<N> {
    /// `[vocabulary, hidden]`
    pub words: Vec<f32>,
    /// `[positions, hidden]`, for models that learn them.
    pub positions: Option<Vec<f32>>,
    /// For the first and the second text of a pair.
    pub types: Option<[Vec<f32>; 2]>,
    pub norm: Option<N>,
}

/// A layer: attention, then a perceptron, each added to what went in. Norms stand before or after, as the model has
/// them.
#[derive(Clone, Debug)]
pub struct Layer<L, N> {
    pub norm: Option<N>,
    /// Queries, keys and values in one.
    pub projection: L,
    /// Of each head of queries and of keys.
    pub head_norms: Option<[N; 2]>,
    /// The base of rotary positions.
    pub rotary: Option<f64>,
    /// How far a token sees to each side.
    pub window: Option<usize>,
    pub output: L,
    pub output_norm: Option<N>,
    pub perceptron_norm: Option<N>,
    /// Where it is gated, gate and value in one.
    pub up: L,
    pub activation: Activation,
    pub gated: bool,
    pub down: L,
    pub down_norm: Option<N>,
}

impl<L, N> Layer<L, N> {
    /// Its linear layers, in the order in which [`map`](Self::map) goes through them.
    pub fn linears(&self) -> [&L; 4] {
        [&self.projection, &self.output, &self.up, &self.down]
    }

    /// The same layer, of other makings.
    pub fn map<M, O>(self, mut linear: impl FnMut(L) -> M, norm: impl Fn(N) -> O) -> Layer<M, O> {
        Layer {
            projection: linear(self.projection),
            output: linear(self.output),
            up: linear(self.up),
            down: linear(self.down),
            norm: self.norm.map(&norm),
            head_norms: self.head_norms.map(|norms| norms.map(&norm)),
            rotary: self.rotary,
            window: self.window,
            output_norm: self.output_norm.map(&norm),
            perceptron_norm: self.perceptron_norm.map(&norm),
            activation: self.activation,
            gated: self.gated,
            down_norm: self.down_norm.map(&norm),
        }
    }
}

impl<L, N, E> Layer<Result<L, E>, Result<N, E>> {
    /// A layer, if all of its parts could be made.
    pub fn transpose(self) -> Result<Layer<L, N>, E> {
        let head_norms = match self.head_norms {
            Some([query, key]) => Some([query?, key?]),
            None => None,
        };
        Ok(Layer {
            projection: self.projection?,
            output: self.output?,
            up: self.up?,
            down: self.down?,
            norm: self.norm.transpose()?,
            head_norms,
            rotary: self.rotary,
            window: self.window,
            output_norm: self.output_norm.transpose()?,
            perceptron_norm: self.perceptron_norm.transpose()?,
            activation: self.activation,
            gated: self.gated,
            down_norm: self.down_norm.transpose()?,
        })
    }
}

/// How a sequence's vectors become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pooling {
    Cls,
    Mean,
    Max,
    /// The sum over the square root of the length.
    MeanSqrtLength,
    /// Later tokens weigh more: the first 1, the second 2.
    WeightedMean,
    Last,
}

/// What is done with the vectors of a sequence once all layers are through.
#[derive(Clone, Debug)]
pub struct Head<L, N> {
    /// Put one after the other.
    pub pooling: Vec<Pooling>,
    pub steps: Vec<Step<L, N>>,
}

/// One step on the pooled vector.
#[derive(Clone, Debug)]
pub enum Step<L, N> {
    Linear(L, Activation),
    Norm(N),
    /// To the length 1.
    Normalize,
}

impl<L, N> Head<L, N> {
    /// The same head, of other makings.
    pub fn map<M, O>(self, linear: impl Fn(L) -> M, norm: impl Fn(N) -> O) -> Head<M, O> {
        let step = |step| match step {
            Step::Linear(layer, activation) => Step::Linear(linear(layer), activation),
            Step::Norm(weights) => Step::Norm(norm(weights)),
            Step::Normalize => Step::Normalize,
        };
        Head { pooling: self.pooling, steps: self.steps.into_iter().map(step).collect() }
    }
}
