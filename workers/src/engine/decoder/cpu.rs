//! A decoder on the processor: packed spans of sequences through the kernels, keys and values in pages.
//!
//! All threads take part in each product, since a step has few rows: each has a share of the columns.

use std::convert::Infallible;
use std::slice::ChunksExact;
use std::sync::Arc;

use kernels::{
    Activation, BLOCK, Buffer, Level, Norm, PagedAttention, PagedScratch, Pages, QuantizedRows, Rotary, Span, Team,
    gate,
};
use schemas::registry::Dtype;

use super::blueprint::{Dense, Experts, Function, Layer, Layers, Perceptron, Rotation, Shape, Source};
use super::executor::{Input, Watched};
use super::words::Words;
use crate::engine::LoadError;
use crate::engine::layers::{Affine, NormWeights};
use crate::engine::weights::{Weights, norm};

/// Inputs that share a scale in int8: decoders have a few that are a hundred times as large as others.
const GROUP: usize = 64;
const SAME: Activation = Activation::None;
/// Rows that one thread is done with sooner than several.
const ALONE: usize = 8;

pub struct Cpu {
    level: Level,
    team: Team,
    shape: Shape,
    words: Words,
    positions: Option<Vec<f32>>,
    layers: Vec<Ready>,
    norm: Norm,
    output: Weights,
    pages: Vec<Pages>,
    memory: Work,
    /// What is watched while it looks at memories.
    watched: Option<Watched>,
}

struct Ready {
    parts: Layer<Weights, Norm>,
    attention: PagedAttention,
    rotary: Option<Arc<Rotary>>,
}

/// What a step uses again.
#[derive(Default)]
struct Work {
    hidden: Buffer<f32>,
    narrow: Buffer<f32>,
    projected: Buffer<f32>,
    attended: Buffer<f32>,
    wide: Buffer<f32>,
    gated: Buffer<f32>,
    logits: Buffer<f32>,
    /// What the perceptron makes of rows.
    mixed: Buffer<f32>,
    /// Of the experts, their scores, the rows that one is asked, and its answers.
    scores: Buffer<f32>,
    asked: Buffer<f32>,
    answered: Buffer<f32>,
    quantized: QuantizedRows,
    attention: Vec<PagedScratch>,
}

impl Cpu {
    /// Makes a model ready to run on as many threads as this process may use: its share of a container counts.
    pub fn new(source: Source, dtype: Dtype, blocks: usize) -> Result<Self, LoadError> {
        let Source { shape, has_four_bits, words, positions, layers, norm: last, output } = source;
        let output = output.unwrap_or_else(|| Affine { weight: words.clone(), bias: None, inputs: shape.hidden });
        let made = |affine, may_round| match dtype {
            Dtype::Int4 => Weights::four_bits(affine, may_round, GROUP),
            Dtype::Int8 => Weights::quantized_in_groups(affine, GROUP),
            Dtype::F32 | Dtype::F16 | Dtype::Bf16 => Weights::exact(affine),
        };
        if matches!(dtype, Dtype::F16 | Dtype::Bf16) {
            return Err(LoadError::NeedsGpu(dtype));
        }
        Ok(Self {
            level: Level::best(),
            team: Team::new(std::thread::available_parallelism().map_or(1, usize::from)),
            pages: (0..layers.len()).map(|_| Pages::new(blocks, shape.key_heads, shape.head_size)).collect(),
            layers: ready(&shape, layers, |affine| made(affine, !has_four_bits))?,
            output: made(output, false),
            norm: norm(last),
            memory: Work::default(),
            watched: None,
            words: Words::new(words, dtype),
            shape,
            positions,
        })
    }

    pub fn level(&self) -> Level {
        self.level
    }

