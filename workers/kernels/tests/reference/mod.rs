//! What the kernels compute, in plain code.

use kernels::{Activation, Attention};

/// Numbers that only the seed decides (Steele et al., 2014).
pub struct Random(pub u64);

impl Random {
    pub fn values(&mut self, count: usize, size: f32) -> Vec<f32> {
        (0..count).map(|_| self.value() * size).collect()
    }

    /// Of -1 to 1.
    fn value(&mut self) -> f32 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((mixed ^ (mixed >> 31)) >> 40) as f32 / (1 << 23) as f32 - 1.0
    }
}

/// Whether all values differ by no more than a share of the size of what is expected.
pub fn close(values: &[f32], expected: &[f32], share: f32) -> bool {
    let most = expected.iter().fold(1.0_f32, |most, value| most.max(value.abs()));
    values.len() == expected.len() && values.iter().zip(expected).all(|(a, b)| (a - b).abs() <= share * most)
}

/// The squares of what values are apart from what is expected, to its own.
pub fn noise(values: &[f32], expected: &[f32]) -> f32 {
    let squares = |of: &mut dyn Iterator<Item = f32>| of.map(|value| value * value).sum::<f32>();
    let apart = squares(&mut values.iter().zip(expected).map(|(a, b)| a - b));
    apart / squares(&mut expected.iter().copied()).max(f32::MIN_POSITIVE)
}

pub fn activate(x: f32, function: Activation) -> f32 {
    let x = f64::from(x);
    let tanh_gelu = |x: f64| 0.5 * x * (1.0 + (0.797_884_560_802_865_4 * (x + 0.044_715 * x.powi(3))).tanh());
    (match function {
        Activation::None => x,
        Activation::Gelu => 0.5 * x * (1.0 + erf(x / std::f64::consts::SQRT_2)),
        Activation::GeluTanh => tanh_gelu(x),
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::Relu => x.max(0.0),
        Activation::Tanh => x.tanh(),
        Activation::QuickGelu => x / (1.0 + (-1.702 * x).exp()),
    }) as f32
}

/// By its Taylor series, which is exact enough for the sizes here.
fn erf(x: f64) -> f64 {
    if x.abs() > 5.0 {
        return x.signum();
    }
    let (mut term, mut sum) = (x, x);
    for n in 1..200 {
        term *= -x * x / f64::from(n);
        sum += term / f64::from(2 * n + 1);
    }
    sum * 2.0 / std::f64::consts::PI.sqrt()
}

pub fn linear(input: &[f32], weight: &[f32], bias: Option<&[f32]>, inputs: usize, function: Activation) -> Vec<f32> {
    let output = |row: &[f32], output: usize| {
        let products = row.iter().zip(&weight[output * inputs..]).map(|(x, w)| f64::from(*x) * f64::from(*w));
        activate((products.sum::<f64>() + f64::from(bias.map_or(0.0, |bias| bias[output]))) as f32, function)
    };
    let outputs = weight.len() / inputs;
    input.chunks_exact(inputs).flat_map(|row| (0..outputs).map(move |index| output(row, index))).collect()
}

/// The same of what is left of weights and inputs when they are quantized.
/// The largest group of at most so many inputs that divides them, in steps of 64.
pub fn group(inputs: usize, most: usize) -> usize {
    let depth = inputs.next_multiple_of(64);
    (64..=depth).step_by(64).filter(|group| depth.is_multiple_of(*group) && *group <= most.max(64)).max().unwrap()
}

pub fn quantized(
    input: &[f32],
    weight: &[f32],
    bias: &[f32],
    (inputs, group): (usize, usize),
    levels: f32,
    function: Activation,
) -> Vec<f32> {
    let coarse_weight = |row: &[f32]| {
        let scale = row.iter().fold(0.0_f32, |most, value| most.max(value.abs())) / 127.0;
        row.iter().map(|value| (value / scale).round() * scale).collect::<Vec<_>>()
    };
    let coarse_input = |row: &[f32]| {
        let (least, most) = row.iter().fold((0.0_f32, 0.0_f32), |(l, m), value| (l.min(*value), m.max(*value)));
        let step = ((most - least) / levels).max(f32::MIN_POSITIVE);
        let zero = (-least / step).round();
        let round = |value: &f32| ((value / step + zero).round().clamp(0.0, levels) - zero) * step;
        row.iter().map(round).collect::<Vec<_>>()
    };
    let weight: Vec<f32> = weight.chunks_exact(inputs).flat_map(coarse_weight).collect();
    let input: Vec<f32> = input.chunks_exact(inputs).flat_map(|row| row.chunks(group)).flat_map(coarse_input).collect();
    linear(&input, &weight, Some(bias), inputs, function)
}

