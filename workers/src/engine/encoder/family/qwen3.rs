//! Qwen3 as an embedder (Zhang et al., 2025): a decoder whose last token's vector stands for the text.

use kernels::Activation;
use serde_json::Value;

use super::{Classifier, Family, labels};
use crate::engine::LoadError;
use crate::engine::encoder::blueprint::{Embedding, Head, Layer, Pooling, Shape};
use crate::engine::layers::{Affine, NormWeights};
use crate::engine::layers::{affine, join};
use crate::engine::model_config::Config;
use crate::engine::tensors::Tensors;

pub struct Qwen3 {
    vocabulary: usize,
    hidden: usize,
    heads: usize,
    kv_heads: usize,
    size: usize,
    inner: usize,
    layers: usize,
    positions: usize,
    epsilon: f32,
    base: f64,
    activation: Activation,
    biased: bool,
}

impl Qwen3 {
    pub fn new(config: &Config) -> Result<Self, LoadError> {
        let (hidden, heads) = (config.count("hidden_size")?, config.count("num_attention_heads")?);
        let kv_heads = config.count_or("num_key_value_heads", heads)?;
        if heads % kv_heads != 0 {
            return Err(config.invalid("num_key_value_heads", "do not divide the heads"));
        }
        if config.flag_or("use_sliding_window", false) {
            return Err(config.invalid("use_sliding_window", "is not supported"));
        }
        let parameters = &config.values["rope_parameters"];
        let base = match &parameters["rope_theta"] {
            Value::Null => config.number_or("rope_theta", 10_000.0)?,
            base => base.as_f64().ok_or_else(|| config.invalid("rope_parameters", "rope_theta is no number"))?,
        };
        let kind = [&parameters["rope_type"], &config.values["rope_scaling"]["rope_type"]];
        if kind.into_iter().any(|kind| !kind.is_null() && kind != "default") {
            return Err(config.invalid("rope_scaling", "is not supported"));
        }
        Ok(Self {
            vocabulary: config.count("vocab_size")?,
            hidden,
            heads,
            kv_heads,
            size: config.count_or("head_dim", hidden / heads)?,
            inner: config.count("intermediate_size")?,
            layers: config.count("num_hidden_layers")?,
            positions: config.count("max_position_embeddings")?,
            epsilon: config.number_or("rms_norm_eps", 1e-6)? as f32,
            base,
            activation: config.activation("hidden_act")?,
            biased: config.flag_or("attention_bias", false),
        })
    }

    fn norm(&self, weights: &Tensors, name: &str, width: usize) -> Result<NormWeights, LoadError> {
        let weight = weights.vector(&format!("{name}.weight"), width)?;
        Ok(NormWeights::Rms { weight, epsilon: self.epsilon })
    }
}

impl Family for Qwen3 {
    fn shape(&self, _: &Tensors) -> Result<Shape, LoadError> {
        Ok(Shape {
            hidden: self.hidden,
            heads: self.heads,
            kv_heads: self.kv_heads,
            size: self.size,
            causal: true,
            positions: self.positions,
            distance_bias: None,
        })
    }

    fn embedding(&self, weights: &Tensors) -> Result<Embedding<NormWeights>, LoadError> {
        let words = weights.matrix("embed_tokens.weight", [self.vocabulary, self.hidden])?;
        Ok(Embedding { words, positions: None, types: None, norm: None })
    }

    fn layers(&self) -> usize {
        self.layers
    }

    fn layer(&self, weights: &Tensors, index: usize) -> Result<Layer<Affine, NormWeights>, LoadError> {
        let Self { hidden, heads, kv_heads, size, inner, biased, .. } = *self;
        let name = |part: &str| format!("layers.{index}.{part}");
        let attention = |part: &str, count: usize| {
            affine(weights, &name(&format!("self_attn.{part}_proj")), [count * size, hidden], biased)
        };
        let perceptron = |part: &str, shape| affine(weights, &name(&format!("mlp.{part}_proj")), shape, false);
        let norm = |part: &str| self.norm(weights, &name(part), hidden);
        let head_norm = |part: &str| self.norm(weights, &name(&format!("self_attn.{part}_norm")), size);
        Ok(Layer {
            norm: Some(norm("input_layernorm")?),
            projection: join(vec![attention("q", heads)?, attention("k", kv_heads)?, attention("v", kv_heads)?]),
            head_norms: Some([head_norm("q")?, head_norm("k")?]),
            rotary: Some(self.base),
            window: None,
            output: affine(weights, &name("self_attn.o_proj"), [hidden, heads * size], biased)?,
            output_norm: None,
            perceptron_norm: Some(norm("post_attention_layernorm")?),
            up: join(vec![perceptron("gate", [inner, hidden])?, perceptron("up", [inner, hidden])?]),
            activation: self.activation,
            gated: true,
            down: perceptron("down", [hidden, inner])?,
            down_norm: None,
        })
    }

    fn final_norm(&self, weights: &Tensors) -> Result<Option<NormWeights>, LoadError> {
        self.norm(weights, "norm", self.hidden).map(Some)
    }

    fn classifier(&self, weights: &Tensors, count: usize) -> Result<Classifier, LoadError> {
        let score = affine(&weights.outside(), "score", [count, self.hidden], false)?;
        Ok(Head { pooling: vec![Pooling::Last], steps: vec![labels(score)] })
    }
}
