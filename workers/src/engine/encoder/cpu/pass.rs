//! One chunk through all layers, on one thread or on several that divide its rows.

use std::ops::Range;

use kernels::{Activation, Buffer, QuantizedRows, Scratch, gate};

use super::{Body, Ready};

/// Memory of a pass. It is kept for the next one.
#[derive(Debug, Default)]
pub struct Workspace {
    hidden: Buffer<f32>,
    /// Queries, keys and values: of this layer, and of the next as it is made.
    projected: [Buffer<f32>; 2],
    parts: Vec<Own>,
}

/// Memory of one part of the rows.
#[derive(Debug, Default)]
struct Own {
    narrow: Buffer<f32>,
    attended: Buffer<f32>,
    wide: Buffer<f32>,
    gated: Buffer<f32>,
    quantized: QuantizedRows,
    attention: Scratch,
}

/// A token of a sequence.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    pub sequence: usize,
    pub position: usize,
}

/// Rows whose perceptron is computed together, so that what is between its layers stays in a core's cache.
const BLOCK_ROWS: usize = 128;

pub struct Pass<'a> {
    model: &'a Body,
    /// The rows of each sequence.
    sequences: Vec<Range<usize>>,
    places: Vec<Place>,
    parts: Vec<Range<usize>>,
    space: &'a mut Workspace,
}

impl<'a> Pass<'a> {
    pub fn new(model: &'a Body, lengths: &[usize], parts: usize, space: &'a mut Workspace) -> Self {
        let of = |(sequence, length): (usize, &usize)| (0..*length).map(move |position| Place { sequence, position });
        let places: Vec<Place> = lengths.iter().enumerate().flat_map(of).collect();
        let mut end = 0;
        let sequences = lengths.iter().map(|length| {
            let start = end;
            end += length;
            start..end
        });
        let sequences = sequences.collect();
        let rows = places.len();
        let edge = |part: usize| rows * part / parts;
        let parts: Vec<_> = (0..parts).map(|part| edge(part)..edge(part + 1)).collect();
        space.hidden.resize(rows * model.hidden);
        let width = model.layers.first().map_or(0, |layer| layer.attention.width());
        space.projected.iter_mut().for_each(|buffer| buffer.resize(rows * width));
        space.parts.resize_with(parts.len().max(space.parts.len()), Own::default);
        Self { model, sequences, places, parts, space }
    }

    pub fn run(&mut self, embed: impl Fn(Place, &mut [f32]) + Sync) {
        let Self { model, sequences, places, parts, space } = self;
        let Workspace { hidden, projected, parts: owns } = &mut **space;
        let [mut current, mut next] = projected.each_mut();
        let width = model.layers[0].attention.width();
        let shared = Shared { model, sequences, places };
        in_parts(parts, owns, (hidden, model.hidden), (current, width), |mut part| {
            let rows = part.hidden.chunks_exact_mut(model.hidden);
            places[part.rows.clone()].iter().zip(rows).for_each(|(place, to)| embed(*place, to));
            shared.project(&model.layers[0], &mut part);
        });
        for (index, layer) in model.layers.iter().enumerate() {
            in_parts(parts, owns, (hidden, model.hidden), (next, width), |mut part| {
                shared.attend(layer, current, &mut part);
                shared.perceive(layer, &mut part);
                match model.layers.get(index + 1) {
                    Some(following) => shared.project(following, &mut part),
                    None => model.final_norm.iter().for_each(|norm| norm.apply(model.level, part.hidden)),
                }
            });
            std::mem::swap(&mut current, &mut next);
        }
    }

    /// The vectors of each sequence's tokens.
    pub fn sequences(&self) -> impl Iterator<Item = &[f32]> {
        let hidden = self.model.hidden;
        self.sequences.iter().map(move |rows| &self.space.hidden[rows.start * hidden..rows.end * hidden])
    }
}

/// What one thread works on.
struct Part<'a> {
    rows: Range<usize>,
    hidden: &'a mut [f32],
    projected: &'a mut [f32],
    own: &'a mut Own,
}

