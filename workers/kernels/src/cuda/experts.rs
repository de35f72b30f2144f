//! Mixtures of experts on a GPU: launches the kernels of `experts.cu`.

use candle_core::{DType, Device, Result, Tensor};

use super::device::empty;
use super::launch::{Kernel, Module};
use super::{THREADS, WARPS};
use crate::int4::{GROUP, blocks};

static MODULE: Module = Module {
    name: "inferq_experts",
    #[cfg(feature = "cuda")]
    ptx: include_str!(concat!(env!("OUT_DIR"), "/experts.ptx")),
};
/// The most experts that a row's are chosen from.
pub const EXPERTS_MAX: usize = 512;
/// Weights that a thread reads at once.
const EACH: usize = 8;

/// A matrix of every expert, with biases. Where all weights are numbers of MXFP4 they stay packed as such.
#[derive(Debug)]
pub struct Stack {
    /// `[experts, outputs, inputs]`; packed, two of them are in a byte.
    weights: Tensor,
    /// Packed: what each 32 codes are multiplied by, `[experts, outputs, inputs / 32]`.
    scales: Option<Tensor>,
    /// `[experts, outputs]`
    biases: Option<Tensor>,
    inputs: usize,
    outputs: usize,
    dtype: DType,
}

/// Which experts rows go to.
#[derive(Debug)]
pub struct Choice {
    /// How much each of a row's experts counts, `[rows, each]` in f32.
    weights: Tensor,
    /// The pairs of a row and an expert, those of the first expert first.
    sorted: Tensor,
    /// Where those of each expert begin, and where the last ones end.
    starts: Tensor,
    rows: usize,
    each: usize,
}

/// The rows that one expert gets, with their weights.
pub type Share = (Vec<u32>, Vec<f32>);

impl Stack {
    /// Of matrices of one size.
    pub fn new(
        matrices: &[&[f32]],
        biases: Option<Vec<&[f32]>>,
        inputs: usize,
        dtype: DType,
        device: &Device,
    ) -> Result<Self> {
        let (experts, outputs) = (matrices.len(), matrices[0].len() / inputs);
        let (weights, scales) = match packed(matrices, inputs) {
            Some((codes, scales)) => (
                Tensor::from_vec(codes, (experts, outputs, inputs / 2), device)?,
                Some(Tensor::from_vec(scales, (experts, outputs, inputs / GROUP), device)?),
            ),
            None => {
                let one = |matrix: &&[f32]| Tensor::from_slice(matrix, (outputs, inputs), device)?.to_dtype(dtype);
                (Tensor::stack(&matrices.iter().map(one).collect::<Result<Vec<_>>>()?, 0)?, None)
            }
        };
        let biases =
            biases.map(|biases| Tensor::from_vec(biases.concat(), (experts, outputs), device)?.to_dtype(dtype));
        Ok(Self { weights, scales, biases: biases.transpose()?, inputs, outputs, dtype })
    }

    pub fn is_packed(&self) -> bool {
        self.scales.is_some()
    }

    /// Whether [`multiply`](Self::multiply) can read its rows.
    pub fn is_even(&self) -> bool {
        self.inputs.is_multiple_of(EACH)
    }

    /// For each pair a row of its own, `[pairs, outputs]`: a row of `rows`, which so many pairs share, through the pair's expert.
    pub fn multiply(&self, rows: &Tensor, choice: &Choice, pairs_of_row: usize) -> Result<Tensor> {
        let experts = self.weights.dim(0)?;
        let output = empty((choice.pairs(), self.outputs), self.dtype, rows.device())?;
        let suffix = if self.is_packed() { "_packed" } else { "" };
        let kernel = Kernel::with_suffix(&MODULE, "multiply", rows, suffix)?.tensor(rows)?.tensor(&self.weights)?;
        let kernel = kernel.optional(self.scales.as_ref())?.optional(self.biases.as_ref())?;
        let kernel = kernel.tensor(&choice.sorted)?.tensor(&choice.starts)?.tensor(&output)?;
        let kernel = kernel.count(self.inputs).count(self.outputs).count(pairs_of_row);
        // SAFETY: the arguments are those of the kernel, and every pair has a row.
        unsafe { kernel.launch([self.outputs.div_ceil(WARPS), experts, 1], THREADS)? };
        Ok(output)
    }

