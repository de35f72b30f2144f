//! Whisper models (Radford et al., 2022) as files: folders in the layout of the Hugging Face hub, and of CTranslate2.

use std::path::{Path, PathBuf};
use std::rc::Rc;

use kernels::Activation;
use serde_json::Value;
use tokenizers::Tokenizer;

use super::ct2::{self, Arrays};
use crate::engine::LoadError;
use crate::engine::decoder::blueprint::{
    Cross, Dense, Function, Layer as DecoderLayer, Layers as DecoderLayers, Perceptron, Shape as DecoderShape, Source,
};
use crate::engine::encoder::blueprint::{Layer, Shape};
use crate::engine::encoder::cpu::Layers;
use crate::engine::layers::{Affine, NormWeights, join};
use crate::engine::model_config::{Config, optional};
use crate::engine::tensors::{self, Tensor, Tensors};

const EPSILON: f32 = 1e-5;

/// A model on its way into memory.
pub struct Files {
    weights: Rc<Weights>,
    pub sizes: Sizes,
    pub tokenizer: Tokenizer,
    /// Tokens that are never drawn, and those that are no first token.
    pub suppressed: Vec<u32>,
    pub suppressed_first: Vec<u32>,
    /// Heads of the decoder that look where the words are: layer and head.
    pub alignment_heads: Vec<(usize, usize)>,
}

#[derive(Clone, Debug)]
pub struct Sizes {
    pub hidden: usize,
    pub bands: usize,
    pub vocabulary: usize,
    /// Places of the encoder, two frames each, and of the decoder.
    pub heard: usize,
    pub context: usize,
    pub layers: [usize; 2],
    pub heads: [usize; 2],
    pub inner: [usize; 2],
}

enum Weights {
    Safetensors(Tensors),
    Ct2(Arrays),
}

/// The files that hold a model's weights.
pub fn weight_files(folder: &Path) -> Result<Vec<PathBuf>, LoadError> {
    let path = folder.join(ct2::FILE);
    if path.is_file() { Ok(vec![path]) } else { tensors::files(folder) }
}

impl Files {
    pub fn open(folder: &Path) -> Result<Self, LoadError> {
        let (weights, sizes) = match folder.join(ct2::FILE).is_file() {
            true => {
                let arrays = Arrays::open(folder)?;
                let sizes = sizes_of(&arrays)?;
                (Weights::Ct2(arrays), sizes)
            }
            false => {
                let config = Config::read(folder)?;
                match config.text("model_type")? {
                    "whisper" => {}
                    other => {
                        let reason = format!("is {other:?}; the task \"transcribe\" takes whisper");
                        return Err(config.invalid("model_type", &reason));
                    }
                }
                let prefixes = ["model."];
                (Weights::Safetensors(Tensors::open(folder, &prefixes)?), configured(&config)?)
            }
        };
        if sizes.heads.iter().any(|heads| *heads == 0 || sizes.hidden % heads != 0) {
            return Err(LoadError::file(folder, format!("heads do not divide {} values", sizes.hidden)));
        }
        let path = folder.join("tokenizer.json");
        let tokenizer = Tokenizer::from_file(&path).map_err(|error| LoadError::file(&path, error))?;
        // What is suppressed stands in either file, under either name.
        let files: Vec<Value> = ["generation_config.json", "config.json"]
            .into_iter()
            .map(|name| Ok(optional(folder, name)?.unwrap_or_default()))
            .collect::<Result<_, LoadError>>()?;
        let list = |names: [&str; 2]| {
            let found = files.iter().flat_map(|file| names.map(|name| &file[name])).find_map(Value::as_array);
            found.cloned().unwrap_or_default()
        };
        let tokens = |names| list(names).iter().filter_map(|id| u32::try_from(id.as_u64()?).ok()).collect();
        let heads = list(["alignment_heads", "alignment_heads"]);
        let head = |pair: &Value| Some((pair[0].as_u64()? as usize, pair[1].as_u64()? as usize));
        let mut alignment_heads: Vec<_> = heads.iter().filter_map(head).collect();
        alignment_heads.retain(|(layer, head)| *layer < sizes.layers[1] && *head < sizes.heads[1]);
        if alignment_heads.is_empty() {
            let upper = sizes.layers[1] / 2..sizes.layers[1];
            alignment_heads = upper.flat_map(|layer| (0..sizes.heads[1]).map(move |head| (layer, head))).collect();
        }
        Ok(Self {
            weights: Rc::new(weights),
            tokenizer,
            suppressed: tokens(["suppress_tokens", "suppress_ids"]),
            suppressed_first: tokens(["begin_suppress_tokens", "suppress_ids_begin"]),
            alignment_heads,
            sizes,
        })
    }

