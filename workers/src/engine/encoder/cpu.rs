//! An encoder on the processor: packed sequences through the kernels.
//!
//! The tokens of a batch are the rows of one matrix, one sequence after the other, so that nothing is computed for
//! padding. A batch is cut into chunks whose activations fit in a core's cache, and each thread takes whole chunks by
//! itself. Only where one sequence is too large a share of the batch for that, all threads take rows of one chunk: then
//! they meet once in each layer, since attention alone needs the rows of others.
//!
//! For int8 a model of texts is made twice. The first one computes in f32 and watches how large the inputs of its linear layers become
//! for texts of any words; with that known, the second one loses little.

mod pass;

use std::sync::{Arc, Mutex};

use kernels::{Attention, Level, Linear, Norm, Rotary};
use rayon::prelude::*;
use schemas::registry::Dtype;

pub use self::pass::Place;
use self::pass::{Pass, Workspace};
use super::Input;
use super::blueprint::{Embedding, Head, Layer, Shape};
use super::family::Model;
use super::pooling::pool;
use crate::engine::LoadError;
use crate::engine::layers::{Affine, NormWeights};
use crate::engine::progress::Progress;
use crate::engine::weights::{Weights, exact, norm};

/// Tokens of a chunk: its activations fit in a second-level cache of 1 to 2 MiB.
const CHUNK_TOKENS: usize = 128;
/// What int8 is prepared with.
const WATCHED_TEXTS: usize = 8;
const WATCHED_TOKENS: usize = 64;
/// Rows that are not divided between threads.
const ROWS_MIN: usize = 4;

#[derive(Debug)]
pub struct Cpu {
    body: Body,
    embedding: Embedding<Norm>,
    head: Head<Linear, Norm>,
}

/// The layers of a model, whatever it is that goes into them.
#[derive(Debug)]
pub struct Body {
    level: Level,
    threads: rayon::ThreadPool,
    hidden: usize,
    layers: Vec<Ready>,
    final_norm: Option<Norm>,
    /// Memory of passes that are over.
    spare: Mutex<Vec<Workspace>>,
}

/// Layers as their files tell them.
pub trait Layers {
    fn shape(&self) -> &Shape;
    fn count(&self) -> usize;
    fn layer(&self, index: usize) -> Result<Layer<Affine, NormWeights>, LoadError>;
    fn final_norm(&self) -> Result<Option<NormWeights>, LoadError>;
}

/// A layer with all it needs.
#[derive(Debug)]
struct Ready {
    parts: Layer<Weights, Norm>,
    attention: Attention,
    rotary: Option<Arc<Rotary>>,
}

impl Cpu {
    /// Makes a model ready to run on as many threads as this process may use: its share of a container counts. `frame`
    /// are the special tokens around a text.
    pub fn new(model: Model, head: Head<Affine, NormWeights>, dtype: Dtype, frame: &[u32]) -> Result<Self, LoadError> {
        let Embedding { words, positions, types, norm: embedding_norm } = model.embedding.clone();
        let embedding = Embedding { words, positions, types, norm: embedding_norm.map(norm) };
        let body = match dtype {
            Dtype::F32 => Body::new(&model, |_| Weights::exact)?,
            Dtype::F16 | Dtype::Bf16 => return Err(LoadError::NeedsGpu(dtype)),
            Dtype::Int4 => return Err(LoadError::NeedsDecoder(dtype)),
            Dtype::Int8 => {
                let watched = Body::new(&model, |_| Weights::watched)?;
                let texts = any_texts(model.vocabulary(), model.shape.positions, frame);
                let inputs: Vec<_> = texts.iter().map(|tokens| Input { tokens, pair_at: None }).collect();
                run(&watched, &embedding, &inputs, |_| ());
                Body::new(&model, |index| {
                    let mut sizes = watched.layers[index].parts.linears().map(Weights::sizes).into_iter();
                    move |affine| Weights::quantized(affine, &sizes.next().expect("as many as are asked for"))
                })?
            }
        };
        Ok(Self { body, embedding, head: head.map(exact, norm) })
    }

    /// What the kernels run on.
    pub fn level(&self) -> Level {
        self.body.level
    }

