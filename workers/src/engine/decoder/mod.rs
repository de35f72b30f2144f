//! The decoder engine: Llama-family models that continue text.
//!
//! Batching is continuous: each step computes one token of every running sequence and, within a budget of tokens, a chunk
//! of the prompts that are still being read, all packed in one matrix. Sequences join and leave between steps. Keys and
//! values are kept in blocks, of which there is a fixed number: a sequence waits until there are enough for its prompt,
//! and where one needs another block and there is none, the one that came last gives its own back and begins again later.

mod blocks;
mod cpu;
mod gpu;
mod llama;
mod model;

use std::collections::{HashSet, VecDeque};
use std::path::Path;
use std::sync::Arc;

use candle_core::Device;
use kernels::{BLOCK, Pages};
use schemas::registry::Model;

use self::blocks::{Blocks, Name, name_after};
use self::cpu::Cpu;
use self::gpu::Llama;
use self::llama::Source;
use self::model::{Executor, Input, Shape};
use super::gguf::Gguf;
use super::sampling::{log_probability, sample};
use super::template::ChatTemplate;
use super::text::Text;
use super::{Engine, FinishReason, Goal, LoadError, Output, SamplingParams, Sequence, SequenceId, StepError};

/// Prompt tokens computed in one step, so that a long prompt does not hold up the others for long.
const STEP_TOKENS_MAX: usize = 512;

pub struct Decoder {
    executor: Executor,
    blocks: Blocks,
    text: Arc<Text>,
    /// Tokens that end a text.
    ends: Vec<u32>,
    batch: usize,
    waiting: VecDeque<(SequenceId, Arc<Sequence>)>,
    /// In the order in which they came.
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
    blocks: Vec<u32>,
    /// Of the blocks that are full, and of those that the prompt will fill.
    names: Vec<Name>,
    /// Blocks whose name others may take them by.
    named: usize,
}

impl Decoder {
    /// Loads a GGUF file of the Llama architecture.
    pub fn load(path: &Path, model: &Model, device: &Device) -> Result<(Arc<Text>, Self), LoadError> {
        let mut file = Gguf::open(path, device)?;
        let shape = Shape::read(&file)?;
        let layers = file.number("llama.block_count")?;
        let of_block = layers * Pages::block_bytes(shape.key_heads, shape.head_size);
        let count = ((model.limits.kv_cache_mebibytes << 20) / of_block).max(1);
        let executor = match device.is_cpu() {
            true => Executor::Cpu(Box::new(Cpu::new(Source::read(&mut file)?, model.dtype, count)?)),
            false => Executor::Gpu(Box::new(Llama::load(&mut file)?)),
        };
        if let Executor::Cpu(cpu) = &executor {
            tracing::info!(level = cpu.level().name(), blocks = count, "decoder is ready");
        }
        let context = model.limits.prompt_tokens.unwrap_or(usize::MAX).min(shape.context).min(count * BLOCK);
        let text = Arc::new(text(&file, context)?);
        let ends = ["tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id"];
        let ends =
            ends.iter().filter_map(|key| file.number(key).ok()).filter_map(|id| u32::try_from(id).ok()).collect();
        Ok((Arc::clone(&text), Self::new(executor, Blocks::new(count), text, ends, model.limits.batch)))
    }

    /// Loads it for the processor, whatever devices there are.
    pub fn load_on_processor(path: &Path, model: &Model) -> Result<(Arc<Text>, Self), LoadError> {
        Self::load(path, model, &Device::Cpu)
    }

    /// The logarithms of the probabilities that the model gives to each token but the first, after those before it.
    pub fn score(&mut self, tokens: &[u32]) -> Result<Vec<f32>, StepError> {
        let mut blocks = Vec::new();
        blocks.extend((0..tokens.len().div_ceil(BLOCK)).map_while(|_| self.blocks.take()));
        let mut scores = Vec::with_capacity(tokens.len());
        for first in (0..tokens.len().saturating_sub(1)).step_by(BLOCK) {
            let places = first..(first + BLOCK).min(tokens.len() - 1);
            let input = |at| Input { tokens: &tokens[at..at + 1], start: at, blocks: &blocks, wants_logits: true };
            let inputs: Vec<Input<'_>> = places.clone().map(input).collect();
            let logits = self.executor.forward(&inputs)?;
            scores.extend(logits.zip(places).map(|(logits, at)| log_probability(logits, tokens[at + 1])));
        }
        self.blocks.let_go(&blocks);
        Ok(scores)
    }

    fn new(executor: Executor, blocks: Blocks, text: Arc<Text>, ends: Vec<u32>, batch: usize) -> Self {
        Self {
            executor,
            blocks,
            text,
            ends,
            batch,
            waiting: VecDeque::new(),
            running: Vec::new(),
            made: Vec::new(),
            finished: Vec::new(),
        }
    }

    /// Gives waiting sequences the free places of the batch, as long as there are blocks for their prompts.
    fn admit(&mut self) {
        let mut coming: HashSet<Name> = HashSet::new();
        for running in &self.running {
            coming.extend(&running.names[running.named..]);
        }
        let mut later = VecDeque::new();
        while self.running.len() < self.batch
            && let Some((id, sequence)) = self.waiting.pop_front()
        {
            let mut running = Running::new(id, &sequence);
            // A run that was taken over may have stood at its very end.
            if let Some(output) = self.end_of(&running) {
                self.finished.push((id, output));
                continue;
            }
            if self.executor.shares() {
                running.share(&mut self.blocks);
                // What another computes right now is waited for.
                if running.names.get(running.blocks.len()).is_some_and(|name| coming.contains(name)) {
                    self.blocks.let_go(&running.blocks);
                    later.push_back((id, sequence));
                    continue;
                }
            }
            let needed = running.tokens.len().div_ceil(BLOCK) - running.blocks.len();
            // One more for each that runs, so that they do not take blocks from each other at once.
            if needed + self.running.len() > self.blocks.free() && !self.running.is_empty() {
                self.blocks.let_go(&running.blocks);
                self.waiting.push_front((id, sequence));
                break;
            }
            coming.extend(&running.names[running.blocks.len()..]);
            self.running.push(running);
        }
        later.into_iter().rev().for_each(|one| self.waiting.push_front(one));
    }

