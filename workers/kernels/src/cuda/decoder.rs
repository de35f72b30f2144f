//! Decoders on a GPU: launches the kernels of `decoder.cu`, which stand beside candle's matrix products.

use candle_core::{DType, Device, Result, Tensor};

use super::device::{Numbers, empty};
use super::launch::{Kernel, Module};
use super::{Norm, THREADS, WARPS, number};
use crate::{BLOCK, Draw, Function};

static MODULE: Module = Module {
    name: "inferq_decoder",
    #[cfg(feature = "cuda")]
    ptx: include_str!(concat!(env!("OUT_DIR"), "/decoder.ptx")),
};
/// Of a thread block that takes a row.
const ROW_THREADS: u32 = 256;
/// Of one that draws from all tokens.
const DRAW_THREADS: u32 = 1024;
/// Thread blocks that keep a GPU busy, and the fewest blocks of keys for each.
const BUSY: usize = 1024;
const SHARE_BLOCKS_MIN: usize = 4;
/// What heads are padded to in the loops of attention; nothing larger is computed.
const SIZES: [usize; 3] = [64, 128, 256];

/// Some tokens of a sequence.
#[derive(Debug)]
pub struct Span<'a> {
    pub tokens: &'a [u32],
    /// The sequence's tokens before these.
    pub start: usize,
    /// The sequence's blocks, from its first token on.
    pub blocks: &'a [u32],
}

/// How a model attends.
#[derive(Clone, Copy, Debug)]
pub struct Heads {
    pub heads: usize,
    /// Of keys and values.
    pub key_heads: usize,
    /// Values of a head.
    pub size: usize,
    pub dtype: DType,
    pub scale: f32,
    /// What no score can exceed, by tanh.
    pub cap: Option<f32>,
}

/// What a step computes, as the kernels are told of it.
#[derive(Clone, Copy, Debug)]
pub struct Plan<'a> {
    /// Tokens, their positions, the slots of their keys, tiles of four numbers, then the sequences' blocks.
    numbers: &'a Numbers,
    form: Form,
}

/// How the work of a step is divided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Form {
    rows: usize,
    tiles: usize,
    /// Thread blocks that share a tile's keys.
    shares: usize,
    /// Rows of a warp.
    own: usize,
}

/// What launches of a step depend on: those of steps with equal keys have the same arguments, and what differs is in the
/// numbers that the kernels read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    numbers: u64,
    form: Form,
}

/// Keys and values of a layer.
#[derive(Debug)]
pub struct Pages {
    keys: Tensor,
    values: Tensor,
}

/// What is done with each of a layer's heads before it is kept.
#[derive(Clone, Copy, Debug)]
pub struct Turn<'a> {
    pub bias: Option<&'a Tensor>,
    pub norms: Option<[Norm<'a>; 2]>,
    /// Cosines and sines of each position.
    pub angles: Option<&'a [Tensor; 2]>,
}

/// How wide a layer sees.
#[derive(Clone, Copy, Debug)]
pub struct Sight<'a> {
    pub window: Option<usize>,
    pub sinks: Option<&'a Tensor>,
}

impl Heads {
    /// Whether the kernels compute heads of that size.
    pub fn fit(&self) -> bool {
        let of_vector = 16 / self.dtype.size_in_bytes();
        self.size <= SIZES[2] && self.size.is_multiple_of(of_vector) && self.size.is_multiple_of(2)
    }

    fn padded(&self) -> usize {
        SIZES.into_iter().find(|size| *size >= self.size).unwrap_or(SIZES[2])
    }

    /// Rows of a warp, for spans of at most so many tokens: 16 on tensor cores, which compute in halves.
    fn own(&self, longest: usize) -> usize {
        match self.padded() {
            _ if longest > 1 && self.dtype != DType::F32 => 16,
            256 => 1,
            _ if longest > 1 => 4,
            _ => (self.heads / self.key_heads).div_ceil(WARPS).next_power_of_two().min(4),
        }
    }

