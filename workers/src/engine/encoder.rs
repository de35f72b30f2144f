//! The encoder engine: models that turn a text into one vector, or into scores.
//!
//! A step takes waiting sequences up to a number of tokens and runs them packed: no padding is computed, and a
//! sequence's vector does not depend on what else is in the batch. Texts that are the same are computed once.

pub(super) mod blueprint;
pub(super) mod body;
pub(super) mod cpu;
mod family;
mod files;
pub(super) mod gpu;
pub(super) mod pooling;

use std::collections::{HashMap, VecDeque};
use std::path::Path;
use std::sync::Arc;

use candle_core::Device;
use schemas::registry::{Dtype, Model, Task};

use self::blueprint::Head;
use self::cpu::Cpu;
use self::files::Files;
use self::gpu::Gpu;
use super::clip::{self, Clip};
use super::layers::{Affine, NormWeights};
use super::model_config::Config;
use super::text::Text;
use super::{Engine, Goal, LoadError, Output, Sequence, SequenceId, StepError};

/// A sequence as the model sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Input<'a> {
    tokens: &'a [u32],
    /// Where the second text of a pair begins.
    pair_at: Option<usize>,
}

/// What runs a model.
#[derive(Debug)]
enum Executor {
    Cpu(Cpu),
    Gpu(Gpu),
    Clip(Box<Clip>),
}

#[derive(Debug)]
pub struct Encoder {
    executor: Executor,
    tokens_max: usize,
    waiting: VecDeque<(SequenceId, Arc<Sequence>)>,
    waiting_tokens: usize,
    finished: Vec<(SequenceId, Output)>,
}

impl Encoder {
    /// Loads a model from a folder in the layout of the Hugging Face hub, with the files of sentence-transformers where
    /// they are present.
    pub fn load(folder: &Path, model: &Model, device: &Device) -> Result<(Text, Self), LoadError> {
        let config = Config::read(folder)?;
        if clip::is_clip(&config) {
            return Self::load_clip(folder, &config, model, device);
        }
        let Files { model: read, config, tokenizer, tokens_max } = Files::read(folder, config)?;
        let positions = read.shape.positions;
        let tokens_max = model.limits.prompt_tokens.or(tokens_max).unwrap_or(positions).min(positions);
        let (text, head) = match model.task {
            Task::Classify | Task::Rerank => {
                let classes = files::classes(&config, model.task == Task::Rerank)?;
                let head = read.classifier(classes.labels.len())?;
                (Text::scoring(tokenizer, tokens_max, classes), head)
            }
            Task::Embed | Task::Generate | Task::Transcribe | Task::Echo => {
                let head = files::embedder(folder, &read)?;
                let dimensions = files::dimensions(&head, read.shape.hidden);
                (Text::embedding(tokenizer, tokens_max, dimensions, files::prompts(folder, model)?), head)
            }
        };
        let frame = text.encode("").map_err(|error| LoadError::file(folder, error))?;
        let executor = match device.is_cpu() {
            true => Executor::Cpu(Cpu::new(read, head, model.dtype, &frame)?),
            false => Executor::on(read, head, model.dtype, device)?,
        };
        if let Executor::Cpu(cpu) = &executor {
            tracing::info!(level = cpu.level().name(), "encoder is ready");
        }
        Ok((text, Self::new(executor, model.limits.batch_tokens)))
    }

    /// Of texts and images.
    fn load_clip(folder: &Path, config: &Config, model: &Model, device: &Device) -> Result<(Text, Self), LoadError> {
        if model.task == Task::Rerank {
            return Err(
                config.invalid("model_type", "has no classes to rank by; its tasks are \"embed\" and \"classify\"")
            );
        }
        let clip::Loaded { clip, sight, tokenizer, dimensions, positions } =
            clip::load(folder, config, model.dtype, device)?;
        tracing::info!(level = clip.level().name(), "encoder of texts and images is ready");
        let tokens_max = model.limits.prompt_tokens.unwrap_or(positions).min(positions);
        let text = Text::seeing(tokenizer, tokens_max, dimensions, files::prompts(folder, model)?, sight);
        Ok((text, Self::new(Executor::Clip(Box::new(clip)), model.limits.batch_tokens)))
    }

