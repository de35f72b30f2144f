//! Draws beside what plain code makes of them.

use candle_core::{DType, Device, Tensor};
use kernels::Draw;
use kernels::cuda::decoder::{DRAW_NUMBERS, draw, numbers_of};
use kernels::cuda::{Numbers, fetch};

/// Among so many tokens, the logits of a row.
fn logits(count: usize, row: usize) -> Vec<f32> {
    (0..count).map(|at| ((at * 7919 + row * 104_729) % 2003) as f32 / 150.0 - 6.0).collect()
}

/// The token that is drawn, and how far the part is from the ends of its weight.
fn expected(logits: &[f32], how: Draw) -> (u32, f64) {
    let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let Draw::Part { inverse_temperature, least, part } = how else {
        return (logits.iter().position(|logit| *logit == most).unwrap() as u32, 1.0);
    };
    let weights = logits.iter().map(|logit| f64::from((logit - most) * inverse_temperature).exp());
    let weights: Vec<f64> = weights.map(|weight| if weight >= f64::from(least) { weight } else { 0.0 }).collect();
    let whole: f64 = weights.iter().sum();
    let mut end = 0.0;
    for (token, weight) in (0..).zip(&weights) {
        let begin = end;
        end += weight / whole;
        if part < end {
            return (token, (part - begin).min(end - part));
        }
    }
    // Rounded, the sum may be less than one.
    (weights.iter().rposition(|weight| *weight > 0.0).unwrap() as u32, 1.0)
}

fn check(count: usize, draws: &[Option<Draw>]) {
    let rows: Vec<Vec<f32>> = (0..draws.len()).map(|row| logits(count, row)).collect();
    let scores = Tensor::from_vec(rows.concat(), (draws.len(), count), &Device::Cpu).unwrap();
    let mut numbers = Numbers::new(draws.len() * DRAW_NUMBERS, &Device::Cpu).unwrap();
    numbers.write(&draws.iter().copied().flat_map(numbers_of).collect::<Vec<_>>()).unwrap();
    let tokens = Tensor::full(u32::MAX, draws.len(), &Device::Cpu).unwrap();
    draw(&scores, draws.len(), &numbers, &tokens).unwrap();
    let mut drawn = Vec::new();
    fetch::<u32>(&tokens, &mut drawn).unwrap();
    for ((row, draw), token) in rows.iter().zip(draws).zip(drawn) {
        let Some(how) = draw else {
            assert_eq!(token, u32::MAX, "nothing is drawn where it is not asked for");
            continue;
        };
        let (theirs, margin) = expected(row, *how);
        assert!(token == theirs || margin < 1e-6, "{how:?} of {count}: {token}, where it is {theirs}");
    }
}

fn part(inverse_temperature: f32, least: f32, part: f64) -> Option<Draw> {
    Some(Draw::Part { inverse_temperature, least, part })
}

#[test]
fn tokens_are_those_that_parts_of_all_weights_end_in() {
    for count in [1, 2, 64, 511, 512, 513, 5000] {
        let parts = [0.0, 0.001, 0.3, 0.5, 0.77, 0.999, 1.0 - f64::EPSILON];
        let draws = parts.iter().flat_map(|at| [part(1.0, 1e-30, *at), part(2.5, 1e-30, *at), part(0.7, 0.2, *at)]);
        check(count, &draws.chain([Some(Draw::Highest), None]).collect::<Vec<_>>());
    }
}

#[test]
fn the_first_of_the_highest_is_drawn() {
    let scores = Tensor::zeros((1, 3000), DType::F32, &Device::Cpu).unwrap();
    let mut numbers = Numbers::new(DRAW_NUMBERS, &Device::Cpu).unwrap();
    numbers.write(&numbers_of(Some(Draw::Highest))).unwrap();
    let tokens = Tensor::full(u32::MAX, 1, &Device::Cpu).unwrap();
    draw(&scores, 1, &numbers, &tokens).unwrap();
    assert_eq!(tokens.to_vec1::<u32>().unwrap(), [0]);
}

#[test]
fn what_does_not_fit_is_refused() {
    let scores = Tensor::zeros((2, 10), DType::F32, &Device::Cpu).unwrap();
    let (numbers, tokens) = (Numbers::new(DRAW_NUMBERS, &Device::Cpu), Tensor::full(0_u32, 2, &Device::Cpu));
    draw(&scores, 2, &numbers.unwrap(), &tokens.unwrap()).unwrap_err();
}
