//! One window of audio while its words are drawn, token by token: what may be drawn, and how good it became.
//!
//! The rules are those of OpenAI's reference implementation: timestamps come in pairs and never go back, the first one is
//! within a second, and where timestamps together are more probable than any word, one is drawn.

use std::io::Write;

use flate2::Compression;
use flate2::write::ZlibEncoder;

use super::vocabulary::Vocabulary;
use crate::engine::decoder::executor::{Input, Memory};
use crate::engine::sampling::{log_probability, sample};
use crate::engine::{SamplingParams, text::Text};

/// The latest that the first words may begin, in ticks: a second.
const FIRST_TICK_MAX: u32 = 50;
/// What is tried after the greedy answer, one after the other, while an answer is bad.
const TEMPERATURES: [f32; 6] = [0.0, 0.2, 0.4, 0.6, 0.8, 1.0];
/// An answer that compresses better repeats itself.
const COMPRESSION_MAX: f32 = 2.4;
/// The least mean logarithm of the probability of an answer's tokens.
const LOG_PROBABILITY_MIN: f32 = -1.0;
/// From here on nothing is said, unless the answer is good.
const NO_SPEECH_MIN: f32 = 0.6;

/// What is asked of a window.
#[derive(Clone, Debug)]
pub struct Ask {
    /// The tokens before the answer.
    pub prompt: Vec<u32>,
    /// Where in them the transcript starts.
    pub start_at: usize,
    /// Of the user's own, 0 for the best.
    pub temperature: f32,
    pub seed: u64,
    /// The most tokens of an answer.
    pub tokens_max: usize,
}

#[derive(Debug)]
pub struct Window {
    ask: Ask,
    /// Prompt and answer.
    tokens: Vec<u32>,
    computed: usize,
    /// Which of the temperatures it is at.
    attempt: usize,
    log_probability: f32,
    no_speech: f32,
    /// Of the answers that were bad, the one to give where none is good.
    best: Option<Answer>,
}

/// What came of a window.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    pub tokens: Vec<u32>,
    pub temperature: f32,
    pub log_probability: f32,
    pub compression: f32,
    pub no_speech: f32,
}

impl Answer {
    /// Whether nothing was said.
    pub fn is_silence(&self) -> bool {
        self.no_speech > NO_SPEECH_MIN && self.log_probability < LOG_PROBABILITY_MIN
    }

    /// Of two bad ones: what does not repeat itself goes before what does, then what is more probable.
    fn is_better(&self, other: &Self) -> bool {
        let rank = |answer: &Self| (answer.compression <= COMPRESSION_MAX, answer.log_probability);
        let (own, others) = (rank(self), rank(other));
        own.0.cmp(&others.0).then(own.1.total_cmp(&others.1)).is_gt()
    }

    fn is_bad(&self) -> bool {
        self.compression > COMPRESSION_MAX || self.log_probability < LOG_PROBABILITY_MIN
    }
}

impl Window {
    pub fn new(ask: Ask) -> Self {
        let tokens = ask.prompt.clone();
        Self { ask, tokens, computed: 0, attempt: 0, log_probability: 0.0, no_speech: 0.0, best: None }
    }

    /// What is to be computed next.
    pub fn input<'a>(&'a self, blocks: &'a [u32], memory: Memory<'a>) -> Input<'a> {
        let wanted = match self.computed {
            0 => self.tokens.len() - self.ask.start_at,
            _ => 1,
        };
        Input { tokens: &self.tokens[self.computed..], start: self.computed, blocks, wanted, draw: None, memory }
    }

    /// Draws the next token from the logits that were wanted; the answer, where it ends.
    pub fn advance<'a>(
        &mut self,
        logits: impl Iterator<Item = &'a [f32]>,
        vocabulary: &Vocabulary,
        text: &Text,
    ) -> (u32, Option<Answer>) {
        let mut last = None;
        for logits in logits {
            if self.computed == 0 && last.is_none() {
                self.no_speech = log_probability(logits, vocabulary.no_speech).exp();
            }
            last = Some(logits);
        }
        let last = last.expect("the logits at the end are wanted");
        self.computed = self.tokens.len();
        let generated = &self.tokens[self.ask.prompt.len()..];
        let mut logits = last.to_vec();
        restrict(&mut logits, generated, vocabulary);
        let temperature = self.temperature();
        let seed = self.ask.seed.wrapping_add(self.attempt as u64);
        let params = SamplingParams { temperature, seed, ..SamplingParams::default() };
        let token = sample(&logits, &params, &[], self.tokens.len(), None);
        self.log_probability += log_probability(&logits, token);
        if token != vocabulary.end {
            self.tokens.push(token);
        }
        let generated = self.tokens.len() - self.ask.prompt.len();
        if token != vocabulary.end && generated < self.ask.tokens_max {
            return (token, None);
        }
        let answer = self.answer(vocabulary, text);
        let tries = if self.ask.temperature > 0.0 { 1 } else { TEMPERATURES.len() };
        if !answer.is_bad() || answer.is_silence() {
            return (token, Some(answer));
        }
        let best = match self.best.take() {
            Some(best) if !answer.is_better(&best) => best,
            Some(_) | None => answer,
        };
        if self.attempt + 1 >= tries {
            return (token, Some(best));
        }
        self.best = Some(best);
        self.attempt += 1;
        self.tokens.truncate(self.ask.prompt.len());
        self.computed = 0;
        self.log_probability = 0.0;
        (token, None)
    }

    fn temperature(&self) -> f32 {
        if self.ask.temperature > 0.0 { self.ask.temperature } else { TEMPERATURES[self.attempt] }
    }

    fn answer(&self, vocabulary: &Vocabulary, text: &Text) -> Answer {
        let tokens = self.tokens[self.ask.prompt.len()..].to_vec();
        let words: Vec<u32> = tokens.iter().copied().filter(|token| *token < vocabulary.end).collect();
        Answer {
            temperature: self.temperature(),
            log_probability: self.log_probability / (tokens.len() + 1) as f32,
            compression: compression(text.decode(&words).trim()),
            no_speech: self.no_speech,
            tokens,
        }
    }
}

