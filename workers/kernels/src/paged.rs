//! Attention over keys and values that are kept in blocks of tokens (Kwon et al., 2023, "PagedAttention"), in f16.
//!
//! A sequence's blocks may lie anywhere and be shared with others. Where few tokens ask, the heads that share keys are the
//! rows of a tile; where many do, as while a prompt is read, tokens are.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use half::f16;
use half::slice::HalfFloatSliceExt;

use crate::attention::{exponentials, greatest, hide};
use crate::buffer::Buffer;
use crate::level::{Level, Work};
use crate::math::tanh;
use crate::simd::Simd;
use crate::team::{Pointer, Team};
use crate::tile::{Matrix, Tiles, each_tile};

/// Tokens of a block: as many as two of the widest vectors have lanes.
pub const BLOCK: usize = 32;
/// Values of a head are padded to this many.
const PAD: usize = 32;
/// Rows of a tile, at most.
const ROWS_MAX: usize = 12;
/// Tokens of a span that are one task for a thread.
const TASK_TOKENS: usize = 48;

/// Who attends to whom, in a model that sees the past alone.
#[derive(Clone, Debug)]
pub struct PagedAttention {
    /// Of queries.
    pub heads: usize,
    /// Of keys and values, each shared by as many heads of queries.
    pub kv_heads: usize,
    /// Values of a head.
    pub size: usize,
    pub scale: f32,
    /// How many tokens back a token sees, itself counted.
    pub window: Option<usize>,
    /// What no score can exceed, by tanh.
    pub cap: Option<f32>,
    /// For each head of queries the score of something that is seen beside the tokens, and is nothing.
    pub sinks: Option<Vec<f32>>,
}

/// Keys and values of one layer. A block holds for each head its keys, token by token in columns, then its values in rows.
#[derive(Debug)]
pub struct Pages {
    kv_heads: usize,
    size: usize,
    values: Buffer<u16>,
}

/// Tokens of one sequence that stand next to each other in a batch.
#[derive(Clone, Debug)]
pub struct Span<'a> {
    /// The sequence's blocks, from its first token on.
    pub blocks: &'a [u32],
    /// Its tokens before these.
    pub start: usize,
    /// Their rows in the batch.
    pub rows: Range<usize>,
}

/// Memory that a thread uses again.
#[derive(Debug, Default)]
pub struct PagedScratch {
    scores: Buffer<f32>,
}

impl Pages {
    /// Room for that many blocks.
    pub fn new(blocks: usize, kv_heads: usize, size: usize) -> Self {
        Self { kv_heads, size, values: Buffer::zeroed(blocks * Self::block_values(kv_heads, size)) }
    }

    /// Bytes of a block.
    pub fn block_bytes(kv_heads: usize, size: usize) -> usize {
        Self::block_values(kv_heads, size) * size_of::<u16>()
    }

    fn block_values(kv_heads: usize, size: usize) -> usize {
        kv_heads * (size + size.next_multiple_of(PAD)) * BLOCK
    }

    /// Where the keys of a head begin, and where its values do.
    fn places(&self, block: u32, kv_head: usize) -> (usize, usize) {
        let of_head = (self.size + self.size.next_multiple_of(PAD)) * BLOCK;
        let first = (block as usize * self.kv_heads + kv_head) * of_head;
        (first, first + self.size * BLOCK)
    }

    /// Keeps keys and values of one token, `[kv_heads · size]` each, at a place in a block.
    pub fn write(&mut self, block: u32, at: usize, keys: &[f32], values: &[f32]) {
        let padded = self.size.next_multiple_of(PAD);
        for kv_head in 0..self.kv_heads {
            let (key_at, value_at) = self.places(block, kv_head);
            let of_head = kv_head * self.size..(kv_head + 1) * self.size;
            for (part, keys) in keys[of_head.clone()].chunks(PAD).enumerate() {
                let mut halves = [f16::ZERO; PAD];
                halves[..keys.len()].convert_from_f32_slice(keys);
                let column = self.values[key_at + part * PAD * BLOCK + at..].iter_mut().step_by(BLOCK);
                column.zip(&halves[..keys.len()]).for_each(|(to, key)| *to = key.to_bits());
            }
            let to = &mut self.values[value_at + at * padded..][..self.size];
            bytemuck_f16(to).convert_from_f32_slice(&values[of_head]);
        }
    }
}

impl Pages {
    /// The key of a head at a place in a block.
    pub fn key(&self, block: u32, at: usize, kv_head: usize) -> impl Iterator<Item = f32> {
        let (first, _) = self.places(block, kv_head);
        let column = self.values[first + at..].iter().step_by(BLOCK).take(self.size);
        column.map(|bits| f16::from_bits(*bits).to_f32())
    }
}

