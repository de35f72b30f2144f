//! What a decoder is made of, whatever its family and the format of its files.
//!
//! `L` is a linear layer and `N` a norm: as read from files, or as an executor has made of them.

use kernels::Activation;

use crate::engine::encoder::blueprint::{Affine, NormWeights};

/// A model's weights, in f32.
#[derive(Clone, Debug)]
pub struct Source {
    pub shape: Shape,
    /// `[vocabulary, hidden]`
    pub words: Vec<f32>,
    /// `[positions, hidden]`, for models that learn them.
    pub positions: Option<Vec<f32>>,
    pub layers: Vec<Layer<Affine, NormWeights>>,
    pub norm: NormWeights,
    /// What scores the next token, where it is not the words.
    pub output: Option<Affine>,
}

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
pub struct Layer<L, N> {
    pub norm: N,
    /// Queries, keys and values in one.
    pub projection: L,
    /// Of each head of queries and of keys.
    pub head_norms: Option<[N; 2]>,
    pub rotation: Option<Rotation>,
    /// How many tokens back a token sees, itself counted.
    pub window: Option<usize>,
    pub output: L,
    /// Before the output is added.
    pub output_norm: Option<N>,
    pub perceptron_norm: N,
    /// Where it is gated, gate and value in one.
    pub up: L,
    pub activation: Activation,
    pub gated: bool,
    pub down: L,
    /// Before what comes down is added.
    pub down_norm: Option<N>,
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
    pub fn map<M, O>(self, mut linear: impl FnMut(L) -> M, norm: impl Fn(N) -> O) -> Layer<M, O> {
        Layer {
            projection: linear(self.projection),
            output: linear(self.output),
            up: linear(self.up),
            down: linear(self.down),
            norm: norm(self.norm),
            head_norms: self.head_norms.map(|norms| norms.map(&norm)),
            rotation: self.rotation,
            window: self.window,
            output_norm: self.output_norm.map(&norm),
            perceptron_norm: norm(self.perceptron_norm),
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
            norm: self.norm?,
            head_norms,
            rotation: self.rotation,
            window: self.window,
            output_norm: self.output_norm.transpose()?,
            perceptron_norm: self.perceptron_norm?,
            activation: self.activation,
            gated: self.gated,
            down_norm: self.down_norm.transpose()?,
        })
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
