//! The echo engine: no model, so that the queue can be tested and loaded by itself. It answers from its input, always
//! the same way, at a price per step that the registry sets.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use schemas::registry::EchoCost;

use super::{
    Engine, FinishReason, Goal, Logprobs, Made, Output, SamplingParams, Sequence, SequenceId, StepError, fault,
};

/// Of the vectors it makes.
pub const DIMENSIONS: usize = 8;
/// Of the scores it makes.
const CLASSES: usize = 2;

#[derive(Debug)]
pub struct Echo {
    batch: usize,
    cost: EchoCost,
    waiting: VecDeque<Waiting>,
    made: Vec<Made>,
    finished: Vec<(SequenceId, Output)>,
}

#[derive(Debug)]
struct Waiting {
    id: SequenceId,
    sequence: Arc<Sequence>,
    /// Tokens made so far.
    made: usize,
}

impl Echo {
    /// Works on up to `batch` sequences in each step.
    pub fn new(batch: usize, cost: EchoCost) -> Self {
        Self { batch, cost, waiting: VecDeque::new(), made: Vec::new(), finished: Vec::new() }
    }

    /// Makes the next tokens of a text, and says whether they were its last.
    fn advance(&mut self, waiting: &mut Waiting) -> Option<Output> {
        let output = answer(&waiting.sequence);
        let Output::Completion { completion_tokens, logprobs, .. } = &output else { return Some(output) };
        let completion_tokens = *completion_tokens;
        let from = waiting.made.min(completion_tokens);
        waiting.made = completion_tokens.min(from.saturating_add(self.cost.step_tokens));
        let made = &waiting.sequence.tokens[from..waiting.made];
        let all = made.iter().zip(from..);
        let id = waiting.id;
        self.made.extend(all.map(|(&token, place)| Made { id, token, logprobs: logprobs.get(place).cloned() }));
        (waiting.made == completion_tokens).then_some(output)
    }
}

impl Engine for Echo {
    fn add(&mut self, id: SequenceId, sequence: Arc<Sequence>) {
        let made = sequence.made.len();
        self.waiting.push_back(Waiting { id, sequence, made });
    }

    fn takes(&self, _: &Sequence) -> bool {
        self.waiting.len() < self.batch
    }

    fn step(&mut self) -> Result<(), StepError> {
        let count = self.batch.min(self.waiting.len());
        if count > 0 && self.cost.step_milliseconds > 0 {
            std::thread::sleep(Duration::from_millis(self.cost.step_milliseconds));
        }
        if self.cost.faults {
            self.waiting.iter().take(count).try_for_each(|waiting| fault::trip(&waiting.sequence))?;
        }
        if self.cost.step_tokens == 0 {
            let answered = self.waiting.drain(..count).map(|waiting| (waiting.id, answer(&waiting.sequence)));
            self.finished.extend(answered);
            return Ok(());
        }
        for mut waiting in self.waiting.drain(..count).collect::<Vec<_>>().into_iter().rev() {
            match self.advance(&mut waiting) {
                Some(output) => self.finished.push((waiting.id, output)),
                None => self.waiting.push_front(waiting),
            }
        }
        Ok(())
    }

    fn made(&mut self) -> Vec<Made> {
        std::mem::take(&mut self.made)
    }

    fn finished(&mut self) -> Vec<(SequenceId, Output)> {
        std::mem::take(&mut self.finished)
    }

    fn remove(&mut self, id: SequenceId) {
        self.waiting.retain(|waiting| waiting.id != id);
        self.made.retain(|made| made.id != id);
        self.finished.retain(|(finished, _)| *finished != id);
    }

    fn is_idle(&self) -> bool {
        self.waiting.is_empty()
    }
}

fn answer(sequence: &Sequence) -> Output {
    match &sequence.goal {
        Goal::Embed => Output::Embedding(embed(&sequence.tokens)),
        Goal::Score => Output::Scores(embed(&sequence.tokens)[..CLASSES].to_vec()),
        Goal::Generate(params) => repeat(&sequence.tokens, params),
        Goal::Transcribe(_) => unreachable!("its endpoints take texts"),
    }
}

