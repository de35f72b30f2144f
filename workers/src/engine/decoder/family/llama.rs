//! Llama (Touvron et al., 2023) and those that are told in its words: Mistral, Qwen2, Qwen3, Gemma 2, Gemma 3 and gpt-oss. What
//! sets them apart are norms, biases, sinks and experts, which are there or not, windows, and some numbers.

use kernels::Activation;
use serde_json::Value;

use super::experts;
use crate::engine::LoadError;
use crate::engine::decoder::blueprint::{Function, Layer, Layers, Perceptron, Rotation, Shape, Source};
use crate::engine::decoder::rotation::Scaling;
use crate::engine::layers::{Affine, NormWeights};
use crate::engine::layers::{affine, join};
use crate::engine::model_config::Config;
use crate::engine::tensors::Tensors;

pub fn read(name: &str, config: &Config, tensors: Tensors) -> Result<Source, LoadError> {
    let (hidden, heads) = (config.count("hidden_size")?, config.count("num_attention_heads")?);
    let (key_heads, size) =
        (config.count_or("num_key_value_heads", heads)?, config.count_or("head_dim", hidden / heads)?);
    if heads % key_heads != 0 {
        return Err(config.invalid("num_key_value_heads", "do not divide the heads"));
    }
    let mut shape = Shape::plain(hidden, [heads, key_heads], size, config.count("max_position_embeddings")?);
    let is_gemma = name.starts_with("gemma");
    if is_gemma {
        shape.word_scale = (hidden as f32).sqrt();
        shape.attention_scale = (config.number_or("query_pre_attn_scalar", size as f64)?.sqrt().recip()) as f32;
        shape.attention_cap = number(config, "attn_logit_softcapping")?;
        shape.logit_cap = number(config, "final_logit_softcapping")?;
    }
    let activation = match config.values["hidden_activation"] {
        Value::Null => config.activation("hidden_act")?,
        _ => config.activation("hidden_activation")?,
    };
    let epsilon = config.number_or("rms_norm_eps", 1e-6)? as f32;
    let words = tensors.matrix("embed_tokens.weight", [config.count("vocab_size")?, hidden])?;
    let outside = tensors.outside();
    let (name, config, shape_of_all) = (name.to_owned(), config.clone(), shape.clone());
    let model = Model { name, config, tensors, shape: shape_of_all, activation, epsilon, is_gemma };
    let config = &model.config;
    let vocabulary = config.count("vocab_size")?;
    let has_head = outside.has("lm_head.weight") && !config.flag_or("tie_word_embeddings", is_gemma);
    let output = if has_head { Some(affine(&outside, "lm_head", [vocabulary, hidden], false)?) } else { None };
    Ok(Source {
        has_four_bits: experts::are_in_mxfp4(&model.tensors),
        words,
        positions: None,
        norm: model.norm("norm", hidden)?,
        layers: Layers::new(config.count("num_hidden_layers")?, move |index| model.layer(index)),
        output,
        shape,
    })
}

struct Model {
    name: String,
    config: Config,
    tensors: Tensors,
    shape: Shape,
    activation: Activation,
    epsilon: f32,
    is_gemma: bool,
}

impl Model {
    fn layer(&self, index: usize) -> Result<Layer<Affine, NormWeights>, LoadError> {
        let Shape { hidden, heads, key_heads, head_size: size, .. } = self.shape;
        let is_sliding = self.is_sliding(index)?;
        let name = |part: &str| format!("layers.{index}.{part}");
        let linear = |part: &str, shape| self.linear(&name(part), shape);
        let attention = |part: &str, count: usize| linear(&format!("self_attn.{part}_proj"), [count * size, hidden]);
        let norm = |part: &str| self.norm(&name(part), hidden);
        let head_norm = |part: &str| self.norm(&name(&format!("self_attn.{part}_norm")), size);
        let has_head_norms = self.tensors.has(&name("self_attn.q_norm.weight"));
        // Gemma has a norm after attention too, and so another name for the one before the perceptron.
        let (output_norm, perceptron_norm, down_norm) = match self.is_gemma {
            false => (None, norm("post_attention_layernorm")?, None),
            true => (
                Some(norm("post_attention_layernorm")?),
                norm("pre_feedforward_layernorm")?,
                Some(norm("post_feedforward_layernorm")?),
            ),
        };
        Ok(Layer {
            norm: norm("input_layernorm")?,
            projection: join(vec![attention("q", heads)?, attention("k", key_heads)?, attention("v", key_heads)?]),
            head_norms: if has_head_norms { Some([head_norm("q")?, head_norm("k")?]) } else { None },
            rotation: Some(self.rotation(is_sliding)?),
            window: if is_sliding { Some(self.config.count("sliding_window")?) } else { None },
            sinks: match self.tensors.has(&name("self_attn.sinks")) {
                true => Some(self.tensors.vector(&name("self_attn.sinks"), heads)?),
                false => None,
            },
            output: linear("self_attn.o_proj", [hidden, heads * size])?,
            output_norm,
            cross: None,
            perceptron_norm,
            perceptron: self.perceptron(index)?,
            down_norm,
        })
    }

