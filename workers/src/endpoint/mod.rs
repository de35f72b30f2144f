//! Endpoints: a job's body becomes sequences for the engine, the engine's outputs become the response's body.
//!
//! Pure code: no NATS, no engine thread. A mistake of the producer is a [`Reject`] with OpenAI's error object.

mod audio;
mod classify;
mod completions;
mod embeddings;
mod inputs;
mod logprobs;
mod messages;
mod rerank;
mod sampling;
mod tools;

use schemas::audio::{AudioTask, TranscriptionResponse};
use schemas::chunk::Chunk;
use schemas::classify::ClassifyResponse;
use schemas::codec::DecodeError;
use schemas::completions::{ChatCompletionResponse, CompletionResponse};
use schemas::embeddings::EmbeddingResponse;
use schemas::job::{Endpoint, Job};
use schemas::log::Usage;
use schemas::registry::{Model, Task};
use schemas::rerank::RerankResponse;
use schemas::result::{ErrorBody, ErrorObject};
use serde::Serialize;
use time::OffsetDateTime;

use crate::engine::text::Text;
use crate::engine::{Classes, FinishReason, Logprobs, Output, Sequence};

/// The producer's mistake: an HTTP status below 500 and what to tell it.
#[derive(Clone, Debug, PartialEq)]
pub struct Reject {
    pub status: u16,
    pub error: ErrorObject,
}

/// A job that can be run: its sequences, and how to answer it.
#[derive(Debug)]
pub struct Plan {
    pub sequences: Vec<Sequence>,
    /// How many of the sequences, one after the other, answer the same prompt.
    pub answers_each: usize,
    pub answer: Answer,
    /// Of sampling.
    pub seed: Option<u64>,
    /// Whether the same body always has the same answer.
    pub is_repeatable: bool,
    /// Whether the answer is wanted in chunks.
    pub streams: bool,
}

/// How the outputs of a plan become a body.
#[derive(Debug)]
pub enum Answer {
    Embeddings(embeddings::Shape),
    Rerank(rerank::Ranking),
    Classify(Classes),
    ZeroShot(classify::ZeroShot),
    Chat(Option<tools::Calling>),
    Completions,
    Transcription(audio::Shape),
}

/// The body of a response.
#[derive(Clone, Debug, Serialize, PartialEq)]
#[serde(untagged)]
pub enum Body {
    Embeddings(EmbeddingResponse),
    Rerank(RerankResponse),
    Classify(ClassifyResponse),
    Chat(ChatCompletionResponse),
    Completions(CompletionResponse),
    Transcription(TranscriptionResponse),
    Error(ErrorBody),
}

/// What a response says beside the outputs.
#[derive(Clone, Copy, Debug)]
pub struct Stamp<'a> {
    pub model: &'a str,
    pub job_id: &'a str,
    /// Unix seconds.
    pub created: i64,
    pub prompt_tokens: u64,
    /// Of the model that answered.
    pub text: &'a Text,
}

/// A mistake of the producer, unless another status is said.
impl From<ErrorObject> for Reject {
    fn from(error: ErrorObject) -> Self {
        Self { status: 400, error }
    }
}

/// A plan of one computation for each input that always has the same answer.
impl From<(Vec<Sequence>, Answer)> for Plan {
    fn from((sequences, answer): (Vec<Sequence>, Answer)) -> Self {
        Self { sequences, answers_each: 1, answer, seed: None, is_repeatable: true, streams: false }
    }
}

impl Plan {
    pub fn prompt_tokens(&self) -> u64 {
        self.sequences.iter().step_by(self.answers_each).map(|sequence| sequence.tokens.len() as u64).sum()
    }
}

impl Stamp<'_> {
    /// Of answers that generate nothing.
    fn usage(&self) -> Usage {
        Usage { prompt_tokens: self.prompt_tokens, completion_tokens: None, total_tokens: self.prompt_tokens }
    }

    /// Of texts.
    pub fn generated(&self, outputs: &[Output]) -> Usage {
        let completion_tokens: u64 = outputs.iter().map(Output::completion_tokens).sum();
        Usage {
            prompt_tokens: self.prompt_tokens,
            completion_tokens: Some(completion_tokens),
            total_tokens: self.prompt_tokens + completion_tokens,
        }
    }
}

impl Reject {
    pub fn invalid(code: &str, param: impl Into<Option<String>>, message: impl Into<String>) -> Self {
        ErrorObject::invalid(code, param, message).into()
    }

    fn unsupported(field: &str, message: impl std::fmt::Display) -> Self {
        let param = format!("body.{field}");
        Self::invalid("unsupported_value", param.clone(), format!("{param}: {message}"))
    }

    fn value(param: &str, message: impl std::fmt::Display) -> Self {
        Self::invalid("invalid_value", param.to_owned(), format!("{param}: {message}"))
    }
}

/// What is known of a job beside what it says. Every delivery of it knows the same, and so draws the same tokens.
#[derive(Clone, Copy, Debug)]
pub struct Known<'a> {
    /// Seeds jobs that name no seed.
    pub job_id: &'a str,
    /// What models are told as the time.
    pub published: OffsetDateTime,
}