/// Divides two matrices by rows and does the work for each part, in parallel where there are several.
fn in_parts<'a>(
    parts: &[Range<usize>],
    owns: &'a mut [Own],
    (mut hidden, hidden_width): (&'a mut [f32], usize),
    (mut projected, projected_width): (&'a mut [f32], usize),
    work: impl Fn(Part<'_>) + Sync,
) {
    let mut divided = Vec::with_capacity(parts.len());
    for (rows, own) in parts.iter().zip(owns) {
        let (mine, rest) = hidden.split_at_mut(rows.len() * hidden_width);
        let (made, unmade) = projected.split_at_mut(rows.len() * projected_width);
        divided.push(Part { rows: rows.clone(), hidden: mine, projected: made, own });
        (hidden, projected) = (rest, unmade);
    }
    match divided.len() {
        1 => divided.into_iter().for_each(work),
        _ => rayon::scope(|scope| divided.into_iter().for_each(|part| scope.spawn(|_| work(part)))),
    }
}

/// What all parts see.
struct Shared<'a> {
    model: &'a Body,
    sequences: &'a [Range<usize>],
    places: &'a [Place],
}

impl Shared<'_> {
    /// Queries, keys and values, with their positions.
    fn project(&self, layer: &Ready, part: &mut Part<'_>) {
        let level = self.model.level;
        let Own { narrow, quantized, .. } = &mut *part.own;
        let input = match &layer.parts.norm {
            Some(norm) => {
                narrow.resize(part.hidden.len());
                narrow.copy_from_slice(part.hidden);
                norm.apply(level, narrow);
                &**narrow
            }
            None => &*part.hidden,
        };
        layer.parts.projection.forward(None, level, input, part.projected, Activation::None, quantized);
        if layer.parts.head_norms.is_none() && layer.rotary.is_none() {
            return;
        }
        let (heads, kv_heads, size) = (layer.attention.heads, layer.attention.kv_heads, layer.attention.size);
        let rows = part.projected.chunks_exact_mut(layer.attention.width());
        for (place, row) in self.places[part.rows.clone()].iter().zip(rows) {
            let (queries, rest) = row.split_at_mut(heads * size);
            let keys = &mut rest[..kv_heads * size];
            if let Some([query_norm, key_norm]) = &layer.parts.head_norms {
                query_norm.apply(level, queries);
                key_norm.apply(level, keys);
            }
            if let Some(rotary) = &layer.rotary {
                rotary.turn(queries, place.position);
                rotary.turn(keys, place.position);
            }
        }
    }

    /// Adds to each row what it sees of its sequence.
    fn attend(&self, layer: &Ready, projected: &[f32], part: &mut Part<'_>) {
        let Ready { parts, attention, .. } = layer;
        let (width, mixed) = (attention.width(), attention.heads * attention.size);
        let Own { narrow, attended, quantized, attention: scratch, .. } = &mut *part.own;
        attended.resize(part.rows.len() * mixed);
        for sequence in self.sequences {
            let mine = sequence.start.max(part.rows.start)..sequence.end.min(part.rows.end);
            if mine.is_empty() {
                continue;
            }
            let to = &mut attended[(mine.start - part.rows.start) * mixed..(mine.end - part.rows.start) * mixed];
            let queries = mine.start - sequence.start..mine.end - sequence.start;
            let sequence = &projected[sequence.start * width..sequence.end * width];
            attention.forward(self.model.level, sequence, queries, to, scratch);
        }
        narrow.resize(part.hidden.len());
        parts.output.forward(None, self.model.level, attended, narrow, Activation::None, quantized);
        self.add(&parts.output_norm, part.hidden, narrow);
    }

    /// Adds to each row what the perceptron makes of it.
    fn perceive(&self, layer: &Ready, part: &mut Part<'_>) {
        for rows in part.hidden.chunks_mut(BLOCK_ROWS * self.model.hidden) {
            self.perceive_block(layer, rows, part.own);
        }
    }

    fn perceive_block(&self, layer: &Ready, hidden: &mut [f32], own: &mut Own) {
        let (level, parts, rows) = (self.model.level, &layer.parts, hidden.len() / self.model.hidden);
        let Own { narrow, wide, gated, quantized, .. } = own;
        narrow.resize(hidden.len());
        let input = match &parts.perceptron_norm {
            Some(norm) => {
                narrow.copy_from_slice(hidden);
                norm.apply(level, narrow);
                &**narrow
            }
            None => &*hidden,
        };
        let width = parts.up.outputs();
        wide.resize(rows * width);
        let inner = match parts.gated {
            true => {
                parts.up.forward(None, level, input, wide, Activation::None, quantized);
                gated.resize(rows * width / 2);
                gate(level, wide, gated, width / 2, parts.activation);
                &**gated
            }
            false => {
                parts.up.forward(None, level, input, wide, parts.activation, quantized);
                &**wide
            }
        };
        parts.down.forward(None, level, inner, narrow, Activation::None, quantized);
        self.add(&parts.down_norm, hidden, narrow);
    }

    fn add(&self, norm: &Option<kernels::Norm>, hidden: &mut [f32], more: &[f32]) {
        match norm {
            Some(norm) => norm.add_and_apply(self.model.level, hidden, more),
            None => hidden.iter_mut().zip(more).for_each(|(value, more)| *value += more),
        }
    }
}
