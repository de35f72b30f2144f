//! One sequence in the batch.

use kernels::{BLOCK, Draw};

use super::blocks::{Blocks, Name, name_after};
use super::executor::{After, Input, Memory};
use super::lookup::{self, Trust};
use crate::engine::grammar::Progress;
use crate::engine::sampling::{logprobs, plain_draw, sample};
use crate::engine::text::Text;
use crate::engine::{FinishReason, Goal, Logprobs, Made, Output, SamplingParams, Sequence, SequenceId};

/// A sequence with a place in the batch.
pub struct Running {
    pub id: SequenceId,
    /// Prompt and what was generated.
    pub tokens: Vec<u32>,
    prompt_tokens: usize,
    /// How many of the tokens are in the cache.
    pub computed: usize,
    params: SamplingParams,
    pub blocks: Vec<u32>,
    /// Of the blocks that are full, and of those that the prompt will fill.
    pub names: Vec<Name>,
    /// Blocks whose name others may take them by.
    pub named: usize,
    /// Of what was generated, where they are wanted.
    logprobs: Vec<Logprobs>,
    /// Where it stands in its grammar.
    progress: Option<Progress>,
    /// Whether it begins with what another run generated, of which nobody has said that it ends it.
    is_resumed: bool,
    /// Its last token and guesses of what comes after it, where there are any.
    guessed: Vec<u32>,
    trust: Trust,
}

impl Running {
    pub fn new(id: SequenceId, sequence: &Sequence) -> Self {
        let Goal::Generate(params) = sequence.goal.clone() else {
            unreachable!("the endpoints of a generating model ask for nothing else")
        };
        let progress = params.grammar.as_ref().map(|grammar| grammar.after(&sequence.made));
        let tokens = [&sequence.tokens[..], &sequence.made].concat();
        let prompt_tokens = sequence.tokens.len();
        let mut running = Self {
            id,
            tokens,
            prompt_tokens,
            computed: 0,
            params,
            blocks: Vec::new(),
            names: Vec::new(),
            named: 0,
            logprobs: Vec::new(),
            progress,
            is_resumed: !sequence.made.is_empty(),
            guessed: Vec::new(),
            trust: Trust::default(),
        };
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

    /// Takes what is known of its first tokens. Those whose logits are wanted are computed in any case.
    pub fn share(&mut self, blocks: &mut Blocks) {
        let most = self.first_wanted() / BLOCK;
        self.blocks.extend(self.names.iter().take(most).map_while(|name| blocks.share(name)));
        self.named = self.blocks.len();
        self.computed = self.named * BLOCK;
    }

    /// The first place after which logits are wanted: of what was generated, that is scored again which nobody remembers.
    fn first_wanted(&self) -> usize {
        match self.params.logprobs {
            Some(_) => self.prompt_tokens + self.logprobs.len() - 1,
            None => self.tokens.len() - 1,
        }
    }

    /// Guesses at most so many tokens after its last one, and says how many. They stay in the block that is being filled, so
    /// that no other sequence has less room for them, and in what the model takes.
    pub fn guess(&mut self, most: usize, context: usize) -> usize {
        let left = (BLOCK - 1 - self.computed % BLOCK).min(context.saturating_sub(self.tokens.len()));
        let guesses = lookup::guess(&self.tokens, most.min(self.trust.guesses()).min(left));
        self.guessed.clear();
        if !guesses.is_empty() {
            self.guessed.extend(self.tokens.last());
            self.guessed.extend(guesses);
        }
        self.guesses().len()
    }

    fn guesses(&self) -> &[u32] {
        self.guessed.get(1..).unwrap_or_default()
    }

    /// Its next tokens.
    pub fn input(&self, count: usize) -> Input<'_> {
        if count > 1 && !self.guessed.is_empty() {
            let (wanted, draw, memory) = (count, None, Memory::default());
            return Input { tokens: &self.guessed, start: self.computed, blocks: &self.blocks, wanted, draw, memory };
        }
        let end = self.computed + count;
        Input {
            draw: self.plain_draw().filter(|_| end == self.tokens.len()),
            tokens: &self.tokens[self.computed..end],
            start: self.computed,
            blocks: &self.blocks,
            wanted: end - self.first_wanted().clamp(self.computed, end),
            memory: Memory::default(),
        }
    }

    /// How its next token is drawn, where nobody asks for more of the logits.
    fn plain_draw(&self) -> Option<Draw> {
        match (&self.progress, self.params.logprobs) {
            (None, None) => plain_draw(&self.params, self.tokens.len()),
            _ => None,
        }
    }

