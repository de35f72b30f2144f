//! Models from GGUF files: what llama.cpp names the tensors and keys of each architecture, told in the words of
//! `blueprint`.

use kernels::Activation;

use crate::engine::LoadError;
use crate::engine::decoder::blueprint::{Dense, Function, Layer, Layers, Perceptron, Rotation, Shape, Source};
use crate::engine::decoder::rotation::Scaling;
use crate::engine::gguf::Gguf;
use crate::engine::layers::join;
use crate::engine::layers::{Affine, NormWeights};

const ARCHITECTURES: [&str; 4] = ["gpt2", "llama", "qwen2", "qwen3"];

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
    fn read(mut self) -> Result<Source, LoadError> {
        let shape = self.shape()?;
        let learned = self.file.has_tensor("position_embd.weight");
        let rotation = if learned { None } else { Some(self.rotation(shape.head_size)?) };
        let count = self.file.number(&self.key("block_count"))?;
        let of_all = shape.clone();
        Ok(Source {
            positions: if learned { Some(self.file.values("position_embd.weight")?) } else { None },
            norm: self.norm("output_norm")?,
            output: if self.file.has_tensor("output.weight") { Some(self.linear("output")?) } else { None },
            words: self.file.values("token_embd.weight")?,
            layers: Layers::new(count, move |index| self.layer(&of_all, index, rotation.as_ref())),
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
        Ok(Shape::plain(hidden, [heads, key_heads], size, number("context_length")?))
    }

    /// Positions may be stretched as the keys say, or as Llama 3.1 does, by a divisor of each frequency.
    fn rotation(&mut self, size: usize) -> Result<Rotation, LoadError> {
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
                truncate: true,
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
        &mut self,
        shape: &Shape,
        index: usize,
        rotation: Option<&Rotation>,
    ) -> Result<Layer<Affine, NormWeights>, LoadError> {
        let name = |part: &str| format!("blk.{index}.{part}");
        let has_head_norms = self.file.has_tensor(&name("attn_q_norm.weight"));
        let gated = self.file.has_tensor(&name("ffn_gate.weight"));
        let up = self.linear(&name("ffn_up"))?;
        Ok(Layer {
            norm: self.norm(&name("attn_norm"))?,
            projection: self.projection(shape, index)?,
            head_norms: match has_head_norms {
                true => Some([self.norm(&name("attn_q_norm"))?, self.norm(&name("attn_k_norm"))?]),
                false => None,
            },
            rotation: rotation.cloned(),
            window: None,
            sinks: None,
            output: self.linear(&name("attn_output"))?,
            output_norm: None,
            cross: None,
            perceptron_norm: self.norm(&name("ffn_norm"))?,
            perceptron: Perceptron::Dense(Dense {
                up: if gated { join(vec![self.linear(&name("ffn_gate"))?, up]) } else { up },
                function: match gated {
                    true => Function::Gated(Activation::Silu),
                    false => Function::Plain(Activation::GeluTanh),
                },
                down: self.linear(&name("ffn_down"))?,
            }),
            down_norm: None,
        })
    }

    fn projection(&mut self, shape: &Shape, index: usize) -> Result<Affine, LoadError> {
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

    fn linear(&mut self, name: &str) -> Result<Affine, LoadError> {
        let (weight, inputs) = self.file.matrix(&format!("{name}.weight"))?;
        Ok(Affine { weight, bias: self.bias(name)?, inputs })
    }

    fn norm(&mut self, name: &str) -> Result<NormWeights, LoadError> {
        let weight = self.file.values(&format!("{name}.weight"))?;
        match self.file.float(&self.key("attention.layer_norm_rms_epsilon")) {
            Ok(epsilon) => Ok(NormWeights::Rms { weight, epsilon }),
            Err(_) => {
                let epsilon = self.file.float(&self.key("attention.layer_norm_epsilon"))?;
                Ok(NormWeights::Layer { weight, bias: self.bias(name)?, epsilon })
            }
        }
    }

    fn bias(&mut self, name: &str) -> Result<Option<Vec<f32>>, LoadError> {
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
