//! The families of encoders: what each names its tensors and the keys of its `config.json`, told in the words of
//! `blueprint`. The reference for each is its file in Hugging Face's transformers.

mod bert;
mod modernbert;
mod qwen3;

use std::path::Path;

use kernels::Activation;
use serde_json::Value;

use super::blueprint::{Affine, Embedding, Layer, NormWeights, Shape, Step};
use super::weights::Weights;
use crate::engine::LoadError;

/// A model as its files tell it. Layers are read as they are asked for, so that they need not be in memory together.
pub struct Model {
    pub shape: Shape,
    pub embedding: Embedding<NormWeights>,
    pub layers: usize,
    pub final_norm: Option<NormWeights>,
    family: Box<dyn Family>,
    weights: Weights,
}

/// What is told apart by `model_type`.
trait Family {
    fn shape(&self, weights: &Weights) -> Result<Shape, LoadError>;
    fn embedding(&self, weights: &Weights) -> Result<Embedding<NormWeights>, LoadError>;
    fn layers(&self) -> usize;
    fn layer(&self, weights: &Weights, index: usize) -> Result<Layer<Affine, NormWeights>, LoadError>;
    fn final_norm(&self, _: &Weights) -> Result<Option<NormWeights>, LoadError> {
        Ok(None)
    }
    /// What a sequence classifier does with the vector of a sequence, where `labels` come out.
    fn classifier(&self, weights: &Weights, labels: usize) -> Result<Classifier, LoadError>;
}

/// A classifier's pooling and steps.
pub type Classifier = super::blueprint::Head<Affine, NormWeights>;

impl Model {
    pub fn open(folder: &Path, config: &Config) -> Result<Self, LoadError> {
        let (family, prefixes): (Box<dyn Family>, &[&str]) = match config.text("model_type")? {
            name @ ("bert" | "roberta" | "xlm-roberta" | "camembert" | "distilbert" | "mpnet") => {
                (Box::new(bert::Bert::new(name, config)?), &["bert.", "roberta.", "distilbert.", "mpnet."])
            }
            "modernbert" => (Box::new(modernbert::ModernBert::new(config)?), &["model."]),
            "qwen3" => (Box::new(qwen3::Qwen3::new(config)?), &["model."]),
            other => {
                let known = "bert, camembert, distilbert, modernbert, mpnet, qwen3, roberta and xlm-roberta";
                return Err(config.invalid("model_type", &format!("is {other:?}; encoders are {known}")));
            }
        };
        let weights = Weights::open(folder, prefixes)?;
        let (shape, embedding) = (family.shape(&weights)?, family.embedding(&weights)?);
        Ok(Self {
            shape,
            embedding,
            layers: family.layers(),
            final_norm: family.final_norm(&weights)?,
            family,
            weights,
        })
    }

    /// Tokens that the model has vectors for.
    pub fn vocabulary(&self) -> usize {
        self.embedding.words.len() / self.shape.hidden
    }

    pub fn layer(&self, index: usize) -> Result<Layer<Affine, NormWeights>, LoadError> {
        self.family.layer(&self.weights, index)
    }

    pub fn classifier(&self, labels: usize) -> Result<Classifier, LoadError> {
        self.family.classifier(&self.weights, labels)
    }
}

/// `config.json`, with errors that name the key.
pub struct Config {
    pub path: std::path::PathBuf,
    pub values: Value,
}

impl Config {
    pub fn invalid(&self, key: &str, reason: &str) -> LoadError {
        LoadError::file(&self.path, format!("{key}: {reason}"))
    }

    fn text(&self, key: &str) -> Result<&str, LoadError> {
        self.values[key].as_str().ok_or_else(|| self.invalid(key, "is missing or no text"))
    }

    /// A number of at least 1.
    fn count(&self, key: &str) -> Result<usize, LoadError> {
        let count = self.values[key].as_u64().filter(|count| (1..=1 << 24).contains(count));
        count.map(|count| count as usize).ok_or_else(|| self.invalid(key, "is missing or no number of things"))
    }

    fn count_or(&self, key: &str, default: usize) -> Result<usize, LoadError> {
        if self.values[key].is_null() { Ok(default) } else { self.count(key) }
    }

    fn number_or(&self, key: &str, default: f64) -> Result<f64, LoadError> {
        match &self.values[key] {
            Value::Null => Ok(default),
            value => value.as_f64().ok_or_else(|| self.invalid(key, "is no number")),
        }
    }

    fn flag_or(&self, key: &str, default: bool) -> bool {
        self.values[key].as_bool().unwrap_or(default)
    }

    fn activation(&self, key: &str) -> Result<Activation, LoadError> {
        match self.text(key)? {
            "gelu" => Ok(Activation::Gelu),
            "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" => Ok(Activation::GeluTanh),
            "silu" | "swish" => Ok(Activation::Silu),
            "relu" => Ok(Activation::Relu),
            "tanh" => Ok(Activation::Tanh),
            other => Err(self.invalid(key, &format!("{other:?} is not supported"))),
        }
    }

    /// Heads and the values of each.
    fn heads(&self, hidden: usize, heads: &str) -> Result<(usize, usize), LoadError> {
        let heads_count = self.count(heads)?;
        match hidden % heads_count {
            0 => Ok((heads_count, hidden / heads_count)),
            _ => Err(self.invalid(heads, &format!("{heads_count} do not divide {hidden} values"))),
        }
    }
}

/// A linear layer and whether it has a bias.
fn affine(weights: &Weights, name: &str, shape: [usize; 2], biased: bool) -> Result<Affine, LoadError> {
    let weight = weights.matrix(&format!("{name}.weight"), shape)?;
    let bias = biased.then(|| weights.vector(&format!("{name}.bias"), shape[0])).transpose()?;
    Ok(Affine { weight, bias, inputs: shape[1] })
}

/// Several layers over the same inputs as one.
fn join(parts: Vec<Affine>) -> Affine {
    let inputs = parts[0].inputs;
    let mut joined = Affine { weight: Vec::new(), bias: parts[0].bias.is_some().then(Vec::new), inputs };
    for part in parts {
        joined.weight.extend(part.weight);
        joined.bias.iter_mut().zip(part.bias).for_each(|(bias, more)| bias.extend(more));
    }
    joined
}

fn layer_norm(weights: &Weights, name: &str, width: usize, epsilon: f64) -> Result<NormWeights, LoadError> {
    let bias = format!("{name}.bias");
    Ok(NormWeights::Layer {
        weight: weights.vector(&format!("{name}.weight"), width)?,
        bias: weights.has(&bias).then(|| weights.vector(&bias, width)).transpose()?,
        epsilon: epsilon as f32,
    })
}

/// The last step of a classifier.
fn labels(classifier: Affine) -> Step<Affine, NormWeights> {
    Step::Linear(classifier, Activation::None)
}