fn bytemuck_f16(bits: &mut [u16]) -> &mut [f16] {
    use half::slice::HalfBitsSliceExt;
    bits.reinterpret_cast_mut::<f16>()
}

impl PagedAttention {
    /// `queries` are rows of a batch, `stride` values apart, whose first `heads · size` values are queries. The mixtures go
    /// to `output`, `[rows, heads · size]`.
    ///
    /// # Panics
    /// If a span has too few blocks, or rows that are not there.
    #[expect(clippy::too_many_arguments, reason = "each is another part of one computation")]
    pub fn forward(
        &self,
        team: &Team,
        level: Level,
        pages: &Pages,
        spans: &[Span<'_>],
        queries: &[f32],
        stride: usize,
        output: &mut [f32],
        scratch: &mut Vec<PagedScratch>,
    ) {
        let width = self.heads * self.size;
        let blocks = pages.values.len() / Pages::block_values(self.kv_heads, self.size);
        for span in spans {
            assert!(span.blocks.len() * BLOCK >= span.start + span.rows.len(), "a span has blocks for its tokens");
            assert!(span.blocks.iter().all(|block| (*block as usize) < blocks), "blocks are there");
            assert!(span.rows.end * stride <= queries.len() && span.rows.end * width <= output.len(), "rows are there");
        }
        assert!(self.sinks.as_ref().is_none_or(|sinks| sinks.len() == self.heads), "a sink for each head");
        scratch.resize_with(team.threads(), PagedScratch::default);
        let tasks: Vec<Task<'_>> = spans.iter().flat_map(|span| self.tasks(span)).collect();
        let next = AtomicUsize::new(0);
        let (output, scratch) = (Pointer(output.as_mut_ptr()), Pointer(scratch.as_mut_ptr()));
        let work = |part: usize| {
            while let Some(task) = tasks.get(next.fetch_add(1, Ordering::Relaxed)) {
                // SAFETY: each thread has scratch of its own.
                let scratch = unsafe { &mut *scratch.get().add(part) };
                let length = (task.span.start + task.tokens.end).next_multiple_of(BLOCK);
                scratch.scores.resize(ROWS_MAX * length);
                let output = output.get();
                level.run(Attend { shape: self, pages, task, queries, stride, output, scratch, length });
            }
        };
        match tasks.len() {
            0 | 1 => work(0),
            _ => team.run(work),
        }
    }

    fn tasks<'a>(&self, span: &'a Span<'a>) -> impl Iterator<Item = Task<'a>> {
        let (count, kv_heads) = (span.rows.len(), self.kv_heads);
        (0..count).step_by(TASK_TOKENS).flat_map(move |first| {
            let tokens = first..count.min(first + TASK_TOKENS);
            (0..kv_heads).map(move |kv_head| Task { span, tokens: tokens.clone(), kv_head })
        })
    }
}

/// Some tokens of a span and the heads that share keys.
struct Task<'a> {
    span: &'a Span<'a>,
    tokens: Range<usize>,
    kv_head: usize,
}

struct Attend<'a> {
    shape: &'a PagedAttention,
    pages: &'a Pages,
    task: &'a Task<'a>,
    queries: &'a [f32],
    stride: usize,
    output: *mut f32,
    scratch: &'a mut PagedScratch,
    /// Of a row of scores.
    length: usize,
}

impl Work for Attend<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(mut self) {
        let group = self.shape.heads / self.shape.kv_heads;
        let (first, tokens) = (self.task.kv_head * group, self.task.tokens.clone());
        // SAFETY: heads and tokens are those of the batch.
        unsafe {
            if tokens.len() < group {
                for token in tokens {
                    let mut heads = HeadRows { token, first, on: &mut self };
                    each_tile::<S, _>(0..group, &mut heads);
                }
            } else {
                for head in first..first + group {
                    let mut rows = TokenRows { head, on: &mut self };
                    each_tile::<S, _>(tokens.clone(), &mut rows);
                }
            }
        }
    }
}

/// Tiles whose rows are heads of one token.
struct HeadRows<'a, 'b> {
    token: usize,
    first: usize,
    on: &'a mut Attend<'b>,
}

impl Tiles for HeadRows<'_, '_> {
    #[inline(always)]
    unsafe fn tile<S: Simd, const R: usize>(&mut self, row: usize) {
        let size = self.on.shape.size;
        // SAFETY: as promised by the caller.
        unsafe { self.on.tile::<S, R>(self.token, self.first + row, size, size, 0) };
    }
}

/// Tiles whose rows are tokens, for one head.
struct TokenRows<'a, 'b> {
    head: usize,
    on: &'a mut Attend<'b>,
}

impl Tiles for TokenRows<'_, '_> {
    #[inline(always)]
    unsafe fn tile<S: Simd, const R: usize>(&mut self, row: usize) {
        let width = self.on.shape.heads * self.on.shape.size;
        // SAFETY: as promised by the caller.
        unsafe { self.on.tile::<S, R>(row, self.head, self.on.stride, width, 1) };
    }
}

