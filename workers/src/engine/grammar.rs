//! Grammars: what an answer may look like, by llguidance, which says for each place the tokens that can go on.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use llguidance::api::TopLevelGrammar;
use llguidance::{Matcher, ParserFactory};
use serde_json::{Value, json};
use toktrie::{ApproximateTokEnv, SimpleVob, TokEnv, TokRxInfo, TokTrie};

use super::text::Text;

/// Grammars that are kept: jobs of a batch have the same.
const KNOWN_MAX: usize = 64;

/// Makes grammars for a model's tokens.
pub struct Grammars {
    factory: ParserFactory,
    /// By their sources.
    known: Mutex<HashMap<Arc<str>, Grammar>>,
}

/// A grammar, at its beginning.
#[derive(Clone)]
pub struct Grammar {
    /// Two that are told in the same words are the same.
    source: Arc<str>,
    start: Arc<Mutex<Matcher>>,
}

/// How far an answer has come in its grammar.
pub struct Progress(Matcher);

impl Grammars {
    /// `end` is the token that ends a text.
    pub fn new(text: &Text, end: u32) -> Result<Self, String> {
        let count = u32::try_from(text.vocab_size()).map_err(|error| error.to_string())?;
        let bytes = |token| match text.is_special(token) {
            true => [&[TokTrie::SPECIAL_TOKEN_MARKER], &text.token_bytes(token)[..]].concat(),
            false => text.token_bytes(token),
        };
        let words: Vec<Vec<u8>> = (0..count).map(bytes).collect();
        let trie = TokTrie::from(&TokRxInfo::new(count, end), &words);
        let tokens: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
        let mut factory = ParserFactory::new_simple(&tokens).map_err(|error| error.to_string())?;
        factory.quiet();
        Ok(Self { factory, known: Mutex::default() })
    }

    /// JSON of that schema.
    pub fn json(&self, schema: &Value) -> Result<Grammar, String> {
        self.made(schema.to_string().into(), || TopLevelGrammar::from_json_schema(schema.clone()))
    }

    /// Of llguidance's variant of Lark.
    pub fn lark(&self, source: String) -> Result<Grammar, String> {
        self.made(source.as_str().into(), || TopLevelGrammar::from_lark(source))
    }

    fn made(&self, source: Arc<str>, grammar: impl FnOnce() -> TopLevelGrammar) -> Result<Grammar, String> {
        let known = || self.known.lock().expect("nothing panics while it holds this");
        if let Some(grammar) = known().get(&source) {
            return Ok(grammar.clone());
        }
        let matcher = Matcher::new(self.factory.create_parser(grammar()));
        if let Some(error) = matcher.get_error() {
            return Err(error);
        }
        let grammar = Grammar { source: Arc::clone(&source), start: Arc::new(Mutex::new(matcher)) };
        let mut known = known();
        if known.len() >= KNOWN_MAX {
            known.clear();
        }
        known.insert(source, grammar.clone());
        Ok(grammar)
    }
}

/// A schema whose JSON is written without needless spaces, so that a model cannot go on with spaces for ever. A lenient one
/// may say what cannot be held to.
pub fn in_style(schema: &Value, is_lenient: bool) -> Value {
    let mut schema = schema.clone();
    if let Some(fields) = schema.as_object_mut() {
        let (item, key) = (", ", ": ");
        let style = json!({
            "whitespace_flexible": false, "item_separator": item, "key_separator": key, "lenient": is_lenient,
        });
        fields.insert("x-guidance".to_owned(), style);
    }
    schema
}

impl Grammar {
    pub fn source(&self) -> &str {
        &self.source
    }

    /// An answer of which these tokens are there.
    pub fn after(&self, tokens: &[u32]) -> Progress {
        let mut matcher = self.start.lock().expect("nothing panics while it holds this").clone();
        // What does not fit breaks it, which `allowed` tells.
        let _ = matcher.consume_tokens(tokens);
        Progress(matcher)
    }
}

