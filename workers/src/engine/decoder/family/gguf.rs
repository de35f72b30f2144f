//! Models from GGUF files: what llama.cpp names the tensors and keys of each architecture, told in the words of
//! `blueprint`.

use kernels::Activation;

use crate::engine::LoadError;
use crate::engine::decoder::blueprint::{Dense, Experts, Function, Layer, Layers, Perceptron, Rotation, Shape, Source};
use crate::engine::decoder::rotation::Scaling;
use crate::engine::gguf::Gguf;
use crate::engine::layers::join;
use crate::engine::layers::{Affine, NormWeights};

const ARCHITECTURES: [&str; 8] = ["gemma2", "gemma3", "gpt-oss", "gpt2", "llama", "qwen2", "qwen3", "qwen3moe"];
const GPT_OSS: &str = "gpt-oss";
/// Those that have experts.
const MIXTURES: [&str; 2] = [GPT_OSS, "qwen3moe"];
/// Base of the positions of layers of Gemma 3 that see a window only, where the file has none.
const LOCAL_BASE: f64 = 10_000.0;

pub fn read(file: Gguf) -> Result<Source, LoadError> {
    let architecture = file.string("general.architecture")?.to_owned();
    if !ARCHITECTURES.contains(&&*architecture) {
        let known = ARCHITECTURES.join(", ");
        return Err(file.error(format!("general.architecture: {architecture:?} is not supported; {known} are")));
    }
    Reader { file, architecture }.read()
}

struct Reader {
    file: Gguf,
    architecture: String,
}

impl Reader {
    fn read(self) -> Result<Source, LoadError> {
        let shape = self.shape()?;
        let learned = self.file.has_tensor("position_embd.weight");
        let rotations = match learned {
            true => None,
            false => Some([self.rotation(shape.head_size)?, self.local_rotation(shape.head_size)?]),
        };
        let count = self.file.number(&self.key("block_count"))?;
        let of_all = shape.clone();
        Ok(Source {
            has_four_bits: self.file.has_four_bits(),
            positions: if learned { Some(self.file.values("position_embd.weight")?) } else { None },
            norm: self.norm("output_norm")?,
            output: if self.file.has_tensor("output.weight") { Some(self.linear("output")?) } else { None },
            words: self.file.values("token_embd.weight")?,
            layers: Layers::new(count, move |index| self.layer(&of_all, index, rotations.as_ref())),
            shape,
        })
    }

    fn key(&self, part: &str) -> String {
        format!("{}.{part}", self.architecture)
    }

    fn shape(&self) -> Result<Shape, LoadError> {
        let number = |part: &str| self.file.number(&self.key(part));
        let (hidden, heads) = (number("embedding_length")?, number("attention.head_count")?);
        let key_heads = number("attention.head_count_kv").unwrap_or(heads);
        if heads == 0 || key_heads == 0 || !heads.is_multiple_of(key_heads) {
            return Err(self.file.error(format!("{heads} heads cannot share {key_heads} for keys")));
        }
        let size = number("attention.key_length").or_else(|_| number("rope.dimension_count")).unwrap_or(hidden / heads);
        let mut shape = Shape::plain(hidden, [heads, key_heads], size, number("context_length")?);
        if self.is_gemma() {
            shape.word_scale = (hidden as f32).sqrt();
            // No key tells of it: the largest models, which are known by their layers, scale by what a head would have.
            if matches!((&*self.architecture, number("block_count")?), ("gemma2", 46) | ("gemma3", 62)) {
                shape.attention_scale = ((hidden / heads) as f32).sqrt().recip();
            }
            shape.attention_cap = self.file.float(&self.key("attn_logit_softcapping")).ok();
            shape.logit_cap = self.file.float(&self.key("final_logit_softcapping")).ok();
        }
        Ok(shape)
    }

    fn is_gemma(&self) -> bool {
        self.architecture.starts_with("gemma")
    }

    /// Whether the layer sees a window only.
    fn is_sliding(&self, index: usize) -> bool {
        match &*self.architecture {
            "gemma2" | "gpt-oss" => index.is_multiple_of(2),
            "gemma3" => !(index + 1).is_multiple_of(6),
            _ => false,
        }
    }