    /// One vector for each input. Inputs are not empty and no longer than the model allows.
    pub fn run(&self, inputs: &[Input<'_>]) -> Vec<Vec<f32>> {
        run(&self.body, &self.embedding, inputs, |rows| pool(self.body.level, &self.head, rows, self.body.hidden))
    }
}

/// Texts of any words.
fn any_texts(words: usize, positions: usize, frame: &[u32]) -> Vec<Vec<u32>> {
    let words = u32::try_from(words).expect("token ids are of 32 bits");
    let length = WATCHED_TOKENS.min(positions).max(frame.len() + 1);
    let mut random = fastrand::Rng::with_seed(0);
    let (begin, end) = frame.split_at(frame.len().div_ceil(2));
    let mut text = || {
        let word = |_| random.u32(0..words);
        let inner: Vec<u32> = (0..length - frame.len()).map(word).collect();
        [begin, &inner, end].concat()
    };
    (0..WATCHED_TEXTS).map(|_| text()).collect()
}

/// Texts through all layers.
fn run<T: Send>(
    body: &Body,
    embedding: &Embedding<Norm>,
    inputs: &[Input<'_>],
    made: impl Fn(&[f32]) -> T + Sync,
) -> Vec<T> {
    let lengths: Vec<usize> = inputs.iter().map(|input| input.tokens.len()).collect();
    let embed = |Place { sequence, position }: Place, to: &mut [f32]| {
        let Input { tokens, pair_at } = &inputs[sequence];
        let width = to.len();
        to.copy_from_slice(&embedding.words[tokens[position] as usize * width..][..width]);
        let mut add = |from: &[f32]| to.iter_mut().zip(from).for_each(|(to, from)| *to += from);
        if let Some(positions) = &embedding.positions {
            add(&positions[position * width..][..width]);
        }
        if let Some(types) = &embedding.types {
            add(&types[usize::from(pair_at.is_some_and(|at| position >= at))]);
        }
        embedding.norm.iter().for_each(|norm| norm.apply(body.level, to));
    };
    body.run(&lengths, embed, made)
}

impl Body {
    /// `make` gives for each layer what makes its linear layers.
    pub fn new<F: FnMut(Affine) -> Weights>(
        model: &impl Layers,
        make: impl FnMut(usize) -> F,
    ) -> Result<Self, LoadError> {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let threads =
            rayon::ThreadPoolBuilder::new().num_threads(threads).thread_name(|_| "encoder".to_owned()).build();
        Ok(Self {
            level: Level::best(),
            threads: threads.map_err(LoadError::Threads)?,
            hidden: model.shape().hidden,
            layers: layers(model, make)?,
            final_norm: model.final_norm()?.map(norm),
            spare: Mutex::default(),
        })
    }

    pub fn level(&self) -> Level {
        self.level
    }

    /// As many sequences as fit on the threads side by side.
    pub fn threads(&self) -> usize {
        self.threads.current_num_threads()
    }

    /// Does something on these threads.
    pub fn install<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.threads.install(work)
    }

    /// Runs sequences of these lengths, none of them empty. `embed` gives the row of a place, `made` is what becomes of
    /// a sequence's rows in the end.
    pub fn run<T: Send>(
        &self,
        lengths: &[usize],
        embed: impl Fn(Place, &mut [f32]) + Sync,
        made: impl Fn(&[f32]) -> T + Sync,
    ) -> Vec<T> {
        let total: usize = lengths.iter().sum();
        let longest = lengths.iter().copied().max().unwrap_or(0);
        let threads = self.threads.current_num_threads();
        if threads > 1 && longest > total / threads {
            let parts = threads.min(total.div_ceil(ROWS_MIN));
            return self.threads.install(|| self.pass(lengths, 0, parts, &embed, &made));
        }
        // The last ones are small, so that no thread waits long for another.
        let most = CHUNK_TOKENS.min(total / threads / 2).max(longest);
        let chunks = chunks(lengths, most);
        let one = |(first, chunk): (usize, &[usize])| self.pass(chunk, first, 1, &embed, &made);
        let results = self.threads.install(|| chunks.into_par_iter().map(one).collect::<Vec<_>>());
        results.into_iter().flatten().collect()
    }

    fn pass<T: Send>(
        &self,
        lengths: &[usize],
        first: usize,
        parts: usize,
        embed: &(impl Fn(Place, &mut [f32]) + Sync),
        made: &(impl Fn(&[f32]) -> T + Sync),
    ) -> Vec<T> {
        let spare = self.spare.lock().expect("nothing panics while it holds this").pop();
        let mut workspace = spare.unwrap_or_default();
        let mut pass = Pass::new(self, lengths, parts, &mut workspace);
        pass.run(|Place { sequence, position }, to| embed(Place { sequence: first + sequence, position }, to));
        let results = pass.sequences().map(made).collect();
        self.spare.lock().expect("nothing panics while it holds this").push(workspace);
        results
    }
}

/// All layers of a model. `make` gives for each what makes its linear layers.
fn layers<F: FnMut(Affine) -> Weights>(
    model: &impl Layers,
    mut make: impl FnMut(usize) -> F,
) -> Result<Vec<Ready>, LoadError> {
    let shape = model.shape();
    // Layers share tables of rotary positions that have the same base.
    let mut turns: Vec<(f64, Arc<Rotary>)> = Vec::new();
    let mut turn = |base| {
        let known = turns.iter().find(|(other, _)| *other == base).map(|(_, rotary)| Arc::clone(rotary));
        known.unwrap_or_else(|| {
            let rotary = Arc::new(Rotary::new(shape.size, shape.positions, base));
            turns.push((base, Arc::clone(&rotary)));
            rotary
        })
    };
    let (mut layers, mut progress) = (Vec::with_capacity(model.count()), Progress::of(model.count()));
    for index in 0..model.count() {
        progress.tell(index);
        let layer = model.layer(index)?;
        let attention = Attention {
            heads: shape.heads,
            kv_heads: shape.kv_heads,
            size: shape.size,
            scale: 1.0 / (shape.size as f32).sqrt(),
            causal: shape.causal,
            window: layer.window,
            distance_bias: shape.distance_bias.clone(),
        };
        let rotary = layer.rotary.map(&mut turn);
        layers.push(Ready { parts: layer.map(make(index), norm), attention, rotary });
    }
    Ok(layers)
}

/// Lengths in their order, in groups of at most so many tokens, each with the number of its first.
fn chunks(lengths: &[usize], tokens_max: usize) -> Vec<(usize, &[usize])> {
    let (mut chunks, mut first) = (Vec::new(), 0);
    while first < lengths.len() {
        let mut tokens = 0;
        let fits = |length: &&usize| {
            tokens += **length;
            tokens <= tokens_max
        };
        let count = lengths[first..].iter().take_while(fits).count().max(1);
        chunks.push((first, &lengths[first..first + count]));
        first += count;
    }
    chunks
}