    fn perceptron(&self, index: usize) -> Result<Perceptron<Affine>, LoadError> {
        let (name, hidden) = (format!("layers.{index}.mlp"), self.shape.hidden);
        let function = Function::Gated(self.activation);
        if self.name == "gpt_oss" {
            return experts::gpt_oss(&self.config, &self.tensors, &name, hidden).map(Perceptron::Experts);
        }
        if self.tensors.has(&format!("{name}.gate.weight")) {
            return experts::qwen3(&self.config, &self.tensors, &name, (hidden, function)).map(Perceptron::Experts);
        }
        let inner = self.config.count("intermediate_size")?;
        experts::gated(&self.tensors, &name, [hidden, inner], function).map(Perceptron::Dense)
    }

    /// Whether the layer sees a window only.
    fn is_sliding(&self, index: usize) -> Result<bool, LoadError> {
        let config = &self.config;
        if let Some(kinds) = config.values["layer_types"].as_array() {
            return match kinds.get(index).and_then(Value::as_str) {
                Some("sliding_attention") => Ok(true),
                Some("full_attention") => Ok(false),
                _ => Err(config.invalid("layer_types", &format!("has no kind of attention for layer {index}"))),
            };
        }
        Ok(match &*self.name {
            "mistral" => !config.values["sliding_window"].is_null(),
            "qwen2" | "qwen3" => {
                config.flag_or("use_sliding_window", false) && index >= config.count("max_window_layers")?
            }
            "gpt_oss" => index.is_multiple_of(2),
            "gemma2" => index.is_multiple_of(2),
            "gemma3_text" => !(index + 1).is_multiple_of(config.count_or("sliding_window_pattern", 6)?),
            _ => false,
        })
    }

    /// Newer files have `rope_parameters`, which may differ between kinds of layers; older ones `rope_theta`, and
    /// `rope_scaling` beside it.
    fn rotation(&self, is_sliding: bool) -> Result<Rotation, LoadError> {
        let (config, values) = (&self.config, &self.config.values);
        let kind = if is_sliding { "sliding_attention" } else { "full_attention" };
        let is_local = is_sliding && self.name == "gemma3_text";
        let parameters = match &values["rope_parameters"] {
            Value::Null if is_local => &Value::Null,
            Value::Null => &values["rope_scaling"],
            of_all => of_all.get(kind).unwrap_or(of_all),
        };
        let base = match (parameters["rope_theta"].as_f64(), is_local) {
            (Some(base), _) => base,
            (None, true) => config.number_or("rope_local_base_freq", 10_000.0)?,
            (None, false) => config.number_or("rope_theta", 10_000.0)?,
        };
        if parameters["partial_rotary_factor"].as_f64().is_some_and(|part| part != 1.0) {
            return Err(config.invalid("partial_rotary_factor", "is not supported"));
        }
        Ok(Rotation::new(self.shape.head_size, base, self.scaling(parameters)?))
    }

    fn scaling(&self, parameters: &Value) -> Result<Scaling, LoadError> {
        let config = &self.config;
        let kind = parameters["rope_type"].as_str().or(parameters["type"].as_str());
        let number = |key: &str| {
            let number = parameters[key].as_f64().filter(|number| *number > 0.0);
            number.ok_or_else(|| config.invalid("rope_parameters", &format!("{key} is missing or no number above 0")))
        };
        let or = |key: &str, default| if parameters[key].is_null() { Ok(default) } else { number(key) };
        match kind.unwrap_or("default") {
            "default" => Ok(Scaling::None),
            "linear" => Ok(Scaling::Linear { factor: number("factor")? }),
            "llama3" => Ok(Scaling::Llama3 {
                factor: number("factor")?,
                slow: number("low_freq_factor")?,
                fast: number("high_freq_factor")?,
                context: number("original_max_position_embeddings")?,
            }),
            "yarn" => Ok(Scaling::Yarn {
                factor: number("factor")?,
                slow: or("beta_slow", 1.0)?,
                fast: or("beta_fast", 32.0)?,
                context: or("original_max_position_embeddings", self.shape.context as f64)?,
                scale: parameters["attention_factor"].as_f64(),
                truncate: parameters["truncate"].as_bool().unwrap_or(true),
            }),
            other => {
                let reason = format!("rope_type {other:?} is not supported; default, linear, llama3 and yarn are");
                Err(config.invalid("rope_parameters", &reason))
            }
        }
    }

    fn linear(&self, name: &str, shape: [usize; 2]) -> Result<Affine, LoadError> {
        affine(&self.tensors, name, shape, self.tensors.has(&format!("{name}.bias")))
    }

    fn norm(&self, name: &str, width: usize) -> Result<NormWeights, LoadError> {
        let mut weight = self.tensors.vector(&format!("{name}.weight"), width)?;
        if self.is_gemma {
            // Stored as what they are above 1.
            weight.iter_mut().for_each(|value| *value += 1.0);
        }
        Ok(NormWeights::Rms { weight, epsilon: self.epsilon })
    }
}

fn number(config: &Config, key: &str) -> Result<Option<f32>, LoadError> {
    match config.values[key] {
        Value::Null => Ok(None),
        _ => config.number_or(key, 0.0).map(|number| Some(number as f32)),
    }
}
