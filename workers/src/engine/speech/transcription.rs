//! One audio file on its way through the model, window by window: where it stands, and what was said so far.
//!
//! A window begins where the last words of the one before ended; what was said is told to the next as its past.

use super::mel::FRAMES_PER_SECOND;
use super::vocabulary::{TICK, Vocabulary};
use super::window::{Answer, Ask, compression};
use crate::engine::text::Text;
use crate::engine::{Hearing, Segment, Sequence, SequenceId, Transcript, Word};

/// Above this a window's words are not told to the next.
const TRUSTED_TEMPERATURE: f32 = 0.5;
/// Frames of a tick of time.
const FRAMES_PER_TICK: usize = 2;

#[derive(Debug)]
pub struct Transcription {
    pub id: SequenceId,
    pub hearing: Hearing,
    /// The language's token, once it is known.
    pub language: Option<u32>,
    /// The next frame.
    at: usize,
    /// What was said, and what the user said was said before.
    history: Vec<u32>,
    /// Where in it the part begins that is told.
    told_from: usize,
    tokens: usize,
    segments: Vec<Segment>,
}

impl Transcription {
    pub fn new(id: SequenceId, sequence: &Sequence, hearing: &Hearing) -> Self {
        let history = sequence.tokens.clone();
        let (hearing, language) = (hearing.clone(), hearing.language);
        Self { id, hearing, language, at: 0, history, told_from: 0, tokens: 0, segments: Vec::new() }
    }

    /// How far it has come.
    pub fn seconds(&self) -> f64 {
        (self.at as f64 / FRAMES_PER_SECOND as f64).min(self.hearing.mel.seconds())
    }

    /// Goes on to the next window in which something is to be heard, of at most so many frames.
    pub fn next(&mut self, frames_max: usize) -> Option<usize> {
        loop {
            let left = self.hearing.mel.frames().saturating_sub(self.at).min(frames_max);
            if left == 0 {
                return None;
            }
            if !self.hearing.mel.is_silent(self.at, left) {
                return Some(left);
            }
            self.at += left;
        }
    }

    /// What the model hears of a window of so many frames.
    pub fn window(&self, frames: usize) -> Vec<f32> {
        let mut window = vec![0.0; frames * self.hearing.mel.bands()];
        self.hearing.mel.window(self.at, &mut window);
        window
    }

    /// What the decoder is asked of the window.
    pub fn ask(&self, vocabulary: &Vocabulary, context: usize) -> Ask {
        let told = &self.history[self.told_from..];
        let told = &told[told.len().saturating_sub(context / 2 - 1)..];
        let mut prompt = Vec::with_capacity(told.len() + 4);
        if !told.is_empty() {
            prompt.push(vocabulary.previous);
            prompt.extend(told);
        }
        let start_at = prompt.len();
        prompt.extend(self.start(vocabulary));
        let tokens_max = (context / 2).min(context - prompt.len());
        let Hearing { temperature, seed, .. } = self.hearing;
        Ask { prompt, start_at, temperature, seed: seed.wrapping_add(self.at as u64), tokens_max }
    }

    /// What a transcript starts with.
    pub fn start(&self, vocabulary: &Vocabulary) -> Vec<u32> {
        let task = if self.hearing.translate { vocabulary.translate } else { vocabulary.transcribe };
        match self.language {
            Some(language) if vocabulary.is_multilingual() => vec![vocabulary.start, language, task],
            _ => vec![vocabulary.start],
        }
    }

    /// Takes what came of a window of so many frames, with its words where they are wanted.
    pub fn take(&mut self, answer: &Answer, frames: usize, words: Vec<Word>, vocabulary: &Vocabulary, text: &Text) {
        self.tokens += answer.tokens.len();
        if answer.is_silence() {
            self.at += frames;
            return;
        }
        let (pieces, moved) = divide(&answer.tokens, frames, vocabulary);
        let offset = self.at as f64 / FRAMES_PER_SECOND as f64;
        // What the model makes up behind the end of the audio is no part of it.
        let whole = self.hearing.mel.seconds();
        let first = self.segments.len();
        for Piece { tokens, start, end } in pieces {
            let spoken: Vec<u32> = tokens.iter().copied().filter(|token| *token < vocabulary.end).collect();
            let written = text.decode(&spoken);
            let (start, end) = (offset + start, (offset + end).min(whole));
            if start >= end || written.trim().is_empty() {
                continue;
            }
            self.history.extend(&tokens);
            self.segments.push(Segment {
                seek: self.at,
                start,
                end,
                compression_ratio: compression(written.trim()),
                text: written,
                tokens,
                temperature: answer.temperature,
                avg_logprob: answer.log_probability,
                no_speech_prob: answer.no_speech,
                words: Vec::new(),
            });
        }
        share(words, offset, &mut self.segments[first..]);
        if answer.temperature > TRUSTED_TEMPERATURE {
            self.told_from = self.history.len();
        }
        // Whatever the model says, there is less left.
        self.at += moved.clamp(1, frames);
    }

