//! Sampling: from logits to a token. Randomness is counter-based, so that a draw depends on seed and position alone.

use std::borrow::Cow;
use std::cmp::Ordering;

use kernels::{Draw, Level, softmax_weights};
use toktrie::SimpleVob;

use super::{Logprobs, SamplingParams};

/// Less than this is as good as greedy, and would make logits too large for a float.
const TEMPERATURE_MIN: f32 = 1e-4;
/// As a part of the greatest weight.
const NOTHING: f32 = 1e-30;
/// Weights whose sum is made at once.
const CHUNK: usize = 512;

/// The next token of a sequence that has `position` tokens, of which some were `generated`: one of those that are
/// `allowed`. Ties go to the lower id.
pub fn sample(
    logits: &[f32],
    params: &SamplingParams,
    generated: &[u32],
    position: usize,
    allowed: Option<&SimpleVob>,
) -> u32 {
    let mut logits = adjusted(logits, params, generated);
    if let Some(allowed) = allowed {
        for (token, logit) in logits.to_mut().iter_mut().enumerate() {
            if token >= allowed.len() || !allowed.get(token) {
                *logit = f32::NEG_INFINITY;
            }
        }
    }
    if let Some(draw) = from_all(params, position) {
        return drawn(&logits, draw);
    }
    let (inverse_temperature, least) = scale(params);
    let candidates = candidates(&weights(&logits, inverse_temperature, least), params);
    let weights: Vec<f32> = candidates.iter().map(|(_, weight)| *weight).collect();
    let place = draw(&weights, uniform(params.seed, position));
    candidates.get(place).map_or(0, |(token, _)| *token)
}

/// How a token is drawn where that takes nothing but logits as they are. Other draws take [`sample`].
pub fn plain_draw(params: &SamplingParams, position: usize) -> Option<Draw> {
    if is_adjusted(params) { None } else { from_all(params, position) }
}

/// How a token is drawn that may be any of them.
fn from_all(params: &SamplingParams, position: usize) -> Option<Draw> {
    if params.temperature <= 0.0 {
        return Some(Draw::Highest);
    }
    let (inverse_temperature, least) = scale(params);
    let part = uniform(params.seed, position);
    (params.top_k.is_none() && params.top_p >= 1.0).then_some(Draw::Part { inverse_temperature, least, part })
}

/// The token that is drawn so.
pub fn drawn(logits: &[f32], how: Draw) -> u32 {
    match how {
        Draw::Highest => greedy(logits),
        Draw::Part { inverse_temperature, least, part } => {
            draw(&weights(logits, inverse_temperature, least), part) as u32
        }
    }
}

/// Of one token, and of the `count` most probable ones.
pub fn logprobs(logits: &[f32], token: u32, count: usize) -> Logprobs {
    let whole = whole(logits);
    let mut top: Vec<(u32, f32)> = Vec::with_capacity(count + 1);
    for (token, &logit) in (0..).zip(logits) {
        if top.len() == count && top.last().is_none_or(|last| last.1 >= logit) {
            continue;
        }
        let place = top.partition_point(|other| other.1 >= logit);
        top.insert(place, (token, logit));
        top.truncate(count);
    }
    top.iter_mut().for_each(|(_, logit)| *logit -= whole);
    Logprobs { token, logprob: logits[token as usize] - whole, top }
}

/// Of one token, as a logarithm.
pub fn log_probability(logits: &[f32], token: u32) -> f32 {
    logits[token as usize] - whole(logits)
}

/// The logarithm of the sum of all weights.
fn whole(logits: &[f32]) -> f32 {
    let sum = softmax_weights(Level::best(), &mut logits.to_vec());
    most(logits) + sum.ln()
}

fn is_adjusted(params: &SamplingParams) -> bool {
    !params.logit_bias.is_empty() || params.frequency_penalty != 0.0 || params.presence_penalty != 0.0
}

/// What logits are multiplied by, and what a weight must be at least to count. What is forbidden has the least weight there
/// is.
fn scale(params: &SamplingParams) -> (f32, f32) {
    (1.0 / params.temperature.max(TEMPERATURE_MIN), params.min_p.max(NOTHING))
}

