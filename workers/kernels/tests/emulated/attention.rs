//! Attention of decoders beside what plain code makes of it.

use candle_core::{DType, Device, Tensor};
use kernels::BLOCK;
use kernels::cuda::Numbers;
use kernels::cuda::decoder::{Heads, Pages, Plan, Sight, Span, Turn};

/// Tokens that a sequence has before a step, and those of the step.
type Piece = (usize, usize);

#[derive(Clone, Copy, Debug)]
struct Case {
    heads: Heads,
    window: Option<usize>,
    has_sinks: bool,
}

impl Case {
    fn new(heads: usize, key_heads: usize, size: usize, dtype: DType) -> Self {
        let heads = Heads { heads, key_heads, size, dtype, scale: (size as f32).powf(-0.5), cap: None };
        Self { heads, window: None, has_sinks: false }
    }

    fn width(&self) -> usize {
        (self.heads.heads + 2 * self.heads.key_heads) * self.heads.size
    }

    fn sinks(&self) -> Option<Vec<f32>> {
        self.has_sinks.then(|| (0..self.heads.heads).map(|head| head as f32 / 4.0 - 0.5).collect())
    }
}

/// Rows of projections, some below and some above zero.
fn projected(rows: usize, case: &Case, salt: usize) -> Tensor {
    let value = |at: usize| ((at * 7919 + at / 97 * 31 + salt * 613) % 1009) as f32 / 400.0 - 1.25;
    let values: Vec<f32> = (0..rows * case.width()).map(value).collect();
    let rows = Tensor::from_vec(values, (rows, case.width()), &Device::Cpu);
    rows.unwrap().to_dtype(case.heads.dtype).unwrap()
}

fn floats(tensor: &Tensor) -> Vec<Vec<f32>> {
    tensor.to_dtype(DType::F32).unwrap().to_vec2().unwrap()
}

/// What a query at the end of some tokens sees.
fn expected(tokens: &[Vec<f32>], head: usize, case: &Case) -> Vec<f32> {
    let Heads { heads, key_heads, size, scale, cap, .. } = case.heads;
    let part = |token: &'_ [f32], at: usize| token[at * size..(at + 1) * size].to_vec();
    let key_head = head / (heads / key_heads);
    let query = part(tokens.last().unwrap(), head);
    let seen = &tokens[case.window.map_or(0, |window| tokens.len().saturating_sub(window))..];
    let scores = seen.iter().map(|token| {
        let product: f32 = part(token, heads + key_head).iter().zip(&query).map(|(a, b)| a * b).sum();
        cap.map_or(product * scale, |cap| (product * scale / cap).tanh() * cap)
    });
    let scores = scores.collect::<Vec<_>>();
    let sink = case.sinks().map(|sinks| sinks[head]);
    let most = scores.iter().copied().chain(sink).fold(f32::NEG_INFINITY, f32::max);
    let weights: Vec<f32> = scores.iter().map(|score| (score - most).exp()).collect();
    let total = weights.iter().sum::<f32>() + sink.map_or(0.0, |sink| (sink - most).exp());
    let mut sums = vec![0.0; size];
    for (token, weight) in seen.iter().zip(&weights) {
        let values = part(token, heads + key_heads + key_head);
        sums.iter_mut().zip(values).for_each(|(sum, value)| *sum += weight * value / total);
    }
    sums
}