    /// Thread blocks that share the keys of each of so many tiles.
    fn shares(&self, own: usize, tiles: usize, most_blocks: usize) -> usize {
        let blocks = (tiles * self.key_heads * self.parts(own).1).max(1);
        // There are few numbers of them, so that sequences that grow go on with the same launches for a while.
        (BUSY / blocks).clamp(1, most_blocks.div_ceil(SHARE_BLOCKS_MIN).next_power_of_two())
    }

    /// Heads of a group that are in one tile, and tiles for a group.
    fn parts(&self, own: usize) -> (usize, usize) {
        let group = self.heads / self.key_heads;
        let part = group.min(own * WARPS);
        (part, group.div_ceil(part))
    }
}

impl<'a> Plan<'a> {
    pub fn new(spans: &[Span<'_>], heads: &Heads, numbers: &'a mut Numbers, device: &Device) -> Result<Self> {
        let longest = spans.iter().map(|span| span.tokens.len()).max().unwrap_or(0);
        let own = heads.own(longest);
        let (part, _) = heads.parts(own);
        let tile_tokens = own * WARPS / part;
        let (mut positions, mut slots, mut tiles, mut table) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let mut most_blocks = 1;
        for span in spans {
            let (first, end) = (positions.len(), span.start + span.tokens.len());
            for position in span.start..end {
                positions.push(position as u32);
                slots.push(span.blocks[position / BLOCK] * BLOCK as u32 + (position % BLOCK) as u32);
            }
            for at in (0..span.tokens.len()).step_by(tile_tokens) {
                let count = tile_tokens.min(span.tokens.len() - at);
                tiles.extend([first + at, count, span.start + at, table.len()].map(|number| number as u32));
            }
            most_blocks = most_blocks.max(end.div_ceil(BLOCK));
            table.extend_from_slice(&span.blocks[..end.div_ceil(BLOCK)]);
        }
        let rows = positions.len();
        let tokens: Vec<u32> = spans.iter().flat_map(|span| span.tokens).copied().collect();
        let shares = heads.shares(own, tiles.len() / 4, most_blocks);
        let form = Form { rows, tiles: tiles.len() / 4, shares, own };
        Self::told([tokens, positions, slots].concat(), tiles, table, form, numbers, device)
    }

    /// Of rows that see the whole of their memories: of each, so many rows, and the rows and blocks of the memory.
    pub fn across<'b>(
        memories: impl Iterator<Item = (usize, usize, &'b [u32])>,
        heads: &Heads,
        numbers: &'a mut Numbers,
        device: &Device,
    ) -> Result<Self> {
        let own = heads.own(1);
        let (mut rows, mut tiles, mut table, mut most_blocks) = (0, Vec::new(), Vec::new(), 1);
        for (count, length, blocks) in memories {
            // As the last token of a sequence sees all of it.
            let tile = |row| [row, 1, length - 1, table.len()].map(|number| number as u32);
            tiles.extend((rows..rows + count).flat_map(tile));
            rows += count;
            most_blocks = most_blocks.max(length.div_ceil(BLOCK));
            table.extend_from_slice(&blocks[..length.div_ceil(BLOCK)]);
        }
        let shares = heads.shares(own, rows, most_blocks);
        Self::told(vec![0; 3 * rows], tiles, table, Form { rows, tiles: rows, shares, own }, numbers, device)
    }

    /// Of rows that are kept in blocks and attend to nothing.
    pub fn keeping(rows: usize, blocks: &[u32], numbers: &'a mut Numbers, device: &Device) -> Result<Self> {
        let slot = |row: usize| blocks[row / BLOCK] * BLOCK as u32 + (row % BLOCK) as u32;
        let told = (0..2 * rows).map(|_| 0).chain((0..rows).map(slot)).collect();
        Self::told(told, Vec::new(), Vec::new(), Form { rows, tiles: 0, shares: 1, own: 1 }, numbers, device)
    }

    fn told(
        mut told: Vec<u32>,
        mut tiles: Vec<u32>,
        mut table: Vec<u32>,
        form: Form,
        numbers: &'a mut Numbers,
        device: &Device,
    ) -> Result<Self> {
        // Tiles are read in one, so they begin where one may begin.
        told.resize(tiles_at(form.rows), 0);
        told.append(&mut tiles);
        told.append(&mut table);
        if numbers.room() < told.len() {
            *numbers = Numbers::new(told.len().next_power_of_two(), device)?;
        }
        numbers.write(&told)?;
        Ok(Self { numbers, form })
    }

    pub fn key(&self) -> Key {
        Key { numbers: self.numbers.address(), form: self.form }
    }

    /// Their vectors, `[rows, width]` in f32.
    pub fn embed(&self, words: &Tensor, positions: Option<&Tensor>, scale: f32) -> Result<Tensor> {
        let width = words.dim(1)?;
        let rows = self.form.rows;
        let output = empty((rows, width), DType::F32, words.device())?;
        let kernel = Kernel::new(&MODULE, "embed", words)?.tensor(words)?.optional(positions)?;
        let kernel = kernel.address(self.address(0)).address(self.address(rows)).tensor(&output)?;
        // SAFETY: the arguments are those of the kernel, and each token has a vector.
        unsafe { kernel.count(width).real(scale).launch([rows, 1, 1], ROW_THREADS)? };
        Ok(output)
    }

    /// Of one of its numbers.
    fn address(&self, at: usize) -> u64 {
        self.numbers.address() + (at * size_of::<u32>()) as u64
    }
}

impl Pages {
    pub fn new(blocks: usize, heads: &Heads, device: &Device) -> Result<Self> {
        let new = || Tensor::zeros((blocks, heads.key_heads, BLOCK, heads.size), heads.dtype, device);
        Ok(Self { keys: new()?, values: new()? })
    }

