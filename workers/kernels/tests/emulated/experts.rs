//! Mixtures of experts beside what candle makes of them.

use candle_core::{DType, Device, Tensor};
use kernels::cuda::experts::{Choice, Stack};

const NUMBERS: [f32; 8] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];

/// Of numbers that are easily written, one for each place.
fn values(count: usize, of: impl Fn(usize) -> f32) -> Vec<f32> {
    (0..count).map(of).collect()
}

fn apart(ours: &Tensor, theirs: &Tensor) -> f32 {
    let all = |tensor: &Tensor| tensor.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let [ours, theirs] = [all(ours), all(theirs)];
    assert_eq!(ours.len(), theirs.len());
    // What was never written is no number, and far from any.
    ours.iter().zip(&theirs).map(|(a, b)| (a - b).abs()).fold(0.0, |most, own| if own <= most { most } else { own })
}

fn stack(experts: usize, [outputs, inputs]: [usize; 2], is_packed: bool, dtype: DType) -> Stack {
    let weight = |expert: usize, at: usize| match is_packed {
        true => NUMBERS[(at * 5 + expert) % 8] * if at.is_multiple_of(3) { -0.25 } else { 0.25 },
        false => ((at * 7 + expert * 13) % 23) as f32 / 16.0 - 0.7,
    };
    let matrices: Vec<_> = (0..experts).map(|expert| values(outputs * inputs, |at| weight(expert, at))).collect();
    let biases: Vec<_> = (0..experts).map(|expert| values(outputs, |at| (at + expert) as f32 / 64.0)).collect();
    let matrices: Vec<&[f32]> = matrices.iter().map(Vec::as_slice).collect();
    let biases = biases.iter().map(Vec::as_slice).collect();
    let stack = Stack::new(&matrices, Some(biases), inputs, dtype, &Device::Cpu).unwrap();
    assert_eq!(stack.is_packed(), is_packed);
    stack
}

fn rows(count: usize, width: usize, dtype: DType) -> Tensor {
    let made = values(count * width, |at| ((at * 11) % 17) as f32 / 8.0 - 1.0);
    Tensor::from_vec(made, (count, width), &Device::Cpu).unwrap().to_dtype(dtype).unwrap()
}

fn scores(count: usize, experts: usize) -> Tensor {
    let made = values(count * experts, |at| ((at * 37 + at / experts * 5) % 29) as f32 / 4.0);
    Tensor::from_vec(made, (count, experts), &Device::Cpu).unwrap()
}

/// By candle's own operations.
fn expected(stack: &Stack, outputs: usize, rows: &Tensor, choice: &Choice) -> Tensor {
    let mut sum = Tensor::zeros((rows.dim(0).unwrap(), outputs), DType::F32, &Device::Cpu).unwrap();
    for (expert, (own, weights)) in
        choice.shares().unwrap().into_iter().enumerate().filter(|(_, (own, _))| !own.is_empty())
    {
        let (matrix, bias) = stack.of(expert).unwrap();
        let [matrix, bias, rows] =
            [matrix, bias.unwrap(), rows.clone()].map(|tensor| tensor.to_dtype(DType::F32).unwrap());
        let own = Tensor::new(own, &Device::Cpu).unwrap();
        let weights = Tensor::new(weights, &Device::Cpu).unwrap().unsqueeze(1).unwrap();
        let made = rows.index_select(&own, 0).unwrap().matmul(&matrix.contiguous().unwrap()).unwrap();
        let made = made.broadcast_add(&bias).unwrap().broadcast_mul(&weights).unwrap();
        sum = sum.index_add(&own, &made, 0).unwrap();
    }
    sum
}

#[test]
fn experts_make_of_their_rows_what_products_make() {
    for (count, experts, each, shape, is_packed, dtype, near) in [
        (1, 4, 2, [5, 8], false, DType::F32, 1e-4),
        (19, 3, 2, [7, 72], false, DType::F32, 1e-4),
        (5, 40, 4, [12, 320], true, DType::F32, 1e-3),
        (9, 5, 3, [6, 64], true, DType::BF16, 0.3),
        (9, 5, 3, [6, 64], false, DType::F16, 0.05),
    ] {
        let stack = stack(experts, shape, is_packed, dtype);
        let rows = rows(count, shape[1], dtype);
        let choice = Choice::new(&scores(count, experts).to_dtype(dtype).unwrap(), None, each, true).unwrap();
        let ours = choice.combine(&stack.multiply(&rows, &choice, each).unwrap()).unwrap();
        let apart = apart(&ours, &expected(&stack, shape[0], &rows, &choice));
        assert!(apart < near, "{count} rows, {experts} experts of {shape:?}: {apart}");
    }
}

