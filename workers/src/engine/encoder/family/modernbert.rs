//! ModernBERT (Warner et al., 2024): norms before, rotary positions, gated perceptrons, and attention that sees only
//! neighbours in most layers.

use kernels::Activation;
use serde_json::Value;

use super::{Classifier, Family, labels};
use crate::engine::LoadError;
use crate::engine::encoder::blueprint::{Embedding, Head, Layer, Pooling, Shape, Step};
use crate::engine::layers::{Affine, NormWeights};
use crate::engine::layers::{affine, layer_norm};
use crate::engine::model_config::Config;
use crate::engine::tensors::Tensors;

pub struct ModernBert {
    vocabulary: usize,
    hidden: usize,
    heads: usize,
    size: usize,
    inner: usize,
    positions: usize,
    epsilon: f64,
    activation: Activation,
    attention_bias: bool,
    perceptron_bias: bool,
    /// For each layer, whether it sees all tokens.
    sees_all: Vec<bool>,
    /// How far the others see to each side.
    window: usize,
    /// Of layers that see all, and of the others.
    bases: [f64; 2],
    classifier: Option<(Activation, Pooling, bool)>,
}

impl ModernBert {
    pub fn new(config: &Config) -> Result<Self, LoadError> {
        let hidden = config.count("hidden_size")?;
        let (heads, size) = config.heads(hidden, "num_attention_heads")?;
        let layers = config.count("num_hidden_layers")?;
        let sees_all = match config.values["layer_types"].as_array() {
            Some(types) => types.iter().map(|kind| kind == "full_attention").collect(),
            None => {
                let every = config.count_or("global_attn_every_n_layers", 3)?;
                (0..layers).map(|layer| layer % every == 0).collect::<Vec<_>>()
            }
        };
        if sees_all.len() != layers {
            return Err(config.invalid("layer_types", "are not as many as there are layers"));
        }
        let base = |kind: &str, key: &str, default| match &config.values["rope_parameters"][kind]["rope_theta"] {
            Value::Null => config.number_or(key, default),
            base => base.as_f64().ok_or_else(|| config.invalid("rope_parameters", "rope_theta is no number")),
        };
        let classifier = config.values["classifier_activation"].as_str().map(|_| {
            let pooling = if config.values["classifier_pooling"] == "mean" { Pooling::Mean } else { Pooling::Cls };
            Ok::<_, LoadError>((
                config.activation("classifier_activation")?,
                pooling,
                config.flag_or("classifier_bias", false),
            ))
        });
        Ok(Self {
            vocabulary: config.count("vocab_size")?,
            hidden,
            heads,
            size,
            inner: config.count("intermediate_size")?,
            positions: config.count("max_position_embeddings")?,
            epsilon: config.number_or("norm_eps", 1e-5)?,
            activation: config.activation("hidden_activation")?,
            attention_bias: config.flag_or("attention_bias", false),
            perceptron_bias: config.flag_or("mlp_bias", false),
            sees_all,
            window: config.count_or("local_attention", 128)? / 2,
            bases: [
                base("full_attention", "global_rope_theta", 160_000.0)?,
                base("sliding_attention", "local_rope_theta", 10_000.0)?,
            ],
            classifier: classifier.transpose()?,
        })
    }
}

impl Family for ModernBert {
    fn shape(&self, _: &Tensors) -> Result<Shape, LoadError> {
        Ok(Shape {
            hidden: self.hidden,
            heads: self.heads,
            kv_heads: self.heads,
            size: self.size,
            causal: false,
            positions: self.positions,
            distance_bias: None,
        })
    }

    fn embedding(&self, weights: &Tensors) -> Result<Embedding<NormWeights>, LoadError> {
        Ok(Embedding {
            words: weights.matrix("embeddings.tok_embeddings.weight", [self.vocabulary, self.hidden])?,
            positions: None,
            types: None,
            norm: Some(layer_norm(weights, "embeddings.norm", self.hidden, self.epsilon)?),
        })
    }

    fn layers(&self) -> usize {
        self.sees_all.len()
    }

    fn layer(&self, weights: &Tensors, index: usize) -> Result<Layer<Affine, NormWeights>, LoadError> {
        let Self { hidden, inner, .. } = *self;
        let name = |part: &str| format!("layers.{index}.{part}");
        let norm = |part: &str| layer_norm(weights, &name(part), hidden, self.epsilon);
        let sees_all = self.sees_all[index];
        Ok(Layer {
            // The embedding's norm stands before the first.
            norm: (index > 0).then(|| norm("attn_norm")).transpose()?,
            projection: affine(weights, &name("attn.Wqkv"), [3 * hidden, hidden], self.attention_bias)?,
            head_norms: None,
            rotary: Some(self.bases[usize::from(!sees_all)]),
            window: (!sees_all).then_some(self.window),
            output: affine(weights, &name("attn.Wo"), [hidden, hidden], self.attention_bias)?,
            output_norm: None,
            perceptron_norm: Some(norm("mlp_norm")?),
            up: affine(weights, &name("mlp.Wi"), [2 * inner, hidden], self.perceptron_bias)?,
            activation: self.activation,
            gated: true,
            down: affine(weights, &name("mlp.Wo"), [hidden, inner], self.perceptron_bias)?,
            down_norm: None,
        })
    }

    fn final_norm(&self, weights: &Tensors) -> Result<Option<NormWeights>, LoadError> {
        layer_norm(weights, "final_norm", self.hidden, self.epsilon).map(Some)
    }

    fn classifier(&self, weights: &Tensors, count: usize) -> Result<Classifier, LoadError> {
        let outside = weights.outside();
        let (activation, pooling, biased) = self.classifier.unwrap_or((Activation::Gelu, Pooling::Cls, false));
        let dense = affine(&outside, "head.dense", [self.hidden, self.hidden], biased)?;
        let norm = layer_norm(&outside, "head.norm", self.hidden, self.epsilon)?;
        let last = affine(&outside, "classifier", [count, self.hidden], true)?;
        Ok(Head {
            pooling: vec![pooling],
            steps: vec![Step::Linear(dense, activation), Step::Norm(norm), labels(last)],
        })
    }
}
