//! The speech engine: Whisper. Windows of 30 seconds through the encoder, then token by token through the decoder.
//!
//! A step encodes a few windows, on a processor as many as there are threads, and draws a token for each window that is encoded, so that windows of
//! many files are in one batch, and a short file never waits for a long one. The keys and values of what was heard are
//! computed once and lie in the same pages as those of the tokens.

mod ct2;
mod encoder;
mod files;
pub mod languages;
pub mod mel;
mod transcription;
pub mod vocabulary;
mod window;
mod words;

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;

use candle_core::Device;
use kernels::BLOCK;
use schemas::registry::Model;

use self::encoder::Encoder;
use self::files::Files;
pub use self::files::weight_files;
use self::transcription::Transcription;
use self::vocabulary::Vocabulary;
use self::window::{Answer, Window};
use super::decoder::blocks::Blocks;
use super::decoder::executor::{Executor, Input, Memory, block_bytes};
use super::text::{Listening, Text};
use super::{Engine, Goal, LoadError, Made, Output, Sequence, SequenceId, StepError, Word};

pub struct Speech {
    encoder: Encoder,
    decoder: Executor,
    blocks: Blocks,
    text: Arc<Text>,
    vocabulary: Arc<Vocabulary>,
    alignment_heads: Vec<(usize, usize)>,
    context: usize,
    batch: usize,
    waiting: VecDeque<(SequenceId, Arc<Sequence>)>,
    running: Vec<Running>,
    made: Vec<Made>,
    heard: Vec<(SequenceId, f64)>,
    finished: Vec<(SequenceId, Output)>,
}

/// A file with a place in the batch.
struct Running {
    file: Transcription,
    stage: Stage,
}

enum Stage {
    /// The next window is to be heard.
    Hear,
    Write(Box<Writing>),
}

/// A window that was heard.
struct Writing {
    /// Of audio.
    frames: usize,
    /// Of the keys and values of what was heard, and of the tokens.
    memory: Vec<u32>,
    blocks: Vec<u32>,
    /// None while the language is asked for.
    window: Option<Window>,
}

impl Speech {
    pub fn load(folder: &Path, model: &Model, device: &Device) -> Result<(Arc<Text>, Self), LoadError> {
        let files = Files::open(folder)?;
        let vocabulary =
            Arc::new(Vocabulary::of(&files.tokenizer, &files.suppressed, &files.suppressed_first, folder)?);
        let encoder = Encoder::new(&files, model.dtype, device)?;
        let source = files.decoder()?;
        let (context, heard) = (files.sizes.context, files.sizes.heard);
        let of_block = files.sizes.layers[1] * block_bytes(&source.shape, model.dtype, device)?;
        let count = (model.limits.kv_cache_mebibytes << 20) / of_block;
        let needed = heard.div_ceil(BLOCK) + context.div_ceil(BLOCK);
        if count < needed {
            let (needed, had) = ((needed * of_block).div_ceil(1 << 20), model.limits.kv_cache_mebibytes);
            return Err(LoadError::file(
                folder,
                format!("a window takes {needed} MiB of keys and values; limits.kv_cache_mebibytes is {had}"),
            ));
        }
        // More are never in use.
        let count = count.min(needed * model.limits.batch);
        let decoder = Executor::new(source, model.dtype, count, device)?;
        let listening = Listening::new(files.sizes.bands, Arc::clone(&vocabulary));
        let text = Arc::new(Text::speech(files.tokenizer, context, listening));
        let speech = Self {
            encoder,
            decoder,
            blocks: Blocks::new(count),
            text: Arc::clone(&text),
            vocabulary,
            alignment_heads: files.alignment_heads,
            context,
            batch: model.limits.batch,
            waiting: VecDeque::new(),
            running: Vec::new(),
            made: Vec::new(),
            heard: Vec::new(),
            finished: Vec::new(),
        };
        Ok((text, speech))
    }

    /// Loads it for the processor, whatever devices there are.
    pub fn load_on_processor(folder: &Path, model: &Model) -> Result<(Arc<Text>, Self), LoadError> {
        Self::load(folder, model, &Device::Cpu)
    }

