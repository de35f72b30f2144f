//! Models of the Llama architecture (Touvron et al., 2023) from GGUF files.

use kernels::Activation;

use super::blueprint::{Layer, Rotation, Shape, Source};
use super::rotation::Scaling;
use crate::engine::LoadError;
use crate::engine::encoder::blueprint::{Affine, NormWeights};
use crate::engine::gguf::Gguf;
use crate::engine::tensors::join;

pub fn read(file: &mut Gguf) -> Result<Source, LoadError> {
    let architecture = file.string("general.architecture")?;
    if architecture != "llama" {
        return Err(file.error(format!("general.architecture: {architecture:?} is not supported; llama is")));
    }
    let (shape, epsilon) = (shape(file)?, file.float("llama.attention.layer_norm_rms_epsilon")?);
    let rotation = rotation(file, shape.head_size)?;
    let layers = file.number("llama.block_count")?;
    let layers = (0..layers).map(|index| layer(file, &shape, index, epsilon, &rotation)).collect::<Result<_, _>>()?;
    let output = if file.has_tensor("output.weight") { Some(linear(file, "output.weight")?) } else { None };
    let norm = NormWeights::Rms { weight: file.values("output_norm.weight")?, epsilon };
    Ok(Source { words: file.values("token_embd.weight")?, positions: None, layers, norm, output, shape })
}

fn shape(file: &Gguf) -> Result<Shape, LoadError> {
    let heads = file.number("llama.attention.head_count")?;
    let key_heads = file.number("llama.attention.head_count_kv").unwrap_or(heads);
    let (hidden, size) = (file.number("llama.embedding_length")?, file.number("llama.rope.dimension_count")?);
    match key_heads > 0 && heads % key_heads == 0 && heads * size == hidden {
        true => Ok(Shape::plain(hidden, [heads, key_heads], size, file.number("llama.context_length")?)),
        false => Err(file.error(format!("{heads} heads of {size} with {key_heads} for keys do not make {hidden}"))),
    }
}

/// Positions may be stretched by a factor, or as Llama 3.1 does, by a divisor of each frequency.
fn rotation(file: &mut Gguf, size: usize) -> Result<Rotation, LoadError> {
    let base = f64::from(file.float("llama.rope.freq_base").unwrap_or(10_000.0));
    let scaling = match file.string("llama.rope.scaling.type") {
        Err(_) | Ok("none") => Scaling::None,
        Ok("linear") => Scaling::Linear { factor: f64::from(file.float("llama.rope.scaling.factor")?) },
        Ok(other) => {
            return Err(file.error(format!("llama.rope.scaling.type: {other:?} is not supported; none and linear are")));
        }
    };
    let mut rotation = Rotation::new(size, base, scaling);
    if file.has_tensor("rope_freqs.weight") {
        let divisors = file.values("rope_freqs.weight")?;
        rotation.frequencies.iter_mut().zip(divisors).for_each(|(frequency, by)| *frequency /= f64::from(by));
    }
    Ok(rotation)
}

fn layer(
    file: &mut Gguf,
    shape: &Shape,
    index: usize,
    epsilon: f32,
    rotation: &Rotation,
) -> Result<Layer<Affine, NormWeights>, LoadError> {
    let name = |part: &str| format!("blk.{index}.{part}.weight");
    let norm =
        |file: &mut Gguf, part: &str| file.values(&name(part)).map(|weight| NormWeights::Rms { weight, epsilon });
    let mut queries = linear(file, &name("attn_q"))?;
    let mut keys = linear(file, &name("attn_k"))?;
    halves(&mut queries, shape.head_size);
    halves(&mut keys, shape.head_size);
    Ok(Layer {
        norm: norm(file, "attn_norm")?,
        projection: join(vec![queries, keys, linear(file, &name("attn_v"))?]),
        head_norms: None,
        rotation: Some(rotation.clone()),
        window: None,
        output: linear(file, &name("attn_output"))?,
        output_norm: None,
        perceptron_norm: norm(file, "ffn_norm")?,
        up: join(vec![linear(file, &name("ffn_gate"))?, linear(file, &name("ffn_up"))?]),
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

fn linear(file: &mut Gguf, name: &str) -> Result<Affine, LoadError> {
    let (weight, inputs) = file.matrix(name)?;
    Ok(Affine { weight, bias: None, inputs })
}