impl Progress {
    /// The tokens that can go on. None where that cannot be said any more: the grammar became too complex, or the answer
    /// does not follow it.
    pub fn allowed(&mut self) -> Option<SimpleVob> {
        self.0.compute_mask_or_eos().inspect_err(|error| tracing::warn!(%error, "an answer is cut")).ok()
    }

    pub fn take(&mut self, token: u32) {
        let _ = self.0.consume_token(token);
    }

    /// Whether nothing can follow.
    pub fn is_at_end(&self) -> bool {
        self.0.is_stopped() && !self.0.is_error()
    }
}

impl PartialEq for Grammar {
    fn eq(&self, other: &Self) -> bool {
        self.source == other.source
    }
}

impl std::fmt::Debug for Grammar {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "Grammar({})", self.source)
    }
}

impl std::fmt::Debug for Grammars {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Grammars")
    }
}

#[cfg(test)]
pub mod tests {
    use std::collections::HashMap;

    use tokenizers::Tokenizer;

    use super::*;

    /// A token for each special text, of which the first one ends an answer, and for each character that can be printed.
    pub fn letters(special: &[&str]) -> Text {
        let added = |(id, content): (u32, &&str)| {
            json!({
                "id": id, "content": content, "special": true, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false,
            })
        };
        let added: Vec<Value> = (0..).zip(special).map(added).collect();
        let letters =
            special.iter().map(|&text| text.to_owned()).chain(('\n'..='~').filter(is_printed).map(String::from));
        let vocabulary: HashMap<String, u32> = letters.zip(0..).collect();
        let document = json!({
            "version": "1.0", "added_tokens": added, "decoder": {"type": "Fuse"},
            "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": special[0]},
        });
        Text::generation(Tokenizer::from_bytes(document.to_string()).unwrap(), None, None, Some(0), 100)
    }

    fn is_printed(letter: &char) -> bool {
        *letter == '\n' || *letter >= ' '
    }

    #[test]
    fn whatever_is_drawn_follows_the_schema() {
        let text = letters(&["<end>"]);
        let schema = json!({
            "type": "object",
            "properties": { "name": { "enum": ["ant", "bee"] }, "legs": { "type": "integer", "minimum": 4, "maximum": 12 } },
            "required": ["name", "legs"], "additionalProperties": false,
        });
        let grammar = text.grammar(&schema).unwrap();
        let mut random = fastrand::Rng::with_seed(1);
        for _ in 0..20 {
            let (mut progress, mut tokens) = (grammar.after(&[]), Vec::new());
            while !progress.is_at_end() {
                let allowed: Vec<u32> = progress.allowed().unwrap().iter().collect();
                let token = random.choice(&allowed).copied().unwrap();
                progress.take(token);
                tokens.push(token);
            }
            let said: Value = serde_json::from_str(&text.decode(&tokens)).unwrap();
            assert!(said["name"] == "ant" || said["name"] == "bee", "{said}");
            assert!((4..=12).contains(&said["legs"].as_i64().unwrap()), "{said}");
            // Another worker may go on anywhere.
            let half = tokens.len() / 2;
            let mut later = grammar.after(&tokens[..half]);
            tokens[half..].iter().for_each(|token| later.take(*token));
            assert!(later.is_at_end());
        }
    }

    #[test]
    fn an_answer_that_does_not_follow_its_grammar_can_neither_go_on_nor_is_it_whole() {
        let text = letters(&["<end>"]);
        let mut progress = text.grammar(&json!({ "type": "integer" })).unwrap().after(&text.encode("x").unwrap());
        assert!(progress.allowed().is_none() && !progress.is_at_end());
    }

    #[test]
    fn a_schema_that_cannot_be_followed_is_told() {
        let error = letters(&["<end>"]).grammar(&json!({ "type": "strange" })).unwrap_err();
        assert!(error.contains("strange"), "{error}");
        assert!(Text::bytes(9, 9).grammar(&json!({})).unwrap_err().contains("cannot be held"));
    }
}