/// A unit vector from a hash of the tokens (FNV-1a, then SplitMix64 for each value).
fn embed(tokens: &[u32]) -> Vec<f32> {
    let seed = tokens
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, &token| (hash ^ u64::from(token)).wrapping_mul(0x0100_0000_01b3));
    let mut values: Vec<f32> = (1..=DIMENSIONS as u64)
        .map(|place| unit(seed.wrapping_add(place.wrapping_mul(0x9e37_79b9_7f4a_7c15))))
        .collect();
    let norm = values.iter().map(|value| value * value).sum::<f32>().sqrt().max(f32::MIN_POSITIVE);
    values.iter_mut().for_each(|value| *value /= norm);
    values
}

/// Mixes 64 bits to a number between -1 and 1.
fn unit(mut bits: u64) -> f32 {
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((bits >> 40) as f32 / (1_u64 << 23) as f32) - 1.0
}

/// The prompt's bytes again, up to `max_tokens` of them and before the first stop string.
fn repeat(tokens: &[u32], params: &SamplingParams) -> Output {
    let kept = tokens.len().min(params.max_tokens);
    let bytes: Vec<u8> = tokens[..kept].iter().map(|&token| u8::try_from(token).unwrap_or(b'?')).collect();
    let mut text =
        String::from_utf8(bytes).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned());
    let stop = params.stop.iter().filter_map(|stop| text.find(stop.as_str())).min();
    let (completion_tokens, finish_reason) = match stop {
        Some(end) => {
            text.truncate(end);
            (end, FinishReason::Stop)
        }
        None if kept < tokens.len() => (kept, FinishReason::Length),
        None => (kept, FinishReason::Stop),
    };
    // Nothing is drawn: each token is certain.
    let certain = |&token: &u32| Logprobs { token, logprob: 0.0, top: Vec::new() };
    let logprobs = params.logprobs.map(|_| tokens[..completion_tokens].iter().map(certain).collect());
    Output::Completion { text, completion_tokens, finish_reason, logprobs: logprobs.unwrap_or_default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn generate(prompt: &str, max_tokens: usize, stop: &[&str]) -> Output {
        let stop = stop.iter().map(|&text| text.to_owned()).collect();
        let params = SamplingParams { max_tokens, stop, ..SamplingParams::default() };
        answer(&Sequence::new(prompt.bytes().map(u32::from).collect(), Goal::Generate(params)))
    }

    #[test]
    fn text_comes_back_up_to_its_end_a_stop_or_the_limit() {
        let completion = |text: &str, completion_tokens, finish_reason| Output::Completion {
            text: text.to_owned(),
            completion_tokens,
            finish_reason,
            logprobs: Vec::new(),
        };
        assert_eq!(generate("hello", 10, &[]), completion("hello", 5, FinishReason::Stop));
        assert_eq!(generate("hello", 3, &[]), completion("hel", 3, FinishReason::Length));
        assert_eq!(generate("hello", 10, &["x", "l"]), completion("he", 2, FinishReason::Stop));
    }

    #[test]
    fn vectors_are_units_that_differ_with_the_text() {
        let (a, b) = (embed(&[1, 2]), embed(&[2, 1]));
        assert!((a.iter().map(|value| value * value).sum::<f32>() - 1.0).abs() < 1e-5);
        assert_ne!(a, b);
        assert_eq!(a, embed(&[1, 2]));
    }

    #[test]
    fn a_text_made_in_steps_can_be_gone_on_with_at_any_token() {
        let params = SamplingParams { max_tokens: 9, ..SamplingParams::default() };
        for made in 0..=5 {
            let mut echo = Echo::new(2, EchoCost { step_tokens: 2, ..EchoCost::default() });
            let whole: Vec<u32> = (1..=5).collect();
            let sequence = Sequence::new(whole.clone(), Goal::Generate(params.clone()));
            echo.add(SequenceId(1), Sequence { made: whole[..made].to_vec(), ..sequence }.into());
            let mut tokens = whole[..made].to_vec();
            while !echo.is_idle() {
                echo.step().unwrap();
                tokens.extend(echo.made().into_iter().map(|made| made.token));
            }
            assert_eq!(tokens, whole);
            assert!(matches!(echo.finished()[0].1, Output::Completion { completion_tokens: 5, .. }));
        }
    }

    #[test]
    fn a_step_finishes_no_more_than_its_batch() {
        let mut echo = Echo::new(2, EchoCost::default());
        for id in 0..3 {
            echo.add(SequenceId(id), Sequence::new(vec![1], Goal::Embed).into());
        }
        echo.step().unwrap();
        assert_eq!(echo.finished().len(), 2);
        assert!(!echo.is_idle());
        echo.remove(SequenceId(2));
        assert!(echo.is_idle());
    }
}