    /// The logits after each of some tokens, of a window of audio that begins at a frame.
    pub fn logits(&mut self, mel: &mel::Mel, first: usize, tokens: &[u32]) -> Result<Vec<Vec<f32>>, StepError> {
        let mut window = vec![0.0; self.encoder.frames() * mel.bands()];
        mel.window(first, &mut window);
        let rows = self.encoder.run(&[window])?.remove(0);
        let (memory, blocks) = self.room(self.encoder.rows, tokens.len());
        self.decoder.remember(&rows, &memory)?;
        let memory = Memory { blocks: &memory, rows: self.encoder.rows };
        let input = Input { tokens, start: 0, blocks: &blocks, wanted: tokens.len(), draw: None, memory };
        let logits = self.decoder.forward(&[input])?.map(<[f32]>::to_vec).collect();
        self.blocks.let_go(memory.blocks);
        self.blocks.let_go(&blocks);
        Ok(logits)
    }

    /// Blocks for what was heard and for tokens.
    fn room(&mut self, heard: usize, tokens: usize) -> (Vec<u32>, Vec<u32>) {
        let mut take = |rows: usize| -> Vec<u32> {
            (0..rows.div_ceil(BLOCK)).map(|_| self.blocks.take().expect("there is room for a window")).collect()
        };
        (take(heard), take(tokens))
    }

    fn admit(&mut self) {
        while self.running.len() < self.batch
            && let Some((id, sequence)) = self.waiting.pop_front()
        {
            let Goal::Transcribe(hearing) = &sequence.goal else {
                unreachable!("the endpoints of a model that hears ask for nothing else")
            };
            self.running.push(Running { file: Transcription::new(id, &sequence, hearing), stage: Stage::Hear });
        }
    }

    /// Hears the next windows of files that wait for it, some at a time, and ends those that are through.
    fn hear(&mut self) -> Result<(), StepError> {
        let frames_max = self.encoder.frames();
        let needed = self.encoder.rows.div_ceil(BLOCK) + self.context.div_ceil(BLOCK);
        let room = (self.blocks.free() / needed).min(self.encoder.windows);
        let (mut chosen, mut index) = (Vec::new(), 0);
        while index < self.running.len() && chosen.len() < room {
            let running = &mut self.running[index];
            if matches!(running.stage, Stage::Hear) {
                match running.file.next(frames_max) {
                    Some(frames) => chosen.push((index, frames)),
                    None => {
                        self.end(index);
                        continue;
                    }
                }
            }
            index += 1;
        }
        let windows: Vec<Vec<f32>> =
            chosen.iter().map(|(index, _)| self.running[*index].file.window(frames_max)).collect();
        for ((index, frames), rows) in chosen.into_iter().zip(self.encoder.run(&windows)?) {
            let (memory, blocks) = self.room(self.encoder.rows, self.context);
            let remembered = self.decoder.remember(&rows, &memory);
            let running = &mut self.running[index];
            let asks_language = self.vocabulary.is_multilingual() && running.file.language.is_none();
            let window = (!asks_language).then(|| Window::new(running.file.ask(&self.vocabulary, self.context)));
            // Before anything can fail, so that what was taken is given back with the file.
            running.stage = Stage::Write(Box::new(Writing { frames, memory, blocks, window }));
            remembered?;
        }
        Ok(())
    }

    /// Draws a token for each window that was heard.
    fn write(&mut self) -> Result<(), StepError> {
        let Self { encoder, decoder, text, vocabulary, running, made, .. } = self;
        let start = [vocabulary.start];
        let inputs: Vec<Input<'_>> = running.iter().filter_map(|running| running.input(&start, encoder.rows)).collect();
        if inputs.is_empty() {
            return Ok(());
        }
        let counts: Vec<usize> = inputs.iter().map(|input| input.wanted).collect();
        let mut logits = decoder.forward(&inputs)?;
        let mut answers = Vec::new();
        let writing = running.iter_mut().enumerate().filter(|(_, running)| matches!(running.stage, Stage::Write(_)));
        for ((index, Running { file, stage }), count) in writing.zip(counts) {
            let Stage::Write(writing) = stage else { continue };
            let mut own = logits.by_ref().take(count);
            match &mut writing.window {
                None => {
                    file.language = own.next().map(|logits| likeliest(logits, vocabulary));
                    writing.window = Some(Window::new(file.ask(vocabulary, self.context)));
                }
                Some(window) => {
                    let (token, answer) = window.advance(own, vocabulary, text);
                    made.push(Made { id: file.id, token, logprobs: None });
                    answers.extend(answer.map(|answer| (index, answer)));
                }
            }
        }
        answers.into_iter().try_for_each(|(index, answer)| self.take(index, &answer))
    }