/// Reads a job and prepares it for the model's engine.
pub fn prepare(job: &Job, known: Known<'_>, model: &Model, text: &Text) -> Result<Plan, Reject> {
    let job_id = known.job_id;
    let endpoint = endpoint_of(job, model)?;
    match job.model() {
        Some(name) if name == model.name => {}
        Some(name) => {
            let message = format!(
                "body.model: {name:?} is not {:?}, which this subject is for; publish it on its own subject",
                model.name
            );
            return Err(Reject {
                status: 404,
                error: ErrorObject::invalid("model_not_found", "body.model".to_owned(), message),
            });
        }
        None => return Err(Reject::value("body.model", "is missing or not a string")),
    }
    match endpoint {
        Endpoint::Embeddings => embeddings::prepare(&job.body, model, text),
        Endpoint::Rerank => rerank::prepare(&job.body, model, text),
        Endpoint::Classify => classify::prepare(&job.body, model, text),
        Endpoint::ChatCompletions => completions::prepare_chat(&job.body, known, model, text),
        Endpoint::Completions => completions::prepare(&job.body, job_id, model, text),
        Endpoint::Transcriptions => audio::prepare(&job.body, job_id, AudioTask::Transcribe, model, text),
        Endpoint::Translations => audio::prepare(&job.body, job_id, AudioTask::Translate, model, text),
    }
}

impl Answer {
    /// The body of the response, and the usage for the job's log.
    pub fn body(&self, outputs: Vec<Output>, stamp: Stamp<'_>) -> (Body, Usage) {
        match self {
            Self::Embeddings(shape) => embeddings::body(*shape, outputs, stamp),
            Self::Rerank(ranking) => rerank::body(ranking, outputs, stamp),
            Self::Classify(classes) => classify::body(classes, outputs, stamp),
            Self::ZeroShot(zero_shot) => classify::zero_shot_body(zero_shot, outputs, stamp),
            Self::Chat(calling) => completions::chat_body(*calling, outputs, stamp),
            Self::Completions => completions::body(outputs, stamp),
            Self::Transcription(shape) => audio::body(*shape, outputs, stamp),
        }
    }
}

/// A part of an answer.
#[derive(Clone, Copy, Debug)]
pub struct Part<'a> {
    /// Of the answer among those of its job.
    pub index: usize,
    /// As far as it has come, the parts before included.
    pub text: &'a str,
    /// Bytes of the parts before.
    pub from: usize,
    /// Of the parts before: none where there are none.
    pub tokens_before: &'a [u32],
    /// Of this part's tokens, where they are wanted.
    pub logprobs: &'a [Logprobs],
    /// Of the answer's last part.
    pub end: Option<FinishReason>,
    /// Of the job's last part.
    pub usage: Option<Usage>,
}

impl<'a> Part<'a> {
    /// The parts before.
    fn before(&self) -> &'a str {
        self.text.get(..self.from).unwrap_or(self.text)
    }
}

impl Answer {
    /// A chunk of a streamed answer. Vectors and scores have none.
    pub fn chunk(&self, part: &Part<'_>, stamp: Stamp<'_>) -> Option<Chunk> {
        match self {
            Self::Embeddings(_) | Self::Rerank(_) | Self::Classify(_) | Self::ZeroShot(_) | Self::Transcription(_) => {
                None
            }
            Self::Chat(calling) => Some(completions::chat_chunk(*calling, part, stamp)),
            Self::Completions => Some(completions::chunk(part, stamp)),
        }
    }
}

/// The endpoints of a task.
pub fn endpoints(task: Task) -> &'static [Endpoint] {
    match task {
        Task::Embed => &[Endpoint::Embeddings],
        Task::Rerank => &[Endpoint::Rerank],
        Task::Classify => &[Endpoint::Classify],
        Task::Generate => &[Endpoint::ChatCompletions, Endpoint::Completions],
        Task::Transcribe => &[Endpoint::Transcriptions, Endpoint::Translations],
        Task::Echo => &Endpoint::OF_TEXT,
    }
}

fn endpoint_of(job: &Job, model: &Model) -> Result<Endpoint, Reject> {
    let served = endpoints(model.task);
    let urls = || served.iter().map(|endpoint| endpoint.url()).collect::<Vec<_>>().join(", ");
    match Endpoint::from_url(&job.url) {
        Some(endpoint) if served.contains(&endpoint) => Ok(endpoint),
        Some(_) => {
            let message = format!("url: {:?} is not served by model {:?}; it serves {}", job.url, model.name, urls());
            Err(Reject::invalid("unsupported_endpoint", "url".to_owned(), message))
        }
        None => {
            let message = format!("url: {:?} is no endpoint; model {:?} serves {}", job.url, model.name, urls());
            Err(Reject { status: 404, error: ErrorObject::invalid("unknown_url", "url".to_owned(), message) })
        }
    }
}

/// An error of the body's shape, under its path in the job.
fn misshapen(error: DecodeError) -> Reject {
    let param = if error.path.is_empty() { "body".to_owned() } else { format!("body.{}", error.path) };
    // Fields that are read by hand begin their message with the index.
    match error.message.split_once("]: ") {
        Some((index, message)) if index.starts_with('[') => Reject::value(&format!("{param}{index}]"), message),
        _ => Reject::value(&param, error.message),
    }
}
