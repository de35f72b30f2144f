//! Prints what kernels do in a second on one thread, on each level this machine has.
//!
//!     cargo run --release -p kernels --example speed

use std::time::Instant;

use kernels::{Activation, Attention, Buffer, Int4Linear, Level, Linear, QuantizedLinear, QuantizedRows, Scratch};

/// Rows, inputs and outputs: the layers of a small BERT, and few rows.
const SHAPES: [[usize; 3]; 7] = [
    [128, 384, 1152],
    [128, 384, 384],
    [128, 384, 1536],
    [128, 1536, 384],
    [7, 384, 1536],
    [32, 576, 3072],
    [1, 4096, 4096],
];
const LENGTHS: [usize; 5] = [16, 61, 64, 128, 256];
/// The least is shown: what disturbs a measurement only adds to it.
const ROUNDS: usize = 20;

fn seconds(mut work: impl FnMut()) -> f64 {
    let once = |_| {
        let started = Instant::now();
        work();
        started.elapsed().as_secs_f64()
    };
    (0..ROUNDS).map(once).fold(f64::INFINITY, f64::min)
}

fn numbers(count: usize, cycle: usize) -> Vec<f32> {
    (0..count).map(|at| (at * 7 % cycle) as f32 / cycle as f32 - 0.5).collect()
}

fn linear(level: Level, [rows, inputs, outputs]: [usize; 3]) {
    let (values, weights) = (numbers(rows * inputs, 13), numbers(inputs * outputs, 11));
    let exact = Linear::new(&weights, None, inputs);
    let quantized = QuantizedLinear::new(&weights, None, inputs, None);
    let (mut to, mut scratch) = (Buffer::zeroed(rows * outputs), QuantizedRows::default());
    let f32 = seconds(|| exact.forward(level, &values, &mut to, Activation::None));
    let int8 = seconds(|| quantized.forward(level, &values, &mut to, Activation::None, &mut scratch));
    let grouped = quantized.clone().in_groups(64);
    let int8_grouped = seconds(|| grouped.forward(level, &values, &mut to, Activation::None, &mut scratch));
    let four_bits = Int4Linear::new(&weights, None, inputs);
    let int4 = seconds(|| four_bits.forward(level, &values, &mut to, Activation::None, &mut scratch));
    let giga = 2e-9 * (rows * inputs * outputs) as f64;
    let name = level.name();
    println!(
        "{name:9} {rows:4} x {inputs:4} x {outputs:4}: f32 {:6.1} GFLOP/s, int8 {:7.1} GOP/s, in groups {:7.1}, int4 {:7.1}",
        giga / f32,
        giga / int8,
        giga / int8_grouped,
        giga / int4
    );
}

fn attention(level: Level, length: usize) {
    let shape =
        Attention { heads: 12, kv_heads: 12, size: 32, scale: 0.2, causal: false, window: None, distance_bias: None };
    let projected = numbers(length * shape.width(), 13);
    let (mut to, mut scratch) = (vec![0.0; length * 384], Scratch::default());
    let spent = seconds(|| shape.forward(level, &projected, 0..length, &mut to, &mut scratch));
    println!("{:9} attention over {length:3} tokens: {:5.2} µs for each", level.name(), spent * 1e6 / length as f64);
}

fn main() {
    for level in Level::available() {
        SHAPES.iter().for_each(|&shape| linear(level, shape));
        LENGTHS.iter().for_each(|&length| attention(level, length));
    }
}