/// With penalties and biases.
fn adjusted<'a>(logits: &'a [f32], params: &SamplingParams, generated: &[u32]) -> Cow<'a, [f32]> {
    let (frequency, presence) = (params.frequency_penalty, params.presence_penalty);
    if !is_adjusted(params) {
        return Cow::Borrowed(logits);
    }
    let mut logits = logits.to_vec();
    for &(token, bias) in &params.logit_bias {
        logits[token as usize] += bias;
    }
    let mut seen = generated.to_vec();
    seen.sort_unstable();
    for same in seen.chunk_by(|a, b| a == b) {
        logits[same[0] as usize] -= presence + frequency * same.len() as f32;
    }
    Cow::Owned(logits)
}

fn greedy(logits: &[f32]) -> u32 {
    let most = most(logits);
    (0..).zip(logits).find(|(_, logit)| **logit == most).map_or(0, |(token, _)| token)
}

/// The highest one. In lanes, which compilers make vectors of.
fn most(logits: &[f32]) -> f32 {
    let higher = |a: f32, b: f32| if b > a { b } else { a };
    let mut lanes = [f32::NEG_INFINITY; 32];
    let (chunks, rest) = logits.as_chunks::<32>();
    for chunk in chunks {
        lanes.iter_mut().zip(chunk).for_each(|(lane, logit)| *lane = higher(*lane, *logit));
    }
    lanes.iter().chain(rest).copied().fold(f32::NEG_INFINITY, higher)
}

/// Of each token; the most probable one weighs 1, and what cannot be drawn nothing.
fn weights(logits: &[f32], inverse_temperature: f32, least: f32) -> Vec<f32> {
    let mut weights: Vec<f32> = logits.iter().map(|logit| logit * inverse_temperature).collect();
    softmax_weights(Level::best(), &mut weights);
    weights.iter_mut().for_each(|weight| *weight = if *weight >= least { *weight } else { 0.0 });
    weights
}

/// Which of the weights that part of all of them ends in. Sums of chunks say where to look, since there are many weights.
fn draw(weights: &[f32], part: f64) -> usize {
    let sums: Vec<f64> = weights.chunks(CHUNK).map(sum).collect();
    let mut left = part * sums.iter().sum::<f64>();
    let mut last = 0;
    for ((first, chunk), sum) in (0..).step_by(CHUNK).zip(weights.chunks(CHUNK)).zip(sums) {
        if left >= sum {
            left -= sum;
        } else {
            for (at, weight) in (first..).zip(chunk) {
                left -= f64::from(*weight);
                if left < 0.0 {
                    return at;
                }
            }
        }
        // Sums in another order are not quite the same.
        if let Some(at) = chunk.iter().rposition(|weight| *weight > 0.0) {
            last = first + at;
        }
    }
    last
}

/// In lanes, which compilers make vectors of.
fn sum(weights: &[f32]) -> f64 {
    let mut lanes = [0.0; 8];
    let (chunks, rest) = weights.as_chunks::<8>();
    for chunk in chunks {
        lanes.iter_mut().zip(chunk).for_each(|(lane, weight)| *lane += f64::from(*weight));
    }
    lanes.into_iter().chain(rest.iter().copied().map(f64::from)).sum()
}

/// The tokens that are drawn from, where they are not all, each with its weight.
fn candidates(weights: &[f32], params: &SamplingParams) -> Vec<(u32, f32)> {
    let top_p = f64::from(params.top_p);
    let Some(count) = params.top_k else {
        let whole = sum(weights);
        // All tokens that weigh less have too little weight together to be in the nucleus: they need not be ranked.
        let mut candidates = those_of(weights, (1.0 - top_p) * whole / weights.len() as f64);
        keep_nucleus(&mut candidates, top_p * whole);
        return candidates;
    };
    let mut candidates = those_of(weights, reached_by(count, weights));
    if (1..candidates.len()).contains(&count) {
        candidates.select_nth_unstable_by(count - 1, ranked);
        candidates.truncate(count);
    }
    candidates.sort_unstable_by(ranked);
    if top_p < 1.0 {
        let whole: f64 = candidates.iter().map(|(_, weight)| f64::from(*weight)).sum();
        keep_nucleus(&mut candidates, top_p * whole);
    }
    candidates
}