    /// Keeps keys and values of projected rows, `[rows, (heads + 2 · key heads) · size]`, and gives what their queries see,
    /// `[rows, heads · size]`.
    pub fn attend(
        &self,
        plan: &Plan<'_>,
        rows: &Tensor,
        heads: &Heads,
        turn: Turn<'_>,
        sight: Sight<'_>,
    ) -> Result<Tensor> {
        let queries = empty((plan.form.rows, heads.heads * heads.size), rows.dtype(), rows.device())?;
        self.place(plan, rows, heads, turn, Some(&queries))?;
        self.see(plan, &queries, heads, sight)
    }

    /// Keeps keys and values of rows that ask nothing, `[rows, 2 · key heads · size]`.
    pub fn keep(&self, plan: &Plan<'_>, rows: &Tensor, heads: &Heads, bias: Option<&Tensor>) -> Result<()> {
        let heads = Heads { heads: 0, ..*heads };
        self.place(plan, rows, &heads, Turn { bias, norms: None, angles: None }, None)
    }

    /// Of one head, the keys of these blocks, `[tokens, size]`.
    pub fn keys_of(&self, blocks: &Tensor, head: usize) -> Result<Tensor> {
        let size = self.keys.dim(3)?;
        self.keys.index_select(blocks, 0)?.narrow(1, head, 1)?.contiguous()?.reshape(((), size))
    }

