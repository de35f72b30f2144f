//! An encoder on the processor: packed sequences through the kernels.
//!
//! The tokens of a batch are the rows of one matrix, one sequence after the other, so that nothing is computed for
//! padding. A batch is cut into chunks whose activations fit in a core's cache, and each thread takes whole chunks by
//! itself. Only where one sequence is too large a share of the batch for that, all threads take rows of one chunk: then
//! they meet once in each layer, since attention alone needs the rows of others.
//!
//! For int8 it is made twice. The first one computes in f32 and watches how large the inputs of its linear layers become
//! for texts of any words; with that known, the second one loses little.

mod pass;

use std::sync::{Arc, Mutex};

use kernels::{Attention, Level, Linear, Norm, Rotary};
use rayon::prelude::*;
use schemas::registry::Dtype;

use self::pass::{Pass, Workspace};
use super::Input;
use super::blueprint::{Embedding, Head, Layer};
use super::family::Model;
use super::pooling::pool;
use crate::engine::LoadError;
use crate::engine::layers::{Affine, NormWeights};
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
    level: Level,
    threads: rayon::ThreadPool,
    embedding: Embedding<Norm>,
    hidden: usize,
    layers: Vec<Ready>,
    final_norm: Option<Norm>,
    head: Head<Linear, Norm>,
    /// Memory of passes that are over.
    spare: Mutex<Vec<Workspace>>,
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
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let threads =
            rayon::ThreadPoolBuilder::new().num_threads(threads).thread_name(|_| "encoder".to_owned()).build();
        let Embedding { words, positions, types, norm: embedding_norm } = model.embedding.clone();
        let mut cpu = Self {
            level: Level::best(),
            threads: threads.map_err(LoadError::Threads)?,
            embedding: Embedding { words, positions, types, norm: embedding_norm.map(norm) },
            hidden: model.shape.hidden,
            layers: Vec::new(),
            final_norm: model.final_norm.clone().map(norm),
            head: head.map(exact, norm),
            spare: Mutex::default(),
        };
        cpu.layers = match dtype {
            Dtype::F32 => layers(&model, |_| Weights::exact)?,
            Dtype::F16 | Dtype::Bf16 => return Err(LoadError::NeedsGpu(dtype)),
            Dtype::Int8 => {
                cpu.layers = layers(&model, |_| Weights::watched)?;
                cpu.watch(&model, frame);
                let watched = std::mem::take(&mut cpu.layers);
                layers(&model, |index| {
                    let mut sizes = watched[index].parts.linears().map(Weights::sizes).into_iter();
                    move |affine| Weights::quantized(affine, &sizes.next().expect("as many as are asked for"))
                })?
            }
        };
        Ok(cpu)
    }

    /// Runs a few texts of any words.
    fn watch(&self, model: &Model, frame: &[u32]) {
        let words = u32::try_from(self.embedding.words.len() / self.hidden).expect("token ids are of 32 bits");
        let length = WATCHED_TOKENS.min(model.shape.positions).max(frame.len() + 1);
        let mut random = fastrand::Rng::with_seed(0);
        let (begin, end) = frame.split_at(frame.len().div_ceil(2));
        let mut text = || {
            let word = |_| random.u32(0..words);
            let inner: Vec<u32> = (0..length - frame.len()).map(word).collect();
            [begin, &inner, end].concat()
        };
        let texts: Vec<Vec<u32>> = (0..WATCHED_TEXTS).map(|_| text()).collect();
        self.run(&texts.iter().map(|tokens| Input { tokens, pair_at: None }).collect::<Vec<_>>());
    }

    /// What the kernels run on.
    pub fn level(&self) -> Level {
        self.level
    }

    /// One vector for each input. Inputs are not empty and no longer than the model allows.
    pub fn run(&self, inputs: &[Input<'_>]) -> Vec<Vec<f32>> {
        let total: usize = inputs.iter().map(|input| input.tokens.len()).sum();
        let longest = inputs.iter().map(|input| input.tokens.len()).max().unwrap_or(0);
        let threads = self.threads.current_num_threads();
        if threads > 1 && longest > total / threads {
            let parts = threads.min(total.div_ceil(ROWS_MIN));
            return self.threads.install(|| self.pass(inputs, parts));
        }
        // The last ones are small, so that no thread waits long for another.
        let most = CHUNK_TOKENS.min(total / threads / 2).max(longest);
        let chunks = chunks(inputs, most);
        let vectors =
            self.threads.install(|| chunks.into_par_iter().map(|chunk| self.pass(chunk, 1)).collect::<Vec<_>>());
        vectors.into_iter().flatten().collect()
    }

    fn pass(&self, inputs: &[Input<'_>], parts: usize) -> Vec<Vec<f32>> {
        let spare = self.spare.lock().expect("nothing panics while it holds this").pop();
        let mut workspace = spare.unwrap_or_default();
        let mut pass = Pass::new(self, inputs, parts, &mut workspace);
        pass.run();
        let vectors = pass.sequences().map(|rows| pool(self.level, &self.head, rows, self.hidden)).collect();
        self.spare.lock().expect("nothing panics while it holds this").push(workspace);
        vectors
    }
}

/// All layers of a model. `make` gives for each what makes its linear layers.
fn layers<F: FnMut(Affine) -> Weights>(
    model: &Model,
    mut make: impl FnMut(usize) -> F,
) -> Result<Vec<Ready>, LoadError> {
    let shape = &model.shape;
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
    let mut layers = Vec::with_capacity(model.layers);
    for index in 0..model.layers {
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

/// Inputs in their order, in groups of at most so many tokens.
fn chunks<'a, 'b>(mut inputs: &'a [Input<'b>], tokens_max: usize) -> Vec<&'a [Input<'b>]> {
    let mut chunks = Vec::new();
    while !inputs.is_empty() {
        let mut tokens = 0;
        let fits = |input: &&Input<'_>| {
            tokens += input.tokens.len();
            tokens <= tokens_max
        };
        let (chunk, rest) = inputs.split_at(inputs.iter().take_while(fits).count().max(1));
        chunks.push(chunk);
        inputs = rest;
    }
    chunks
}
