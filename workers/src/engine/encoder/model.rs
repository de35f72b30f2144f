//! BERT (Devlin et al., 2018) over packed sequences: linear layers see one matrix `[tokens, hidden]`, attention one
//! sequence at a time.

use std::collections::HashMap;

use candle_core::{D, DType, Result, Tensor};
use candle_nn::ops::{layer_norm, softmax_last_dim};

use super::files::{Config, Pooling};

#[derive(Debug)]
pub struct Bert {
    words: Tensor,
    /// Position embeddings, with the embedding of the only token type we use added to each.
    positions: Tensor,
    embedding_norm: Norm,
    layers: Vec<Layer>,
    pooling: Pooling,
}

#[derive(Debug)]
struct Layer {
    query_key_value: Linear,
    attention_output: Linear,
    attention_norm: Norm,
    intermediate: Linear,
    output: Linear,
    output_norm: Norm,
    heads: usize,
}

/// `x · weightᵀ + bias`.
#[derive(Debug)]
struct Linear {
    weight: Tensor,
    bias: Tensor,
}

#[derive(Debug)]
struct Norm {
    weight: Tensor,
    bias: Tensor,
    epsilon: f32,
}

impl Bert {
    pub fn new(config: &Config, pooling: Pooling, weights: HashMap<String, Tensor>) -> Result<Self> {
        let weights = Weights { tensors: weights, epsilon: config.layer_norm_eps as f32 };
        let token_type = weights.get("embeddings.token_type_embeddings.weight")?.narrow(0, 0, 1)?;
        let positions = weights.get("embeddings.position_embeddings.weight")?;
        if positions.dims2()? != (config.max_position_embeddings, config.hidden_size) {
            candle_core::bail!(
                "position embeddings have the shape {:?}, which config.json contradicts",
                positions.shape()
            );
        }
        let layer = |index| Layer::new(&weights, &format!("encoder.layer.{index}"), config.num_attention_heads);
        Ok(Self {
            words: weights.get("embeddings.word_embeddings.weight")?,
            positions: positions.broadcast_add(&token_type)?,
            embedding_norm: weights.norm("embeddings.LayerNorm")?,
            layers: (0..config.num_hidden_layers).map(layer).collect::<Result<_>>()?,
            pooling,
        })
    }

    /// One L2-normalised vector for each sequence. Sequences are not empty and no longer than the position table.
    pub fn embed(&self, sequences: &[&[u32]]) -> Result<Vec<Vec<f32>>> {
        let lengths: Vec<usize> = sequences.iter().map(|tokens| tokens.len()).collect();
        let tokens: Vec<u32> = sequences.concat();
        let places: Vec<u32> = lengths.iter().flat_map(|&length| 0..length as u32).collect();
        let device = self.words.device();
        let words = self.words.index_select(&Tensor::new(tokens, device)?, 0)?;
        let positions = self.positions.index_select(&Tensor::new(places, device)?, 0)?;
        let mut hidden = self.embedding_norm.forward(&(words + positions)?)?;
        for layer in &self.layers {
            hidden = layer.forward(&hidden, &lengths)?;
        }
        let pool = |(start, length)| self.pool(&hidden.narrow(0, start, length)?);
        spans(&lengths).map(pool).collect()
    }

    fn pool(&self, hidden: &Tensor) -> Result<Vec<f32>> {
        let pooled = match self.pooling {
            Pooling::Mean => hidden.mean(0)?,
            Pooling::Cls => hidden.get(0)?,
        };
        let mut vector = pooled.to_vec1::<f32>()?;
        let norm = vector.iter().map(|value| value * value).sum::<f32>().sqrt().max(f32::MIN_POSITIVE);
        vector.iter_mut().for_each(|value| *value /= norm);
        Ok(vector)
    }
}

impl Layer {
    fn new(weights: &Weights, name: &str, heads: usize) -> Result<Self> {
        let of = |part: &str| weights.linear(&format!("{name}.{part}"));
        let (query, key, value) = (of("attention.self.query")?, of("attention.self.key")?, of("attention.self.value")?);
        Ok(Self {
            query_key_value: Linear {
                weight: Tensor::cat(&[query.weight, key.weight, value.weight], 0)?,
                bias: Tensor::cat(&[query.bias, key.bias, value.bias], 0)?,
            },
            attention_output: of("attention.output.dense")?,
            attention_norm: weights.norm(&format!("{name}.attention.output.LayerNorm"))?,
            intermediate: of("intermediate.dense")?,
            output: of("output.dense")?,
            output_norm: weights.norm(&format!("{name}.output.LayerNorm"))?,
            heads,
        })
    }

    fn forward(&self, hidden: &Tensor, lengths: &[usize]) -> Result<Tensor> {
        let projected = self.query_key_value.forward(hidden)?;
        let attend = |(start, length)| self.attend(&projected.narrow(0, start, length)?);
        let attended: Vec<Tensor> = spans(lengths).map(attend).collect::<Result<_>>()?;
        let attended = self.attention_output.forward(&Tensor::cat(&attended, 0)?)?;
        let hidden = self.attention_norm.forward(&(attended + hidden)?)?;
        let expanded = self.intermediate.forward(&hidden)?.gelu_erf()?;
        self.output_norm.forward(&(self.output.forward(&expanded)? + hidden)?)
    }

    /// Attention of one sequence: `[length, 3 · hidden]` to `[length, hidden]`.
    fn attend(&self, projected: &Tensor) -> Result<Tensor> {
        let (length, width) = projected.dims2()?;
        let size = width / 3 / self.heads;
        // [3, heads, length, size]
        let split = projected.reshape((length, 3, self.heads, size))?.permute((1, 2, 0, 3))?.contiguous()?;
        let (query, key, value) = (split.get(0)?, split.get(1)?, split.get(2)?);
        let scores = (query.matmul(&key.transpose(1, 2)?)? * (1.0 / (size as f64).sqrt()))?;
        let mixed = softmax_last_dim(&scores)?.matmul(&value)?;
        mixed.transpose(0, 1)?.contiguous()?.flatten_from(D::Minus2)
    }
}

impl Linear {
    fn forward(&self, input: &Tensor) -> Result<Tensor> {
        input.matmul(&self.weight.t()?)?.broadcast_add(&self.bias)
    }
}

impl Norm {
    fn forward(&self, input: &Tensor) -> Result<Tensor> {
        layer_norm(&input.contiguous()?, &self.weight, &self.bias, self.epsilon)
    }
}

/// Tensors by name, as f32, with or without the prefix of a model that was saved inside another.
struct Weights {
    tensors: HashMap<String, Tensor>,
    epsilon: f32,
}

impl Weights {
    fn get(&self, name: &str) -> Result<Tensor> {
        let found = self.tensors.get(name).or_else(|| self.tensors.get(&format!("bert.{name}")));
        match found {
            Some(tensor) => tensor.to_dtype(DType::F32),
            None => candle_core::bail!("tensor {name} is missing"),
        }
    }

    fn linear(&self, name: &str) -> Result<Linear> {
        Ok(Linear { weight: self.get(&format!("{name}.weight"))?, bias: self.get(&format!("{name}.bias"))? })
    }

    fn norm(&self, name: &str) -> Result<Norm> {
        let Linear { weight, bias } = self.linear(name)?;
        Ok(Norm { weight, bias, epsilon: self.epsilon })
    }
}

/// Start and length of each sequence in the packed matrix.
fn spans(lengths: &[usize]) -> impl Iterator<Item = (usize, usize)> {
    lengths.iter().scan(0, |start, &length| {
        let span = (*start, length);
        *start += length;
        Some(span)
    })
}
