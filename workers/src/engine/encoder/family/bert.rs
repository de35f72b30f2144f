//! BERT and those that changed little of it but the names: RoBERTa (XLM-R, CamemBERT), DistilBERT, and MPNet, which adds
//! a bias by distance to its scores.

use std::sync::Arc;

use kernels::Activation;

use super::{Classifier, Family, labels};
use crate::engine::LoadError;
use crate::engine::encoder::blueprint::{Embedding, Head, Layer, Pooling, Shape, Step};
use crate::engine::layers::{Affine, NormWeights};
use crate::engine::layers::{affine, join, layer_norm};
use crate::engine::model_config::Config;
use crate::engine::tensors::Tensors;

pub struct Bert {
    names: &'static Names,
    vocabulary: usize,
    hidden: usize,
    heads: usize,
    inner: usize,
    layers: usize,
    positions: usize,
    /// Rows of the position table before that of the first token.
    offset: usize,
    epsilon: f64,
    activation: Activation,
    /// Rows of the table of token types; 0 where there is none.
    types: usize,
    buckets: usize,
}

/// What a family calls its tensors.
struct Names {
    layer: &'static str,
    /// Query, key, value, output.
    attention: [&'static str; 4],
    attention_norm: &'static str,
    perceptron: [&'static str; 2],
    perceptron_norm: &'static str,
    classifier: Head3,
}

/// Linear layers of a classifier, with what follows the first.
struct Head3 {
    dense: &'static str,
    /// Whether it stands in the model, as BERT's pooler does.
    is_inside: bool,
    activation: Activation,
    out: &'static str,
}

const BERT: Names = Names {
    layer: "encoder.layer",
    attention: ["attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"],
    attention_norm: "attention.output.LayerNorm",
    perceptron: ["intermediate.dense", "output.dense"],
    perceptron_norm: "output.LayerNorm",
    classifier: Head3 { dense: "pooler.dense", is_inside: true, activation: Activation::Tanh, out: "classifier" },
};

const ROBERTA: Names = Names {
    classifier: Head3 {
        dense: "classifier.dense",
        is_inside: false,
        activation: Activation::Tanh,
        out: "classifier.out_proj",
    },
    ..BERT
};

const DISTILBERT: Names = Names {
    layer: "transformer.layer",
    attention: ["attention.q_lin", "attention.k_lin", "attention.v_lin", "attention.out_lin"],
    attention_norm: "sa_layer_norm",
    perceptron: ["ffn.lin1", "ffn.lin2"],
    perceptron_norm: "output_layer_norm",
    classifier: Head3 { dense: "pre_classifier", is_inside: false, activation: Activation::Relu, out: "classifier" },
};

const MPNET: Names = Names {
    attention: ["attention.attn.q", "attention.attn.k", "attention.attn.v", "attention.attn.o"],
    attention_norm: "attention.LayerNorm",
    ..ROBERTA
};

impl Bert {
    pub fn new(name: &str, config: &Config) -> Result<Self, LoadError> {
        let is_distilled = name == "distilbert";
        let key = |bert, distilled| if is_distilled { distilled } else { bert };
        let hidden = config.count(key("hidden_size", "dim"))?;
        let table = config.count("max_position_embeddings")?;
        if config.values["position_embedding_type"].as_str().is_some_and(|kind| kind != "absolute") {
            return Err(config.invalid("position_embedding_type", "only absolute positions are supported"));
        }
        // Positions are counted from behind the padding token's.
        let offset = match name {
            "bert" | "distilbert" => 0,
            _ => config.values["pad_token_id"].as_u64().unwrap_or(1) as usize + 1,
        };
        let names = match name {
            "bert" => &BERT,
            "distilbert" => &DISTILBERT,
            "mpnet" => &MPNET,
            _ => &ROBERTA,
        };
        Ok(Self {
            names,
            vocabulary: config.count("vocab_size")?,
            hidden,
            heads: config.heads(hidden, key("num_attention_heads", "n_heads"))?.0,
            inner: config.count(key("intermediate_size", "hidden_dim"))?,
            layers: config.count(key("num_hidden_layers", "n_layers"))?,
            positions: table
                .checked_sub(offset)
                .filter(|&positions| positions > 0)
                .ok_or_else(|| config.invalid("max_position_embeddings", "leaves no position for a token"))?,
            offset,
            epsilon: config.number_or("layer_norm_eps", 1e-12)?,
            activation: config.activation(key("hidden_act", "activation"))?,
            types: match name {
                "distilbert" | "mpnet" => 0,
                _ => config.count_or("type_vocab_size", 2)?,
            },
            buckets: if name == "mpnet" { config.count_or("relative_attention_num_buckets", 32)? } else { 0 },
        })
    }

    fn distance_bias(&self, weights: &Tensors) -> Result<Arc<[Vec<f32>]>, LoadError> {
        let table = weights.matrix("encoder.relative_attention_bias.weight", [self.buckets, self.heads])?;
        let farthest = self.positions as i64 - 1;
        let bias = |head: usize| {
            let of = |distance: i64| table[bucket(distance, self.buckets) * self.heads + head];
            (-farthest..=farthest).map(of).collect()
        };
        Ok((0..self.heads).map(bias).collect())
    }
}

impl Family for Bert {
    fn shape(&self, weights: &Tensors) -> Result<Shape, LoadError> {
        Ok(Shape {
            hidden: self.hidden,
            heads: self.heads,
            kv_heads: self.heads,
            size: self.hidden / self.heads,
            causal: false,
            positions: self.positions,
            distance_bias: (self.buckets > 0).then(|| self.distance_bias(weights)).transpose()?,
        })
    }

    fn embedding(&self, weights: &Tensors) -> Result<Embedding<NormWeights>, LoadError> {
        let hidden = self.hidden;
        let table = [self.positions + self.offset, hidden];
        let positions = weights.matrix("embeddings.position_embeddings.weight", table)?;
        let types = match self.types {
            0 => None,
            count => {
                let types = weights.matrix("embeddings.token_type_embeddings.weight", [count, hidden])?;
                let second = if count > 1 { hidden..2 * hidden } else { 0..hidden };
                Some([types[..hidden].to_vec(), types[second].to_vec()])
            }
        };
        Ok(Embedding {
            words: weights.matrix("embeddings.word_embeddings.weight", [self.vocabulary, self.hidden])?,
            positions: Some(positions[self.offset * hidden..].to_vec()),
            types,
            norm: Some(layer_norm(weights, "embeddings.LayerNorm", hidden, self.epsilon)?),
        })
    }

    fn layers(&self) -> usize {
        self.layers
    }

    fn layer(&self, weights: &Tensors, index: usize) -> Result<Layer<Affine, NormWeights>, LoadError> {
        let Self { names, hidden, inner, .. } = self;
        let name = |part: &str| format!("{}.{index}.{part}", names.layer);
        let square = |part: &str| affine(weights, &name(part), [*hidden, *hidden], true);
        let norm = |part: &str| layer_norm(weights, &name(part), *hidden, self.epsilon);
        let [query, key, value, output] = names.attention;
        Ok(Layer {
            norm: None,
            projection: join(vec![square(query)?, square(key)?, square(value)?]),
            head_norms: None,
            rotary: None,
            window: None,
            output: square(output)?,
            output_norm: Some(norm(names.attention_norm)?),
            perceptron_norm: None,
            up: affine(weights, &name(names.perceptron[0]), [*inner, *hidden], true)?,
            activation: self.activation,
            gated: false,
            down: affine(weights, &name(names.perceptron[1]), [*hidden, *inner], true)?,
            down_norm: Some(norm(names.perceptron_norm)?),
        })
    }

    fn classifier(&self, weights: &Tensors, count: usize) -> Result<Classifier, LoadError> {
        let Head3 { dense, is_inside, activation, out } = &self.names.classifier;
        let square = [self.hidden, self.hidden];
        let outside = weights.outside();
        let first = affine(if *is_inside { weights } else { &outside }, dense, square, true)?;
        let last = affine(&outside, out, [count, self.hidden], true)?;
        Ok(Head { pooling: vec![Pooling::Cls], steps: vec![Step::Linear(first, *activation), labels(last)] })
    }
}

/// Where T5 and MPNet count a distance from query to key: half of the buckets for each direction, half of those for the
/// near ones, one by one, and the rest for ever wider ranges up to 128.
fn bucket(distance: i64, buckets: usize) -> usize {
    const FARTHEST: f64 = 128.0;
    let (half, far) = (buckets / 2, distance.unsigned_abs() as usize);
    let exact = half / 2;
    let within = match far < exact {
        true => far,
        false => {
            let share = (far as f64 / exact as f64).ln() / (FARTHEST / exact as f64).ln();
            (exact + (share * (half - exact) as f64) as usize).min(half - 1)
        }
    };
    if distance > 0 { half + within } else { within }
}
