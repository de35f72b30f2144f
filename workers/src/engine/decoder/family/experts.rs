//! Perceptrons, and mixtures of them, as Llama's relatives name them.

use crate::engine::LoadError;
use crate::engine::decoder::blueprint::{Dense, Experts, Function};
use crate::engine::layers::Affine;
use crate::engine::layers::{affine, join};
use crate::engine::model_config::Config;
use crate::engine::mxfp4::{self, GROUP};
use crate::engine::tensors::Tensors;

/// Gate, up and down in tensors of their own.
pub fn gated(
    tensors: &Tensors,
    name: &str,
    [hidden, inner]: [usize; 2],
    function: Function,
) -> Result<Dense<Affine>, LoadError> {
    let linear = |part: &str, shape| {
        let name = format!("{name}.{part}_proj");
        affine(tensors, &name, shape, tensors.has(&format!("{name}.bias")))
    };
    let up = join(vec![linear("gate", [inner, hidden])?, linear("up", [inner, hidden])?]);
    Ok(Dense { up, function, down: linear("down", [hidden, inner])? })
}

/// Qwen3's: each expert in tensors of its own.
pub fn qwen3(
    config: &Config,
    tensors: &Tensors,
    name: &str,
    (hidden, function): (usize, Function),
) -> Result<Experts<Affine>, LoadError> {
    // Newer files have the second name.
    let name_of_count = if config.values["num_experts"].is_null() { "num_local_experts" } else { "num_experts" };
    let (count, inner) = (config.count(name_of_count)?, config.count("moe_intermediate_size")?);
    let expert = |index| gated(tensors, &format!("{name}.experts.{index}"), [hidden, inner], function);
    Ok(Experts {
        router: affine(tensors, &format!("{name}.gate"), [count, hidden], false)?,
        experts: (0..count).map(expert).collect::<Result<_, _>>()?,
        each: config.count("num_experts_per_tok")?.min(count),
        normalized: config.flag_or("norm_topk_prob", false),
    })
}

/// gpt-oss's: all experts in one tensor, gates and values in turn, as they are or in MXFP4.
pub fn gpt_oss(config: &Config, tensors: &Tensors, name: &str, hidden: usize) -> Result<Experts<Affine>, LoadError> {
    let (count, inner) = (config.count("num_local_experts")?, config.count("intermediate_size")?);
    let function = Function::Clamped {
        alpha: config.number_or("swiglu_alpha", 1.702)? as f32,
        limit: config.number_or("swiglu_limit", 7.0)? as f32,
    };
    let all = |part: &str, shape| of_experts(tensors, &format!("{name}.experts.{part}_proj"), count, shape);
    let ups = all("gate_up", [2 * inner, hidden])?.into_iter().map(apart);
    let downs = all("down", [hidden, inner])?;
    Ok(Experts {
        router: affine(tensors, &format!("{name}.router"), [count, hidden], true)?,
        experts: ups.zip(downs).map(|(up, down)| Dense { up, function, down }).collect(),
        each: config.count_or("num_experts_per_tok", 4)?.min(count),
        normalized: true,
    })
}

/// Whether the first layer's experts are.
pub fn are_in_mxfp4(tensors: &Tensors) -> bool {
    tensors.has("layers.0.mlp.experts.gate_up_proj_blocks")
}

/// One layer for each expert.
fn of_experts(
    tensors: &Tensors,
    name: &str,
    count: usize,
    [outputs, inputs]: [usize; 2],
) -> Result<Vec<Affine>, LoadError> {
    let biases = tensors.shaped(&format!("{name}_bias"), &[count, outputs])?;
    let weights = match tensors.has(&format!("{name}_blocks")) {
        true => {
            let groups = inputs / GROUP;
            let blocks = tensors.bytes(&format!("{name}_blocks"), &[count, outputs, groups, GROUP / 2])?;
            let scales = tensors.bytes(&format!("{name}_scales"), &[count, outputs, groups])?;
            blocks.chunks_exact(GROUP / 2).zip(scales).flat_map(|(block, scale)| values(block, scale)).collect()
        }
        // Stored as inputs by outputs.
        false => {
            let stored = tensors.shaped(name, &[count, inputs, outputs])?;
            let turned = |expert: &[f32]| {
                (0..outputs).flat_map(|at| expert[at..].iter().step_by(outputs).copied()).collect::<Vec<_>>()
            };
            stored.chunks_exact(inputs * outputs).flat_map(turned).collect::<Vec<f32>>()
        }
    };
    let one = |(weight, bias): (&[f32], &[f32])| Affine { weight: weight.to_vec(), bias: Some(bias.to_vec()), inputs };
    Ok(weights.chunks_exact(inputs * outputs).zip(biases.chunks_exact(outputs)).map(one).collect())
}

/// The values of a block, two in a byte, the lower half first.
fn values(block: &[u8], scale: u8) -> impl Iterator<Item = f32> {
    block.iter().flat_map(move |byte| [byte & 15, byte >> 4].map(|half| mxfp4::value(half, scale)))
}

/// Gates and values that stand in turn, first all gates and then all values.
fn apart(Affine { weight, bias, inputs }: Affine) -> Affine {
    let every_second = |first: usize| weight.chunks_exact(inputs).skip(first).step_by(2).flatten().copied();
    let bias = bias.map(|bias| [0, 1].into_iter().flat_map(|first| bias[first..].iter().step_by(2).copied()).collect());
    Affine { weight: every_second(0).chain(every_second(1)).collect(), bias, inputs }
}