    /// The matrix of one expert, `[inputs, outputs]`, and its bias.
    pub fn of(&self, expert: usize) -> Result<(Tensor, Option<Tensor>)> {
        let part = |tensor: &Tensor| tensor.narrow(0, expert, 1)?.squeeze(0);
        let weights = part(&self.weights)?;
        let weights = match &self.scales {
            None => weights,
            Some(scales) => {
                let output = empty((self.outputs, self.inputs), self.dtype, weights.device())?;
                let count = self.outputs * self.inputs;
                let kernel = Kernel::new(&MODULE, "unpack", &output)?.tensor(&weights)?.tensor(&part(scales)?)?;
                // SAFETY: the arguments are those of the kernel, whose threads write to places of their own.
                unsafe {
                    kernel
                        .tensor(&output)?
                        .count(count)
                        .launch([count.div_ceil(EACH * THREADS as usize), 1, 1], THREADS)?;
                }
                output
            }
        };
        Ok((weights.t()?, self.biases.as_ref().map(part).transpose()?))
    }
}

impl Choice {
    /// By the scores of rows, `[rows, experts]`, to which a bias is added. The weights of a row's experts sum up to one where
    /// they are `normalized`, those of all of them elsewhere.
    pub fn new(scores: &Tensor, bias: Option<&Tensor>, each: usize, normalized: bool) -> Result<Self> {
        let ((rows, experts), device) = (scores.dims2()?, scores.device());
        if experts > EXPERTS_MAX {
            candle_core::bail!("{experts} experts are too many; {EXPERTS_MAX} is the most");
        }
        let numbers = |count: usize| empty(count, DType::U32, device);
        let (chosen, weights) = (numbers(rows * each)?, empty((rows, each), DType::F32, device)?);
        let kernel = Kernel::new(&MODULE, "choose", scores)?.tensor(scores)?.optional(bias)?;
        let kernel = kernel.tensor(&chosen)?.tensor(&weights)?.count(rows).count(experts).count(each);
        // SAFETY: the arguments are those of the kernel, whose warps write to rows of their own.
        unsafe { kernel.count(usize::from(normalized)).launch([rows.div_ceil(WARPS), 1, 1], THREADS)? };
        let (sorted, starts) = (numbers(rows * each)?, numbers(experts + 1)?);
        let kernel = Kernel::new(&MODULE, "sort", scores)?.tensor(&chosen)?.tensor(&sorted)?.tensor(&starts)?;
        // SAFETY: the arguments are those of the kernel, and all experts have been written.
        unsafe { kernel.count(rows * each).count(experts).launch([1, 1, 1], THREADS)? };
        Ok(Self { weights, sorted, starts, rows, each })
    }

    fn pairs(&self) -> usize {
        self.rows * self.each
    }

    /// What each expert gets, told to the processor.
    pub fn shares(&self) -> Result<Vec<Share>> {
        let [sorted, starts] = [self.sorted.to_vec1::<u32>()?, self.starts.to_vec1::<u32>()?];
        let weights: Vec<f32> = self.weights.flatten_all()?.to_vec1()?;
        let share = |ends: &[u32]| {
            let pairs = sorted[ends[0] as usize..ends[1] as usize].iter();
            pairs.map(|&pair| (pair / self.each as u32, weights[pair as usize])).unzip()
        };
        Ok(starts.windows(2).map(share).collect())
    }

    /// What the experts made of each pair, `[pairs, width]`, summed up for each row.
    pub fn combine(&self, made: &Tensor) -> Result<Tensor> {
        let width = made.dim(1)?;
        let output = empty((self.rows, width), made.dtype(), made.device())?;
        let kernel = Kernel::new(&MODULE, "combine", made)?.tensor(made)?.tensor(&self.weights)?.tensor(&output)?;
        // SAFETY: the arguments are those of the kernel, whose thread blocks write to rows of their own.
        unsafe { kernel.count(self.each).count(width).launch([self.rows, 1, 1], THREADS)? };
        Ok(output)
    }
}

/// Codes and scales, where all weights are numbers of MXFP4.
fn packed(matrices: &[&[f32]], inputs: usize) -> Option<(Vec<u8>, Vec<u8>)> {
    if !inputs.is_multiple_of(GROUP) {
        return None;
    }
    let count = matrices.iter().map(|matrix| matrix.len()).sum::<usize>();
    let (mut codes, mut scales) = (Vec::with_capacity(count / 2), Vec::with_capacity(count / GROUP));
    for group in matrices.iter().flat_map(|matrix| matrix.chunks_exact(GROUP)) {
        let block = blocks::floats(group)?;
        // Its numbers are twice those of MXFP4. A power of two is all exponent.
        let power = u8::try_from((2.0 * block.scale).to_bits() >> 23).ok().filter(|power| (1..=254).contains(power))?;
        scales.push(power);
        codes.extend(block.codes.as_chunks::<2>().0.iter().map(|[low, high]| low | high << 4));
    }
    Some((codes, scales))
}
