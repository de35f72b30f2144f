//! The files of CLIP and SigLIP in the layout of the Hugging Face hub.

use std::path::Path;
use std::rc::Rc;

use candle_core::Device;
use kernels::{Activation, Level};
use schemas::registry::Dtype;
use serde_json::Value;
use tokenizers::Tokenizer;

use super::pool::{Pool, Probe, forward};
use super::sight::{Sight, Similarity};
use super::{Clip, Images, Texts};
use crate::engine::LoadError;
use crate::engine::encoder::blueprint::{Layer, Shape};
use crate::engine::encoder::body::Body;
use crate::engine::encoder::cpu::Layers;
use crate::engine::layers::{Affine, NormWeights, affine, join, layer_norm};
use crate::engine::model_config::Config;
use crate::engine::tensors::Tensors;
use crate::engine::weights::{exact, norm};

/// Inputs that share a scale in int8.
const GROUP: usize = 64;
const COLOURS: usize = 3;

/// A model with what its texts and images need.
pub struct Loaded {
    pub clip: Clip,
    pub sight: Sight,
    pub tokenizer: Tokenizer,
    pub dimensions: usize,
    /// Tokens of the longest text.
    pub positions: usize,
}

/// Whether a folder holds such a model.
pub fn is_clip(config: &Config) -> bool {
    matches!(config.values["model_type"].as_str(), Some("clip" | "siglip"))
}

pub fn load(folder: &Path, config: &Config, dtype: Dtype, device: &Device) -> Result<Loaded, LoadError> {
    let family = Family::of(config);
    let path = folder.join("tokenizer.json");
    let tokenizer = Tokenizer::from_file(&path).map_err(|error| LoadError::file(&path, error))?;
    let weights = Rc::new(Tensors::open(folder, &[])?);
    let text = Tower::new(&weights, config, &family, "text")?;
    let vision = Tower::new(&weights, config, &family, "vision")?;
    let dimensions = match family.is_siglip {
        true => vision.shape.hidden,
        false => count(config, &config.values, "projection_dim", 512)?,
    };
    let (positions, size, patch) = (text.shape.positions, vision.size, vision.patch);
    let texts = texts(text, dimensions, (dtype, device))?;
    let images = images(vision, dimensions, (dtype, device))?;
    let number = |name: &str| {
        let tensor = weights.get(name)?;
        tensor.values.first().copied().ok_or_else(|| config.invalid(name, "is empty"))
    };
    let similarity = Similarity {
        scale: number("logit_scale")?.exp(),
        bias: if family.is_siglip { number("logit_bias")? } else { 0.0 },
        is_sigmoid: family.is_siglip,
    };
    let places = (size / patch) * (size / patch) + usize::from(!family.is_siglip);
    let sight = Sight::read(folder, size, places, similarity)?;
    Ok(Loaded { clip: Clip { texts, images }, sight, tokenizer, dimensions, positions })
}

/// What a configuration leaves out is as transformers has it.
struct Family {
    is_siglip: bool,
    /// Of texts: words, values, values inside, layers, heads, positions.
    text: [usize; 6],
    activation: &'static str,
    epsilon: f64,
    patch: usize,
}

impl Family {
    fn of(config: &Config) -> Self {
        match config.values["model_type"].as_str() {
            Some("siglip") => Self {
                is_siglip: true,
                text: [32_000, 768, 3072, 12, 12, 64],
                activation: "gelu_pytorch_tanh",
                epsilon: 1e-6,
                patch: 16,
            },
            _ => Self {
                is_siglip: false,
                text: [49_408, 512, 2048, 12, 8, 77],
                activation: "quick_gelu",
                epsilon: 1e-5,
                patch: 32,
            },
        }
    }
}

/// One of the two encoders.
struct Tower {
    weights: Rc<Tensors>,
    name: &'static str,
    shape: Shape,
    inner: usize,
    count: usize,
    activation: Activation,
    epsilon: f64,
    is_siglip: bool,
    words: usize,
    padding: u32,
    size: usize,
    patch: usize,
}

fn count(config: &Config, values: &Value, key: &str, default: usize) -> Result<usize, LoadError> {
    match &values[key] {
        Value::Null => Ok(default),
        value => match value.as_u64().filter(|count| (1..=1 << 24).contains(count)) {
            Some(count) => Ok(count as usize),
            None => Err(config.invalid(key, "is no number of things")),
        },
    }
}