/// Those that weigh so much at least.
fn those_of(weights: &[f32], least: f64) -> Vec<(u32, f32)> {
    let weighs_enough = |weight: f32| weight > 0.0 && f64::from(weight) >= least;
    (0..).zip(weights.iter().copied()).filter(|(_, weight)| weighs_enough(*weight)).collect()
}

/// What that many weights reach, and perhaps more: as many chunks have one that does.
fn reached_by(count: usize, weights: &[f32]) -> f64 {
    let mut greatest: Vec<f32> = weights.chunks(CHUNK).map(most).collect();
    match (1..=greatest.len()).contains(&count) {
        true => f64::from(*greatest.select_nth_unstable_by(count - 1, |a, b| b.total_cmp(a)).1),
        false => 0.0,
    }
}

/// The smallest head of the ranking that weighs so much.
fn keep_nucleus(candidates: &mut Vec<(u32, f32)>, wanted: f64) {
    candidates.sort_unstable_by(ranked);
    let mut reached = 0.0;
    let needed = candidates.iter().take_while(|(_, weight)| {
        let is_needed = reached < wanted;
        reached += f64::from(*weight);
        is_needed
    });
    let count = needed.count().max(1);
    candidates.truncate(count);
}

fn ranked(a: &(u32, f32), b: &(u32, f32)) -> Ordering {
    b.1.total_cmp(&a.1).then(a.0.cmp(&b.0))
}