    /// Computes the inputs and gives, one after the other, the logits after the last token of those that want them.
    pub fn forward<'a>(&mut self, inputs: &[Input<'a>]) -> ChunksExact<'_, f32> {
        let mut end = 0;
        let span = |&Input { tokens, start, blocks, .. }: &Input<'a>| {
            let first = end;
            end += tokens.len();
            Span { blocks, start, rows: first..end }
        };
        let spans: Vec<Span<'a>> = inputs.iter().map(span).collect();
        self.embed(inputs);
        for index in 0..self.layers.len() {
            self.attend(index, &spans);
            self.cross(index, inputs);
            self.perceive(index);
        }
        self.score(inputs, &spans);
        self.memory.logits.chunks_exact(self.output.outputs())
    }

    fn embed(&mut self, inputs: &[Input<'_>]) {
        let Self { memory, shape, words, positions, .. } = self;
        let width = shape.hidden;
        let places = inputs.iter().flat_map(|input| input.tokens.iter().zip(input.start..));
        memory.hidden.resize(places.clone().count() * width);
        for (to, (token, position)) in memory.hidden.chunks_exact_mut(width).zip(places) {
            words.copy(*token as usize, to);
            if shape.word_scale != 1.0 {
                to.iter_mut().for_each(|value| *value *= shape.word_scale);
            }
            if let Some(positions) = positions {
                let own = &positions[position * width..][..width];
                to.iter_mut().zip(own).for_each(|(value, own)| *value += own);
            }
        }
    }

    /// Adds to each row what it sees of its sequence.
    fn attend(&mut self, index: usize, spans: &[Span<'_>]) {
        let Self { level, team, layers, pages, memory, shape, .. } = self;
        let (Ready { parts, attention, rotary }, pages) = (&layers[index], &mut pages[index]);
        let Work { hidden, narrow, projected, attended, quantized, attention: scratch, .. } = memory;
        let (on, count) = ((&*team, *level), hidden.len() / shape.hidden);
        normed(on, &parts.norm, hidden, narrow, shape.hidden);
        let width = parts.projection.outputs();
        projected.resize(count * width);
        parts.projection.forward(Some(team), *level, narrow, projected, SAME, quantized);
        let (mixed, keys) = (shape.heads * shape.head_size, shape.key_heads * shape.head_size);
        let positions: Vec<usize> = spans.iter().flat_map(|span| span.start..span.start + span.rows.len()).collect();
        each_row(team, projected, width, |first, rows| {
            for (row, position) in rows.chunks_exact_mut(width).zip(&positions[first..]) {
                let (queries, rest) = row.split_at_mut(mixed);
                if let Some([query_norm, key_norm]) = &parts.head_norms {
                    query_norm.apply(*level, queries);
                    key_norm.apply(*level, &mut rest[..keys]);
                }
                if let Some(rotary) = rotary {
                    rotary.turn(queries, *position);
                    rotary.turn(&mut rest[..keys], *position);
                }
            }
        });
        for span in spans {
            for (row, position) in span.rows.clone().zip(span.start..) {
                let (_, rest) = projected[row * width..(row + 1) * width].split_at(mixed);
                pages.write(span.blocks[position / BLOCK], position % BLOCK, &rest[..keys], &rest[keys..]);
            }
        }
        attended.resize(count * mixed);
        attention.forward(team, *level, pages, spans, projected, width, attended, scratch);
        parts.output.forward(Some(team), *level, attended, narrow, SAME, quantized);
        add(on, parts.output_norm.as_ref(), hidden, narrow, shape.hidden);
    }

    /// Adds to each row what it sees of its memory, where the model has such.
    fn cross(&mut self, index: usize, inputs: &[Input<'_>]) {
        let Self { level, team, layers, pages, memory, shape, watched, .. } = self;
        let Ready { parts, attention, .. } = &layers[index];
        let Some(cross) = &parts.cross else { return };
        let Work { hidden, narrow, projected, attended, quantized, attention: scratch, .. } = memory;
        let on = (&*team, *level);
        normed(on, &cross.norm, hidden, narrow, shape.hidden);
        let width = cross.query.outputs();
        projected.resize(hidden.len() / shape.hidden * width);
        cross.query.forward(Some(team), *level, narrow, projected, SAME, quantized);
        // Each row sees the whole of its memory, as the last token of a sequence sees all.
        let memories = inputs.iter().flat_map(|input| std::iter::repeat_n(input.memory, input.tokens.len()));
        let spans: Vec<Span<'_>> = memories
            .enumerate()
            .map(|(row, memory)| Span { blocks: memory.blocks, start: memory.rows - 1, rows: row..row + 1 })
            .collect();
        if let (Some(watched), [input]) = (watched, inputs) {
            watched.see(index, projected, shape, &pages[index], input.memory.blocks);
        }
        attended.resize(projected.len());
        attention.forward(team, *level, &pages[index], &spans, projected, width, attended, scratch);
        cross.output.forward(Some(team), *level, attended, narrow, SAME, quantized);
        add(on, None, hidden, narrow, shape.hidden);
    }

    /// Computes one input and notes where heads look.
    pub fn watch(&mut self, input: Input<'_>, watched: Watched) -> Watched {
        self.watched = Some(watched);
        let _ = self.forward(&[input]);
        self.watched.take().expect("it was put there")
    }

    /// Keeps rows, `[count, hidden]`, as what sequences attend to beside themselves.
    pub fn remember(&mut self, rows: &[f32], blocks: &[u32]) {
        let Self { level, team, layers, pages, memory, shape, .. } = self;
        let keys = shape.key_heads * shape.head_size;
        for (Ready { parts, .. }, pages) in layers.iter().zip(pages) {
            let Some(cross) = &parts.cross else { continue };
            memory.projected.resize(rows.len() / shape.hidden * 2 * keys);
            cross.memory.forward(Some(team), *level, rows, &mut memory.projected, SAME, &mut memory.quantized);
            for (position, row) in memory.projected.chunks_exact(2 * keys).enumerate() {
                pages.write(blocks[position / BLOCK], position % BLOCK, &row[..keys], &row[keys..]);
            }
        }
    }

    /// Adds to each row what the perceptron makes of it.
    fn perceive(&mut self, index: usize) {
        let Self { level, team, layers, memory, shape, .. } = self;
        let parts = &layers[index].parts;
        let on = (&*team, *level);
        normed(on, &parts.perceptron_norm, &memory.hidden, &mut memory.narrow, shape.hidden);
        match &parts.perceptron {
            Perceptron::Dense(dense) => {
                let Work { narrow, wide, gated, quantized, mixed, .. } = memory;
                mixed.resize(narrow.len());
                apply(on, dense, narrow, mixed, (wide, gated, quantized));
            }
            Perceptron::Experts(experts) => ask(on, experts, memory, shape.hidden),
        }
        add(on, parts.down_norm.as_ref(), &mut memory.hidden, &mut memory.mixed, shape.hidden);
    }

    fn score(&mut self, inputs: &[Input<'_>], spans: &[Span<'_>]) {
        let width = self.shape.hidden;
        let Work { hidden, narrow, logits, quantized, .. } = &mut self.memory;
        let wanted: Vec<usize> =
            inputs.iter().zip(spans).flat_map(|(input, span)| span.rows.end - input.wanted..span.rows.end).collect();
        narrow.resize(wanted.len() * width);
        for (to, row) in narrow.chunks_exact_mut(width).zip(&wanted) {
            to.copy_from_slice(&hidden[row * width..(row + 1) * width]);
        }
        self.norm.apply(self.level, narrow);
        logits.resize(wanted.len() * self.output.outputs());
        if !wanted.is_empty() {
            self.output.forward(Some(&self.team), self.level, narrow, logits, SAME, quantized);
            if let Some(cap) = self.shape.logit_cap {
                logits.iter_mut().for_each(|logit| *logit = cap * (*logit / cap).tanh());
            }
        }
    }
}

impl Watched {
    fn see(&mut self, layer: usize, queries: &[f32], shape: &Shape, pages: &Pages, blocks: &[u32]) {
        let (size, width) = (shape.head_size, shape.heads * shape.head_size);
        for ((_, head), weights) in self.heads.iter().zip(&mut self.weights).filter(|((of, _), _)| *of == layer) {
            let key = |row: usize| pages.key(blocks[row / BLOCK], row % BLOCK, *head);
            let keys: Vec<f32> = (0..self.rows).flat_map(key).collect();
            for query in queries.chunks_exact(width).map(|row| &row[head * size..(head + 1) * size]) {
                let score = |key: &[f32]| -> f32 { key.iter().zip(query).map(|(key, query)| key * query).sum() };
                let scores: Vec<f32> = keys.chunks_exact(size).map(|key| score(key) * shape.attention_scale).collect();
                let most = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                let exponentials: Vec<f32> = scores.iter().map(|score| (score - most).exp()).collect();
                let sum: f32 = exponentials.iter().sum();
                weights.extend(exponentials.iter().map(|value| value / sum));
            }
        }
    }
}

/// All layers of a model, with what they share.
fn ready(shape: &Shape, layers: Layers, make: impl Fn(Affine) -> Weights) -> Result<Vec<Ready>, LoadError> {
    // Layers that turn alike share a table.
    let mut turns: Vec<(Rotation, Arc<Rotary>)> = Vec::new();
    let mut turn = |rotation: &Rotation| {
        let known = turns.iter().find(|(other, _)| other == rotation).map(|(_, rotary)| Arc::clone(rotary));
        known.unwrap_or_else(|| {
            let rotary = Arc::new(Rotary::of(&rotation.frequencies, shape.context, rotation.scale));
            turns.push((rotation.clone(), Arc::clone(&rotary)));
            rotary
        })
    };
    let mut each = |mut layer: Layer<Affine, NormWeights>| Ready {
        attention: PagedAttention {
            heads: shape.heads,
            kv_heads: shape.key_heads,
            size: shape.head_size,
            scale: shape.attention_scale,
            window: layer.window,
            cap: shape.attention_cap,
            sinks: layer.sinks.take(),
        },
        rotary: layer.rotation.as_ref().map(&mut turn),
        parts: made(layer, &make),
    };
    layers.map(|layer| layer.map(&mut each)).collect()
}

fn made(layer: Layer<Affine, NormWeights>, make: impl Fn(Affine) -> Weights) -> Layer<Weights, Norm> {
    let linear = |affine| Ok::<_, Infallible>(make(affine));
    match layer.try_map(linear, |weights| Ok(norm(weights)), |perceptron| perceptron.try_map(linear)) {
        Ok(layer) => layer,
        Err(never) => match never {},
    }
}

/// What a perceptron makes of rows.
fn apply(
    (team, level): (&Team, Level),
    dense: &Dense<Weights>,
    rows: &[f32],
    to: &mut [f32],
    (wide, gated, quantized): (&mut Buffer<f32>, &mut Buffer<f32>, &mut QuantizedRows),
) {
    let width = dense.up.outputs();
    let activation = if let Function::Plain(activation) = dense.function { activation } else { SAME };
    wide.resize(rows.len() / dense.up.inputs() * width);
    dense.up.forward(Some(team), level, rows, wide, activation, quantized);
    let wide = &**wide;
    let inner = match dense.function {
        Function::Plain(_) => wide,
        Function::Gated(_) | Function::Clamped { .. } => {
            gated.resize(wide.len() / 2);
            each_row(team, gated, width / 2, |first, rows| {
                let from = &wide[first * width..first * width + 2 * rows.len()];
                match dense.function {
                    Function::Clamped { alpha, limit } => clamp(from, rows, width / 2, (alpha, limit)),
                    Function::Gated(activation) | Function::Plain(activation) => {
                        gate(level, from, rows, width / 2, activation);
                    }
                }
            });
            &**gated
        }
    };
    dense.down.forward(Some(team), level, inner, to, SAME, quantized);
}

/// As [`Function::Clamped`] says.
fn clamp(from: &[f32], to: &mut [f32], width: usize, (alpha, limit): (f32, f32)) {
    for (from, to) in from.chunks_exact(2 * width).zip(to.chunks_exact_mut(width)) {
        let (gates, values) = from.split_at(width);
        for ((to, gate), value) in to.iter_mut().zip(gates).zip(values) {
            let gate = gate.min(limit);
            *to = gate / (1.0 + (-alpha * gate).exp()) * (value.clamp(-limit, limit) + 1.0);
        }
    }
}

/// What the experts of each row make of it, added up.
fn ask(on: (&Team, Level), experts: &Experts<Weights>, memory: &mut Work, width: usize) {
    let Work { narrow, mixed, wide, gated, quantized, scores, asked, answered, .. } = memory;
    scores.resize(narrow.len() / width * experts.experts.len());
    experts.router.forward(Some(on.0), on.1, narrow, scores, SAME, quantized);
    mixed.resize(narrow.len());
    mixed.fill(0.0);
    for (expert, rows) in experts.experts.iter().zip(experts.share_out(scores)) {
        if rows.is_empty() {
            continue;
        }
        asked.resize(rows.len() * width);
        answered.resize(rows.len() * width);
        for (to, (row, _)) in asked.chunks_exact_mut(width).zip(&rows) {
            to.copy_from_slice(&narrow[row * width..][..width]);
        }
        apply(on, expert, asked, answered, (wide, gated, quantized));
        for (answer, (row, weight)) in answered.chunks_exact(width).zip(&rows) {
            mixed[row * width..][..width].iter_mut().zip(answer).for_each(|(to, value)| *to += weight * value);
        }
    }
}

/// Rows to their norms.
fn normed((team, level): (&Team, Level), norm: &Norm, rows: &[f32], to: &mut Buffer<f32>, width: usize) {
    to.resize(rows.len());
    each_row(team, to, width, |first, to| {
        to.copy_from_slice(&rows[first * width..first * width + to.len()]);
        norm.apply(level, to);
    });
}

/// Adds rows to others, or their norms where there is one.
fn add((team, level): (&Team, Level), norm: Option<&Norm>, rows: &mut [f32], more: &mut [f32], width: usize) {
    if let Some(norm) = norm {
        each_row(team, more, width, |_, more| norm.apply(level, more));
    }
    each_row(team, rows, width, |first, rows| {
        let more = &more[first * width..first * width + rows.len()];
        rows.iter_mut().zip(more).for_each(|(value, more)| *value += more);
    });
}

fn each_row(team: &Team, rows: &mut [f32], width: usize, each: impl Fn(usize, &mut [f32]) + Sync) {
    match rows.len() / width < ALONE {
        true => each(0, rows),
        false => team.rows(rows, width, each),
    }
}
