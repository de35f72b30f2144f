//! The decoder engine: models that continue text.
//!
//! Batching is continuous: each step computes one token of every running sequence and, within a budget of tokens, a chunk
//! of the prompts that are still being read, all packed in one matrix. Sequences join and leave between steps. Keys and
//! values are kept in blocks, of which there is a fixed number: a sequence waits until there are enough for its prompt,
//! and where one needs another block and there is none, the one that came last gives its own back and begins again later.

pub(super) mod blocks;
pub(super) mod blueprint;
pub(super) mod cpu;
pub(super) mod executor;
mod family;
mod files;
#[cfg(feature = "gpu")]
mod gpu;
mod lookup;
mod rotation;
mod running;
mod words;

pub use self::files::weights as weight_files;

use std::collections::{HashSet, VecDeque};
use std::path::Path;
use std::sync::Arc;

use candle_core::Device;
use kernels::BLOCK;
use rayon::prelude::*;
use schemas::registry::Model;

use self::blocks::{Blocks, Name};
use self::executor::{After, Executor, Input, Memory, block_bytes};
use self::files::Files;
use self::running::Running;
use super::sampling::log_probability;
use super::text::Text;
use super::{Engine, LoadError, Made, Output, Sequence, SequenceId, StepError};

pub struct Decoder {
    executor: Executor,
    blocks: Blocks,
    text: Arc<Text>,
    /// Tokens that end a text.
    ends: Vec<u32>,
    batch: usize,
    /// The most tokens of prompts in one step, so that a long prompt does not hold up the others for long.
    step_tokens: usize,
    /// Tokens that are guessed at a time, at most.
    guesses: usize,
    waiting: VecDeque<(SequenceId, Arc<Sequence>)>,
    /// In the order in which they came.
    running: Vec<Running>,
    made: Vec<Made>,
    finished: Vec<(SequenceId, Output)>,
}

impl Decoder {
    /// Loads a GGUF file, or a folder in the layout of the Hugging Face hub.
    pub fn load(path: &Path, model: &Model, device: &Device) -> Result<(Arc<Text>, Self), LoadError> {
        let files = Files::read(path)?;
        let shape = &files.source.shape;
        let of_block = files.source.layers.len() * block_bytes(shape, model.dtype, device)?;
        let count = ((model.limits.kv_cache_mebibytes << 20) / of_block).max(1);
        let context = model.limits.prompt_tokens.unwrap_or(usize::MAX).min(shape.context).min(count * BLOCK);
        let (source, text, ends) = files.take(context);
        let executor = Executor::new(source, model.dtype, count, device)?;
        let text = Arc::new(text);
        let mut decoder = Self::new(executor, Blocks::new(count), Arc::clone(&text), ends, model.limits.batch);
        decoder.guesses = model.prompt_lookup_tokens;
        Ok((text, decoder))
    }

    /// Loads it for the processor, whatever devices there are.
    pub fn load_on_processor(path: &Path, model: &Model) -> Result<(Arc<Text>, Self), LoadError> {
        Self::load(path, model, &Device::Cpu)
    }

    /// The logarithms of the probabilities that the model gives to each token but the first, after those before it.
    pub fn score(&mut self, tokens: &[u32]) -> Result<Vec<f32>, StepError> {
        let mut scores = Vec::with_capacity(tokens.len());
        let last = tokens.len().saturating_sub(1);
        self.read(&tokens[..last], |at, logits| scores.push(log_probability(logits, tokens[at + 1])))?;
        Ok(scores)
    }

    /// Reads tokens and shows the logits after each of them.
    pub fn read(&mut self, tokens: &[u32], mut each: impl FnMut(usize, &[f32])) -> Result<(), StepError> {
        let needed = tokens.len().div_ceil(BLOCK);
        let blocks: Vec<u32> = (0..needed).map_while(|_| self.blocks.take()).collect();
        let mut read = || {
            if blocks.len() < needed {
                return Err(StepError(format!("{} tokens are more than there is room for", tokens.len())));
            }
            for (start, tokens) in (0..).step_by(BLOCK).zip(tokens.chunks(BLOCK)) {
                let (wanted, memory) = (tokens.len(), Memory::default());
                let input = Input { tokens, start, blocks: &blocks, wanted, draw: None, memory };
                (start..).zip(self.executor.forward(&[input])?).for_each(|(at, logits)| each(at, logits));
            }
            Ok(())
        };
        let done = read();
        self.blocks.let_go(&blocks);
        done
    }