#[test]
fn rows_of_pairs_go_to_their_own_expert() {
    let (stack, scores) = (stack(4, [3, 16], false, DType::F32), scores(6, 4));
    let choice = Choice::new(&scores, None, 1, true).unwrap();
    let pairs = rows(6, 16, DType::F32);
    let made = stack.multiply(&pairs, &choice, 1).unwrap();
    for (expert, (own, weights)) in choice.shares().unwrap().into_iter().enumerate() {
        assert!(weights.iter().all(|weight| *weight == 1.0));
        let (matrix, bias) = stack.of(expert).unwrap();
        for pair in own {
            let own = pairs.narrow(0, pair as usize, 1).unwrap().matmul(&matrix.contiguous().unwrap()).unwrap();
            let own = own.broadcast_add(bias.as_ref().unwrap()).unwrap();
            assert!(apart(&made.narrow(0, pair as usize, 1).unwrap(), &own) < 1e-4, "pair {pair}");
        }
    }
}

#[test]
fn a_row_goes_to_the_experts_with_its_highest_scores() {
    let rows = [vec![0.0, 3.0, 1.0, 3.0, 2.0], vec![1.0; 5], vec![-5.0, -1.0, -9.0, -2.0, f32::NEG_INFINITY]];
    let scores = Tensor::new(rows.concat(), &Device::Cpu).unwrap().reshape((3, 5)).unwrap();
    let bias = Tensor::new(&[0.0_f32, 0.0, 0.0, 0.0, 1.5], &Device::Cpu).unwrap();
    let chosen = [[4, 1], [4, 0], [1, 3]];
    for normalized in [true, false] {
        let choice = Choice::new(&scores, Some(&bias), 2, normalized).unwrap();
        let shares = choice.shares().unwrap();
        for (row, chosen) in chosen.iter().enumerate() {
            let of = |expert: usize| (rows[row][expert] + if expert == 4 { 1.5 } else { 0.0 }).exp();
            let whole: f32 =
                if normalized { chosen.iter().map(|expert| of(*expert)).sum() } else { (0..5).map(of).sum() };
            for expert in chosen {
                let (own, weights) = &shares[*expert];
                let place = own.iter().position(|own| *own == row as u32).expect("the row goes there");
                assert!((weights[place] - of(*expert) / whole).abs() < 1e-6, "row {row}: {shares:?}");
            }
        }
        assert_eq!(shares.iter().map(|(own, _)| own.len()).sum::<usize>(), 6);
        for (own, _) in &shares {
            assert!(own.is_sorted(), "{own:?}");
        }
    }
}

#[test]
fn what_was_packed_is_unpacked_to_the_bit() {
    let scales = [-120, -3, 0, 9];
    let weight =
        |at: usize| NUMBERS[at % 8] * if at.is_multiple_of(5) { -1.0 } else { 1.0 } * 2.0_f32.powi(scales[at / 32 % 4]);
    let matrix = values(4 * 64, weight);
    for dtype in [DType::F32, DType::BF16] {
        let stack = Stack::new(&[&matrix, &matrix], None, 64, dtype, &Device::Cpu).unwrap();
        assert!(stack.is_packed());
        let (unpacked, bias) = stack.of(1).unwrap();
        let theirs = Tensor::from_slice(&matrix, (4, 64), &Device::Cpu).unwrap();
        assert_eq!(apart(&unpacked.t().unwrap(), &theirs), 0.0);
        assert!(bias.is_none());
    }
    let mut other = matrix.clone();
    other[7] = 0.3;
    let is_packed =
        |matrices: &[&[f32]], inputs| Stack::new(matrices, None, inputs, DType::F32, &Device::Cpu).unwrap().is_packed();
    assert!(!is_packed(&[&matrix, &other], 64));
    assert!(!is_packed(&[&matrix], 16), "a group is no part of a row");
}