    /// Of the layers that see a window only.
    fn local_rotation(&self, size: usize) -> Result<Rotation, LoadError> {
        if self.architecture != "gemma3" {
            return self.rotation(size);
        }
        let base = self.file.float(&self.key("rope.freq_base_swa")).map_or(LOCAL_BASE, f64::from);
        Ok(Rotation::new(size, base, Scaling::None))
    }

    /// Positions may be stretched as the keys say, or as Llama 3.1 does, by a divisor of each frequency.
    fn rotation(&self, size: usize) -> Result<Rotation, LoadError> {
        let number = |part: &str| self.file.float(&self.key(part)).map(f64::from);
        let scaling = match self.file.string(&self.key("rope.scaling.type")) {
            Err(_) | Ok("none") => Scaling::None,
            Ok("linear") => Scaling::Linear { factor: number("rope.scaling.factor")? },
            Ok("yarn") => Scaling::Yarn {
                factor: number("rope.scaling.factor")?,
                slow: 1.0,
                fast: 32.0,
                context: self.file.number(&self.key("rope.scaling.original_context_length"))? as f64,
                scale: None,
                // No key tells of it; gpt-oss was trained without.
                truncate: self.architecture != GPT_OSS,
            },
            Ok(other) => {
                let key = self.key("rope.scaling.type");
                return Err(self.file.error(format!("{key}: {other:?} is not supported; none, linear and yarn are")));
            }
        };
        let mut rotation = Rotation::new(size, number("rope.freq_base").unwrap_or(10_000.0), scaling);
        if self.file.has_tensor("rope_freqs.weight") {
            let divisors = self.file.values("rope_freqs.weight")?;
            rotation.frequencies.iter_mut().zip(divisors).for_each(|(frequency, by)| *frequency /= f64::from(by));
        }
        Ok(rotation)
    }

    fn layer(
        &self,
        shape: &Shape,
        index: usize,
        rotations: Option<&[Rotation; 2]>,
    ) -> Result<Layer<Affine, NormWeights>, LoadError> {
        let name = |part: &str| format!("blk.{index}.{part}");
        let has_head_norms = self.file.has_tensor(&name("attn_q_norm.weight"));
        let (is_gemma, is_sliding) = (self.is_gemma(), self.is_sliding(index));
        Ok(Layer {
            norm: self.norm(&name("attn_norm"))?,
            projection: self.projection(shape, index)?,
            head_norms: match has_head_norms {
                true => Some([self.norm(&name("attn_q_norm"))?, self.norm(&name("attn_k_norm"))?]),
                false => None,
            },
            rotation: rotations.map(|rotations| rotations[usize::from(is_sliding)].clone()),
            window: if is_sliding { Some(self.file.number(&self.key("attention.sliding_window"))?) } else { None },
            sinks: match self.file.has_tensor(&name("attn_sinks.weight")) {
                true => Some(self.file.values(&name("attn_sinks.weight"))?),
                false => None,
            },
            output: self.linear(&name("attn_output"))?,
            output_norm: if is_gemma { Some(self.norm(&name("post_attention_norm"))?) } else { None },
            cross: None,
            perceptron_norm: match &*self.architecture {
                GPT_OSS => self.norm(&name("post_attention_norm"))?,
                _ => self.norm(&name("ffn_norm"))?,
            },
            perceptron: self.perceptron(index)?,
            down_norm: if is_gemma { Some(self.norm(&name("post_ffw_norm"))?) } else { None },
        })
    }

    fn perceptron(&self, index: usize) -> Result<Perceptron<Affine>, LoadError> {
        let name = |part: &str| format!("blk.{index}.ffn_{part}");
        let gated = match &*self.architecture {
            "gemma2" | "gemma3" => Function::Gated(Activation::GeluTanh),
            GPT_OSS => Function::Clamped { alpha: 1.702, limit: 7.0 },
            _ => Function::Gated(Activation::Silu),
        };
        if self.file.has_tensor(&name("gate_inp.weight")) {
            if !MIXTURES.contains(&&*self.architecture) {
                return Err(self.file.error(format!("experts of {} are not supported", self.architecture)));
            }
            return self.experts(name, gated).map(Perceptron::Experts);
        }
        let (up, down) = (self.linear(&name("up"))?, self.linear(&name("down"))?);
        Ok(Perceptron::Dense(match self.file.has_tensor(&name("gate.weight")) {
            true => Dense { up: join(vec![self.linear(&name("gate"))?, up]), function: gated, down },
            false => Dense { up, function: Function::Plain(Activation::GeluTanh), down },
        }))
    }