impl Attend<'_> {
    /// `R` rows of queries, the first of a token and a head; they lie `from` values apart, their mixtures `to` values, and
    /// each stands `step` tokens after the one before it.
    #[inline(always)]
    unsafe fn tile<S: Simd, const R: usize>(&mut self, token: usize, head: usize, from: usize, to: usize, step: usize) {
        let PagedAttention { heads, size, scale, window, cap, ref sinks, .. } = *self.shape;
        let Task { span, kv_head, .. } = *self.task;
        let (padded, lanes) = (size.next_multiple_of(PAD), 2 * S::LANES);
        let seen = |row: usize| {
            let end = span.start + token + row * step + 1;
            window.map_or(0, |window| end.saturating_sub(window))..end
        };
        let first_block = seen(0).start / BLOCK;
        let (begin, end) = (first_block * BLOCK, seen(R - 1).end);
        let blocks = &span.blocks[first_block..end.div_ceil(BLOCK)];
        let row = span.rows.start + token;
        let length = self.length;
        let scores = self.scratch.scores.as_mut_ptr();
        let pages = self.pages.values.as_ptr();
        // SAFETY: the rows are there; blocks are whole, and so are rows of scores.
        unsafe {
            let queries = Matrix { first: self.queries.as_ptr().add(row * self.stride + head * size), stride: from };
            for (index, &block) in blocks.iter().enumerate() {
                let keys = pages.add(self.pages.places(block, kv_head).0);
                for at in (0..BLOCK).step_by(lanes) {
                    let sums = product_half::<S, R>(queries, keys.add(at), BLOCK, size, [[S::splat(0.0); 2]; R]);
                    for (r, [x, y]) in sums.into_iter().enumerate() {
                        let to = scores.add(r * length + index * BLOCK + at);
                        let [mut x, mut y] = [S::mul(x, S::splat(scale)), S::mul(y, S::splat(scale))];
                        if let Some(cap) = cap {
                            let (inverse, cap) = (S::splat(1.0 / cap), S::splat(cap));
                            x = S::mul(tanh::<S>(S::mul(x, inverse)), cap);
                            y = S::mul(tanh::<S>(S::mul(y, inverse)), cap);
                        }
                        S::store(to, x);
                        S::store(to.add(S::LANES), y);
                    }
                }
            }
            let mut shares = [0.0; R];
            for (r, share) in shares.iter_mut().enumerate() {
                let seen = seen(r);
                let scores = std::slice::from_raw_parts_mut(scores.add(r * length), blocks.len() * BLOCK);
                hide::<S>(scores, seen.start - begin..seen.end - begin);
                let most = if sinks.is_some() { greatest::<S>(scores) } else { 0.0 };
                let sum = exponentials::<S>(scores);
                let beside = sinks.as_ref().map_or(0.0, |sinks| (sinks[head + r * (1 - step)] - most).exp());
                *share = 1.0 / (sum + beside);
            }
            for at in (0..size).step_by(lanes) {
                let mut sums = [[S::splat(0.0); 2]; R];
                for (index, &block) in blocks.iter().enumerate() {
                    let values = pages.add(self.pages.places(block, kv_head).1 + at);
                    let weights = Matrix { first: scores.cast_const().add(index * BLOCK), stride: length };
                    let depth = BLOCK.min(end - begin - index * BLOCK);
                    sums = product_half::<S, R>(weights, values, padded, depth, sums);
                }
                for (r, [x, y]) in sums.into_iter().enumerate() {
                    let to = self.output.add(row * heads * size + head * size + r * to + at);
                    let share = S::splat(shares[r]);
                    let sums = [S::mul(x, share), S::mul(y, share)];
                    crate::activation::finish::<S>(sums, crate::Activation::None, to, size - at);
                }
            }
        }
    }
}

/// As [`product`](crate::tile::product), of rows in f32 and columns in f16.
#[inline(always)]
unsafe fn product_half<S: Simd, const R: usize>(
    a: Matrix<f32>,
    b: *const u16,
    stride: usize,
    depth: usize,
    mut sums: [[S::F; 2]; R],
) -> [[S::F; 2]; R] {
    // SAFETY: as promised by the caller.
    unsafe {
        for k in 0..depth {
            let row = b.add(k * stride);
            let (left, right) = (S::load_half(row), S::load_half(row.add(S::LANES)));
            for (r, [x, y]) in sums.iter_mut().enumerate() {
                let value = S::splat(*a.first.add(r * a.stride + k));
                *x = S::mul_add(value, left, *x);
                *y = S::mul_add(value, right, *y);
            }
        }
    }
    sums
}
