//! Attention of packed sequences, as an operation of candle's: a kernel on a GPU, and plain code that it is compared with.

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape as Dimensions, Tensor};

use super::packed::Packed;
use crate::engine::encoder::blueprint::Shape;

/// On queries, keys and values, `[rows, heads, size]` each, whose rows may lie apart; what comes out is
/// `[rows, heads * size]`.
pub struct Attention<'a> {
    pub packed: &'a Packed,
    pub shape: &'a Shape,
    /// `[heads, distances]`, on the device.
    #[cfg_attr(not(feature = "cuda"), expect(dead_code, reason = "read by kernels"))]
    pub bias: Option<&'a Tensor>,
    pub window: Option<usize>,
}

impl Attention<'_> {
    fn sees(&self, query: usize, key: usize) -> bool {
        let is_near = self.window.is_none_or(|window| query.abs_diff(key) <= window);
        is_near && (!self.shape.causal || key <= query)
    }

    /// The mix of values that one query of a sequence takes; rows are given by their place among the sequence's.
    fn mix(&self, head: usize, query: usize, parts: &Rows<'_>, output: &mut [f32]) {
        let Shape { heads, kv_heads, size, .. } = *self.shape;
        let kv_head = head / (heads / kv_heads);
        let bias = self.shape.distance_bias.as_ref().map(|bias| &bias[head][bias[head].len() / 2 - query..]);
        let asked = parts.row(0, query, head, size);
        let score = |key: usize| {
            let product: f32 = asked.iter().zip(parts.row(1, key, kv_head, size)).map(|(a, b)| a * b).sum();
            product / (size as f32).sqrt() + bias.map_or(0.0, |bias| bias[key])
        };
        let keys: Vec<usize> = (0..parts.length).filter(|&key| self.sees(query, key)).collect();
        let scores: Vec<f32> = keys.iter().map(|&key| score(key)).collect();
        let most = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let shares: Vec<f32> = scores.iter().map(|score| (score - most).exp()).collect();
        let total: f32 = shares.iter().sum();
        for (&key, share) in keys.iter().zip(shares) {
            let values = parts.row(2, key, kv_head, size);
            output.iter_mut().zip(values).for_each(|(mixed, value)| *mixed += share / total * value);
        }
    }
}

/// Queries, keys and values of one sequence.
struct Rows<'a> {
    parts: [(&'a [f32], usize); 3],
    first: usize,
    length: usize,
}

impl<'a> Rows<'a> {
    fn row(&self, part: usize, token: usize, head: usize, size: usize) -> &'a [f32] {
        let (values, stride) = self.parts[part];
        &values[(self.first + token) * stride + head * size..][..size]
    }
}

impl CustomOp3 for Attention<'_> {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(
        &self,
        queries: &CpuStorage,
        query_layout: &Layout,
        keys: &CpuStorage,
        key_layout: &Layout,
        values: &CpuStorage,
        value_layout: &Layout,
    ) -> Result<(CpuStorage, Dimensions)> {
        let part = |storage: &CpuStorage, layout: &Layout| -> Result<(Vec<f32>, usize)> {
            Ok((storage.as_slice::<f32>()?[layout.start_offset()..].to_vec(), layout.stride()[0]))
        };
        let owned = [part(queries, query_layout)?, part(keys, key_layout)?, part(values, value_layout)?];
        let parts = owned.each_ref().map(|(values, stride)| (&values[..], *stride));
        let Shape { heads, size, .. } = *self.shape;
        let width = heads * size;
        let mut output = vec![0.0; self.packed.rows() * width];
        for range in self.packed.sequences() {
            let rows = Rows { parts, first: range.start, length: range.len() };
            for token in 0..range.len() {
                for head in 0..heads {
                    let at = (range.start + token) * width + head * size;
                    self.mix(head, token, &rows, &mut output[at..at + size]);
                }
            }
        }
        Ok((CpuStorage::F32(output), (self.packed.rows(), width).into()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        queries: &candle_core::CudaStorage,
        query_layout: &Layout,
        keys: &candle_core::CudaStorage,
        key_layout: &Layout,
        values: &candle_core::CudaStorage,
        value_layout: &Layout,
    ) -> Result<(candle_core::CudaStorage, Dimensions)> {
        let Shape { heads, kv_heads, size, causal, .. } = *self.shape;
        let (window, bias, tiles) = (self.window, self.bias, &self.packed.tiles);
        let kernel = kernels::cuda::encoder::Attention { heads, kv_heads, size, causal, window, bias, tiles };
        kernel.forward([(queries, query_layout), (keys, key_layout), (values, value_layout)])
    }
}