    fn new(executor: Executor, blocks: Blocks, text: Arc<Text>, ends: Vec<u32>, batch: usize) -> Self {
        Self {
            step_tokens: executor.step_tokens(),
            executor,
            blocks,
            text,
            ends,
            batch,
            guesses: 0,
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
            running.share(&mut self.blocks);
            // What another computes right now is waited for.
            if running.names.get(running.blocks.len()).is_some_and(|name| coming.contains(name)) {
                self.blocks.let_go(&running.blocks);
                later.push_back((id, sequence));
                continue;
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
        let mut budget = self.step_tokens;
        let mut counts = Vec::with_capacity(self.running.len());
        let mut index = 0;
        let guesses = self.guesses.min(lookup::share(self.running.len()));
        while index < self.running.len() {
            let running = &mut self.running[index];
            let left = running.tokens.len() - running.computed;
            let guesses = if left == 1 { guesses } else { 0 };
            let guesses = running.guess(guesses, self.text.prompt_tokens_max());
            let count = if left == 1 { 1 + guesses } else { left.min(budget) };
            let end = running.computed + count;
            if self.furnish(index, end) {
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

    /// Takes a sequence out of the batch.
    fn end(&mut self, id: SequenceId) {
        if let Some(index) = self.running.iter().position(|running| running.id == id) {
            let running = self.running.remove(index);
            self.blocks.let_go(&running.blocks);
        }
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
        let mut inputs: Vec<Input<'_>> =
            self.running.iter().zip(&counts).map(|(running, count)| running.input(*count)).collect();
        let wanted: Vec<usize> = inputs.iter().map(|input| input.wanted).collect();
        inputs.retain(|input| !input.tokens.is_empty());
        if inputs.is_empty() {
            return Ok(());
        }
        let after = self.executor.draw(&inputs)?;
        let mut rest = &after[..];
        let mut own = |count| rest.split_off(..count).unwrap_or_default();
        let shares: Vec<_> = counts.into_iter().zip(wanted).map(|(count, wanted)| (count, own(wanted))).collect();
        let (ends, text) = (&self.ends, &self.text);
        let advance = |(running, (count, after)): (&mut Running, (usize, &[After<'_>]))| {
            let mut made = Vec::new();
            let output = running.advance(count, after, ends, text, &mut made);
            (made, output)
        };
        // Grammars take their time, and draws from some of a large vocabulary. For one alone no other thread is woken.
        let steps: Vec<_> = match self.running.len() {
            1 => self.running.iter_mut().zip(shares).map(advance).collect(),
            _ => self.running.par_iter_mut().zip(shares).map(advance).collect(),
        };
        let mut ended = Vec::new();
        for (running, (made, output)) in self.running.iter().zip(steps) {
            self.made.extend(made);
            if let Some(output) = output {
                ended.push(running.id);
                self.finished.push((running.id, output));
            }
        }
        self.running.iter_mut().for_each(|running| running.tell(&mut self.blocks));
        ended.into_iter().for_each(|id| self.end(id));
        Ok(())
    }

    fn made(&mut self) -> Vec<Made> {
        std::mem::take(&mut self.made)
    }

    fn finished(&mut self) -> Vec<(SequenceId, Output)> {
        std::mem::take(&mut self.finished)
    }

    fn remove(&mut self, id: SequenceId) {
        self.waiting.retain(|(waiting, _)| *waiting != id);
        self.made.retain(|made| made.id != id);
        self.end(id);
        self.finished.retain(|(finished, _)| *finished != id);
    }

    fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.running.is_empty()
    }
}

#[cfg(test)]
mod tests;
