//! The families of encoders: what each names its tensors and the keys of its `config.json`, told in the words of
//! `blueprint`. The reference for each is its file in Hugging Face's transformers.

mod bert;
mod modernbert;
mod qwen3;

use std::path::Path;

use super::blueprint::{Embedding, Layer, Shape, Step};
use super::cpu::Layers;
use crate::engine::LoadError;
use crate::engine::layers::{Affine, NormWeights};
use crate::engine::model_config::Config;
use crate::engine::tensors::Tensors;
use kernels::Activation;

/// A model as its files tell it. Layers are read as they are asked for, so that they need not be in memory together.
pub struct Model {
    pub shape: Shape,
    pub embedding: Embedding<NormWeights>,
    pub layers: usize,
    pub final_norm: Option<NormWeights>,
    family: Box<dyn Family>,
    weights: Tensors,
}

/// What is told apart by `model_type`.
trait Family {
    fn shape(&self, weights: &Tensors) -> Result<Shape, LoadError>;
    fn embedding(&self, weights: &Tensors) -> Result<Embedding<NormWeights>, LoadError>;
    fn layers(&self) -> usize;
    fn layer(&self, weights: &Tensors, index: usize) -> Result<Layer<Affine, NormWeights>, LoadError>;
    fn final_norm(&self, _: &Tensors) -> Result<Option<NormWeights>, LoadError> {
        Ok(None)
    }
    /// What a sequence classifier does with the vector of a sequence, where `labels` come out.
    fn classifier(&self, weights: &Tensors, labels: usize) -> Result<Classifier, LoadError>;
}

/// A classifier's pooling and steps.
pub type Classifier = super::blueprint::Head<Affine, NormWeights>;

impl Layers for Model {
    fn shape(&self) -> &Shape {
        &self.shape
    }

    fn count(&self) -> usize {
        self.layers
    }

    fn layer(&self, index: usize) -> Result<Layer<Affine, NormWeights>, LoadError> {
        self.family.layer(&self.weights, index)
    }

    fn final_norm(&self) -> Result<Option<NormWeights>, LoadError> {
        Ok(self.final_norm.clone())
    }
}

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
        let weights = Tensors::open(folder, prefixes)?;
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

    pub fn classifier(&self, labels: usize) -> Result<Classifier, LoadError> {
        self.family.classifier(&self.weights, labels)
    }
}

/// The last step of a classifier.
fn labels(classifier: Affine) -> Step<Affine, NormWeights> {
    Step::Linear(classifier, Activation::None)
}
