//! The kernels against plain code, on a GPU.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::*;
use crate::engine::encoder::blueprint::Pooling;

/// The tests take turns, as a worker has one thread that computes.
static TURN: Mutex<()> = Mutex::new(());

fn turn() -> (MutexGuard<'static, ()>, Device) {
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    (turn, kernels::cuda::open(0).unwrap())
}

const LENGTHS: [usize; 7] = [1, 300, 64, 65, 7, 128, 33];

/// Values that every type holds.
fn random(rows: usize, columns: usize) -> Tensor {
    let mut random = fastrand::Rng::with_seed((rows * columns) as u64);
    let values = (0..rows * columns).map(|_| half::bf16::from_f32(random.f32() * 4.0 - 2.0).to_f32()).collect();
    Tensor::from_vec(values, (rows, columns), &Device::Cpu).unwrap()
}

fn shape(heads: usize, kv_heads: usize, size: usize, causal: bool, has_bias: bool) -> Shape {
    let bias = (0..heads).map(|head| (0..601).map(|at| ((at * 7 + head) % 13) as f32 / 6.0).collect()).collect();
    let distance_bias = has_bias.then_some(bias).map(|bias: Vec<Vec<f32>>| Arc::from(bias));
    Shape { hidden: heads * size, heads, kv_heads, size, causal, positions: 300, distance_bias }
}

/// Attention of those rows, which hold queries, keys and values, on that device.
fn attend(rows: &Tensor, shape: &Shape, window: Option<usize>, device: &Device) -> Vec<Vec<f32>> {
    let packed = Packed::new(LENGTHS.into_iter(), device).unwrap();
    let bias = shape.distance_bias.as_ref().map(|bias| Tensor::new(bias.to_vec(), device).unwrap());
    let rows = rows.to_device(device).unwrap().reshape((rows.dim(0).unwrap(), (), shape.size)).unwrap();
    let part = |from, heads| rows.narrow(1, from, heads).unwrap();
    let Shape { heads, kv_heads, .. } = *shape;
    let [queries, keys, values] = [part(0, heads), part(heads, kv_heads), part(heads + kv_heads, kv_heads)];
    let op = Attention { packed: &packed, shape, bias: bias.as_ref(), window };
    let mixed = queries.apply_op3_no_bwd(&keys, &values, &op).unwrap();
    mixed.to_dtype(DType::F32).unwrap().to_vec2().unwrap()
}

fn apart(ours: &[Vec<f32>], expected: &[Vec<f32>]) -> f32 {
    let pairs = ours.iter().flatten().zip(expected.iter().flatten());
    pairs.map(|(a, b)| if a.is_nan() { f32::INFINITY } else { (a - b).abs() }).fold(0.0, f32::max)
}

#[test]
fn attention_is_that_of_plain_code() {
    let (_turn, gpu) = turn();
    for (dtype, most) in [(DType::F32, 1e-4), (DType::F16, 6e-3), (DType::BF16, 5e-2)] {
        for size in [16, 32, 64, 80, 96, 128, 256] {
            for (kv_heads, causal, window, has_bias) in
                [(6, false, None, false), (2, true, None, false), (6, false, Some(20), false), (3, false, None, true)]
            {
                let shape = shape(6, kv_heads, size, causal, has_bias);
                let rows = random(LENGTHS.iter().sum(), (6 + 2 * kv_heads) * size).to_dtype(dtype).unwrap();
                let expected = attend(&rows.to_dtype(DType::F32).unwrap(), &shape, window, &Device::Cpu);
                let apart = apart(&attend(&rows, &shape, window, &gpu), &expected);
                assert!(apart < most, "{dtype:?}, {size}, {kv_heads}, {causal}, {window:?}, {has_bias}: {apart}");
            }
        }
    }
}

#[test]
fn pooling_is_that_of_plain_code() {
    use Pooling::{Cls, Last, Max, Mean, MeanSqrtLength, WeightedMean};
    let (_turn, gpu) = turn();
    let poolings = [Cls, Mean, Max, MeanSqrtLength, WeightedMean, Last];
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        let rows = random(LENGTHS.iter().sum(), 200).to_dtype(dtype).unwrap();
        let pool = |device: &Device, dtype| -> Vec<Vec<f32>> {
            let packed = Packed::new(LENGTHS.into_iter(), device).unwrap();
            let rows = rows.to_dtype(dtype).unwrap().to_device(device).unwrap();
            rows.apply_op1_no_bwd(&Pool { packed: &packed, poolings: &poolings }).unwrap().to_vec2().unwrap()
        };
        let apart = apart(&pool(&gpu, dtype), &pool(&Device::Cpu, DType::F32));
        assert!(apart < 1e-3, "{dtype:?}: {apart}");
    }
}

/// A linear layer and a norm of that width, on that device.
fn layer(width: usize, is_rms: bool, dtype: DType, device: &Device) -> (Dense, Norm) {
    let row = |rows: usize| random(rows, width).to_dtype(dtype).unwrap().to_device(device).unwrap();
    let dense = Dense { weight: row(1), bias: Some(row(2).get(1).unwrap()) };
    let (weight, epsilon) = (row(3).get(2).unwrap(), 1e-5);
    let norm = match is_rms {
        true => Norm::Rms { weight, epsilon },
        false => Norm::Layer { weight, bias: row(4).get(3).unwrap(), epsilon },
    };
    (dense, norm)
}

#[test]
fn rows_are_finished_as_candle_does_on_a_processor() {
    use Activation::{Gelu, GeluTanh, None as Same, Relu, Silu, Tanh};
    let (_turn, gpu) = turn();
    for (dtype, most) in [(DType::F32, 1e-4), (DType::F16, 2e-2), (DType::BF16, 1e-1)] {
        for width in [34, 384, 1030] {
            let run = |device: &Device, dtype: DType| {
                let rows = |count| random(count, width).to_dtype(dtype).unwrap().to_device(device).unwrap();
                let mut made = Vec::new();
                for is_rms in [false, true] {
                    let (dense, norm) = layer(width, is_rms, dtype, device);
                    for (activation, gated) in
                        [(Same, false), (Gelu, false), (GeluTanh, true), (Silu, true), (Relu, false), (Tanh, false)]
                    {
                        made.push(dense.activated(&rows(9), activation, gated).unwrap());
                    }
                    made.push(dense.added(&rows(9), &rows(9), Some(&norm)).unwrap());
                    made.push(dense.added(&rows(9), &rows(9), None).unwrap());
                    made.push(norm.apply(&rows(5)).unwrap());
                }
                let made = made.iter().map(|rows| rows.to_dtype(DType::F32).unwrap().to_vec2::<f32>().unwrap());
                made.flatten().collect::<Vec<_>>()
            };
            let apart = apart(&run(&gpu, dtype), &run(&Device::Cpu, DType::F32));
            assert!(apart < most, "{dtype:?}, {width}: {apart}");
        }
    }
}
