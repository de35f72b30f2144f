//! Engines: what turns token sequences into embeddings or text.
//!
//! An engine owns its model and is driven by one OS thread (`thread.rs`) through a loop of `add`, `step`, `finished`.
//! It knows tokens and sequences. It deliberately knows no NATS, no subjects, no jobs and no HTTP status:
//! the endpoints turn a job's body into sequences and the outputs back into a body.

mod activate;
mod batches;
pub mod calls;
mod classes;
pub mod clip;
pub mod decoder;
mod driver;
pub mod echo;
pub mod encoder;
mod fault;
mod gguf;
pub mod grammar;
mod layers;
pub mod load;
mod model_config;
mod mxfp4;
mod progress;
mod prompts;
pub mod queue;
mod relay;
mod sampling;
pub mod speech;
mod spelling;
pub mod template;
mod tensors;
pub mod text;
pub mod thread;
mod weights;

use std::sync::Arc;

use serde::{Deserialize, Serialize};

pub use classes::{Classes, Scale};
pub use clip::resize::Pixels;
pub use clip::sight::{Sight, Similarity};
pub use grammar::Grammar;
pub use load::{LoadError, Loaded, load};
pub use prompts::Prompts;
use speech::mel::Mel;
pub use text::{Pair, TextError};

/// The name of one sequence inside one engine, given by the thread that drives it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SequenceId(pub u64);

/// One unit of work for an engine: tokens in, one [`Output`] out. A job may hold many.
#[derive(Clone, Debug, PartialEq)]
pub struct Sequence {
    /// The prompt, special tokens included. Never empty; checked against the model's limit by the endpoint.
    pub tokens: Vec<u32>,
    /// Where the second text of a pair begins, for models that tell the two apart.
    pub pair_at: Option<usize>,
    pub goal: Goal,
    /// What is seen instead of tokens, of which there are as many as it takes places.
    pub image: Option<Image>,
    /// Tokens that were generated before, by a run that did not end: generation goes on after them as if it had.
    pub made: Vec<u32>,
}

impl Sequence {
    /// A sequence that begins at its beginning.
    pub fn new(tokens: Vec<u32>, goal: Goal) -> Self {
        Self { tokens, pair_at: None, goal, image: None, made: Vec::new() }
    }

    /// An image that takes so many places.
    pub fn of_image(pixels: Vec<f32>, places: usize, goal: Goal) -> Self {
        Self { image: Some(Image(pixels.into())), ..Self::new(vec![0; places], goal) }
    }

    /// What it is expected to cost, in tokens.
    pub fn cost(&self) -> u64 {
        let generated = match &self.goal {
            Goal::Embed | Goal::Score => 0,
            Goal::Generate(params) => params.max_tokens - self.made.len().min(params.max_tokens),
            Goal::Transcribe(hearing) => hearing.places(),
        };
        (self.tokens.len() + generated) as u64
    }
}

/// An image as a model sees it. Only itself is the same.
#[derive(Clone, Debug)]
pub struct Image(pub Arc<[f32]>);

impl PartialEq for Image {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

/// What is wanted of a sequence.
#[derive(Clone, Debug, PartialEq)]
pub enum Goal {
    /// One vector.
    Embed,
    /// A score for each class.
    Score,
    /// A continuation of the prompt.
    Generate(SamplingParams),
    /// What is said in some audio; the prompt is what was said before, and may be empty.
    Transcribe(Hearing),
}

/// Audio, and what is wanted of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Hearing {
    pub mel: Arc<Mel>,
    /// The token of the language that is spoken; it is found out where it is not said.
    pub language: Option<u32>,
    /// To English.
    pub translate: bool,
    /// 0 is greedy, and warmer where that gives no good answer.
    pub temperature: f32,
    /// Whether it is wanted when each word was said.
    pub words: bool,
    pub seed: u64,
}

impl Hearing {
    /// Rows of the encoder, in whole windows.
    fn places(&self) -> usize {
        const FRAMES: usize = 3000;
        self.mel.frames().div_ceil(FRAMES).max(1) * FRAMES / 2
    }
}

/// How a continuation is chosen and when it ends, in the words of OpenAI's API.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingParams {
    /// 0 is greedy.
    pub temperature: f32,
    /// Nucleus: the smallest set of tokens whose probabilities reach this sum; 1 keeps all.
    pub top_p: f32,
    /// Only so many of the most probable tokens are drawn from.
    pub top_k: Option<usize>,
    /// Only tokens are drawn from that are at least so probable, as a part of the most probable one.
    pub min_p: f32,
    /// Taken from the logit of a token for each time that it was generated before.
    pub frequency_penalty: f32,
    /// Taken from the logit of a token that was generated before.
    pub presence_penalty: f32,
    /// Added to the logits of tokens.
    pub logit_bias: Vec<(u32, f32)>,
    /// Makes sampling repeatable: the same seed, prompt and position draw the same token whatever else is in the batch.
    pub seed: u64,
    /// At most this many tokens are generated.
    pub max_tokens: usize,
    /// Generation ends before the first of these strings, which is not part of the text.
    pub stop: Vec<String>,
    /// What the text may look like.
    pub grammar: Option<Grammar>,
    /// Whether special tokens are no part of the text.
    pub skip_special_tokens: bool,
    /// Whether the probabilities of the tokens are wanted, and of how many of the most probable ones beside each.
    pub logprobs: Option<usize>,
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_p: 1.0,
            top_k: None,
            min_p: 0.0,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            logit_bias: Vec::new(),
            seed: 0,
            max_tokens: usize::MAX,
            stop: Vec::new(),
            grammar: None,
            skip_special_tokens: true,
            logprobs: None,
        }
    }
}