    /// A convolution over three frames, as a layer whose inputs are the frames one after the other.
    pub fn convolution(&self, name: &str, inputs: usize) -> Result<Affine, LoadError> {
        const WIDTH: usize = 3;
        let outputs = self.sizes.hidden;
        let stored = self.weights.shaped(&format!("encoder.{name}.weight"), &[outputs, inputs, WIDTH])?;
        let mut weight = Vec::with_capacity(stored.len());
        for of_output in stored.chunks_exact(inputs * WIDTH) {
            (0..WIDTH).for_each(|frame| weight.extend(of_output[frame..].iter().step_by(WIDTH)));
        }
        let bias = Some(self.weights.shaped(&format!("encoder.{name}.bias"), &[outputs])?);
        Ok(Affine { weight, bias, inputs: WIDTH * inputs })
    }

    /// What is added to the rows of the encoder.
    pub fn positions(&self) -> Result<Vec<f32>, LoadError> {
        self.weights.shaped("encoder.embed_positions.weight", &[self.sizes.heard, self.sizes.hidden])
    }

    pub fn encoder(&self) -> Result<EncoderLayers, LoadError> {
        let Sizes { hidden, heads: [heads, _], heard, .. } = self.sizes;
        let shape = Shape {
            hidden,
            heads,
            kv_heads: heads,
            size: hidden / heads,
            causal: false,
            positions: heard,
            distance_bias: None,
        };
        let final_norm = self.weights.norm("encoder.layer_norm", hidden)?;
        Ok(EncoderLayers { weights: Rc::clone(&self.weights), sizes: self.sizes.clone(), shape, final_norm })
    }

    pub fn decoder(&self) -> Result<Source, LoadError> {
        let Sizes { hidden, vocabulary, context, layers: [_, layers], heads: [_, heads], inner: [_, inner], .. } =
            self.sizes;
        let weights = Rc::clone(&self.weights);
        let layer = move |index: usize| {
            let name = |part: &str| format!("decoder.layers.{index}.{part}");
            let square = |part: &str| weights.affine(&name(part), [hidden, hidden]);
            let norm = |part: &str| weights.norm(&name(part), hidden);
            Ok(DecoderLayer {
                norm: norm("self_attn_layer_norm")?,
                projection: join(vec![
                    square("self_attn.q_proj")?,
                    square("self_attn.k_proj")?,
                    square("self_attn.v_proj")?,
                ]),
                head_norms: None,
                rotation: None,
                window: None,
                sinks: None,
                output: square("self_attn.out_proj")?,
                output_norm: None,
                cross: Some(Cross {
                    norm: norm("encoder_attn_layer_norm")?,
                    query: square("encoder_attn.q_proj")?,
                    memory: join(vec![square("encoder_attn.k_proj")?, square("encoder_attn.v_proj")?]),
                    output: square("encoder_attn.out_proj")?,
                }),
                perceptron_norm: norm("final_layer_norm")?,
                perceptron: Perceptron::Dense(Dense {
                    up: weights.affine(&name("fc1"), [inner, hidden])?,
                    function: Function::Plain(Activation::Gelu),
                    down: weights.affine(&name("fc2"), [hidden, inner])?,
                }),
                down_norm: None,
            })
        };
        Ok(Source {
            has_four_bits: false,
            shape: DecoderShape::plain(hidden, [heads, heads], hidden / heads, context),
            words: self.weights.shaped("decoder.embed_tokens.weight", &[vocabulary, hidden])?,
            positions: Some(self.weights.shaped("decoder.embed_positions.weight", &[context, hidden])?),
            layers: DecoderLayers::new(layers, layer),
            norm: self.weights.norm("decoder.layer_norm", hidden)?,
            output: None,
        })
    }
}