impl Tower {
    fn new(weights: &Rc<Tensors>, config: &Config, family: &Family, side: &str) -> Result<Self, LoadError> {
        let is_text = side == "text";
        let values = &config.values[format!("{side}_config")];
        let [words, hidden, inner, layers, heads, positions] = match is_text {
            true => family.text,
            false => [0, 768, 3072, 12, 12, 0],
        };
        let of = |key: &str, default| count(config, values, key, default);
        let (hidden, heads) = (of("hidden_size", hidden)?, of("num_attention_heads", heads)?);
        if hidden % heads != 0 {
            return Err(config.invalid("num_attention_heads", &format!("{heads} do not divide {hidden} values")));
        }
        let (size, patch) = (of("image_size", 224)?, of("patch_size", family.patch)?);
        let own = Config { path: config.path.clone(), values: values.clone() };
        let activation = match values["hidden_act"].is_null() {
            true => Config { values: serde_json::json!({ "act": family.activation }), ..own }.activation("act")?,
            false => own.activation("hidden_act")?,
        };
        let patches = (size / patch) * (size / patch) + usize::from(!family.is_siglip);
        Ok(Self {
            weights: Rc::clone(weights),
            name: if is_text { "text_model" } else { "vision_model" },
            shape: Shape {
                hidden,
                heads,
                kv_heads: heads,
                size: hidden / heads,
                causal: is_text && !family.is_siglip,
                positions: if is_text { of("max_position_embeddings", positions)? } else { patches },
                distance_bias: None,
            },
            inner: of("intermediate_size", inner)?,
            count: of("num_hidden_layers", layers)?,
            activation,
            epsilon: values["layer_norm_eps"].as_f64().unwrap_or(family.epsilon),
            is_siglip: family.is_siglip,
            words: of("vocab_size", words)?,
            padding: u32::try_from(of("pad_token_id", 1)?).unwrap_or(1),
            size,
            patch,
        })
    }

    fn name(&self, part: &str) -> String {
        format!("{}.{part}", self.name)
    }

    fn norm(&self, part: &str) -> Result<NormWeights, LoadError> {
        layer_norm(&self.weights, &self.name(part), self.shape.hidden, self.epsilon)
    }
}

impl Layers for Tower {
    fn shape(&self) -> &Shape {
        &self.shape
    }

    fn count(&self) -> usize {
        self.count
    }

    fn layer(&self, index: usize) -> Result<Layer<Affine, NormWeights>, LoadError> {
        let (hidden, inner) = (self.shape.hidden, self.inner);
        let name = |part: &str| self.name(&format!("encoder.layers.{index}.{part}"));
        let square = |part: &str| affine(&self.weights, &name(part), [hidden, hidden], true);
        let norm = |part: &str| self.norm(&format!("encoder.layers.{index}.{part}"));
        Ok(Layer {
            norm: Some(norm("layer_norm1")?),
            projection: join(vec![
                square("self_attn.q_proj")?,
                square("self_attn.k_proj")?,
                square("self_attn.v_proj")?,
            ]),
            head_norms: None,
            rotary: None,
            window: None,
            output: square("self_attn.out_proj")?,
            output_norm: None,
            perceptron_norm: Some(norm("layer_norm2")?),
            up: affine(&self.weights, &name("mlp.fc1"), [inner, hidden], true)?,
            activation: self.activation,
            gated: false,
            down: affine(&self.weights, &name("mlp.fc2"), [hidden, inner], true)?,
            down_norm: None,
        })
    }

    fn final_norm(&self) -> Result<Option<NormWeights>, LoadError> {
        match (self.name, self.is_siglip) {
            ("text_model", _) => self.norm("final_layer_norm").map(Some),
            (_, true) => self.norm("post_layernorm").map(Some),
            // Of the first row alone, when it is pooled.
            (_, false) => Ok(None),
        }
    }
}

fn texts(tower: Tower, dimensions: usize, (dtype, device): (Dtype, &Device)) -> Result<Texts, LoadError> {
    let (hidden, weights) = (tower.shape.hidden, &tower.weights);
    let projection = match tower.is_siglip {
        true => affine(weights, "text_model.head", [dimensions, hidden], true)?,
        false => affine(weights, "text_projection", [dimensions, hidden], false)?,
    };
    Ok(Texts {
        words: weights.matrix("text_model.embeddings.token_embedding.weight", [tower.words, hidden])?,
        positions: weights
            .matrix("text_model.embeddings.position_embedding.weight", [tower.shape.positions, hidden])?,
        padding: tower.is_siglip.then_some(tower.padding),
        projection: exact(projection),
        body: Body::new(&tower, dtype, GROUP, device)?,
        hidden,
    })
}

