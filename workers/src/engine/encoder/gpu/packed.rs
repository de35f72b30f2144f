//! How the sequences of a batch lie in its rows, and the pooling of each to one vector.

use std::ops::Range;

use candle_core::{CpuStorage, CustomOp1, Device, Layout, Result, Shape, Tensor};

use crate::engine::encoder::blueprint::Pooling;

/// Queries that a block of threads computes.
#[cfg(feature = "cuda")]
use kernels::cuda::encoder::TILE;
#[cfg(not(feature = "cuda"))]
const TILE: usize = 64;

/// Sequences one after the other.
pub struct Packed {
    /// Where each begins, and where the last ends.
    offsets: Vec<u32>,
    #[cfg_attr(not(feature = "cuda"), expect(dead_code, reason = "read by kernels"))]
    pub on_device: Tensor,
    /// For each tile of queries: the first row of its sequence, the sequence's length, the tile's first query.
    #[cfg_attr(not(feature = "cuda"), expect(dead_code, reason = "read by kernels"))]
    pub tiles: Tensor,
}

impl Packed {
    pub fn new(lengths: impl Iterator<Item = usize>, device: &Device) -> Result<Self> {
        let (mut offsets, mut tiles) = (vec![0], Vec::new());
        for length in lengths {
            let first = offsets[offsets.len() - 1];
            tiles.extend((0..length).step_by(TILE).flat_map(|query| [first, length as u32, query as u32]));
            offsets.push(first + length as u32);
        }
        Ok(Self { on_device: Tensor::new(&offsets[..], device)?, tiles: Tensor::new(tiles, device)?, offsets })
    }

    pub fn rows(&self) -> usize {
        self.offsets[self.offsets.len() - 1] as usize
    }

    /// The rows of each.
    pub fn sequences(&self) -> impl ExactSizeIterator<Item = Range<usize>> {
        self.offsets.windows(2).map(|pair| pair[0] as usize..pair[1] as usize)
    }

    /// The place of each row in its sequence.
    pub fn positions(&self) -> Vec<u32> {
        self.sequences().flat_map(|range| 0..range.len() as u32).collect()
    }
}

/// From the rows of a batch, `[rows, width]`, to `[sequences, poolings * width]`, in f32.
pub struct Pool<'a> {
    pub packed: &'a Packed,
    pub poolings: &'a [Pooling],
}

impl CustomOp1 for Pool<'_> {
    fn name(&self) -> &'static str {
        "pool"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (_, width) = layout.shape().dims2()?;
        let rows = &storage.as_slice::<f32>()?[layout.start_offset()..];
        let of = |range: Range<usize>| {
            let rows = &rows[range.start * width..range.end * width];
            self.poolings.iter().flat_map(|pooling| pooling.of(rows, width)).collect::<Vec<f32>>()
        };
        let pooled: Vec<f32> = self.packed.sequences().flat_map(of).collect();
        Ok((CpuStorage::F32(pooled), (self.packed.sequences().len(), self.poolings.len() * width).into()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        storage: &candle_core::CudaStorage,
        layout: &Layout,
    ) -> Result<(candle_core::CudaStorage, Shape)> {
        // As `encoder.cu` of the kernels numbers them.
        let kind = |pooling: &Pooling| match pooling {
            Pooling::Cls => 0,
            Pooling::Mean => 1,
            Pooling::Max => 2,
            Pooling::MeanSqrtLength => 3,
            Pooling::WeightedMean => 4,
            Pooling::Last => 5,
        };
        let kinds: Vec<i32> = self.poolings.iter().map(kind).collect();
        kernels::cuda::encoder::pool(&self.packed.on_device, &kinds, (storage, layout))
    }
}