/// Between 0 and 1: SplitMix64 (Steele et al., 2014) of the seed at that place of its sequence.
fn uniform(seed: u64, position: usize) -> f64 {
    let mut bits = seed.wrapping_add((position as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^= bits >> 31;
    (bits >> 11) as f64 / (1_u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn params(temperature: f32, top_p: f32, seed: u64) -> SamplingParams {
        SamplingParams { temperature, top_p, seed, ..SamplingParams::default() }
    }

    /// How often each of the tokens is drawn in 10,000 times.
    fn drawn<const N: usize>(logits: &[f32; N], params: &SamplingParams, generated: &[u32]) -> [usize; N] {
        let mut counts = [0; N];
        (0..10_000).for_each(|position| counts[sample(logits, params, generated, position, None) as usize] += 1);
        counts
    }

    #[test]
    fn greedy_takes_the_first_of_the_best() {
        assert_eq!(sample(&[0.0, 2.0, 2.0, 1.0], &params(0.0, 1.0, 7), &[], 3, None), 1);
        let mut many = vec![-1.0; 100];
        many[70] = 0.5;
        assert_eq!(sample(&many, &params(0.0, 1.0, 7), &[], 3, None), 70);
    }

    #[test]
    fn draws_follow_the_probabilities() {
        let [zeros, ones, never] = drawn(&[0.0, 3.0_f32.ln(), f32::NEG_INFINITY], &params(1.0, 1.0, 1), &[]);
        assert!((7_300..7_700).contains(&ones) && never == 0, "{ones} and {zeros} of 10000, where 7500 are due");
    }

    #[test]
    fn only_the_most_probable_are_drawn_where_that_is_asked_for() {
        let logits = [0.1_f32, 0.2, 0.4, 0.3].map(f32::ln);
        let only = |params: SamplingParams| drawn(&logits, &params, &[]).map(|count| count > 0);
        assert_eq!(only(SamplingParams { top_k: Some(2), ..params(1.0, 1.0, 1) }), [false, false, true, true]);
        assert_eq!(only(SamplingParams { top_k: Some(9), ..params(1.0, 1.0, 1) }), [true; 4]);
        assert_eq!(only(SamplingParams { min_p: 0.45, ..params(1.0, 1.0, 1) }), [false, true, true, true]);
        assert_eq!(only(params(1.0, 0.85, 1)), [false, true, true, true]);
        assert_eq!(only(SamplingParams { top_k: Some(3), ..params(1.0, 0.7, 1) }), [false, false, true, true]);
    }

    #[test]
    fn penalties_and_biases_move_logits() {
        let logits = [1.0, 0.8, 0.6];
        let next = |params: &SamplingParams, generated: &[u32]| sample(&logits, params, generated, 5, None);
        let presence = SamplingParams { presence_penalty: 0.3, ..params(0.0, 1.0, 0) };
        assert_eq!([&[][..], &[0], &[0, 0, 1]].map(|generated| next(&presence, generated)), [0, 1, 0]);
        let frequency = SamplingParams { frequency_penalty: 0.15, ..params(0.0, 1.0, 0) };
        assert_eq!([&[0][..], &[0, 0], &[0, 0, 0, 1, 1]].map(|generated| next(&frequency, generated)), [0, 1, 2]);
        let bias = SamplingParams { logit_bias: vec![(0, -100.0), (2, 0.3)], ..params(0.0, 1.0, 0) };
        assert_eq!(next(&bias, &[]), 2);
    }

    #[test]
    fn logprobs_are_of_the_model_and_the_best_come_first() {
        let logits = [0.1_f32, 0.2, 0.4, 0.3].map(|probability| probability.ln() + 3.0);
        let Logprobs { token, logprob, top } = logprobs(&logits, 1, 2);
        let near = |a: f32, b: f32| (a - b.ln()).abs() < 1e-5;
        assert!(token == 1 && near(logprob, 0.2), "{logprob}");
        assert!(matches!(top[..], [(2, a), (3, b)] if near(a, 0.4) && near(b, 0.3)), "{top:?}");
        assert_eq!(super::logprobs(&logits, 1, 0).top, []);
    }

    proptest! {
        #[test]
        fn a_draw_is_repeatable_and_within_the_nucleus(
            logits in prop::collection::vec(-8.0f32..8.0, 1..50), seed: u64, position in 0usize..10_000, top_p in 0.01f32..1.0
        ) {
            let params = params(0.8, top_p, seed);
            let token = sample(&logits, &params, &[], position, None);
            prop_assert_eq!(token, sample(&logits, &params, &[], position, None));
            let (inverse_temperature, least) = scale(&params);
            let all = weights(&logits, inverse_temperature, least);
            let own = all[token as usize];
            let above: f32 = all.iter().filter(|weight| **weight > own).sum();
            prop_assert!(above / all.iter().sum::<f32>() < top_p + 1e-4);
        }

        #[test]
        fn a_part_of_many_weights_ends_in_the_one_that_it_reaches(
            weights in prop::collection::vec(prop_oneof![Just(0.0_f32), 0.0_f32..1.0], 1..3 * CHUNK), part in 0.0_f64..1.0
        ) {
            let at = draw(&weights, part);
            let exact: Vec<f64> = weights.iter().copied().map(f64::from).collect();
            let (whole, before) = (exact.iter().sum::<f64>(), exact[..at].iter().sum::<f64>());
            prop_assert!(whole == 0.0 || weights[at] > 0.0);
            prop_assert!(before <= part * whole + 1e-9 && part * whole <= before + exact[at] + 1e-9);
        }

        #[test]
        fn the_most_probable_ones_are_drawn_from(
            logits in prop::collection::vec(-3i8..3, 1..3 * CHUNK), count in 1_usize..40, seed: u64, position in 0_usize..100
        ) {
            let logits: Vec<f32> = logits.into_iter().map(f32::from).collect();
            let params = SamplingParams { top_k: Some(count), ..params(1.0, 1.0, seed) };
            let mut ranking: Vec<u32> = (0..logits.len() as u32).collect();
            ranking.sort_by(|a, b| logits[*b as usize].total_cmp(&logits[*a as usize]));
            prop_assert!(ranking[..count.min(logits.len())].contains(&sample(&logits, &params, &[], position, None)));
        }

        #[test]
        fn uniform_stays_below_one(seed: u64, position in 0usize..1_000_000) {
            prop_assert!((0.0..1.0).contains(&uniform(seed, position)));
        }
    }
}