fn images(tower: Tower, dimensions: usize, (dtype, device): (Dtype, &Device)) -> Result<Images, LoadError> {
    let (hidden, patch, weights) = (tower.shape.hidden, tower.patch, &tower.weights);
    let name = "vision_model.embeddings.patch_embedding";
    let bias = tower.is_siglip.then(|| weights.vector(&format!("{name}.bias"), hidden)).transpose()?;
    let inputs = COLOURS * patch * patch;
    let patches = weights.shaped(&format!("{name}.weight"), &[hidden, COLOURS, patch, patch])?;
    let class = (!tower.is_siglip).then(|| weights.vector("vision_model.embeddings.class_embedding", hidden));
    let pool = match tower.is_siglip {
        true => Pool::Attention(Box::new(probe(&tower)?)),
        false => Pool::First {
            norm: norm(tower.norm("post_layernorm")?),
            projection: exact(affine(weights, "visual_projection", [dimensions, hidden], false)?),
        },
    };
    Ok(Images {
        patches: exact(Affine { weight: patches, bias, inputs }),
        class: class.transpose()?,
        positions: weights
            .matrix("vision_model.embeddings.position_embedding.weight", [tower.shape.positions, hidden])?,
        // So it is spelled in the files.
        norm: (!tower.is_siglip).then(|| tower.norm("pre_layrnorm").map(norm)).transpose()?,
        pool,
        body: Body::new(&tower, dtype, GROUP, device)?,
        hidden,
        size: tower.size,
        patch,
    })
}

fn probe(tower: &Tower) -> Result<Probe, LoadError> {
    let (hidden, inner, heads, weights) = (tower.shape.hidden, tower.inner, tower.shape.heads, &tower.weights);
    let name = |part: &str| tower.name(&format!("head.{part}"));
    let joined = weights.matrix(&name("attention.in_proj_weight"), [3 * hidden, hidden])?;
    let bias = weights.vector(&name("attention.in_proj_bias"), 3 * hidden)?;
    let part = |index: usize| {
        exact(Affine {
            weight: joined[index * hidden * hidden..(index + 1) * hidden * hidden].to_vec(),
            bias: Some(bias[index * hidden..(index + 1) * hidden].to_vec()),
            inputs: hidden,
        })
    };
    let asked = weights.shaped(&name("probe"), &[1, 1, hidden])?;
    let mut query = forward(Level::best(), &part(0), &asked, Activation::None);
    let scale = 1.0 / ((hidden / heads) as f32).sqrt();
    query.iter_mut().for_each(|value| *value *= scale);
    Ok(Probe {
        query,
        heads,
        keys: part(1),
        values: part(2),
        output: exact(affine(weights, &name("attention.out_proj"), [hidden, hidden], true)?),
        norm: norm(tower.norm("head.layernorm")?),
        up: exact(affine(weights, &name("mlp.fc1"), [inner, hidden], true)?),
        activation: tower.activation,
        down: exact(affine(weights, &name("mlp.fc2"), [hidden, inner], true)?),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::encoder::cpu::Place;

    #[test]
    fn candle_computes_the_same_as_the_kernels() {
        for name in ["clip", "siglip"] {
            let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/vision").join(name);
            let config = Config::read(&folder).unwrap();
            let weights = Rc::new(Tensors::open(&folder, &[]).unwrap());
            for side in ["text", "vision"] {
                let tower = Tower::new(&weights, &config, &Family::of(&config), side).unwrap();
                let places = tower.shape.positions;
                let row = |Place { sequence, position }: Place, to: &mut [f32]| {
                    let mut random = fastrand::Rng::with_seed((sequence * places + position) as u64);
                    to.iter_mut().for_each(|value| *value = random.f32() * 2.0 - 1.0);
                };
                let lengths = [places, 1, places / 2];
                let run = |body: Body| body.run(&lengths, row, <[f32]>::to_vec).unwrap().concat();
                let expected = run(Body::new(&tower, Dtype::F32, GROUP, &Device::Cpu).unwrap());
                let ours = run(Body::by_candle(&tower).unwrap());
                let apart = ours.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                assert!(ours.len() == expected.len() && apart < 1e-4, "{name}, {side}: {apart}");
            }
        }
    }
}
