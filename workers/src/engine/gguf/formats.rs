//! The formats of tensors in GGUF files, turned into numbers.

use candle_core::quantized::GgmlDType;
use candle_core::quantized::ggml_file::qtensor_from_ggml;
use candle_core::{Device, Result};

use crate::engine::mxfp4;

const MXFP4: u32 = 39;
/// Q4_0, Q4_1, Q4_K and MXFP4.
pub const FOUR_BITS: [u32; 4] = [2, 3, 12, MXFP4];

/// How a format is stored: values of a block, and its bytes.
pub fn block(format: u32) -> Option<(usize, usize)> {
    match format {
        MXFP4 => Some((mxfp4::GROUP, 1 + mxfp4::GROUP / 2)),
        _ => dtype(format).map(|dtype| (dtype.block_size(), dtype.type_size())),
    }
}

pub fn values(format: u32, bytes: &[u8], dimensions: &[usize]) -> Result<Vec<f32>> {
    match dtype(format) {
        Some(dtype) => {
            let tensor = qtensor_from_ggml(dtype, bytes, dimensions.to_vec(), &Device::Cpu)?;
            tensor.dequantize(&Device::Cpu)?.flatten_all()?.to_vec1()
        }
        // A scale, then 16 bytes: the first half of the values in their lower halves, the others in the upper ones.
        None => Ok(bytes.chunks_exact(1 + mxfp4::GROUP / 2).flat_map(|block| halves(&block[1..], block[0])).collect()),
    }
}

fn halves(block: &[u8], scale: u8) -> impl Iterator<Item = f32> {
    let lower = block.iter().map(move |byte| mxfp4::value(byte & 15, scale));
    lower.chain(block.iter().map(move |byte| mxfp4::value(byte >> 4, scale)))
}

/// Those that candle knows.
fn dtype(format: u32) -> Option<GgmlDType> {
    Some(match format {
        0 => GgmlDType::F32,
        1 => GgmlDType::F16,
        2 => GgmlDType::Q4_0,
        3 => GgmlDType::Q4_1,
        6 => GgmlDType::Q5_0,
        7 => GgmlDType::Q5_1,
        8 => GgmlDType::Q8_0,
        10 => GgmlDType::Q2K,
        11 => GgmlDType::Q3K,
        12 => GgmlDType::Q4K,
        13 => GgmlDType::Q5K,
        14 => GgmlDType::Q6K,
        30 => GgmlDType::BF16,
        _ => return None,
    })
}
