//! The text side of a model: tokenizer, chat template, limits. Shared by all deliveries; it holds no weights.

use serde_json::Value;
use tokenizers::Tokenizer;

use super::template::{ChatTemplate, TemplateError};

/// Turns text into a model's tokens and back.
#[derive(Debug)]
pub struct Text {
    vocabulary: Vocabulary,
    template: Option<ChatTemplate>,
    /// The token that raw prompts begin with, where the model wants one.
    begin: Option<u32>,
    prompt_tokens_max: usize,
    dimensions: Option<usize>,
}

#[derive(Debug)]
enum Vocabulary {
    HuggingFace(Box<Tokenizer>),
    /// A token for each byte: the echo engine needs no more.
    Bytes,
}

/// Why a text cannot be given to the model.
#[derive(Debug, thiserror::Error)]
pub enum TextError {
    #[error("cannot be tokenized: {0}")]
    Tokenizer(String),
    #[error("{0}")]
    Template(#[from] TemplateError),
    #[error("this model has no chat template; use /v1/completions")]
    NoTemplate,
}

impl Text {
    /// Of the echo engine: a chat is the content of its last message.
    pub fn bytes(prompt_tokens_max: usize, dimensions: usize) -> Self {
        Self {
            vocabulary: Vocabulary::Bytes,
            template: None,
            begin: None,
            prompt_tokens_max,
            dimensions: Some(dimensions),
        }
    }

    /// Of an encoder.
    pub fn embedding(tokenizer: Tokenizer, prompt_tokens_max: usize, dimensions: usize) -> Self {
        let vocabulary = Vocabulary::HuggingFace(Box::new(whole(tokenizer)));
        Self { vocabulary, template: None, begin: None, prompt_tokens_max, dimensions: Some(dimensions) }
    }

    /// Of a decoder.
    pub fn generation(
        tokenizer: Tokenizer,
        template: Option<ChatTemplate>,
        begin: Option<u32>,
        context: usize,
    ) -> Self {
        let vocabulary = Vocabulary::HuggingFace(Box::new(whole(tokenizer)));
        Self { vocabulary, template, begin, prompt_tokens_max: context, dimensions: None }
    }

    /// Whether a text is its tokens already.
    pub fn is_tokens(&self) -> bool {
        matches!(self.vocabulary, Vocabulary::Bytes)
    }

    /// The tokens of a text with the special tokens the model puts around it. Never truncates.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, TextError> {
        self.tokens(text, true)
    }

    /// The tokens of a raw prompt.
    pub fn encode_prompt(&self, text: &str) -> Result<Vec<u32>, TextError> {
        let mut tokens = self.tokens(text, false)?;
        if let Some(begin) = self.begin {
            tokens.insert(0, begin);
        }
        Ok(tokens)
    }

    /// The tokens of a chat, up to where the answer begins. `messages` is an array of `{role, content}`.
    pub fn encode_chat(&self, messages: &Value) -> Result<Vec<u32>, TextError> {
        match (&self.template, &self.vocabulary) {
            (Some(template), _) => self.tokens(&template.render(messages)?, false),
            (None, Vocabulary::Bytes) => {
                let content = messages.as_array().and_then(|all| all.last()).and_then(|last| last["content"].as_str());
                self.tokens(content.unwrap_or_default(), false)
            }
            (None, Vocabulary::HuggingFace(_)) => Err(TextError::NoTemplate),
        }
    }

    /// The text of tokens, without special ones. Bytes that are no UTF-8 become U+FFFD.
    pub fn decode(&self, tokens: &[u32]) -> String {
        match &self.vocabulary {
            Vocabulary::HuggingFace(tokenizer) => tokenizer.decode(tokens, true).unwrap_or_default(),
            Vocabulary::Bytes => {
                let bytes: Vec<u8> = tokens.iter().map(|&token| u8::try_from(token).unwrap_or(b'?')).collect();
                String::from_utf8(bytes).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
            }
        }
    }

    /// Cuts a sequence, but keeps the special token at its end.
    pub fn truncate(&self, tokens: &mut Vec<u32>, max: usize) {
        if tokens.len() <= max {
            return;
        }
        let last = tokens.last().copied().filter(|&token| self.is_special(token));
        tokens.truncate(max);
        if let (Some(last), Some(end)) = (last, tokens.last_mut()) {
            *end = last;
        }
    }

    pub fn vocab_size(&self) -> usize {
        match &self.vocabulary {
            Vocabulary::HuggingFace(tokenizer) => tokenizer.get_vocab_size(true),
            Vocabulary::Bytes => 256,
        }
    }

    /// The most tokens of one input; for a decoder, of prompt and answer together.
    pub fn prompt_tokens_max(&self) -> usize {
        self.prompt_tokens_max
    }

    /// Of the vectors, for an encoder.
    pub fn dimensions(&self) -> Option<usize> {
        self.dimensions
    }

    /// Whether a prefix of a vector is a vector too. No family that is served now was trained so.
    pub fn can_shorten(&self) -> bool {
        false
    }

    fn tokens(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>, TextError> {
        match &self.vocabulary {
            Vocabulary::HuggingFace(tokenizer) => {
                let encoding = tokenizer.encode_fast(text, add_special_tokens);
                encoding
                    .map(|encoding| encoding.get_ids().to_vec())
                    .map_err(|error| TextError::Tokenizer(error.to_string()))
            }
            Vocabulary::Bytes => Ok(text.bytes().map(u32::from).collect()),
        }
    }

    fn is_special(&self, token: u32) -> bool {
        match &self.vocabulary {
            Vocabulary::HuggingFace(tokenizer) => {
                tokenizer.get_added_tokens_decoder().get(&token).is_some_and(|added| added.special)
            }
            Vocabulary::Bytes => false,
        }
    }
}

/// Tokenizer files may ask for truncation and padding; both are decided per job here.
fn whole(mut tokenizer: Tokenizer) -> Tokenizer {
    tokenizer.with_padding(None);
    // Only setting a truncation can fail.
    let _ = tokenizer.with_truncation(None);
    tokenizer
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn bytes_survive_the_round_trip_and_a_cut_is_harmless() {
        let text = Text::bytes(100, 8);
        let tokens = text.encode("aü").unwrap();
        assert_eq!(text.decode(&tokens), "aü");
        assert_eq!(text.decode(&tokens[..2]), "a\u{FFFD}");
    }

    #[test]
    fn the_echo_chat_is_its_last_message() {
        let text = Text::bytes(100, 8);
        let messages = json!([{"role": "system", "content": "x"}, {"role": "user", "content": "hi"}]);
        assert_eq!(text.encode_chat(&messages).unwrap(), text.encode("hi").unwrap());
    }
}