/// The logarithm of a generated token's probability, as the model gives it: before temperature, penalties and biases.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Logprobs {
    pub token: u32,
    pub logprob: f32,
    /// Of the most probable tokens at this place, the best first.
    pub top: Vec<(u32, f32)>,
}

/// A token that was generated.
#[derive(Clone, Debug, PartialEq)]
pub struct Made {
    pub id: SequenceId,
    pub token: u32,
    /// Where they are wanted.
    pub logprobs: Option<Logprobs>,
}

/// What an engine made of a sequence.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Output {
    Embedding(Vec<f32>),
    /// As the model gives them, before any activation.
    Scores(Vec<f32>),
    Completion {
        text: String,
        /// Tokens generated, the end-of-text token included.
        completion_tokens: usize,
        finish_reason: FinishReason,
        /// Of the tokens generated, where they were wanted.
        logprobs: Vec<Logprobs>,
    },
    Transcript(Transcript),
}

/// What is said in some audio.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Transcript {
    /// Its code.
    pub language: String,
    /// Of audio.
    pub seconds: f64,
    pub segments: Vec<Segment>,
    /// Tokens generated.
    pub tokens: usize,
}

/// A part of a transcript, in the words of OpenAI's API.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Segment {
    /// The frame at which its window begins; there are a hundred in a second.
    pub seek: usize,
    pub start: f64,
    pub end: f64,
    pub text: String,
    pub tokens: Vec<u32>,
    pub temperature: f32,
    pub avg_logprob: f32,
    pub compression_ratio: f32,
    pub no_speech_prob: f32,
    /// Where they are wanted.
    pub words: Vec<Word>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Word {
    pub word: String,
    pub start: f64,
    pub end: f64,
}

impl Output {
    /// Of a sequence that was to be scored.
    pub fn scores(&self) -> &[f32] {
        match self {
            Self::Scores(scores) => scores,
            Self::Embedding(_) | Self::Completion { .. } | Self::Transcript(_) => unreachable!("{OTHER_OUTPUT}"),
        }
    }

    /// Of what was heard.
    pub fn audio_seconds(&self) -> f64 {
        match self {
            Self::Transcript(transcript) => transcript.seconds,
            Self::Embedding(_) | Self::Scores(_) | Self::Completion { .. } => 0.0,
        }
    }

    /// Tokens generated, of a text.
    pub fn completion_tokens(&self) -> u64 {
        match self {
            Self::Completion { completion_tokens, .. } => *completion_tokens as u64,
            Self::Embedding(_) | Self::Scores(_) | Self::Transcript(_) => 0,
        }
    }
}

/// Of a goal and its output.
pub const OTHER_OUTPUT: &str = "an engine answers each goal with its own output";

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FinishReason {
    /// The model ended its text, or a stop string was met.
    Stop,
    /// `max_tokens` or the model's context is used up.
    Length,
}

/// A step failed: nothing that is in the engine now will be answered by it.
#[derive(Debug, thiserror::Error)]
#[error("engine step failed: {0}")]
pub struct StepError(pub String);

/// A model in memory that advances its sequences a step at a time.
///
/// `step` does a bounded amount of work (a token-budget batch of an encoder, one token for each running sequence of a
/// decoder), so that sequences can join and leave between steps.
pub trait Engine {
    /// Takes a sequence in. It waits inside the engine until a step has room for it.
    fn add(&mut self, id: SequenceId, sequence: Arc<Sequence>);
    /// Whether the next step has room for a sequence. One that waits outside can still be overtaken.
    fn takes(&self, sequence: &Sequence) -> bool;
    /// Advances what is inside. Does nothing when nothing is.
    fn step(&mut self) -> Result<(), StepError>;
    /// Hands over the tokens that were generated since the last call, in their order.
    fn made(&mut self) -> Vec<Made> {
        Vec::new()
    }
    /// Hands over how many seconds of their audio sequences have got through, of those that got further since the last call.
    fn heard(&mut self) -> Vec<(SequenceId, f64)> {
        Vec::new()
    }
    /// Hands over what has finished since the last call.
    fn finished(&mut self) -> Vec<(SequenceId, Output)>;
    /// Forgets a sequence, wherever it stands. Unknown ids are ignored: it may just have finished.
    fn remove(&mut self, id: SequenceId);
    /// Whether a step would do nothing.
    fn is_idle(&self) -> bool;
}
