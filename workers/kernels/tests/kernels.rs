//! Every kernel against plain code, on every level of the machine, for shapes of all sorts.

mod reference;

use kernels::{
    Activation, Attention, Int4Linear, Level, Linear, Norm, PagedAttention, Pages, QuantizedLinear, QuantizedRows,
    Rotary, Scratch, Span, Team, gate, softmax_weights,
};
use proptest::prelude::*;
use reference::{Random, close};

const ACTIVATIONS: [Activation; 7] = [
    Activation::None,
    Activation::Gelu,
    Activation::GeluTanh,
    Activation::Silu,
    Activation::Relu,
    Activation::Tanh,
    Activation::QuickGelu,
];

fn activation() -> impl Strategy<Value = Activation> {
    prop::sample::select(ACTIVATIONS.to_vec())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_linear_layer_is_what_plain_code_computes(
        rows in 1_usize..120, inputs in 1_usize..150, outputs in 1_usize..150, biased: bool, function in activation(), seed: u64
    ) {
        let mut random = Random(seed);
        let (input, weight) = (random.values(rows * inputs, 1.0), random.values(outputs * inputs, 0.3));
        let bias = biased.then(|| random.values(outputs, 1.0));
        let linear = Linear::new(&weight, bias.as_deref(), inputs);
        let expected = reference::linear(&input, &weight, bias.as_deref(), inputs, function);
        for level in Level::available() {
            let mut output = vec![f32::NAN; rows * outputs];
            linear.forward(level, &input, &mut output, function);
            prop_assert!(close(&output, &expected, 2e-5), "{}", level.name());
        }
    }

    #[test]
    fn a_quantized_layer_is_near_to_what_it_stands_for(
        rows in 1_usize..120, inputs in 1_usize..300, outputs in 1_usize..150, function in activation(),
        group in prop::option::of(1_usize..200), seed: u64
    ) {
        let mut random = Random(seed);
        let (input, weight) = (random.values(rows * inputs, 2.0), random.values(outputs * inputs, 0.3));
        let bias = random.values(outputs, 1.0);
        let mut linear = QuantizedLinear::new(&weight, Some(&bias), inputs, None);
        if let Some(group) = group {
            linear = linear.in_groups(group);
        }
        let group = group.map_or(inputs, |most| reference::group(inputs, most));
        for level in Level::available() {
            let levels = if ["avx2", "neon", "neon-dotprod"].contains(&level.name()) { 127.0 } else { 255.0 };
            let expected = reference::quantized(&input, &weight, &bias, (inputs, group), levels, function);
            let mut output = vec![f32::NAN; rows * outputs];
            linear.forward(level, &input, &mut output, function, &mut QuantizedRows::default());
            // A value in the middle of two steps may go to either.
            prop_assert!(close(&output, &expected, 0.03), "{}", level.name());
            let exact = reference::linear(&input, &weight, Some(&bias), inputs, function);
            let limit = if levels < 255.0 { 0.2 } else { 0.1 };
            prop_assert!(close(&output, &exact, limit), "{}", level.name());
        }
    }

    #[test]
    fn a_layer_of_four_bits_is_what_plain_code_computes_whoever_else_is_there(
        rows in 1_usize..110, inputs in 1_usize..700, outputs in 1_usize..100, function in activation(), floats: bool, seed: u64
    ) {
        let mut random = Random(seed);
        let (input, bias) = (random.values(rows * inputs, 2.0), random.values(outputs, 1.0));
        let weight = reference::four_bits(&mut random, outputs, inputs, floats);
        let linear = Int4Linear::exact(&weight, Some(&bias), inputs).expect("they are of four bits");
        let expected = reference::int4(&input, &weight, &bias, inputs, function);
        // Of the largest input, through the largest weight.
        let step = 2.0 / 127.0 * weight.iter().fold(0.0_f32, |most, weight| most.max(weight.abs()));
        for level in Level::available() {
            let mut output = vec![f32::NAN; rows * outputs];
            let mut scratch = QuantizedRows::default();
            linear.forward(level, &input, &mut output, function, &mut scratch);
            // A value in the middle of two steps may go to either, and of so many in a row two may.
            prop_assert!(close(&output, &expected, 0.01 + 2.0 * step), "{}", level.name());
            let (row, mut alone) = (rows / 2, vec![f32::NAN; outputs]);
            linear.forward(level, &input[row * inputs..(row + 1) * inputs], &mut alone, function, &mut scratch);
            prop_assert_eq!(&alone, &output[row * outputs..(row + 1) * outputs], "{}", level.name());
        }
    }

    #[test]
    fn attention_is_what_plain_code_computes(
        length in 1_usize..90, groups in 1_usize..3, group in 1_usize..4, half in 1_usize..20, causal: bool,
        window in prop::option::of(1_usize..40), biased: bool, seed: u64, part in 0.0..1.0
    ) {
        let mut random = Random(seed);
        let (heads, size) = (groups * group, 2 * half);
        let distance_bias = biased.then(|| (0..heads).map(|_| random.values(2 * 100 - 1, 1.0)).collect());
        let shape =
            Attention { heads, kv_heads: groups, size, scale: 0.3, causal, window, distance_bias };
        let projected = random.values(length * shape.width(), 1.5);
        let expected = reference::attention(&shape, &projected);
        let from = (length as f64 * part) as usize;
        for level in Level::available() {
            for queries in [0..length, from..length, 0..from] {
                let mut output = vec![f32::NAN; queries.len() * heads * size];
                shape.forward(level, &projected, queries.clone(), &mut output, &mut Scratch::default());
                let expected = &expected[queries.start * heads * size..queries.end * heads * size];
                prop_assert!(close(&output, expected, 1e-5), "{} {queries:?}", level.name());
            }
        }
    }

    #[test]
    fn weights_are_exponentials(values in prop::collection::vec(-30.0_f32..30.0, 1..100)) {
        let most = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let expected: Vec<f32> = values.iter().map(|value| (value - most).exp()).collect();
        for level in Level::available() {
            let mut weights = values.clone();
            let sum = softmax_weights(level, &mut weights);
            prop_assert!(weights.iter().zip(&expected).all(|(a, b)| (a - b).abs() <= 1e-5 * b));
            prop_assert!((sum - expected.iter().sum::<f32>()).abs() <= 1e-4 * sum);
        }
    }

    #[test]
    fn paged_attention_is_what_plain_code_computes(
        lengths in prop::collection::vec((1_usize..100, 0.0..1.0), 1..4), kv_heads in 1_usize..3, group in 1_usize..4,
        half in 1_usize..20, window in prop::option::of(1_usize..70), seed: u64
    ) {
        let mut random = Random(seed);
        let (heads, size) = (kv_heads * group, 2 * half);
        let shape = PagedAttention { heads, kv_heads, size, scale: 0.3, window, cap: None, sinks: None };
        let causal = Attention {
            heads, kv_heads, size, scale: 0.3, causal: true, window: window.map(|window| window - 1), distance_bias: None,
        };
        let (width, mixed) = (causal.width(), heads * size);
        // Of each sequence some tokens are there already and the others are asked for; blocks lie in any order.
        let mut pages = Pages::new(16, kv_heads, size);
        let mut free: Vec<u32> = (0..16).map(|block| block * 5 % 16).collect();
        let (mut queries, mut expected, mut held) = (Vec::new(), Vec::new(), Vec::new());
        for (length, part) in lengths {
            let start = ((length - 1) as f64 * part) as usize;
            let rounded = |value: f32| half::f16::from_f32(value).to_f32();
            let projected: Vec<f32> = random.values(length * width, 1.5).into_iter().map(rounded).collect();
            let blocks = free.split_off(free.len() - length.div_ceil(kernels::BLOCK));
            for (token, row) in projected.chunks_exact(width).enumerate() {
                let (keys, values) = row[mixed..].split_at(kv_heads * size);
                pages.write(blocks[token / kernels::BLOCK], token % kernels::BLOCK, keys, values);
            }
            let first = queries.len() / width;
            queries.extend_from_slice(&projected[start * width..]);
            expected.extend_from_slice(&reference::attention(&causal, &projected)[start * mixed..]);
            held.push((blocks, start, first..first + length - start));
        }
        let spans: Vec<_> =
            held.iter().map(|(blocks, start, rows)| Span { blocks, start: *start, rows: rows.clone() }).collect();
        for threads in [1, 3] {
            let team = Team::new(threads);
            for level in Level::available() {
                let mut output = vec![f32::NAN; expected.len()];
                shape.forward(&team, level, &pages, &spans, &queries, width, &mut output, &mut Vec::new());
                prop_assert!(close(&output, &expected, 1e-5), "{}", level.name());
            }
        }
    }

    #[test]
    fn a_team_computes_what_one_thread_does(
        rows in 1_usize..200, inputs in 1_usize..150, outputs in 1_usize..200, threads in 1_usize..5, function in activation(),
        seed: u64
    ) {
        let mut random = Random(seed);
        let (input, weight) = (random.values(rows * inputs, 2.0), random.values(outputs * inputs, 0.3));
        let (exact, quantized) = (Linear::new(&weight, None, inputs), QuantizedLinear::new(&weight, None, inputs, None).in_groups(64));
        let four_bits = Int4Linear::new(&weight, None, inputs);
        let team = Team::new(threads);
        for level in Level::available() {
            let room = || (vec![f32::NAN; rows * outputs], QuantizedRows::default());
            let ((mut alone, _), (mut together, _)) = (room(), room());
            exact.forward(level, &input, &mut alone, function);
            exact.forward_on(&team, level, &input, &mut together, function);
            prop_assert_eq!(&alone, &together);
            let ((mut alone, mut scratch), (mut together, mut other)) = (room(), room());
            quantized.forward(level, &input, &mut alone, function, &mut scratch);
            quantized.forward_on(&team, level, &input, &mut together, function, &mut other);
            prop_assert_eq!(&alone, &together);
            let ((mut alone, mut scratch), (mut together, mut other)) = (room(), room());
            four_bits.forward(level, &input, &mut alone, function, &mut scratch);
            four_bits.forward_on(&team, level, &input, &mut together, function, &mut other);
            prop_assert_eq!(&alone, &together);
            let exact = reference::linear(&input, &weight, None, inputs, function);
            prop_assert!(reference::noise(&alone, &exact) < 0.02, "{}", level.name());
        }
    }

    #[test]
    fn norms_are_what_plain_code_computes(rows in 1_usize..5, width in 1_usize..100, seed: u64, biased: bool, rms: bool) {
        let mut random = Random(seed);
        let (weight, bias) = (random.values(width, 1.0), (biased && !rms).then(|| random.values(width, 1.0)));
        let norm = match rms {
            true => Norm::rms(weight.clone(), 1e-6),
            false => Norm::layer(weight.clone(), bias.clone(), 1e-6),
        };
        let (input, added) = (random.values(rows * width, 3.0), random.values(rows * width, 3.0));
        let sum: Vec<f32> = input.iter().zip(&added).map(|(a, b)| a + b).collect();
        for level in Level::available() {
            let mut output = input.clone();
            norm.apply(level, &mut output);
            prop_assert!(close(&output, &reference::norm(&input, &weight, bias.as_deref(), !rms), 1e-4));
            let mut output = input.clone();
            norm.add_and_apply(level, &mut output, &added);
            prop_assert!(close(&output, &reference::norm(&sum, &weight, bias.as_deref(), !rms), 1e-4));
        }
    }

    #[test]
    fn gates_are_what_plain_code_computes(rows in 1_usize..4, width in 1_usize..70, function in activation(), seed: u64) {
        let input = Random(seed).values(rows * 2 * width, 3.0);
        let gated = |row: &[f32]| {
            let (gates, values) = row.split_at(width);
            gates.iter().zip(values).map(|(gate, value)| reference::activate(*gate, function) * value).collect::<Vec<_>>()
        };
        let expected: Vec<f32> = input.chunks_exact(2 * width).flat_map(gated).collect();
        for level in Level::available() {
            let mut output = vec![f32::NAN; rows * width];
            gate(level, &input, &mut output, width, function);
            prop_assert!(close(&output, &expected, 1e-5));
        }
    }

    #[test]
    fn a_turn_keeps_lengths_and_the_angle_of_two_is_their_distance(half in 1_usize..20, a in 0_usize..50, b in 0_usize..50, seed: u64) {
        let (size, mut random) = (2 * half, Random(seed));
        let (rotary, x, y) = (Rotary::new(size, 101, 10_000.0), random.values(size, 1.0), random.values(size, 1.0));
        let turned = |values: &[f32], position| {
            let mut values = values.to_vec();
            rotary.turn(&mut values, position);
            values
        };
        let dot = |x: &[f32], y: &[f32]| x.iter().zip(y).map(|(x, y)| x * y).sum::<f32>();
        let (near, far) = (dot(&turned(&x, a), &turned(&y, b)), dot(&turned(&x, a + 50), &turned(&y, b + 50)));
        prop_assert!((near - far).abs() < 1e-3, "{near} {far}");
        prop_assert!((dot(&x, &x) - dot(&turned(&x, a), &turned(&x, a))).abs() < 1e-3);
    }
}
