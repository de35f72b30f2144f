//! Encoders on a GPU: launches the kernels of `encoder.cu` on what candle's operations are handed.

use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::cudarc::driver::{CudaView, DeviceRepr, LaunchArgs, LaunchConfig, PushKernelArg};
use candle_core::cuda_backend::{CudaDType, WrapErr};
use candle_core::{CudaStorage, DType, Error, Layout, Result, Shape, Storage, StorageRef, Tensor};
use half::{bf16, f16};

use super::{NULL, Norm, THREADS, number, unsupported};
use crate::Activation;

const PTX: &str = include_str!(concat!(env!("OUT_DIR"), "/encoder.ptx"));
const MODULE: &str = "inferq_encoder";
/// Rows of a block of sums: one for each warp.
const SUM_ROWS: usize = 4;
/// Values of the largest head that there is room for.
pub const HEAD_MAX: usize = 256;
/// Queries of a tile.
pub const TILE: usize = 64;
/// Sizes of heads that tensor cores compute.
const TENSOR_SIZES: [usize; 4] = [32, 64, 96, 128];

/// Values and how they lie, as an operation gets them.
pub type Part<'a> = (&'a CudaStorage, &'a Layout);

/// What attention does.
#[derive(Debug)]
pub struct Attention<'a> {
    pub heads: usize,
    pub kv_heads: usize,
    /// Values of a head.
    pub size: usize,
    pub causal: bool,
    /// How far a token sees to each side.
    pub window: Option<usize>,
    /// `[heads, distances]`, what is added to scores by the distance of key and query.
    pub bias: Option<&'a Tensor>,
    /// For each tile of queries: the first row of its sequence, the sequence's length, the tile's first query.
    pub tiles: &'a Tensor,
}

