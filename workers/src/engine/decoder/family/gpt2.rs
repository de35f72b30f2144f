//! GPT-2 (Radford et al., 2019): learned positions, norms with a mean, and matrices that lie on their side.

use std::rc::Rc;

use kernels::Activation;

use crate::engine::LoadError;
use crate::engine::decoder::blueprint::{Dense, Function, Layer, Layers, Perceptron, Shape, Source};
use crate::engine::layers::layer_norm;
use crate::engine::layers::{Affine, NormWeights};
use crate::engine::model_config::Config;
use crate::engine::tensors::Tensors;

pub fn read(config: &Config, tensors: Tensors) -> Result<Source, LoadError> {
    if config.flag_or("scale_attn_by_inverse_layer_idx", false) {
        return Err(config.invalid("scale_attn_by_inverse_layer_idx", "is not supported"));
    }
    let hidden = config.count("n_embd")?;
    let (heads, size) = config.heads(hidden, "n_head")?;
    let (positions, vocabulary) = (config.count("n_positions")?, config.count("vocab_size")?);
    let mut shape = Shape::plain(hidden, [heads, heads], size, positions);
    if !config.flag_or("scale_attn_weights", true) {
        shape.attention_scale = 1.0;
    }
    let tensors = Rc::new(tensors);
    let model = Gpt2 {
        tensors: Rc::clone(&tensors),
        hidden,
        inner: config.count_or("n_inner", 4 * hidden)?,
        epsilon: config.number_or("layer_norm_epsilon", 1e-5)?,
        activation: config.activation("activation_function")?,
    };
    let head = tensors.outside().has("lm_head.weight") && !config.flag_or("tie_word_embeddings", true);
    let output = || tensors.outside().matrix("lm_head.weight", [vocabulary, hidden]);
    let output = if head { Some(Affine { weight: output()?, bias: None, inputs: hidden }) } else { None };
    Ok(Source {
        has_four_bits: false,
        words: tensors.matrix("wte.weight", [vocabulary, hidden])?,
        positions: Some(tensors.matrix("wpe.weight", [positions, hidden])?),
        norm: layer_norm(&tensors, "ln_f", hidden, model.epsilon)?,
        layers: Layers::new(config.count("n_layer")?, move |index| model.layer(index)),
        output,
        shape,
    })
}

struct Gpt2 {
    tensors: Rc<Tensors>,
    hidden: usize,
    inner: usize,
    epsilon: f64,
    activation: Activation,
}

impl Gpt2 {
    fn layer(&self, index: usize) -> Result<Layer<Affine, NormWeights>, LoadError> {
        let Self { hidden, inner, .. } = *self;
        let linear = |part: &str, inputs, outputs| self.linear(&format!("h.{index}.{part}"), inputs, outputs);
        let norm = |part: &str| layer_norm(&self.tensors, &format!("h.{index}.{part}"), hidden, self.epsilon);
        Ok(Layer {
            norm: norm("ln_1")?,
            projection: linear("attn.c_attn", hidden, 3 * hidden)?,
            head_norms: None,
            rotation: None,
            window: None,
            sinks: None,
            output: linear("attn.c_proj", hidden, hidden)?,
            output_norm: None,
            cross: None,
            perceptron_norm: norm("ln_2")?,
            perceptron: Perceptron::Dense(Dense {
                up: linear("mlp.c_fc", hidden, inner)?,
                function: Function::Plain(self.activation),
                down: linear("mlp.c_proj", inner, hidden)?,
            }),
            down_norm: None,
        })
    }

    /// A layer whose matrix is stored as `[inputs, outputs]`.
    fn linear(&self, name: &str, inputs: usize, outputs: usize) -> Result<Affine, LoadError> {
        let stored = self.tensors.matrix(&format!("{name}.weight"), [inputs, outputs])?;
        let weight = (0..outputs).flat_map(|output| stored[output..].iter().step_by(outputs).copied()).collect();
        Ok(Affine { weight, bias: Some(self.tensors.vector(&format!("{name}.bias"), outputs)?), inputs })
    }
}
