//! The decoder engine: Llama-family models that continue text.
//!
//! Batching is continuous: each step computes one token of every running sequence and, within a budget of tokens, a chunk
//! of the prompts that are still being read, all packed in one matrix. Sequences join and leave between steps.

mod model;

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;

use candle_core::Device;
use schemas::registry::Limits;

use self::model::{Cache, Llama, Span};
use super::gguf::Gguf;
use super::sampling::sample;
use super::template::ChatTemplate;
use super::text::Text;
use super::{Engine, FinishReason, Goal, LoadError, Output, SamplingParams, Sequence, SequenceId, StepError};

/// Prompt tokens computed in one step, so that a long prompt does not hold up the others for long.
const STEP_TOKENS_MAX: usize = 512;

pub struct Decoder {
    model: Llama,
    text: Arc<Text>,
    /// Tokens that end a text.
    ends: Vec<u32>,
    batch: usize,
    waiting: VecDeque<(SequenceId, Arc<Sequence>)>,
    running: Vec<Running>,
    made: Vec<(SequenceId, u32)>,
    finished: Vec<(SequenceId, Output)>,
}

/// A sequence with a place in the batch.
struct Running {
    id: SequenceId,
    /// Prompt and what was generated.
    tokens: Vec<u32>,
    prompt_tokens: usize,
    /// How many of the tokens are in the cache.
    computed: usize,
    params: SamplingParams,
    cache: Cache,
}

impl Decoder {
    /// Loads a GGUF file of the Llama architecture.
    pub fn load(path: &Path, limits: &Limits, device: &Device) -> Result<(Arc<Text>, Self), LoadError> {
        let mut file = Gguf::open(path, device)?;
        let model = Llama::load(&mut file)?;
        let context = limits.prompt_tokens.unwrap_or(usize::MAX).min(model.context());
        let text = Arc::new(text(&file, context)?);
        let ends = ["tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id"];
        let ends =
            ends.iter().filter_map(|key| file.number(key).ok()).filter_map(|id| u32::try_from(id).ok()).collect();
        Ok((Arc::clone(&text), Self::new(model, text, ends, limits.batch)))
    }

    fn new(model: Llama, text: Arc<Text>, ends: Vec<u32>, batch: usize) -> Self {
        Self {
            model,
            text,
            ends,
            batch,
            waiting: VecDeque::new(),
            running: Vec::new(),
            made: Vec::new(),
            finished: Vec::new(),
        }
    }

    /// Gives waiting sequences the free places of the batch.
    fn admit(&mut self) {
        while self.running.len() < self.batch
            && let Some((id, sequence)) = self.waiting.pop_front()
        {
            let Goal::Generate(params) = sequence.goal.clone() else {
                unreachable!("the endpoints of a generating model ask for nothing else")
            };
            let prompt_tokens = sequence.tokens.len();
            let tokens = [&sequence.tokens[..], &sequence.made].concat();
            let running = Running { id, tokens, prompt_tokens, computed: 0, params, cache: self.model.cache() };
            // A run that was taken over may have stood at its very end.
            match self.end_of(&running) {
                Some(output) => self.finished.push((id, output)),
                None => self.running.push(running),
            }
        }
    }

    /// What to compute now: the running sequences first, then prompts within the budget.
    fn plan(&self) -> Vec<(usize, usize)> {
        let left = |running: &Running| running.tokens.len() - running.computed;
        let mut budget = STEP_TOKENS_MAX;
        let mut plan = Vec::with_capacity(self.running.len());
        for (index, running) in self.running.iter().enumerate() {
            let count = if left(running) == 1 { 1 } else { left(running).min(budget) };
            if count > 0 {
                budget = budget.saturating_sub(count);
                plan.push((index, count));
            }
        }
        plan
    }

    /// Appends the next token of a sequence that has been computed to its end, and says whether that was the last.
    fn extend(&mut self, index: usize, logits: &[f32]) -> Option<Output> {
        let running = &mut self.running[index];
        let token = sample(logits, &running.params, running.tokens.len());
        running.tokens.push(token);
        self.made.push((running.id, token));
        self.end_of(&self.running[index])
    }

