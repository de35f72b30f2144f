//! The classes of a sequence classifier, and what their scores are made into.

/// Of one model.
#[derive(Clone, Debug, PartialEq)]
pub struct Classes {
    /// Names, in the order of the scores.
    pub labels: Vec<String>,
    pub scale: Scale,
}

/// What a model's scores are put through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    /// Nothing: a regression, or a model that asks for it.
    Identity,
    /// Each by itself: several classes may apply, or there is one.
    Sigmoid,
    /// One class applies: all sum up to 1.
    Softmax,
}

impl Scale {
    pub fn apply(self, scores: &[f32]) -> Vec<f32> {
        match self {
            Self::Identity => scores.to_vec(),
            Self::Sigmoid => scores.iter().map(|score| 1.0 / (1.0 + (-score).exp())).collect(),
            Self::Softmax => {
                let most = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                let parts: Vec<f32> = scores.iter().map(|score| (score - most).exp()).collect();
                let sum: f32 = parts.iter().sum();
                parts.into_iter().map(|part| part / sum).collect()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_of_any_size_become_probabilities() {
        let softmax = Scale::Softmax.apply(&[1000.0, 1000.0 + 3.0_f32.ln()]);
        assert!((softmax[0] - 0.25).abs() < 1e-3 && (softmax[1] - 0.75).abs() < 1e-3, "{softmax:?}");
        assert_eq!(Scale::Sigmoid.apply(&[0.0, -1000.0, 1000.0]), [0.5, 0.0, 1.0]);
        assert_eq!(Scale::Identity.apply(&[-3.0]), [-3.0]);
    }
}
