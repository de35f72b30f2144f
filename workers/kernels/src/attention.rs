//! Attention of one sequence, a tile of queries at a time: scores, softmax and mixture without leaving the cache.

use std::ops::Range;
use std::sync::Arc;

use crate::buffer::Buffer;
use crate::level::{Level, Work};
use crate::math::exp;
use crate::simd::Simd;
use crate::tile::{Matrix, Tiles, each_tile, product};

/// Columns in which keys and values are padded.
const PAD: usize = 32;

/// Who attends to whom.
#[derive(Clone, Debug)]
pub struct Attention {
    /// Of queries.
    pub heads: usize,
    /// Of keys and values, each shared by as many heads of queries.
    pub kv_heads: usize,
    /// Values of a head.
    pub size: usize,
    pub scale: f32,
    /// Whether a token sees only those before it.
    pub causal: bool,
    /// How far a token sees to each side.
    pub window: Option<usize>,
    /// For each head, what is added to a score by how far the key is from the query: from `-(length - 1)` to
    /// `length - 1`, for the longest sequence.
    pub distance_bias: Option<Arc<[Vec<f32>]>>,
}

/// Memory that one thread uses again.
#[derive(Debug, Default)]
pub struct Scratch {
    keys: Buffer<f32>,
    values: Buffer<f32>,
    scores: Buffer<f32>,
}

impl Attention {
    /// Values of a row of queries, keys and values.
    pub fn width(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.size
    }

    /// `projected` holds the queries, keys and values of a sequence's tokens, `[length, width]`. The mixtures of the
    /// tokens in `queries` go to `output`, `[queries, heads · size]`.
    pub fn forward(
        &self,
        level: Level,
        projected: &[f32],
        queries: Range<usize>,
        output: &mut [f32],
        scratch: &mut Scratch,
    ) {
        let length = projected.len() / self.width();
        assert_eq!(length * self.width(), projected.len(), "rows are whole");
        assert!(queries.end <= length && output.len() == queries.len() * self.heads * self.size);
        let longest = |bias: &Arc<[Vec<f32>]>| bias.iter().all(|bias| bias.len() >= 2 * length - 1);
        assert!(self.distance_bias.as_ref().is_none_or(longest), "no sequence is longer than the bias");
        let (padded, size) = (length.next_multiple_of(PAD), self.size.next_multiple_of(PAD));
        scratch.keys.resize(self.size * padded);
        scratch.values.resize(length * size);
        scratch.scores.resize(ROWS_MAX * padded);
        level.run(Attend { shape: self, projected, queries, output, scratch, length, padded });
    }
}

/// Of a tile.
const ROWS_MAX: usize = 12;

struct Attend<'a> {
    shape: &'a Attention,
    projected: &'a [f32],
    queries: Range<usize>,
    output: &'a mut [f32],
    scratch: &'a mut Scratch,
    length: usize,
    padded: usize,
}

impl Work for Attend<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(mut self) {
        for kv_head in 0..self.shape.kv_heads {
            self.pack(kv_head);
            let group = self.shape.heads / self.shape.kv_heads;
            for head in kv_head * group..(kv_head + 1) * group {
                let queries = self.queries.clone();
                let mut one = Head { head, on: &mut self };
                // SAFETY: the queries are tokens of the sequence.
                unsafe { each_tile::<S, _>(queries, &mut one) };
            }
        }
    }
}

impl Attend<'_> {
    /// Brings the keys of a head to columns, its values together.
    #[inline(always)]
    fn pack(&mut self, kv_head: usize) {
        let Attention { heads, kv_heads, size, .. } = *self.shape;
        let padded_size = size.next_multiple_of(PAD);
        let (key_at, value_at) = ((heads + kv_head) * size, (heads + kv_heads + kv_head) * size);
        let (keys, values) = (&mut *self.scratch.keys, &mut *self.scratch.values);
        for (token, row) in self.projected.chunks_exact(self.shape.width()).enumerate() {
            for (at, key) in row[key_at..key_at + size].iter().enumerate() {
                keys[at * self.padded + token] = *key;
            }
            let (value, rest) = values[token * padded_size..(token + 1) * padded_size].split_at_mut(size);
            value.copy_from_slice(&row[value_at..value_at + size]);
            rest.fill(0.0);
        }
        for column in keys.chunks_exact_mut(self.padded) {
            column[self.length..].fill(0.0);
        }
    }

    /// The keys that a query sees.
    #[inline(always)]
    fn seen(&self, query: usize) -> Range<usize> {
        let start = self.shape.window.map_or(0, |window| query.saturating_sub(window));
        let end = if self.shape.causal { query + 1 } else { self.length };
        let end = self.shape.window.map_or(end, |window| end.min(query + window + 1));
        start..end
    }
}

struct Head<'a, 'b> {
    head: usize,
    on: &'a mut Attend<'b>,
}