/// Weights that four bits hold without loss: numbers of MXFP4, or even steps.
pub fn four_bits(random: &mut Random, outputs: usize, inputs: usize, floats: bool) -> Vec<f32> {
    const FLOATS: [f32; 16] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0];
    let mut weight = Vec::new();
    for _ in 0..outputs {
        for first in (0..inputs).step_by(32) {
            let scale =
                if floats { (random.value() * 3.0 - 5.0).floor().exp2() } else { (random.value().abs() + 0.2) / 32.0 };
            let least = random.value() / 2.0;
            for _ in first..inputs.min(first + 32) {
                let code = (random.value().abs() * 16.0) as usize % 16;
                weight.push(if floats { FLOATS[code] * scale } else { code as f32 * scale + least });
            }
        }
    }
    weight
}

/// The same as `linear` of what is left of inputs when they are signed bytes, 32 of which share a scale.
pub fn int4(input: &[f32], weight: &[f32], bias: &[f32], inputs: usize, function: Activation) -> Vec<f32> {
    let coarse = |group: &[f32]| {
        let step = (group.iter().fold(0.0_f32, |most, value| most.max(value.abs())) / 127.0).max(f32::MIN_POSITIVE);
        group.iter().map(|value| (value / step).round() * step).collect::<Vec<_>>()
    };
    let input: Vec<f32> = input.chunks_exact(inputs).flat_map(|row| row.chunks(32)).flat_map(coarse).collect();
    linear(&input, weight, Some(bias), inputs, function)
}

pub fn attention(shape: &Attention, projected: &[f32]) -> Vec<f32> {
    let Attention { heads, kv_heads, size, scale, causal, window, distance_bias } = shape;
    let (width, length) = (shape.width(), projected.len() / shape.width());
    let mut output = Vec::new();
    for query in 0..length {
        for head in 0..*heads {
            let kv_head = head / (heads / kv_heads);
            let part = |token: usize, at: usize| &projected[token * width + at * size..][..*size];
            let score = |key: usize| {
                let far = key.abs_diff(query);
                if (*causal && key > query) || window.is_some_and(|window| far > window) {
                    return f64::NEG_INFINITY;
                }
                let bias = distance_bias.as_ref().map_or(0.0, |bias| bias[head][bias[head].len() / 2 + key - query]);
                let pairs = part(query, head).iter().zip(part(key, heads + kv_head));
                pairs.map(|(q, k)| f64::from(q * k)).sum::<f64>() * f64::from(*scale) + f64::from(bias)
            };
            let scores: Vec<f64> = (0..length).map(score).collect();
            let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let weights: Vec<f64> = scores.iter().map(|score| (score - most).exp()).collect();
            let total: f64 = weights.iter().sum();
            for at in 0..*size {
                let value = |key: usize| f64::from(part(key, heads + kv_heads + kv_head)[at]) * weights[key];
                output.push(((0..length).map(value).sum::<f64>() / total) as f32);
            }
        }
    }
    output
}

pub fn norm(input: &[f32], weight: &[f32], bias: Option<&[f32]>, centered: bool) -> Vec<f32> {
    let width = weight.len();
    let normed = |row: &[f32]| {
        let mean = if centered { row.iter().sum::<f32>() / width as f32 } else { 0.0 };
        let variance = row.iter().map(|value| (value - mean).powi(2)).sum::<f32>() / width as f32;
        let scale = 1.0 / (variance + 1e-6).sqrt();
        let value =
            |(at, value): (usize, &f32)| (value - mean) * scale * weight[at] + bias.map_or(0.0, |bias| bias[at]);
        row.iter().enumerate().map(value).collect::<Vec<_>>()
    };
    input.chunks_exact(width).flat_map(normed).collect()
}
