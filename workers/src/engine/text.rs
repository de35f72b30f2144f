//! The text side of a model: tokenizer, chat template, limits. Shared by all deliveries; it holds no weights.

use std::sync::{Arc, OnceLock};

use serde_json::Value;
use tokenizers::{Encoding, PostProcessor, Tokenizer, TruncationDirection};

use super::calls::CallStyle;
use super::classes::{Classes, Scale};
use super::clip::sight::Sight;
use super::grammar::{Grammar, Grammars};
use super::prompts::Prompts;
use super::speech::{self, mel::Ear};
use super::spelling::Spelling;
use super::template::{ChatTemplate, Setting, TemplateError};

/// Turns text into a model's tokens and back.
#[derive(Debug)]
pub struct Text {
    vocabulary: Vocabulary,
    template: Option<ChatTemplate>,
    /// The token that raw prompts begin with, where the model wants one.
    begin: Option<u32>,
    prompt_tokens_max: usize,
    dimensions: Option<usize>,
    prompts: Prompts,
    classes: Option<Classes>,
    /// The token that ends an answer.
    end: Option<u32>,
    listening: Option<Listening>,
    sight: Option<Sight>,
    /// Made when they are first asked for.
    grammars: OnceLock<Result<Grammars, String>>,
}

/// How a model hears.
#[derive(Debug)]
pub struct Listening {
    pub ear: Ear,
    pub vocabulary: Arc<speech::vocabulary::Vocabulary>,
}

impl Listening {
    pub fn new(bands: usize, vocabulary: Arc<speech::vocabulary::Vocabulary>) -> Self {
        Self { ear: Ear::new(bands), vocabulary }
    }
}

/// The first text of pairs, tokenized once for all of them.
#[derive(Debug)]
pub struct Pair {
    first: Encoding,
}