impl Tiles for Head<'_, '_> {
    #[inline(always)]
    unsafe fn tile<S: Simd, const R: usize>(&mut self, row: usize) {
        let Attention { heads, size, scale, .. } = *self.on.shape;
        let (padded, padded_size) = (self.on.padded, size.next_multiple_of(PAD));
        let step = 2 * S::LANES;
        // What any query of the tile sees, in whole vectors.
        let from = self.on.seen(row).start / step * step;
        let to = self.on.seen(row + R - 1).end;
        let scores = self.on.scratch.scores.as_mut_ptr();
        // SAFETY: keys, values and scores are padded to whole steps.
        unsafe {
            let queries = Matrix::of(self.on.projected, self.on.shape.width()).at(row, self.head * size);
            let keys = Matrix::of(&self.on.scratch.keys, padded);
            for at in (from..to).step_by(step) {
                let sums = product::<S, R>(queries, keys.at(0, at), size, [[S::splat(0.0); 2]; R]);
                for (r, [x, y]) in sums.into_iter().enumerate() {
                    let to = scores.add(r * padded + at);
                    S::store(to, S::mul(x, S::splat(scale)));
                    S::store(to.add(S::LANES), S::mul(y, S::splat(scale)));
                }
            }
            let mut shares = [0.0; R];
            for (r, share) in shares.iter_mut().enumerate() {
                let seen = self.on.seen(row + r);
                let end = to.next_multiple_of(step);
                let scores = std::slice::from_raw_parts_mut(scores.add(r * padded + from), end - from);
                if let Some(bias) = &self.on.shape.distance_bias {
                    let bias = &bias[self.head];
                    // The distance 0 is in the middle.
                    let first = bias.len() / 2 + from - (row + r);
                    scores[..to - from].iter_mut().zip(&bias[first..]).for_each(|(score, bias)| *score += bias);
                }
                hide::<S>(scores, seen.start - from..seen.end - from);
                *share = 1.0 / exponentials::<S>(scores);
            }
            let values = Matrix::of(&self.on.scratch.values, padded_size);
            let weights = Matrix { first: scores.cast_const().add(from), stride: padded };
            for at in (0..size).step_by(step) {
                let sums = product::<S, R>(weights, values.at(from, at), to - from, [[S::splat(0.0); 2]; R]);
                for (r, [x, y]) in sums.into_iter().enumerate() {
                    let to = self.on.output.as_mut_ptr();
                    let to = to.add(((row + r - self.on.queries.start) * heads + self.head) * size + at);
                    let share = S::splat(shares[r]);
                    let sums = [S::mul(x, share), S::mul(y, share)];
                    crate::activation::finish::<S>(sums, crate::Activation::None, to, size - at);
                }
            }
        }
    }
}

/// As many as the widest vector has, hidden and not and hidden.
static HIDDEN: [[f32; 16]; 3] = [[f32::NEG_INFINITY; 16], [0.0; 16], [f32::NEG_INFINITY; 16]];

/// Takes keys that are not seen out, by whole vectors: reading what was just written in parts would wait for it.
#[inline(always)]
pub(crate) unsafe fn hide<S: Simd>(scores: &mut [f32], seen: Range<usize>) {
    let (first, hidden) = (scores.as_mut_ptr(), HIDDEN.as_flattened().as_ptr());
    for at in (0..scores.len()).step_by(S::LANES) {
        if at >= seen.start && at + S::LANES <= seen.end {
            continue;
        }
        let before = seen.start.saturating_sub(at).min(S::LANES);
        let until = seen.end.saturating_sub(at).min(S::LANES);
        // SAFETY: the scores are whole vectors; the masks begin at least a vector before the end of `HIDDEN`.
        unsafe {
            let masks = S::add(S::load(hidden.add(16 - before)), S::load(hidden.add(32 - until)));
            S::store(first.add(at), S::add(S::load(first.add(at)), masks));
        }
    }
}

/// The most lanes of a vector.
const LANES_MAX: usize = 16;

/// Makes values into exponentials of their distance to the greatest, and gives their sum. Those that are more than 80 below
/// it are e⁻⁸⁰.
pub fn softmax_weights(level: Level, values: &mut Vec<f32>) -> f32 {
    let (count, padded) = (values.len(), values.len().next_multiple_of(LANES_MAX));
    values.resize(padded, f32::NEG_INFINITY);
    let sum = level.run(Weights { values });
    values.truncate(count);
    sum
}

struct Weights<'a> {
    values: &'a mut [f32],
}

impl Work for Weights<'_> {
    type Output = f32;

    #[inline(always)]
    unsafe fn run<S: Simd>(self) -> f32 {
        // SAFETY: the values are whole vectors.
        unsafe { exponentials::<S>(self.values) }
    }
}

/// The greatest of the scores.
#[inline(always)]
pub(crate) unsafe fn greatest<S: Simd>(scores: &[f32]) -> f32 {
    // SAFETY: the scores are whole vectors.
    unsafe {
        let mut most = S::splat(f32::NEG_INFINITY);
        for at in (0..scores.len()).step_by(S::LANES) {
            most = S::max(most, S::load(scores.as_ptr().add(at)));
        }
        S::greatest(most)
    }
}

/// Makes scores into exponentials of their distance to the greatest, in place, and gives their sum.
#[inline(always)]
pub(crate) unsafe fn exponentials<S: Simd>(scores: &mut [f32]) -> f32 {
    // SAFETY: the scores are whole vectors.
    unsafe {
        let most = S::splat(greatest::<S>(scores));
        let first = scores.as_mut_ptr();
        let mut sum = S::splat(0.0);
        for at in (0..scores.len()).step_by(S::LANES) {
            // Hidden keys end at e⁻⁸⁰, which is nothing beside the greatest, e⁰.
            let value = exp::<S>(S::sub(S::load(first.add(at)), most));
            sum = S::add(sum, value);
            S::store(first.add(at), value);
        }
        S::sum(sum)
    }
}