fn configured(config: &Config) -> Result<Sizes, LoadError> {
    match config.text("activation_function")? {
        "gelu" => {}
        other => return Err(config.invalid("activation_function", &format!("is {other:?}; gelu is supported"))),
    }
    Ok(Sizes {
        hidden: config.count("d_model")?,
        bands: config.count("num_mel_bins")?,
        vocabulary: config.count("vocab_size")?,
        heard: config.count("max_source_positions")?,
        context: config.count("max_target_positions")?,
        layers: [config.count("encoder_layers")?, config.count("decoder_layers")?],
        heads: [config.count("encoder_attention_heads")?, config.count("decoder_attention_heads")?],
        inner: [config.count("encoder_ffn_dim")?, config.count("decoder_ffn_dim")?],
    })
}

/// What the arrays of a file of CTranslate2 say by their shapes.
fn sizes_of(arrays: &Arrays) -> Result<Sizes, LoadError> {
    let rows = |name: &str| Ok::<_, LoadError>(arrays.shape(name)?.first().copied().unwrap_or(0));
    let layers = |side: &str| {
        let has = |index: &usize| arrays.shape(&format!("{side}/layer_{index}/ffn/linear_0/weight")).is_ok();
        (0..).take_while(has).count()
    };
    let conv = arrays.shape("encoder/conv1/weight")?;
    let (hidden, bands) = (conv.first().copied().unwrap_or(0), conv.get(1).copied().unwrap_or(0));
    Ok(Sizes {
        hidden,
        bands,
        vocabulary: rows("decoder/embeddings/weight")?,
        heard: rows("encoder/position_encodings/encodings")?,
        context: rows("decoder/position_encodings/encodings")?,
        layers: [layers("encoder"), layers("decoder")],
        heads: [arrays.number("encoder/num_heads")?, arrays.number("decoder/num_heads")?],
        inner: [rows("encoder/layer_0/ffn/linear_0/weight")?, rows("decoder/layer_0/ffn/linear_0/weight")?],
    })
}

impl Weights {
    fn get(&self, name: &str) -> Result<Tensor, LoadError> {
        match self {
            Self::Safetensors(tensors) => tensors.get(name),
            Self::Ct2(arrays) => arrays.get(name),
        }
    }

    fn shaped(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, LoadError> {
        let tensor = self.get(name)?;
        match tensor.shape == shape {
            true => Ok(tensor.values),
            false => {
                let reason = format!("{name} has the shape {:?}; {shape:?} is wanted", tensor.shape);
                Err(LoadError::file(Path::new("weights"), reason))
            }
        }
    }

    /// A layer with a bias, but for projections to keys, which have none.
    fn affine(&self, name: &str, shape: [usize; 2]) -> Result<Affine, LoadError> {
        let weight = self.shaped(&format!("{name}.weight"), &shape)?;
        let bias = match name.ends_with("k_proj") {
            true => vec![0.0; shape[0]],
            false => self.shaped(&format!("{name}.bias"), &shape[..1])?,
        };
        Ok(Affine { weight, bias: Some(bias), inputs: shape[1] })
    }

    fn norm(&self, name: &str, width: usize) -> Result<NormWeights, LoadError> {
        Ok(NormWeights::Layer {
            weight: self.shaped(&format!("{name}.weight"), &[width])?,
            bias: Some(self.shaped(&format!("{name}.bias"), &[width])?),
            epsilon: EPSILON,
        })
    }
}

/// The layers of the encoder, read as they are asked for.
pub struct EncoderLayers {
    weights: Rc<Weights>,
    sizes: Sizes,
    shape: Shape,
    final_norm: NormWeights,
}

impl Layers for EncoderLayers {
    fn shape(&self) -> &Shape {
        &self.shape
    }

    fn count(&self) -> usize {
        self.sizes.layers[0]
    }

    fn layer(&self, index: usize) -> Result<Layer<Affine, NormWeights>, LoadError> {
        let Sizes { hidden, inner: [inner, _], .. } = self.sizes;
        let name = |part: &str| format!("encoder.layers.{index}.{part}");
        let square = |part: &str| self.weights.affine(&name(part), [hidden, hidden]);
        Ok(Layer {
            norm: Some(self.weights.norm(&name("self_attn_layer_norm"), hidden)?),
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
            perceptron_norm: Some(self.weights.norm(&name("final_layer_norm"), hidden)?),
            up: self.weights.affine(&name("fc1"), [inner, hidden])?,
            activation: Activation::Gelu,
            gated: false,
            down: self.weights.affine(&name("fc2"), [hidden, inner])?,
            down_norm: None,
        })
    }

    fn final_norm(&self) -> Result<Option<NormWeights>, LoadError> {
        Ok(Some(self.final_norm.clone()))
    }
}
