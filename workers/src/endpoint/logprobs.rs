//! Logprobs in the shapes of the two endpoints.

use schemas::completions::{ChatLogprobs, CompletionLogprobs, TokenLogprob, TopLogprob};

use crate::engine::Logprobs;
use crate::engine::text::Text;

/// JSON has no infinity: what OpenAI says of a token that cannot be.
const NEVER: f32 = -9999.0;

/// `None` where none were asked for.
pub fn of_chat(logprobs: &[Logprobs], text: &Text) -> Option<ChatLogprobs> {
    let one = |token, logprob: f32| {
        let bytes = text.token_bytes(token);
        TopLogprob { token: String::from_utf8_lossy(&bytes).into_owned(), logprob: logprob.max(NEVER), bytes }
    };
    let each = |Logprobs { token, logprob, top }: &Logprobs| TokenLogprob {
        token: one(*token, *logprob),
        top_logprobs: top.iter().map(|&(token, logprob)| one(token, logprob)).collect(),
    };
    let content = in_text(logprobs, text).map(each).collect();
    (!logprobs.is_empty()).then_some(ChatLogprobs { content })
}

/// `None` where none were asked for. `before` are the tokens before those in the text.
pub fn of_completion(before: &[u32], logprobs: &[Logprobs], text: &Text) -> Option<CompletionLogprobs> {
    let mut all = CompletionLogprobs {
        tokens: Vec::new(),
        token_logprobs: Vec::new(),
        top_logprobs: Vec::new(),
        text_offset: Vec::new(),
    };
    let shown = |token| String::from_utf8_lossy(&text.token_bytes(token)).into_owned();
    // A character begins with each byte that does not go on with one.
    let characters = |token| text.token_bytes(token).iter().filter(|byte| **byte & 0xc0 != 0x80).count();
    let mut offset = match logprobs.is_empty() {
        true => 0,
        false => before.iter().filter(|token| !text.is_special(**token)).map(|&token| characters(token)).sum(),
    };
    for Logprobs { token, logprob, top } in in_text(logprobs, text) {
        all.tokens.push(shown(*token));
        all.token_logprobs.push(logprob.max(NEVER));
        all.top_logprobs.push(top.iter().map(|&(token, logprob)| (shown(token), logprob.max(NEVER))).collect());
        all.text_offset.push(offset);
        offset += characters(*token);
    }
    (!logprobs.is_empty()).then_some(all)
}

/// Those of the token that ends a text are of no interest.
fn in_text<'a>(logprobs: &'a [Logprobs], text: &'a Text) -> impl Iterator<Item = &'a Logprobs> {
    logprobs.iter().filter(|one| !text.is_special(one.token))
}