/// The pieces of several sequences in one step, after what they had before, in blocks that others had used.
fn check(case: Case, pieces: &[Piece]) {
    let Case { heads, .. } = case;
    let each = pieces.iter().map(|(before, count)| (before + count).div_ceil(BLOCK)).max().unwrap();
    // Blocks of a sequence are not side by side.
    let blocks = |index: usize| (0..each).map(|at| (at * pieces.len() + index) as u32).collect::<Vec<_>>();
    let pages = Pages::new(each * pieces.len(), &heads, &Device::Cpu).unwrap();
    let mut numbers = Numbers::new(1, &Device::Cpu).unwrap();
    let turn = Turn { bias: None, norms: None, angles: None };
    let sinks = case.sinks().map(|sinks| Tensor::new(sinks, &Device::Cpu).unwrap());
    let sight = Sight { window: case.window, sinks: sinks.as_ref() };
    let mut attend = |spans: &[Span<'_>], rows: &Tensor| {
        let plan = Plan::new(spans, &heads, &mut numbers, &Device::Cpu).unwrap();
        floats(&pages.attend(&plan, rows, &heads, turn, sight).unwrap())
    };
    let (mut rows, mut sequences) = (Vec::new(), Vec::new());
    for (index, (before, count)) in pieces.iter().enumerate() {
        let blocks = blocks(index);
        let room = each * BLOCK;
        let others = (projected(room, &case, 99) * 50.0).unwrap();
        attend(&[Span { tokens: &vec![0; room], start: 0, blocks: &blocks }], &others);
        let all = projected(before + count, &case, index);
        if *before > 0 {
            let earlier = all.narrow(0, 0, *before).unwrap();
            attend(&[Span { tokens: &vec![0; *before], start: 0, blocks: &blocks }], &earlier);
        }
        rows.push(all.narrow(0, *before, *count).unwrap());
        sequences.push((floats(&all), blocks));
    }
    let tokens = vec![0; pieces.iter().map(|(_, count)| *count).max().unwrap()];
    let spans = pieces.iter().zip(&sequences);
    let spans: Vec<_> =
        spans.map(|((start, count), (_, blocks))| Span { tokens: &tokens[..*count], start: *start, blocks }).collect();
    let ours = attend(&spans, &Tensor::cat(&rows, 0).unwrap());
    let mut ours = ours.iter();
    let near = if heads.dtype == DType::F32 { 1e-4 } else { 0.02 };
    for ((before, count), (all, _)) in pieces.iter().zip(&sequences) {
        for token in *before..before + count {
            let row = ours.next().unwrap();
            for head in 0..heads.heads {
                let theirs = expected(&all[..=token], head, &case);
                let own = &row[head * heads.size..(head + 1) * heads.size];
                let apart = own
                    .iter()
                    .zip(&theirs)
                    .map(|(a, b)| (a - b).abs())
                    .fold(0.0, |most, own| if own <= most { most } else { own });
                assert!(apart < near, "{case:?}, {pieces:?}: {apart} apart at token {token}, head {head}");
            }
        }
    }
}

const TYPES: [DType; 3] = [DType::F32, DType::F16, DType::BF16];

#[test]
fn heads_of_any_size_and_group_attend_as_plain_code_does() {
    for dtype in TYPES {
        for (heads, key_heads, size) in [(4, 4, 64), (6, 2, 80), (5, 1, 96), (8, 2, 128), (2, 1, 200), (4, 2, 256)] {
            check(Case::new(heads, key_heads, size, dtype), &[(0, 37), (33, 1), (20, 70)]);
        }
    }
}

#[test]
fn more_heads_than_a_tile_has_room_for_take_several() {
    for dtype in TYPES {
        check(Case::new(70, 1, 16, dtype), &[(5, 3), (0, 2)]);
    }
}

#[test]
fn windows_caps_and_sinks_count() {
    for dtype in TYPES {
        let plain = Case::new(4, 2, 64, dtype);
        let pieces = [(0, 40), (90, 1), (61, 66)];
        check(Case { window: Some(35), ..plain }, &pieces);
        check(Case { has_sinks: true, ..plain }, &pieces);
        check(Case { heads: Heads { cap: Some(0.7), ..plain.heads }, ..plain }, &pieces);
    }
}

#[test]
fn blocks_that_are_shared_out_are_put_together() {
    for dtype in TYPES {
        let plain = Case::new(2, 1, 64, dtype);
        for piece in [(700, 1), (600, 5), (255, 1)] {
            check(Case { has_sinks: true, ..plain }, &[piece]);
            check(Case { window: Some(300), ..plain }, &[piece]);
        }
    }
}
