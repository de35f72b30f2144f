//! Llama-family models (Touvron et al., 2023) from GGUF files.

use super::model::Shape;
use crate::engine::LoadError;
use crate::engine::encoder::blueprint::{Affine, Layer, NormWeights};
use crate::engine::gguf::Gguf;
use kernels::Activation;

/// A model's weights, in f32.
pub struct Source {
    pub shape: Shape,
    /// `[vocabulary, hidden]`
    pub words: Vec<f32>,
    pub layers: Vec<Layer<Affine, NormWeights>>,
    pub norm: NormWeights,
    /// What scores the next token, where it is not the words.
    pub output: Option<Affine>,
}

impl Source {
    pub fn read(file: &mut Gguf) -> Result<Self, LoadError> {
        let shape = Shape::read(file)?;
        let layers = file.number("llama.block_count")?;
        let base = f64::from(file.float("llama.rope.freq_base").unwrap_or(10_000.0));
        let layers = (0..layers).map(|index| layer(file, &shape, index, base)).collect::<Result<_, _>>()?;
        let output = if file.has_tensor("output.weight") { Some(linear(file, "output.weight")?) } else { None };
        let norm = norm(file, "output_norm.weight", &shape)?;
        Ok(Self { words: values(file, "token_embd.weight")?, layers, norm, output, shape })
    }
}

fn layer(file: &mut Gguf, shape: &Shape, index: usize, base: f64) -> Result<Layer<Affine, NormWeights>, LoadError> {
    let name = |part: &str| format!("blk.{index}.{part}.weight");
    let mut queries = linear(file, &name("attn_q"))?;
    let mut keys = linear(file, &name("attn_k"))?;
    halves(&mut queries, shape.head_size);
    halves(&mut keys, shape.head_size);
    let projection = joined([queries, keys, linear(file, &name("attn_v"))?]);
    Ok(Layer {
        norm: Some(norm(file, &name("attn_norm"), shape)?),
        projection,
        head_norms: None,
        rotary: Some(base),
        window: None,
        output: linear(file, &name("attn_output"))?,
        output_norm: None,
        perceptron_norm: Some(norm(file, &name("ffn_norm"), shape)?),
        up: joined([linear(file, &name("ffn_gate"))?, linear(file, &name("ffn_up"))?]),
        activation: Activation::Silu,
        gated: true,
        down: linear(file, &name("ffn_down"))?,
        down_norm: None,
    })
}

/// GGUF stores the two values that a rotary position turns next to each other; elsewhere they are half a head apart.
fn halves(rows: &mut Affine, size: usize) {
    let inputs = rows.inputs;
    for head in rows.weight.chunks_exact_mut(size * inputs) {
        let neighbours = head.to_vec();
        for (at, row) in neighbours.chunks_exact(inputs).enumerate() {
            let place = at / 2 + at % 2 * (size / 2);
            head[place * inputs..(place + 1) * inputs].copy_from_slice(row);
        }
    }
}

fn joined<const N: usize>(parts: [Affine; N]) -> Affine {
    let inputs = parts[0].inputs;
    Affine { weight: parts.into_iter().flat_map(|part| part.weight).collect(), bias: None, inputs }
}

fn linear(file: &mut Gguf, name: &str) -> Result<Affine, LoadError> {
    let tensor = file.tensor(name)?;
    let (_, inputs) = tensor.dims2().map_err(|error| file.error(format!("tensor {name}: {error}")))?;
    Ok(Affine { weight: values(file, name)?, bias: None, inputs })
}

fn norm(file: &mut Gguf, name: &str, shape: &Shape) -> Result<NormWeights, LoadError> {
    Ok(NormWeights::Rms { weight: values(file, name)?, epsilon: shape.epsilon })
}

fn values(file: &mut Gguf, name: &str) -> Result<Vec<f32>, LoadError> {
    let values = file.tensor(name)?.flatten_all().and_then(|tensor| tensor.to_vec1::<f32>());
    values.map_err(|error| file.error(format!("tensor {name}: {error}")))
}