    /// Takes the answer of a window, and frees what it held.
    fn take(&mut self, index: usize, answer: &Answer) -> Result<(), StepError> {
        let running = &mut self.running[index];
        let Stage::Write(writing) = std::mem::replace(&mut running.stage, Stage::Hear) else { return Ok(()) };
        let words = match running.file.hearing.words && !answer.is_silence() {
            true => self.words(index, answer, &writing),
            false => Ok(Vec::new()),
        };
        self.blocks.let_go(&writing.memory);
        self.blocks.let_go(&writing.blocks);
        let file = &mut self.running[index].file;
        file.take(answer, writing.frames, words?, &self.vocabulary, &self.text);
        self.heard.push((file.id, file.seconds()));
        Ok(())
    }

    /// When the words of an answer were said.
    fn words(&mut self, index: usize, answer: &Answer, writing: &Writing) -> Result<Vec<Word>, StepError> {
        let file = &self.running[index].file;
        let spoken: Vec<u32> = answer.tokens.iter().copied().filter(|token| *token < self.vocabulary.end).collect();
        let start = file.start(&self.vocabulary);
        let skipped = start.len();
        let tokens = [&start[..], &[self.vocabulary.no_timestamps], &spoken, &[self.vocabulary.end]].concat();
        let pieces = words::pieces(&spoken, self.vocabulary.code(file.language), &self.text);
        let heard = (writing.frames / 2).min(self.encoder.rows);
        let memory = Memory { blocks: &writing.memory, rows: self.encoder.rows };
        let input = Input { tokens: &tokens, start: 0, blocks: &writing.blocks, wanted: 0, draw: None, memory };
        let watched = self.decoder.watch(input, &self.alignment_heads, heard)?;
        Ok(words::times(pieces, &watched, tokens.len(), heard, skipped))
    }

    /// Ends a file that is through.
    fn end(&mut self, index: usize) {
        let Running { file, .. } = self.running.remove(index);
        self.finished.push((file.id, Output::Transcript(file.finish(&self.vocabulary))));
    }
}

impl Running {
    /// What the decoder is to compute for it.
    fn input<'a>(&'a self, start: &'a [u32], rows: usize) -> Option<Input<'a>> {
        let Stage::Write(writing) = &self.stage else { return None };
        let memory = Memory { blocks: &writing.memory, rows };
        Some(match &writing.window {
            Some(window) => window.input(&writing.blocks, memory),
            None => Input { tokens: start, start: 0, blocks: &writing.blocks, wanted: 1, draw: None, memory },
        })
    }
}

/// The language that is spoken most probably.
fn likeliest(logits: &[f32], vocabulary: &Vocabulary) -> u32 {
    let of = |token: &u32| logits[*token as usize];
    let tokens = vocabulary.languages.iter().map(|(_, token)| *token).filter(|token| (*token as usize) < logits.len());
    tokens.max_by(|a, b| of(a).total_cmp(&of(b))).unwrap_or(vocabulary.start + 1)
}

impl Engine for Speech {
    fn add(&mut self, id: SequenceId, sequence: Arc<Sequence>) {
        self.waiting.push_back((id, sequence));
    }

    fn takes(&self, _: &Sequence) -> bool {
        self.running.len() + self.waiting.len() < self.batch
    }

    fn step(&mut self) -> Result<(), StepError> {
        self.admit();
        self.hear()?;
        self.write()
    }

    fn made(&mut self) -> Vec<Made> {
        std::mem::take(&mut self.made)
    }

    fn heard(&mut self) -> Vec<(SequenceId, f64)> {
        std::mem::take(&mut self.heard)
    }

    fn finished(&mut self) -> Vec<(SequenceId, Output)> {
        std::mem::take(&mut self.finished)
    }

    fn remove(&mut self, id: SequenceId) {
        self.waiting.retain(|(waiting, _)| *waiting != id);
        self.made.retain(|made| made.id != id);
        self.heard.retain(|(heard, _)| *heard != id);
        self.finished.retain(|(finished, _)| *finished != id);
        if let Some(index) = self.running.iter().position(|running| running.file.id == id)
            && let Stage::Write(writing) = self.running.remove(index).stage
        {
            self.blocks.let_go(&writing.memory);
            self.blocks.let_go(&writing.blocks);
        }
    }

    fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.running.is_empty()
    }
}