    pub fn finish(self, vocabulary: &Vocabulary) -> Transcript {
        Transcript {
            language: vocabulary.code(self.language).to_owned(),
            seconds: self.hearing.mel.seconds(),
            segments: self.segments,
            tokens: self.tokens,
        }
    }
}

/// Words of a window to the segments that they are of, by their letters.
fn share(words: Vec<Word>, offset: f64, segments: &mut [Segment]) {
    let mut words = words.into_iter().peekable();
    for segment in segments {
        let mut left = segment.text.trim().len();
        while let Some(word) = words.next_if(|_| left > 0) {
            left = left.saturating_sub(word.word.len().min(left));
            let (start, end) = (offset + word.start, (offset + word.end).max(offset + word.start));
            segment.words.push(Word { word: word.word, start, end });
            if left > 0 && segment.words.len() == 1 {
                // The space before the first word is not of the text's length.
                left += 1;
            }
        }
    }
}

/// A part of an answer between timestamps, in seconds from the window's beginning.
#[derive(Debug, PartialEq)]
struct Piece {
    tokens: Vec<u32>,
    start: f64,
    end: f64,
}

/// Divides an answer by its timestamps, and says by how many frames to go on.
fn divide(tokens: &[u32], frames: usize, vocabulary: &Vocabulary) -> (Vec<Piece>, usize) {
    let is_time = |index: usize| vocabulary.is_time(tokens[index]);
    let ticks = |token: u32| (token - vocabulary.first_time) as usize;
    let count = tokens.len();
    let ends_with_one = count >= 2 && !is_time(count - 2) && is_time(count - 1);
    // Where one pair ends and the next begins.
    let mut cuts: Vec<usize> = (1..count).filter(|&index| is_time(index - 1) && is_time(index)).collect();
    if cuts.is_empty() {
        let last = tokens.iter().rev().find(|token| vocabulary.is_time(**token)).map(|token| ticks(*token));
        let end = match last {
            Some(ticks) if ticks > 0 => ticks as f64 * TICK,
            _ => frames as f64 / FRAMES_PER_SECOND as f64,
        };
        return (vec![Piece { tokens: tokens.to_vec(), start: 0.0, end }], frames);
    }
    if ends_with_one {
        cuts.push(count);
    }
    let mut first = 0;
    let mut pieces = Vec::with_capacity(cuts.len());
    for &cut in &cuts {
        let piece = &tokens[first..cut];
        let second = |token: u32| if vocabulary.is_time(token) { ticks(token) as f64 * TICK } else { 0.0 };
        pieces.push(Piece { tokens: piece.to_vec(), start: second(piece[0]), end: second(piece[piece.len() - 1]) });
        first = cut;
    }
    let moved = if ends_with_one { frames } else { ticks(tokens[first - 1]) * FRAMES_PER_TICK };
    (pieces, moved)
}

#[cfg(test)]
mod tests {
    use super::super::vocabulary;
    use super::*;

    /// The token of a time in seconds.
    fn at(seconds: f64) -> u32 {
        17 + (seconds / TICK).round() as u32
    }

    #[test]
    fn the_next_window_begins_where_the_last_whole_words_ended() {
        let tokens = [at(0.0), 1, at(2.0), at(2.5), 2, at(4.0), at(4.0), 3];
        let (pieces, moved) = divide(&tokens, 3000, &vocabulary::tiny());
        let times: Vec<(f64, f64)> = pieces.iter().map(|piece| (piece.start, piece.end)).collect();
        assert_eq!((times, moved), (vec![(0.0, 2.0), (2.5, 4.0)], 400));
    }

    #[test]
    fn words_that_end_with_one_timestamp_end_the_window() {
        let tokens = [at(0.0), 1, at(2.0), at(2.0), 2, at(4.0)];
        let (pieces, moved) = divide(&tokens, 3000, &vocabulary::tiny());
        assert_eq!((pieces.len(), moved), (2, 3000));
        let (pieces, moved) = divide(&[at(0.0), 1, at(3.0)], 500, &vocabulary::tiny());
        assert_eq!((pieces[0].end, moved), (3.0, 500));
        let (pieces, moved) = divide(&[at(0.0), 1], 500, &vocabulary::tiny());
        assert_eq!((pieces[0].end, moved), (5.0, 500));
    }
}
