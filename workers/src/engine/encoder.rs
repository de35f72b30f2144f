//! The encoder engine: BERT-family models that turn texts into vectors.
//!
//! A step takes a batch of waiting sequences and runs them packed, one after the other in one matrix of tokens: no
//! padding is computed, and a sequence's vector does not depend on what else is in the batch.

mod files;
mod model;

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;

use candle_core::Device;
use schemas::registry::Limits;

use self::files::Files;
pub use self::files::WEIGHTS;
use self::model::Bert;
use super::text::Text;
use super::{Engine, LoadError, Output, Sequence, SequenceId, StepError};

/// Tokens computed in one step. A longer sequence runs alone.
const STEP_TOKENS_MAX: usize = 4096;

#[derive(Debug)]
pub struct Encoder {
    model: Bert,
    batch: usize,
    waiting: VecDeque<(SequenceId, Arc<Sequence>)>,
    finished: Vec<(SequenceId, Output)>,
}

impl Encoder {
    /// Loads a model from a folder in the layout of the Hugging Face hub, with the files of sentence-transformers where
    /// they are present.
    pub fn load(folder: &Path, limits: &Limits, device: &Device) -> Result<(Text, Self), LoadError> {
        let files = Files::read(folder, device)?;
        let positions = files.config.max_position_embeddings;
        let tokens_max = limits.prompt_tokens.or(files.tokens_max).unwrap_or(positions).min(positions);
        let text = Text::embedding(files.tokenizer, tokens_max, files.config.hidden_size);
        let model = Bert::new(&files.config, files.pooling, files.weights)
            .map_err(|error| LoadError::file(&folder.join(WEIGHTS), error))?;
        Ok((text, Self { model, batch: limits.batch, waiting: VecDeque::new(), finished: Vec::new() }))
    }

    /// As many of the waiting sequences, in order, as one step takes.
    fn next_batch(&mut self) -> Vec<(SequenceId, Arc<Sequence>)> {
        let mut tokens = 0;
        let fits = |(_, sequence): &&(SequenceId, Arc<Sequence>)| {
            tokens += sequence.tokens.len();
            tokens <= STEP_TOKENS_MAX
        };
        let count = self.waiting.iter().take(self.batch).take_while(fits).count();
        self.waiting.drain(..count.max(1).min(self.waiting.len())).collect()
    }
}

impl Engine for Encoder {
    fn add(&mut self, id: SequenceId, sequence: Arc<Sequence>) {
        self.waiting.push_back((id, sequence));
    }

    fn room(&self) -> usize {
        self.batch.saturating_sub(self.waiting.len())
    }

    fn step(&mut self) -> Result<(), StepError> {
        let batch = self.next_batch();
        if batch.is_empty() {
            return Ok(());
        }
        let sequences: Vec<&[u32]> = batch.iter().map(|(_, sequence)| sequence.tokens.as_slice()).collect();
        let vectors = self.model.embed(&sequences).map_err(|error| StepError(error.to_string()))?;
        let outputs = batch.iter().zip(vectors).map(|((id, _), vector)| (*id, Output::Embedding(vector)));
        self.finished.extend(outputs);
        Ok(())
    }

    fn finished(&mut self) -> Vec<(SequenceId, Output)> {
        std::mem::take(&mut self.finished)
    }

    fn remove(&mut self, id: SequenceId) {
        self.waiting.retain(|(waiting, _)| *waiting != id);
        self.finished.retain(|(finished, _)| *finished != id);
    }

    fn is_idle(&self) -> bool {
        self.waiting.is_empty()
    }
}

#[cfg(test)]
mod tests;