impl Attention<'_> {
    /// On queries, keys and values, `[rows, heads, size]` each, whose rows may lie apart, to `[rows, heads * size]`.
    pub fn forward(&self, parts: [Part<'_>; 3]) -> Result<(CudaStorage, Shape)> {
        let rows = parts[0].1.dims()[0];
        let name = |base: &str| match TENSOR_SIZES.contains(&self.size) {
            true => format!("{base}_{}", self.size),
            false => base.to_owned(),
        };
        let storage = match parts[0].0.dtype() {
            DType::F32 => self.launch::<f32>(parts, rows, "attention_f32"),
            DType::F16 => self.launch::<f16>(parts, rows, &name("attention_f16")),
            DType::BF16 => self.launch::<bf16>(parts, rows, &name("attention_bf16")),
            other => Err(unsupported(other)),
        }?;
        Ok((storage, (rows, self.heads * self.size).into()))
    }

    fn launch<T: CudaDType + DeviceRepr>(&self, parts: [Part<'_>; 3], rows: usize, name: &str) -> Result<CudaStorage> {
        let device = parts[0].0.device();
        let views = [view::<T>(parts[0])?, view::<T>(parts[1])?, view::<T>(parts[2])?];
        let strides = parts.map(|(_, layout)| layout.stride()[0] as i32);
        let width = self.heads * self.size;
        // SAFETY: the kernel writes each value before it is read.
        let output = unsafe { device.alloc::<T>(rows * width)? };
        let (group, size, width) = ((self.heads / self.kv_heads) as i32, self.size as i32, width as i32);
        let (causal, window) = (i32::from(self.causal), self.window.map_or(-1, |window| window as i32));
        let scale = 1.0 / (self.size as f32).sqrt();
        let bias_length = self.bias.map_or(Ok(0), |bias| bias.dim(1))? as i32;
        let (tiles, bias) = (self.tiles.storage_and_layout(), self.bias.map(Tensor::storage_and_layout));
        let (tiles, bias) = (held::<u32>(&tiles)?, bias.as_ref().map(held::<f32>).transpose()?);
        let function = device.get_or_load_custom_func(name, MODULE, PTX)?;
        let mut builder = function.builder();
        for view in &views {
            builder.arg(view);
        }
        builder.arg(&output).arg(&tiles);
        for stride in &strides {
            builder.arg(stride);
        }
        builder.arg(&width).arg(&group).arg(&size).arg(&causal).arg(&window).arg(&scale);
        optional(&mut builder, bias.as_ref());
        builder.arg(&bias_length);
        let blocks = (self.tiles.elem_count() / 3, self.heads);
        // SAFETY: the arguments are those of the kernel, and every row that it reads is there.
        unsafe { builder.launch(grid(blocks)).w()? };
        Ok(CudaStorage::wrap_cuda_slice(output, device.clone()))
    }
}

/// The rows of each sequence to one, `[sequences, kinds * width]` in f32. `offsets` are where sequences begin and end;
/// `encoder.cu` numbers the kinds.
pub fn pool(offsets: &Tensor, kinds: &[i32], rows: Part<'_>) -> Result<(CudaStorage, Shape)> {
    let (count, width) = (offsets.elem_count() - 1, rows.1.shape().dims2()?.1);
    let device = rows.0.device();
    // SAFETY: the kernels write each value before it is read.
    let output = unsafe { device.alloc::<f32>(count * kinds.len() * width)? };
    for (index, kind) in kinds.iter().enumerate() {
        let output = output.slice(index * width..);
        let place = (count, width, kinds.len() * width);
        match rows.0.dtype() {
            DType::F32 => pool_one::<f32>(offsets, *kind, rows, &output, place, "pool_f32")?,
            DType::F16 => pool_one::<f16>(offsets, *kind, rows, &output, place, "pool_f16")?,
            DType::BF16 => pool_one::<bf16>(offsets, *kind, rows, &output, place, "pool_bf16")?,
            other => return Err(unsupported(other)),
        }
    }
    let shape = (count, kinds.len() * width).into();
    Ok((CudaStorage::wrap_cuda_slice(output, device.clone()), shape))
}

fn pool_one<T: CudaDType + DeviceRepr>(
    offsets: &Tensor,
    kind: i32,
    rows: Part<'_>,
    output: &CudaView<'_, f32>,
    (count, width, output_width): (usize, usize, usize),
    name: &str,
) -> Result<()> {
    let function = rows.0.device().get_or_load_custom_func(name, MODULE, PTX)?;
    let rows = view::<T>(rows)?;
    let blocks = (count, width.div_ceil(THREADS as usize));
    let (width, output_width) = (width as i32, output_width as i32);
    let offsets = offsets.storage_and_layout();
    let offsets = held::<u32>(&offsets)?;
    let mut builder = function.builder();
    builder.arg(&rows).arg(output).arg(&offsets).arg(&width).arg(&output_width).arg(&kind);
    // SAFETY: the arguments are those of the kernel, and every row that it reads is there.
    unsafe { builder.launch(grid(blocks)).w()? };
    Ok(())
}

/// `f(x + bias)` for rows `x`; where it is gated, times `x + bias` of the other half of the row.
pub fn activate(
    rows: Part<'_>,
    bias: Option<&Tensor>,
    activation: Activation,
    gated: bool,
) -> Result<(CudaStorage, Shape)> {
    match rows.0.dtype() {
        DType::F32 => activate_as::<f32>(rows, bias, activation, gated, "activate_f32"),
        DType::F16 => activate_as::<f16>(rows, bias, activation, gated, "activate_f16"),
        DType::BF16 => activate_as::<bf16>(rows, bias, activation, gated, "activate_bf16"),
        other => Err(unsupported(other)),
    }
}

fn activate_as<T: CudaDType + DeviceRepr>(
    rows: Part<'_>,
    bias: Option<&Tensor>,
    activation: Activation,
    gated: bool,
    name: &str,
) -> Result<(CudaStorage, Shape)> {
    let (count, width) = even(rows)?;
    let output_width = if gated { width / 2 } else { width };
    let device = rows.0.device();
    // SAFETY: the kernel writes each value before it is read.
    let output = unsafe { device.alloc::<T>(count * output_width)? };
    let bias = bias.map(Tensor::storage_and_layout);
    let bias = bias.as_ref().map(held::<T>).transpose()?;
    let function = device.get_or_load_custom_func(name, MODULE, PTX)?;
    let (rows, width, gated) = (view::<T>(rows)?, width as i32, i32::from(gated));
    let activation = number(activation);
    let mut builder = function.builder();
    builder.arg(&rows);
    optional(&mut builder, bias.as_ref());
    builder.arg(&output).arg(&width).arg(&activation).arg(&gated);
    // SAFETY: the arguments are those of the kernel, and every row that it reads is there.
    unsafe { builder.launch(grid((count, 1))).w()? };
    Ok((CudaStorage::wrap_cuda_slice(output, device.clone()), (count, output_width).into()))
}

/// `norm(x + bias + added)` for rows `x`, or the sum alone.
pub fn sum(
    rows: Part<'_>,
    added: Option<Part<'_>>,
    bias: Option<&Tensor>,
    norm: Option<Norm<'_>>,
) -> Result<(CudaStorage, Shape)> {
    match rows.0.dtype() {
        DType::F32 => sum_as::<f32>(rows, added, bias, norm, "sum_f32"),
        DType::F16 => sum_as::<f16>(rows, added, bias, norm, "sum_f16"),
        DType::BF16 => sum_as::<bf16>(rows, added, bias, norm, "sum_bf16"),
        other => Err(unsupported(other)),
    }
}

fn sum_as<T: CudaDType + DeviceRepr>(
    rows: Part<'_>,
    added: Option<Part<'_>>,
    bias: Option<&Tensor>,
    norm: Option<Norm<'_>>,
    name: &str,
) -> Result<(CudaStorage, Shape)> {
    let (count, width) = even(rows)?;
    let shape = rows.1.shape().clone();
    let device = rows.0.device();
    // SAFETY: the kernel writes each value before it is read.
    let output = unsafe { device.alloc::<T>(count * width)? };
    let (epsilon, centred) = norm.as_ref().map_or((0.0, 0), |norm| (norm.epsilon, i32::from(norm.centred)));
    let guards = [bias, norm.as_ref().map(|norm| norm.weight), norm.as_ref().and_then(|norm| norm.bias)]
        .map(|tensor| tensor.map(Tensor::storage_and_layout));
    let mut weights = Vec::with_capacity(guards.len());
    for guard in &guards {
        weights.push(guard.as_ref().map(held::<T>).transpose()?);
    }
    let (rows, added) = (view::<T>(rows)?, added.map(view::<T>).transpose()?);
    let function = device.get_or_load_custom_func(name, MODULE, PTX)?;
    let blocks = (count.div_ceil(SUM_ROWS), 1);
    let (count, width) = (count as i32, width as i32);
    let mut builder = function.builder();
    builder.arg(&rows);
    optional(&mut builder, added.as_ref());
    for weight in &weights {
        optional(&mut builder, weight.as_ref());
    }
    builder.arg(&output).arg(&count).arg(&width).arg(&epsilon).arg(&centred);
    // SAFETY: the arguments are those of the kernel, and every row that it reads is there.
    unsafe { builder.launch(grid(blocks)).w()? };
    Ok((CudaStorage::wrap_cuda_slice(output, device.clone()), shape))
}

/// Rows that lie one after the other, of a width that can be read in pairs.
fn even((_, layout): Part<'_>) -> Result<(usize, usize)> {
    let width = layout.dims()[layout.dims().len() - 1];
    match layout.is_contiguous() && width % 2 == 0 {
        true => Ok((layout.shape().elem_count() / width, width)),
        false => Err(Error::Msg(format!("no kernel takes rows that lie as {layout:?}"))),
    }
}

fn optional<'a, T: DeviceRepr>(builder: &mut LaunchArgs<'a>, view: Option<&'a CudaView<'_, T>>) {
    match view {
        Some(view) => builder.arg(view),
        None => builder.arg(&NULL),
    };
}

fn grid((x, y): (usize, usize)) -> LaunchConfig {
    LaunchConfig { grid_dim: (x as u32, y as u32, 1), block_dim: (THREADS, 1, 1), shared_mem_bytes: 0 }
}

fn view<'a, T: CudaDType>((storage, layout): Part<'a>) -> Result<CudaView<'a, T>> {
    Ok(storage.as_cuda_slice::<T>()?.slice(layout.start_offset()..))
}

/// A tensor that a kernel reads beside what its operation was handed.
type Held<'a> = (StorageRef<'a>, &'a Layout);

fn held<'a, T: CudaDType>((storage, layout): &'a Held<'_>) -> Result<CudaView<'a, T>> {
    match &**storage {
        Storage::Cuda(storage) => view((storage, layout)),
        Storage::Cpu(_) | Storage::Metal(_) => Err(Error::Msg("is not on the GPU".to_owned())),
    }
}