    fn new(executor: Executor, tokens_max: usize) -> Self {
        let (waiting, finished) = (VecDeque::new(), Vec::new());
        Self { executor, tokens_max, waiting, waiting_tokens: 0, finished }
    }
}

impl Executor {
    /// On a device of candle's.
    fn on(
        model: family::Model,
        head: Head<Affine, NormWeights>,
        dtype: Dtype,
        device: &Device,
    ) -> Result<Self, LoadError> {
        Gpu::new(model, head, gpu::type_of(dtype)?, device).map(Self::Gpu)
    }

    /// Those of images, which are none of an encoder of texts alone.
    fn see(&self, images: &[&[f32]]) -> Result<Vec<Vec<f32>>, StepError> {
        match self {
            _ if images.is_empty() => Ok(Vec::new()),
            Self::Clip(clip) => clip.images(images),
            Self::Cpu(_) | Self::Gpu(_) => Err(StepError("this model sees no images".to_owned())),
        }
    }

    fn run(&self, inputs: &[Input<'_>]) -> Result<Vec<Vec<f32>>, StepError> {
        match self {
            Self::Cpu(cpu) => Ok(cpu.run(inputs)),
            Self::Gpu(gpu) => gpu.run(inputs).map_err(|error| StepError(error.to_string())),
            Self::Clip(clip) => clip.texts(&inputs.iter().map(|input| input.tokens).collect::<Vec<_>>()),
        }
    }
}

impl Engine for Encoder {
    fn add(&mut self, id: SequenceId, sequence: Arc<Sequence>) {
        self.waiting_tokens += sequence.tokens.len();
        self.waiting.push_back((id, sequence));
    }

    fn takes(&self, sequence: &Sequence) -> bool {
        self.waiting.is_empty() || self.waiting_tokens + sequence.tokens.len() <= self.tokens_max
    }

    fn step(&mut self) -> Result<(), StepError> {
        // Whatever waits was let in: it is a batch, unless more was put in at once.
        let mut tokens = 0;
        let fits = |(_, sequence): &&(SequenceId, Arc<Sequence>)| {
            tokens += sequence.tokens.len();
            tokens <= self.tokens_max
        };
        let count = self.waiting.iter().take_while(fits).count().max(1).min(self.waiting.len());
        let batch: Vec<_> = self.waiting.drain(..count).collect();
        self.waiting_tokens -= batch.iter().map(|(_, sequence)| sequence.tokens.len()).sum::<usize>();
        let mut inputs = Vec::with_capacity(batch.len());
        let mut known = HashMap::with_capacity(batch.len());
        let images: Vec<&[f32]> =
            batch.iter().filter_map(|(_, sequence)| sequence.image.as_ref()).map(|image| &*image.0).collect();
        let mut seen = self.executor.see(&images)?.into_iter();
        let places: Vec<usize> = batch
            .iter()
            .filter(|(_, sequence)| sequence.image.is_none())
            .map(|(_, sequence)| {
                let input = Input { tokens: &sequence.tokens, pair_at: sequence.pair_at };
                *known.entry(input).or_insert_with(|| {
                    inputs.push(input);
                    inputs.len() - 1
                })
            })
            .collect();
        let vectors = if inputs.is_empty() { Vec::new() } else { self.executor.run(&inputs)? };
        let mut read = places.into_iter().map(|place| vectors[place].clone());
        for (id, sequence) in &batch {
            let vector = match sequence.image {
                Some(_) => seen.next(),
                None => read.next(),
            };
            let vector = vector.expect("each sequence has its vector");
            let output = match sequence.goal {
                Goal::Score => Output::Scores(vector),
                Goal::Embed | Goal::Generate(_) | Goal::Transcribe(_) => Output::Embedding(vector),
            };
            self.finished.push((*id, output));
        }
        Ok(())
    }

    fn finished(&mut self) -> Vec<(SequenceId, Output)> {
        std::mem::take(&mut self.finished)
    }

    fn remove(&mut self, id: SequenceId) {
        self.waiting.retain(|(waiting, _)| *waiting != id);
        self.waiting_tokens = self.waiting.iter().map(|(_, sequence)| sequence.tokens.len()).sum();
        self.finished.retain(|(finished, _)| *finished != id);
    }

    fn is_idle(&self) -> bool {
        self.waiting.is_empty()
    }
}

#[cfg(test)]
mod tests;
