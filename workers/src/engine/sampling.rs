//! Sampling: from logits to a token. Randomness is counter-based, so that a draw depends on seed and position alone.

use super::SamplingParams;

/// The next token of a sequence that has `position` tokens. Ties go to the lower id.
pub fn sample(logits: &[f32], params: &SamplingParams, position: usize) -> u32 {
    if params.temperature <= 0.0 {
        return greedy(logits);
    }
    let mut ranked = probabilities(logits, params.temperature);
    ranked.sort_unstable_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    let nucleus = nucleus(&ranked, params.top_p);
    let total: f32 = nucleus.iter().map(|(_, probability)| probability).sum();
    let mut left = uniform(params.seed, position) * total;
    for &(token, probability) in nucleus {
        left -= probability;
        if left < 0.0 {
            return token;
        }
    }
    nucleus.last().map_or(0, |&(token, _)| token)
}

/// Of one token, as a logarithm.
pub fn log_probability(logits: &[f32], token: u32) -> f32 {
    let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|logit| f64::from((logit - most).exp())).sum();
    logits[token as usize] - most - sum.ln() as f32
}

fn greedy(logits: &[f32]) -> u32 {
    let best = (0_u32..)
        .zip(logits)
        .fold((0, f32::NEG_INFINITY), |best, (token, &logit)| if logit > best.1 { (token, logit) } else { best });
    best.0
}

fn probabilities(logits: &[f32], temperature: f32) -> Vec<(u32, f32)> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let weights: Vec<f32> = logits.iter().map(|logit| ((logit - max) / temperature).exp()).collect();
    let sum: f32 = weights.iter().sum();
    (0..).zip(weights.into_iter().map(|weight| weight / sum)).collect()
}

/// The smallest head of the ranking whose probabilities reach `top_p`.
fn nucleus(ranked: &[(u32, f32)], top_p: f32) -> &[(u32, f32)] {
    let mut sum = 0.0;
    let below = ranked.iter().take_while(|(_, probability)| {
        let was_below = sum < top_p;
        sum += probability;
        was_below
    });
    &ranked[..below.count().max(1)]
}

/// Between 0 and 1: SplitMix64 (Steele et al., 2014) of the seed at that place of its sequence.
fn uniform(seed: u64, position: usize) -> f32 {
    let mut bits = seed.wrapping_add((position as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^= bits >> 31;
    (bits >> 40) as f32 / (1_u64 << 24) as f32
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn params(temperature: f32, top_p: f32, seed: u64) -> SamplingParams {
        SamplingParams { temperature, top_p, seed, max_tokens: 1, stop: Vec::new() }
    }

    #[test]
    fn greedy_takes_the_first_of_the_best() {
        assert_eq!(sample(&[0.0, 2.0, 2.0, 1.0], &params(0.0, 1.0, 7), 3), 1);
    }

    #[test]
    fn draws_follow_the_probabilities() {
        let logits = [0.0, 3.0_f32.ln(), f32::NEG_INFINITY];
        let ones = (0..10_000).filter(|&position| sample(&logits, &params(1.0, 1.0, 1), position) == 1).count();
        assert!((7_300..7_700).contains(&ones), "{ones} of 10000, where 7500 are due");
    }

    proptest! {
        #[test]
        fn a_draw_is_repeatable_and_within_the_nucleus(
            logits in prop::collection::vec(-8.0f32..8.0, 1..50), seed: u64, position in 0usize..10_000, top_p in 0.01f32..1.0
        ) {
            let token = sample(&logits, &params(0.8, top_p, seed), position);
            prop_assert_eq!(token, sample(&logits, &params(0.8, top_p, seed), position));
            let ranked = probabilities(&logits, 0.8);
            let own = ranked[token as usize].1;
            let above: f32 = ranked.iter().filter(|(_, probability)| *probability > own).map(|(_, probability)| probability).sum();
            prop_assert!(above < top_p + 1e-4);
        }

        #[test]
        fn uniform_stays_below_one(seed: u64, position in 0usize..1_000_000) {
            prop_assert!((0.0..1.0).contains(&uniform(seed, position)));
        }
    }
}