    /// Takes what was computed of it, and draws a token after its last one and one after each guess that was right. Its output,
    /// where one of them ends it.
    pub fn advance(
        &mut self,
        count: usize,
        after: &[After<'_>],
        ends: &[u32],
        text: &Text,
        made: &mut Vec<Made>,
    ) -> Option<Output> {
        let guesses = self.guesses().to_vec();
        let mut all = after.iter().copied();
        let mut after = self.read(count - guesses.len(), &mut all)?;
        let mut right = 0;
        let output = loop {
            // What another run had made may have ended it.
            let mut output = if std::mem::take(&mut self.is_resumed) { self.output(ends, text) } else { None };
            if output.is_none() {
                output = self.next(after, ends, text, made);
            }
            match all.next() {
                Some(next) if output.is_none() && self.tokens.last() == guesses.get(right) => after = next,
                _ => break output,
            }
            right += 1;
        };
        self.computed += right;
        if !guesses.is_empty() {
            self.trust.learn(guesses.len(), right);
        }
        output
    }

    /// Draws a token. The output, where it ends there.
    fn next(&mut self, after: After<'_>, ends: &[u32], text: &Text, made: &mut Vec<Made>) -> Option<Output> {
        let Some(token) = self.draw(after) else { return Some(self.cut(text)) };
        made.push(Made { id: self.id, token, logprobs: self.logprobs.last().cloned() });
        self.output(ends, text)
    }

    /// Notes that so many tokens are computed, and gives what is wanted after its last one where that is among them.
    fn read<'a>(&mut self, count: usize, all: &mut impl Iterator<Item = After<'a>>) -> Option<After<'a>> {
        let wanted = self.input(count).wanted;
        self.computed += count;
        let mut last = None;
        for (place, after) in (self.computed - wanted..self.computed).zip(all) {
            match self.tokens.get(place + 1) {
                Some(&token) => self.remember(after, token),
                None => last = Some(after),
            }
        }
        last
    }

    /// Appends a token, unless its grammar cannot say which.
    fn draw(&mut self, after: After<'_>) -> Option<u32> {
        let token = match after {
            After::Token(token) => token,
            After::Logits(logits) => {
                let allowed = match &mut self.progress {
                    Some(progress) => Some(progress.allowed()?),
                    None => None,
                };
                let generated = &self.tokens[self.prompt_tokens..];
                sample(logits, &self.params, generated, self.tokens.len(), allowed.as_ref())
            }
        };
        self.progress.iter_mut().for_each(|progress| progress.take(token));
        self.remember(after, token);
        self.tokens.push(token);
        Some(token)
    }

    fn remember(&mut self, after: After<'_>, token: u32) {
        if let (Some(count), After::Logits(logits)) = (self.params.logprobs, after) {
            self.logprobs.push(logprobs(logits, token, count));
        }
    }

    /// The output, where its last token ends it.
    fn output(&mut self, ends: &[u32], text: &Text) -> Option<Output> {
        let (text, finish_reason) = self.end(ends, text)?;
        Some(self.completion(text, finish_reason))
    }

    /// The output as far as it has come.
    fn cut(&mut self, text: &Text) -> Output {
        self.completion(self.text(&self.tokens[self.prompt_tokens..], text), FinishReason::Length)
    }

    fn completion(&mut self, text: String, finish_reason: FinishReason) -> Output {
        let completion_tokens = self.tokens.len() - self.prompt_tokens;
        Output::Completion { text, completion_tokens, finish_reason, logprobs: std::mem::take(&mut self.logprobs) }
    }

    fn text(&self, tokens: &[u32], text: &Text) -> String {
        text.decode_with(tokens, self.params.skip_special_tokens)
    }

    fn end(&self, ends: &[u32], text: &Text) -> Option<(String, FinishReason)> {
        let generated = &self.tokens[self.prompt_tokens..];
        if let Some((last, before)) = generated.split_last()
            && ends.contains(last)
        {
            return Some((self.text(before, text), FinishReason::Stop));
        }
        if self.progress.as_ref().is_some_and(Progress::is_at_end) {
            return Some((self.text(generated, text), FinishReason::Stop));
        }
        // A stop string may begin in any earlier token, so the whole text is looked at; it costs little beside a step.
        if !self.params.stop.is_empty() {
            let text = self.text(generated, text);
            if let Some(end) = self.params.stop.iter().filter_map(|stop| text.find(stop.as_str())).min() {
                return Some((text[..end].to_owned(), FinishReason::Stop));
            }
        }
        let is_full = generated.len() >= self.params.max_tokens || self.tokens.len() >= text.prompt_tokens_max();
        is_full.then(|| (self.text(generated, text), FinishReason::Length))
    }

    /// Tells others of the blocks that are full.
    pub fn tell(&mut self, blocks: &mut Blocks) {
        let full = self.computed / BLOCK;
        self.name_to(full);
        for index in self.named..full {
            blocks.name(self.blocks[index], self.names[index]);
        }
        self.named = self.named.max(full);
    }

    /// As it came, with what was generated.
    pub fn back(mut self) -> Sequence {
        let made = self.tokens.split_off(self.prompt_tokens);
        Sequence { made, ..Sequence::new(self.tokens, Goal::Generate(self.params)) }
    }
}