#[derive(Debug)]
enum Vocabulary {
    HuggingFace(Box<Tokenizer>, Spelling),
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
        let labels = ["0", "1"].map(str::to_owned).into();
        let classes = Some(Classes { labels, scale: Scale::Sigmoid });
        Self { dimensions: Some(dimensions), classes, ..Self::new(Vocabulary::Bytes, prompt_tokens_max) }
    }

    /// Of an encoder that makes vectors.
    pub fn embedding(tokenizer: Tokenizer, prompt_tokens_max: usize, dimensions: usize, prompts: Prompts) -> Self {
        Self { dimensions: Some(dimensions), prompts, ..Self::new(hugging_face(tokenizer), prompt_tokens_max) }
    }

    /// Of an encoder that makes scores.
    pub fn scoring(tokenizer: Tokenizer, prompt_tokens_max: usize, classes: Classes) -> Self {
        Self { classes: Some(classes), ..Self::new(hugging_face(tokenizer), prompt_tokens_max) }
    }

    /// Of a decoder.
    pub fn generation(
        tokenizer: Tokenizer,
        template: Option<ChatTemplate>,
        begin: Option<u32>,
        end: Option<u32>,
        context: usize,
    ) -> Self {
        Self { template, begin, end, ..Self::new(hugging_face(tokenizer), context) }
    }

    /// Of a model that sees.
    pub fn seeing(
        tokenizer: Tokenizer,
        prompt_tokens_max: usize,
        dimensions: usize,
        prompts: Prompts,
        sight: Sight,
    ) -> Self {
        Self { sight: Some(sight), ..Self::embedding(tokenizer, prompt_tokens_max, dimensions, prompts) }
    }

    /// Of a model that hears.
    pub fn speech(tokenizer: Tokenizer, context: usize, listening: Listening) -> Self {
        Self { listening: Some(listening), ..Self::new(hugging_face(tokenizer), context) }
    }

    fn new(vocabulary: Vocabulary, prompt_tokens_max: usize) -> Self {
        let prompts = Prompts::default();
        Self {
            vocabulary,
            template: None,
            begin: None,
            prompt_tokens_max,
            dimensions: None,
            prompts,
            classes: None,
            end: None,
            listening: None,
            sight: None,
            grammars: OnceLock::new(),
        }
    }

    /// Whether a text is its tokens already.
    pub fn is_tokens(&self) -> bool {
        matches!(self.vocabulary, Vocabulary::Bytes)
    }

    /// The tokens of a text with the special tokens the model puts around it. Never truncates.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, TextError> {
        self.tokens(text, true)
    }

    /// Begins pairs that share their first text.
    pub fn pair(&self, first: &str) -> Result<Pair, TextError> {
        Ok(Pair { first: self.encoding(first)? })
    }

    /// Tokens of a pair that none of the second text is among.
    pub fn pair_tokens(&self, pair: &Pair) -> usize {
        let around = match &self.vocabulary {
            Vocabulary::HuggingFace(tokenizer, _) => {
                tokenizer.get_post_processor().map_or(0, |post| post.added_tokens(true))
            }
            Vocabulary::Bytes => 0,
        };
        pair.first.len() + around
    }

    /// The tokens of a pair, and where those of the second text begin for models that tell them apart. The second text is
    /// cut where both together would have more than `max`.
    pub fn encode_pair(
        &self,
        pair: &Pair,
        second: &str,
        max: Option<usize>,
    ) -> Result<(Vec<u32>, Option<usize>), TextError> {
        let mut second = self.encoding(second)?;
        if let Some(max) = max {
            second.truncate(max.saturating_sub(self.pair_tokens(pair)), 0, TruncationDirection::Right);
        }
        match &self.vocabulary {
            Vocabulary::HuggingFace(tokenizer, _) => {
                let joined = tokenizer.post_process(pair.first.clone(), Some(second), true).map_err(tokenizer_error)?;
                let pair_at = joined.get_type_ids().iter().position(|&kind| kind == 1);
                Ok((joined.get_ids().to_vec(), pair_at))
            }
            Vocabulary::Bytes => Ok(([pair.first.get_ids(), second.get_ids()].concat(), Some(pair.first.len()))),
        }
    }

    /// The tokens of a raw prompt.
    pub fn encode_prompt(&self, text: &str) -> Result<Vec<u32>, TextError> {
        let mut tokens = self.tokens(text, false)?;
        if let Some(begin) = self.begin {
            tokens.insert(0, begin);
        }
        Ok(tokens)
    }

    /// The tokens of a chat, up to where the answer begins. Messages and tools are what chat templates know.
    pub fn encode_chat(
        &self,
        messages: &[Value],
        tools: &[Value],
        setting: Setting<'_>,
    ) -> Result<Vec<u32>, TextError> {
        match (&self.template, &self.vocabulary) {
            (Some(template), _) => self.tokens(&template.render(messages, tools, setting)?, false),
            (None, Vocabulary::Bytes) => {
                let content = messages.last().and_then(|last| last["content"].as_str());
                self.tokens(content.unwrap_or_default(), false)
            }
            (None, Vocabulary::HuggingFace(..)) => Err(TextError::NoTemplate),
        }
    }

    /// How the model calls tools. The error says why it cannot.
    pub fn call_style(&self) -> Result<CallStyle, &'static str> {
        match &self.template {
            Some(template) => template.call_style().ok_or("this model calls tools in a way that is not known here"),
            // Nothing is rendered without one; the echo engine writes what it reads.
            None => Ok(CallStyle::Tagged),
        }
    }

    /// The text of tokens, without special ones. Bytes that are no UTF-8 become U+FFFD.
    pub fn decode(&self, tokens: &[u32]) -> String {
        self.decode_with(tokens, true)
    }

    /// The same, with special tokens where they are not skipped.
    pub fn decode_with(&self, tokens: &[u32], skip_special_tokens: bool) -> String {
        match &self.vocabulary {
            Vocabulary::HuggingFace(tokenizer, _) => tokenizer.decode(tokens, skip_special_tokens).unwrap_or_default(),
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
            Vocabulary::HuggingFace(tokenizer, _) => tokenizer.get_vocab_size(true),
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

    /// What may be put before texts.
    pub fn prompts(&self) -> &Prompts {
        &self.prompts
    }

    /// How it sees, where it does.
    pub fn sight(&self) -> Option<&Sight> {
        self.sight.as_ref()
    }

    /// How it hears, where it does.
    pub fn listening(&self) -> Option<&Listening> {
        self.listening.as_ref()
    }

    /// Of the scores, where the model makes such.
    pub fn classes(&self) -> Option<&Classes> {
        self.classes.as_ref()
    }

    /// Whether a prefix of a vector is a vector too. No family that is served now was trained so.
    pub fn can_shorten(&self) -> bool {
        false
    }

    fn tokens(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>, TextError> {
        match &self.vocabulary {
            Vocabulary::HuggingFace(tokenizer, _) => {
                let encoding = tokenizer.encode_fast(text, add_special_tokens);
                encoding.map(|encoding| encoding.get_ids().to_vec()).map_err(tokenizer_error)
            }
            Vocabulary::Bytes => Ok(text.bytes().map(u32::from).collect()),
        }
    }

    /// Of a text without special tokens.
    fn encoding(&self, text: &str) -> Result<Encoding, TextError> {
        match &self.vocabulary {
            Vocabulary::HuggingFace(tokenizer, _) => tokenizer.encode_fast(text, false).map_err(tokenizer_error),
            Vocabulary::Bytes => {
                let token = |byte| tokenizers::Token::new(u32::from(byte), String::new(), (0, 0));
                Ok(Encoding::from_tokens(text.bytes().map(token).collect(), 0))
            }
        }
    }

    /// What answers look like that are JSON of this schema. An error says what is wrong with the schema.
    pub fn grammar(&self, schema: &Value) -> Result<Grammar, String> {
        self.grammars()?.json(schema)
    }

    /// The same of answers that follow a grammar in the words of llguidance's Lark.
    pub fn lark(&self, source: String) -> Result<Grammar, String> {
        self.grammars()?.lark(source)
    }

    fn grammars(&self) -> Result<&Grammars, String> {
        let Some(end) = self.end else { return Err("this model cannot be held to a format".to_owned()) };
        self.grammars.get_or_init(|| Grammars::new(self, end)).as_ref().map_err(Clone::clone)
    }

    /// The bytes that a token stands for.
    pub fn token_bytes(&self, token: u32) -> Vec<u8> {
        match &self.vocabulary {
            Vocabulary::HuggingFace(tokenizer, spelling) => match tokenizer.get_added_tokens_decoder().get(&token) {
                Some(added) => added.content.clone().into_bytes(),
                None => spelling.bytes(&tokenizer.id_to_token(token).unwrap_or_default()),
            },
            Vocabulary::Bytes => u8::try_from(token).into_iter().collect(),
        }
    }

    /// Whether a token is no part of a text.
    pub fn is_special(&self, token: u32) -> bool {
        match &self.vocabulary {
            Vocabulary::HuggingFace(tokenizer, _) => {
                tokenizer.get_added_tokens_decoder().get(&token).is_some_and(|added| added.special)
            }
            Vocabulary::Bytes => false,
        }
    }
}

fn hugging_face(tokenizer: Tokenizer) -> Vocabulary {
    let spelling = Spelling::of(&tokenizer);
    Vocabulary::HuggingFace(Box::new(whole(tokenizer)), spelling)
}

fn tokenizer_error(error: tokenizers::Error) -> TextError {
    TextError::Tokenizer(error.to_string())
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
    use time::OffsetDateTime;

    use super::*;

    #[test]
    fn bytes_survive_the_round_trip_and_a_cut_is_harmless() {
        let text = Text::bytes(100, 8);
        let tokens = text.encode("aü").unwrap();
        assert_eq!(text.decode(&tokens), "aü");
        assert_eq!(text.decode(&tokens[..2]), "a\u{FFFD}");
    }

    #[test]
    fn the_second_text_of_a_pair_is_cut_and_its_place_known() {
        let text = Text::bytes(100, 8);
        let pair = text.pair("ab").unwrap();
        assert_eq!(text.encode_pair(&pair, "cde", None).unwrap(), (text.encode("abcde").unwrap(), Some(2)));
        assert_eq!(text.encode_pair(&pair, "cde", Some(3)).unwrap().0, text.encode("abc").unwrap());
    }

    #[test]
    fn the_echo_chat_is_its_last_message() {
        let text = Text::bytes(100, 8);
        let messages = [json!({"role": "system", "content": "x"}), json!({"role": "user", "content": "hi"})];
        assert_eq!(
            text.encode_chat(&messages, &[], Setting::at(OffsetDateTime::UNIX_EPOCH)).unwrap(),
            text.encode("hi").unwrap()
        );
    }
}