    /// What queries see, `[rows, heads · size]` both.
    pub fn see(&self, plan: &Plan<'_>, queries: &Tensor, heads: &Heads, sight: Sight<'_>) -> Result<Tensor> {
        let form = plan.form;
        let (count, rows, device) = (form.rows * heads.heads, queries, queries.device());
        let output = empty((form.rows, heads.heads * heads.size), rows.dtype(), device)?;
        let several = form.shares > 1;
        let share = |values| several.then(|| empty((form.shares, count, values), DType::F32, device)).transpose();
        let (partial, shares) = (share(heads.size)?, share(2)?);
        let tiles = tiles_at(form.rows);
        let name = format!("_{}_{}", heads.padded(), form.own);
        let kernel = Kernel::with_suffix(&MODULE, "attend", rows, &name)?;
        let kernel = kernel.tensor(queries)?.tensor(&self.keys)?.tensor(&self.values)?;
        let kernel = kernel.address(plan.address(tiles)).address(plan.address(tiles + 4 * form.tiles));
        let kernel =
            kernel.optional(sight.sinks)?.tensor(&output)?.optional(partial.as_ref())?.optional(shares.as_ref())?;
        let kernel = kernel.count(form.rows).count(heads.heads).count(heads.key_heads).count(heads.size);
        let kernel = kernel.count(sight.window.unwrap_or(0)).real(heads.scale).real(heads.cap.unwrap_or(0.0));
        let blocks = [form.tiles, heads.key_heads * heads.parts(form.own).1, form.shares];
        // SAFETY: the arguments are those of the kernel, and all blocks of the table are there.
        unsafe { kernel.launch(blocks, THREADS)? };
        if let (Some(partial), Some(shares)) = (&partial, &shares) {
            let kernel =
                Kernel::new(&MODULE, "gather", rows)?.tensor(partial)?.tensor(shares)?.optional(sight.sinks)?;
            let kernel = kernel.tensor(&output)?.count(form.shares).count(heads.heads).count(heads.size);
            // SAFETY: the arguments are those of the kernel, and all shares have been written.
            unsafe { kernel.launch([count, 1, 1], THREADS)? };
        }
        Ok(output)
    }

    /// Keeps keys and values, and writes the queries, where there are any.
    fn place(
        &self,
        plan: &Plan<'_>,
        rows: &Tensor,
        heads: &Heads,
        turn: Turn<'_>,
        queries: Option<&Tensor>,
    ) -> Result<()> {
        let count = plan.form.rows;
        let norms = turn.norms.map_or([None, None], |[query, key]| [Some(query), Some(key)]);
        let kernel = Kernel::new(&MODULE, "place", rows)?.tensor(rows)?.optional(turn.bias)?;
        let kernel = kernel.norm(norms[0])?.norm(norms[1])?;
        let kernel =
            kernel.optional(turn.angles.map(|angles| &angles[0]))?.optional(turn.angles.map(|angles| &angles[1]))?;
        let kernel = kernel.address(plan.address(count)).address(plan.address(2 * count));
        let kernel = kernel.optional(queries)?.tensor(&self.keys)?.tensor(&self.values)?;
        let kernel = kernel.count(heads.heads).count(heads.key_heads).count(heads.size);
        let blocks = [count, (heads.heads + 2 * heads.key_heads).div_ceil(WARPS), 1];
        // SAFETY: the arguments are those of the kernel. Each slot is written to once, and what reads it is launched after
        // that, on the same stream.
        unsafe { kernel.launch(blocks, THREADS) }
    }
}

/// What is added to rows before they are normed.
#[derive(Clone, Copy, Debug)]
pub struct Added<'a> {
    pub rows: &'a Tensor,
    pub bias: Option<&'a Tensor>,
    pub norm: Option<Norm<'a>>,
}

/// Adds to the rows of `hidden`, which are in f32, in their place, and gives the norm of the sum.
pub fn join(hidden: &Tensor, added: Option<Added<'_>>, norm: Norm<'_>, dtype: DType) -> Result<Tensor> {
    let (rows, width) = hidden.dims2()?;
    let output = empty((rows, width), dtype, hidden.device())?;
    let kernel = Kernel::new(&MODULE, "join", &output)?.tensor(hidden)?;
    let kernel = kernel.optional(added.map(|added| added.rows))?.optional(added.and_then(|added| added.bias))?;
    let kernel = kernel.norm(added.and_then(|added| added.norm))?.norm(Some(norm))?.tensor(&output)?.count(width);
    // SAFETY: the arguments are those of the kernel, whose thread blocks write to rows of their own.
    unsafe { kernel.launch([rows, 1, 1], ROW_THREADS)? };
    Ok(output)
}