/// How many times as long a text is as what it compresses to.
pub fn compression(text: &str) -> f32 {
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::default());
    let written = encoder.write_all(text.as_bytes()).and_then(|()| encoder.finish());
    let compressed = written.expect("writing to memory cannot fail").len();
    text.len() as f32 / compressed as f32
}

/// Takes out what may not come next.
fn restrict(logits: &mut [f32], generated: &[u32], vocabulary: &Vocabulary) {
    let Vocabulary { end, first_time, suppressed, suppressed_first, .. } = vocabulary;
    let (end, first_time) = (*end as usize, *first_time as usize);
    let hide = |logits: &mut [f32]| logits.fill(f32::NEG_INFINITY);
    let mut hide_tokens = |tokens: &[u32]| {
        tokens.iter().for_each(|token| {
            if let Some(logit) = logits.get_mut(*token as usize) {
                *logit = f32::NEG_INFINITY;
            }
        });
    };
    hide_tokens(suppressed);
    if generated.is_empty() {
        hide_tokens(suppressed_first);
    }
    let is_time = |back: usize| {
        let at = generated.len().checked_sub(back);
        at.is_some_and(|at| vocabulary.is_time(generated[at]))
    };
    let (last, before) = (is_time(1), generated.len() < 2 || is_time(2));
    if last {
        match before {
            // A pair is whole: words follow, or the end does not.
            true => hide(&mut logits[first_time..]),
            // One is open: it is closed, or all ends.
            false => hide(&mut logits[..end]),
        }
    }
    if let Some(&latest) = generated.iter().rev().find(|token| vocabulary.is_time(**token)) {
        // Never back, and never a pair of the same but to begin the next words where the last ended.
        let open = last && !before;
        let least = (latest as usize + usize::from(!open)).min(logits.len());
        hide(&mut logits[first_time..least]);
    }
    if generated.is_empty() {
        hide(&mut logits[..first_time]);
        let latest = (first_time + FIRST_TICK_MAX as usize + 1).min(logits.len());
        hide(&mut logits[latest..]);
    }
    if times_are_likelier(logits, first_time) {
        hide(&mut logits[..first_time]);
    }
}

/// Whether all timestamps together are more probable than the most probable word.
fn times_are_likelier(logits: &[f32], first_time: usize) -> bool {
    let (words, times) = logits.split_at(first_time);
    let most = |logits: &[f32]| logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let (word, time) = (most(words), most(times));
    if time == f32::NEG_INFINITY {
        return false;
    }
    let sum: f32 = times.iter().map(|logit| (logit - time).exp()).sum();
    time + sum.ln() > word
}

#[cfg(test)]
mod tests {
    use super::super::vocabulary;
    use super::*;

    /// The tokens that may follow.
    fn allowed(generated: &[u32]) -> Vec<usize> {
        let mut logits = vec![0.0; 100];
        // So that timestamps are not likelier by their number.
        logits[..17].fill(10.0);
        restrict(&mut logits, generated, &vocabulary::tiny());
        (0..100).filter(|token| logits[*token] > f32::NEG_INFINITY).collect()
    }

    #[test]
    fn an_answer_begins_within_a_second() {
        assert_eq!(allowed(&[]), (17..=17 + 50).collect::<Vec<_>>());
    }

    #[test]
    fn timestamps_come_in_pairs_and_do_not_go_back() {
        let words: Vec<usize> = vec![0, 1, 2, 4, 5, 6, 7, 8, 9, 10];
        assert_eq!(allowed(&[20]), words, "words follow the first");
        assert_eq!(allowed(&[20, 1])[..10], words);
        assert_eq!(allowed(&[20, 1])[10..], (21..100).collect::<Vec<_>>()[..], "later ones close it");
        assert_eq!(allowed(&[20, 1, 30])[..2], [10, 30], "the end, or where the next words begin");
        assert_eq!(allowed(&[20, 1, 30, 30]), words);
    }

    #[test]
    fn a_timestamp_is_drawn_where_all_together_are_likelier() {
        let mut logits = vec![1.0; 100];
        restrict(&mut logits, &[20, 1], &vocabulary::tiny());
        assert!(logits[..17].iter().all(|logit| *logit == f32::NEG_INFINITY));
    }

    #[test]
    fn of_bad_answers_the_best_is_kept() {
        let answer = |compression, log_probability| Answer {
            tokens: Vec::new(),
            temperature: 0.0,
            log_probability,
            compression,
            no_speech: 0.0,
        };
        assert!(answer(1.0, -1.5).is_better(&answer(1.0, -2.0)));
        assert!(answer(1.0, -9.0).is_better(&answer(3.0, -0.1)));
        assert!(!answer(3.0, -0.1).is_better(&answer(1.0, -2.0)));
        assert!(!answer(1.0, -2.0).is_better(&answer(1.0, -2.0)), "the first stays");
    }

    #[test]
    fn what_repeats_itself_compresses_well() {
        assert!(compression(&"and so on ".repeat(30)) > COMPRESSION_MAX);
        assert!(compression("It was only a few days before they heard of it.") < COMPRESSION_MAX);
    }
}