    fn experts(&self, name: impl Fn(&str) -> String, function: Function) -> Result<Experts<Affine>, LoadError> {
        let router = self.linear(&name("gate_inp"))?;
        let (gates, ups, downs) =
            (self.each(&name("gate_exps"))?, self.each(&name("up_exps"))?, self.each(&name("down_exps"))?);
        let count = router.weight.len() / router.inputs.max(1);
        if [gates.len(), ups.len(), downs.len()] != [count; 3] {
            return Err(self.file.error(format!("{}: is not of as many experts as there are", name("gate_inp"))));
        }
        let expert = |((gate, up), down)| Dense { up: join(vec![gate, up]), function, down };
        Ok(Experts {
            router,
            experts: gates.into_iter().zip(ups).zip(downs).map(expert).collect(),
            each: self.file.number(&self.key("expert_used_count"))?.min(count),
            normalized: true,
        })
    }

    /// A layer for each expert.
    fn each(&self, name: &str) -> Result<Vec<Affine>, LoadError> {
        let (weights, inputs) = self.file.matrices(&format!("{name}.weight"))?;
        let bias = format!("{name}.bias");
        let mut biases = match self.file.has_tensor(&bias) {
            true => self.file.matrix(&bias).map(|(values, width)| {
                values.chunks_exact(width).map(|bias| Some(bias.to_vec())).collect::<Vec<_>>()
            })?,
            false => Vec::new(),
        };
        biases.resize(weights.len(), None);
        let one = |(weight, bias)| Affine { weight, bias, inputs };
        Ok(weights.into_iter().zip(biases).map(one).collect())
    }

    fn projection(&self, shape: &Shape, index: usize) -> Result<Affine, LoadError> {
        let name = |part: &str| format!("blk.{index}.attn_{part}");
        if self.file.has_tensor(&name("qkv.weight")) {
            return self.linear(&name("qkv"));
        }
        let mut parts =
            ["q", "k", "v"].map(|part| self.linear(&name(part))).into_iter().collect::<Result<Vec<_>, _>>()?;
        if self.architecture == "llama" {
            for part in &mut parts[..2] {
                halves(&mut part.weight, part.inputs, shape.head_size);
                part.bias.iter_mut().for_each(|bias| halves(bias, 1, shape.head_size));
            }
        }
        Ok(join(parts))
    }

    fn linear(&self, name: &str) -> Result<Affine, LoadError> {
        let (weight, inputs) = self.file.matrix(&format!("{name}.weight"))?;
        Ok(Affine { weight, bias: self.bias(name)?, inputs })
    }

    fn norm(&self, name: &str) -> Result<NormWeights, LoadError> {
        let weight = self.file.values(&format!("{name}.weight"))?;
        match self.file.float(&self.key("attention.layer_norm_rms_epsilon")) {
            Ok(epsilon) => Ok(NormWeights::Rms { weight, epsilon }),
            Err(_) => {
                let epsilon = self.file.float(&self.key("attention.layer_norm_epsilon"))?;
                Ok(NormWeights::Layer { weight, bias: self.bias(name)?, epsilon })
            }
        }
    }

    fn bias(&self, name: &str) -> Result<Option<Vec<f32>>, LoadError> {
        let name = format!("{name}.bias");
        if self.file.has_tensor(&name) { self.file.values(&name).map(Some) } else { Ok(None) }
    }
}

/// Llama's files store the two values that a rotary position turns next to each other; elsewhere they are half a head
/// apart.
fn halves(rows: &mut [f32], width: usize, size: usize) {
    for head in rows.chunks_exact_mut(size * width) {
        let neighbours = head.to_vec();
        for (at, row) in neighbours.chunks_exact(width).enumerate() {
            let place = at / 2 + at % 2 * (size / 2);
            head[place * width..(place + 1) * width].copy_from_slice(row);
        }
    }
}