    /// The output of a sequence whose last token ends it.
    fn end_of(&self, running: &Running) -> Option<Output> {
        let generated = &running.tokens[running.prompt_tokens..];
        let completion_tokens = generated.len();
        let done = |text, finish_reason| Some(Output::Completion { text, completion_tokens, finish_reason });
        if self.ends.contains(generated.last()?) {
            return done(self.text.decode(&generated[..completion_tokens - 1]), FinishReason::Stop);
        }
        // A stop string may begin in any earlier token, so the whole text is looked at; it costs little beside a step.
        if !running.params.stop.is_empty() {
            let text = self.text.decode(generated);
            if let Some(end) = running.params.stop.iter().filter_map(|stop| text.find(stop.as_str())).min() {
                return done(text[..end].to_owned(), FinishReason::Stop);
            }
        }
        if completion_tokens >= running.params.max_tokens || running.tokens.len() >= self.text.prompt_tokens_max() {
            return done(self.text.decode(generated), FinishReason::Length);
        }
        None
    }
}

impl Engine for Decoder {
    fn add(&mut self, id: SequenceId, sequence: Arc<Sequence>) {
        self.waiting.push_back((id, sequence));
    }

    fn takes(&self, _: &Sequence) -> bool {
        self.running.len() + self.waiting.len() < self.batch
    }

    fn step(&mut self) -> Result<(), StepError> {
        self.admit();
        let plan = self.plan();
        if plan.is_empty() {
            return Ok(());
        }
        let mut counts = vec![0; self.running.len()];
        plan.iter().for_each(|&(index, count)| counts[index] = count);
        let mut spans = Vec::with_capacity(plan.len());
        for (running, count) in self.running.iter_mut().zip(counts).filter(|(_, count)| *count > 0) {
            let tokens = &running.tokens[running.computed..running.computed + count];
            let wants_logits = running.computed + count == running.tokens.len();
            spans.push(Span { tokens, start: running.computed, cache: &mut running.cache, wants_logits });
        }
        let logits = self.model.forward(&mut spans).map_err(|error| StepError(error.to_string()))?;
        let mut ended = Vec::new();
        for ((index, count), logits) in plan.into_iter().zip(logits) {
            self.running[index].computed += count;
            if let Some(output) = logits.and_then(|logits| self.extend(index, &logits)) {
                self.finished.push((self.running[index].id, output));
                ended.push(self.running[index].id);
            }
        }
        self.running.retain(|running| !ended.contains(&running.id));
        Ok(())
    }

    fn made(&mut self) -> Vec<(SequenceId, u32)> {
        std::mem::take(&mut self.made)
    }

    fn finished(&mut self) -> Vec<(SequenceId, Output)> {
        std::mem::take(&mut self.finished)
    }

    fn remove(&mut self, id: SequenceId) {
        self.waiting.retain(|(waiting, _)| *waiting != id);
        self.made.retain(|(made, _)| *made != id);
        self.running.retain(|running| running.id != id);
        self.finished.retain(|(finished, _)| *finished != id);
    }

    fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.running.is_empty()
    }
}

fn text(file: &Gguf, context: usize) -> Result<Text, LoadError> {
    let token = |key: &str| file.number(key).and_then(|id| file.token(id)).unwrap_or_default();
    let (begin, end) = (token("tokenizer.ggml.bos_token_id"), token("tokenizer.ggml.eos_token_id"));
    let template = match file.string("tokenizer.chat_template") {
        Ok(source) => Some(ChatTemplate::new(source, begin, end).map_err(|error| file.error(error))?),
        Err(_) => None,
    };
    let adds_begin = file.flag("tokenizer.ggml.add_bos_token");
    let begin = adds_begin.then(|| file.number("tokenizer.ggml.bos_token_id").ok()).flatten();
    let begin = begin.and_then(|id| u32::try_from(id).ok());
    Ok(Text::generation(file.tokenizer()?, template, begin, context))
}

#[cfg(test)]
mod tests;