    /// What to compute now: the running sequences first, then prompts within the budget. Each has blocks for it.
    fn plan(&mut self) -> Vec<usize> {
        let mut budget = STEP_TOKENS_MAX;
        let mut counts = Vec::with_capacity(self.running.len());
        let mut index = 0;
        while index < self.running.len() {
            let running = &self.running[index];
            let left = running.tokens.len() - running.computed;
            let count = if left == 1 { 1 } else { left.min(budget) };
            if self.furnish(index, running.computed + count) {
                budget = budget.saturating_sub(count);
                counts.push(count);
                index += 1;
            }
        }
        counts
    }

    /// Takes blocks for so many tokens of a sequence, from those that came later if there is no other way. Whether it still
    /// runs then.
    fn furnish(&mut self, index: usize, tokens: usize) -> bool {
        while self.running[index].blocks.len() < tokens.div_ceil(BLOCK) {
            match self.blocks.take() {
                Some(block) => self.running[index].blocks.push(block),
                None => {
                    let last = self.running.pop().expect("there is one at least");
                    self.blocks.let_go(&last.blocks);
                    self.waiting.push_front((last.id, Arc::new(last.back())));
                    if index == self.running.len() {
                        return false;
                    }
                }
            }
        }
        true
    }

    /// Appends the next token of a sequence that has been computed to its end, and says whether that was the last.
    fn extend(&mut self, index: usize, token: u32) -> Option<Output> {
        let running = &mut self.running[index];
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

impl Decoder {
    /// Takes a sequence out of the batch.
    fn end(&mut self, id: SequenceId) {
        if let Some(index) = self.running.iter().position(|running| running.id == id) {
            let running = self.running.remove(index);
            self.blocks.let_go(&running.blocks);
        }
    }
}

impl Running {
    fn new(id: SequenceId, sequence: &Sequence) -> Self {
        let Goal::Generate(params) = sequence.goal.clone() else {
            unreachable!("the endpoints of a generating model ask for nothing else")
        };
        let tokens = [&sequence.tokens[..], &sequence.made].concat();
        let prompt_tokens = sequence.tokens.len();
        let mut running =
            Self { id, tokens, prompt_tokens, computed: 0, params, blocks: Vec::new(), names: Vec::new(), named: 0 };
        running.name_to(running.tokens.len() / BLOCK);
        running
    }

    /// Names its first blocks.
    fn name_to(&mut self, count: usize) {
        for index in self.names.len()..count {
            let tokens = &self.tokens[index * BLOCK..(index + 1) * BLOCK];
            self.names.push(name_after(self.names.last(), tokens));
        }
    }

    /// Takes what is known of its first tokens. The last one is computed in any case, for what comes after it.
    fn share(&mut self, blocks: &mut Blocks) {
        let most = (self.tokens.len() - 1) / BLOCK;
        self.blocks.extend(self.names.iter().take(most).map_while(|name| blocks.share(name)));
        self.named = self.blocks.len();
        self.computed = self.named * BLOCK;
    }

    /// Its next tokens.
    fn input(&self, count: usize) -> Input<'_> {
        let end = self.computed + count;
        Input {
            tokens: &self.tokens[self.computed..end],
            start: self.computed,
            blocks: &self.blocks,
            wants_logits: end == self.tokens.len(),
        }
    }

    /// Tells others of the blocks that are full.
    fn tell(&mut self, blocks: &mut Blocks) {
        let full = self.computed / BLOCK;
        self.name_to(full);
        for index in self.named..full {
            blocks.name(self.blocks[index], self.names[index]);
        }
        self.named = self.named.max(full);
    }

    /// As it came, with what was generated.
    fn back(mut self) -> Sequence {
        let made = self.tokens.split_off(self.prompt_tokens);
        Sequence { made, ..Sequence::new(self.tokens, Goal::Generate(self.params)) }
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
        let counts = self.plan();
        let planned = self.running.iter().zip(&counts).filter(|(_, count)| **count > 0);
        let inputs: Vec<Input<'_>> = planned.map(|(running, count)| running.input(*count)).collect();
        if inputs.is_empty() {
            return Ok(());
        }
        let at_end = self.running.iter().zip(&counts).enumerate();
        let at_end =
            at_end.filter(|(_, (running, count))| **count > 0 && running.computed + *count == running.tokens.len());
        let at_end: Vec<usize> = at_end.map(|(index, _)| index).collect();
        let logits = self.executor.forward(&inputs)?;
        let sampled: Vec<u32> = at_end
            .iter()
            .zip(logits)
            .map(|(&index, logits)| sample(logits, &self.running[index].params, self.running[index].tokens.len()))
            .collect();
        for (running, count) in self.running.iter_mut().zip(counts) {
            running.computed += count;
            if self.executor.shares() {
                running.tell(&mut self.blocks);
            }
        }
        let mut ended = Vec::new();
        for (index, token) in at_end.into_iter().zip(sampled) {
            if let Some(output) = self.extend(index, token) {
                self.finished.push((self.running[index].id, output));
                ended.push(self.running[index].id);
            }
        }
        ended.into_iter().for_each(|id| self.end(id));
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
        self.end(id);
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