/// The function of rows to which the bias is added first.
pub fn activate(function: Function, rows: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let (count, width) = rows.dims2()?;
    let (activation, gated, alpha, limit) = match function {
        Function::Plain(activation) => (number(activation), 0, 0.0, 0.0),
        Function::Gated(activation) => (number(activation), 1, 0.0, 0.0),
        Function::Clamped { alpha, limit } => (0, 2, alpha, limit),
    };
    let output_width = if gated == 0 { width } else { width / 2 };
    let output = empty((count, output_width), rows.dtype(), rows.device())?;
    let kernel = Kernel::new(&MODULE, "activate", rows)?.tensor(rows)?.optional(bias)?.tensor(&output)?;
    let kernel = kernel.count(width).count(activation as usize).count(gated).real(alpha).real(limit);
    // SAFETY: the arguments are those of the kernel.
    unsafe { kernel.launch([count, output_width.div_ceil(THREADS as usize), 1], THREADS)? };
    Ok(output)
}

/// Writes the scores of rows to the first of `scores`, which are in f32: the bias is added, and by tanh none exceeds `cap`.
pub fn score(rows: &Tensor, bias: Option<&Tensor>, cap: Option<f32>, scores: &Tensor) -> Result<()> {
    let (count, width) = rows.dims2()?;
    let (room, wide) = scores.dims2()?;
    if count > room || width != wide {
        candle_core::bail!("scores of {count} rows of {width} do not fit in {room} of {wide}");
    }
    let kernel = Kernel::new(&MODULE, "score", rows)?.tensor(rows)?.optional(bias)?.tensor(scores)?;
    let kernel = kernel.count(width).real(cap.unwrap_or(0.0));
    // SAFETY: the arguments are those of the kernel, and there is room for what it writes.
    unsafe { kernel.launch([count, width.div_ceil(THREADS as usize), 1], THREADS) }
}

/// Of a row's draw, as the kernel reads them.
pub const DRAW_NUMBERS: usize = 6;
/// The most scores of a row that are drawn from.
const DRAW_SCORES_MAX: usize = 512 * 1024;

/// Tells the kernel how to draw, where it does.
pub fn numbers_of(draw: Option<Draw>) -> [u32; DRAW_NUMBERS] {
    match draw {
        None => [0; DRAW_NUMBERS],
        Some(Draw::Highest) => [1, 0, 0, 0, 0, 0],
        Some(Draw::Part { inverse_temperature, least, part }) => {
            let bits = part.to_bits();
            [2, inverse_temperature.to_bits(), least.to_bits(), 0, bits as u32, (bits >> 32) as u32]
        }
    }
}

/// Draws a token for each of the first rows of `scores`, as `draws` tells.
pub fn draw(scores: &Tensor, rows: usize, draws: &Numbers, tokens: &Tensor) -> Result<()> {
    let width = scores.dim(1)?;
    if draws.room() < rows * DRAW_NUMBERS || tokens.elem_count() < rows || width > DRAW_SCORES_MAX {
        candle_core::bail!("{rows} tokens of {width} cannot be drawn");
    }
    let kernel = Kernel::new(&MODULE, "draw", scores)?.tensor(scores)?.address(draws.address()).tensor(tokens)?;
    // SAFETY: the arguments are those of the kernel, and there is room for what it reads and writes.
    unsafe { kernel.count(width).launch([rows, 1, 1], DRAW_THREADS) }
}

/// Where tiles begin among a step's numbers: they are read in one.
fn tiles_at(rows: usize) -> usize {
    (3 * rows).next_multiple_of(4)
}
