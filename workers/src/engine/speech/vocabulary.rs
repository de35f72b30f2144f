//! The tokens by which a speech model is told what to do and says when something was said.

use std::path::Path;

use tokenizers::Tokenizer;

use super::languages::LANGUAGES;
use crate::engine::LoadError;

/// Seconds from one timestamp to the next.
pub const TICK: f64 = 0.02;

#[derive(Clone, Debug)]
pub struct Vocabulary {
    pub start: u32,
    pub end: u32,
    pub transcribe: u32,
    pub translate: u32,
    /// Before what was said earlier.
    pub previous: u32,
    /// Whose probability tells that nothing is said.
    pub no_speech: u32,
    pub no_timestamps: u32,
    /// The first timestamp; all tokens after it are later ones.
    pub first_time: u32,
    /// Of each language that the model tells apart, its code and token. None for models of English alone.
    pub languages: Vec<(String, u32)>,
    /// Tokens that are never drawn, and those that are no first token.
    pub suppressed: Vec<u32>,
    pub suppressed_first: Vec<u32>,
}

impl Vocabulary {
    pub fn of(
        tokenizer: &Tokenizer,
        suppressed: &[u32],
        suppressed_first: &[u32],
        folder: &Path,
    ) -> Result<Self, LoadError> {
        let path = folder.join("tokenizer.json");
        let known = |name: &str| tokenizer.token_to_id(&format!("<|{name}|>"));
        let needed = |name: &str| {
            known(name).ok_or_else(|| LoadError::file(&path, format!("has no <|{name}|>: no tokenizer of Whisper")))
        };
        let no_speech = known("nospeech").or_else(|| known("nocaptions"));
        let no_timestamps = needed("notimestamps")?;
        let (start, end) = (needed("startoftranscript")?, needed("endoftext")?);
        let (transcribe, translate, previous) = (needed("transcribe")?, needed("translate")?, needed("startofprev")?);
        let of = |(code, _): &(&str, &str)| Some(((*code).to_owned(), known(code)?));
        let languages: Vec<(String, u32)> = LANGUAGES.iter().filter_map(of).collect();
        // English models have the tokens of other languages too, and never saw them.
        let is_english = end == 50_256;
        let mut never = suppressed.to_vec();
        let model = ["startoflm", "nospeech", "nocaptions"].into_iter().filter_map(known);
        never.extend(model.chain([start, transcribe, translate, previous, no_timestamps]));
        never.extend(languages.iter().map(|(_, token)| token));
        never.sort_unstable();
        never.dedup();
        let first = match suppressed_first {
            [] => tokenizer.token_to_id("Ġ").into_iter().chain([end]).collect(),
            tokens => tokens.to_vec(),
        };
        Ok(Self {
            start,
            end,
            transcribe,
            translate,
            previous,
            no_speech: no_speech.unwrap_or(no_timestamps - 1),
            no_timestamps,
            first_time: no_timestamps + 1,
            languages: if is_english { Vec::new() } else { languages },
            suppressed: never,
            suppressed_first: first,
        })
    }

    /// Whether it tells languages apart.
    pub fn is_multilingual(&self) -> bool {
        !self.languages.is_empty()
    }

    pub fn language(&self, code: &str) -> Option<u32> {
        self.languages.iter().find(|(known, _)| known == code).map(|(_, token)| *token)
    }

    /// The code of a language's token; English where there is none.
    pub fn code(&self, token: Option<u32>) -> &str {
        let found = token.and_then(|token| self.languages.iter().find(|(_, known)| *known == token));
        found.map_or("en", |(code, _)| code)
    }

    pub fn is_time(&self, token: u32) -> bool {
        token >= self.first_time
    }
}

/// Words up to 9, and timestamps from 17 on.
#[cfg(test)]
pub fn tiny() -> Vocabulary {
    Vocabulary {
        start: 11,
        end: 10,
        transcribe: 12,
        translate: 13,
        previous: 14,
        no_speech: 15,
        no_timestamps: 16,
        first_time: 17,
        languages: Vec::new(),
        suppressed: vec![3, 11, 12, 13, 14, 15, 16],
        suppressed_first: vec![4, 10],
    }
}
