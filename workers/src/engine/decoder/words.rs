//! The vectors of words, which are looked up and never multiplied.

use half::f16;
use half::slice::HalfFloatSliceExt;
use half::vec::HalfFloatVecExt;
use schemas::registry::Dtype;

/// `[vocabulary, hidden]`
pub enum Words {
    Exact(Vec<f32>),
    /// Where memory counts most. (In int8 it would cost half a percent of perplexity.)
    Near(Vec<f16>),
}

impl Words {
    pub fn new(values: Vec<f32>, dtype: Dtype) -> Self {
        match dtype {
            Dtype::F32 | Dtype::F16 | Dtype::Bf16 | Dtype::Int8 => Self::Exact(values),
            Dtype::Int4 => Self::Near(Vec::from_f32_slice(&values)),
        }
    }

    /// The vector of one.
    pub fn copy(&self, word: usize, to: &mut [f32]) {
        let own = word * to.len()..(word + 1) * to.len();
        match self {
            Self::Exact(values) => to.copy_from_slice(&values[own]),
            Self::Near(values) => values[own].convert_to_f32_slice(to),
        }
    }
}
