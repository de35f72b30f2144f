//! The tokenizer that the metadata of a GGUF file describes, built by its own rules: what a file calls `pre` decides how text
//! is split, and a `pre` we do not know is refused, since guessing would give wrong tokens without any sign of it.

use std::collections::HashMap;

use serde_json::{Map, Value, json};
use tokenizers::Tokenizer;

use super::{Gguf, integer};
use crate::engine::LoadError;

/// Of `tokenizer.ggml.token_type`.
const NORMAL: i64 = 1;
const CONTROL: i64 = 3;
const USER_DEFINED: i64 = 4;
const BYTE: i64 = 6;
/// How SentencePiece spells a space.
const SPACE: &str = "\u{2581}";

/// How OpenAI's models since GPT-4o split text: words also where small letters become large ones.
const CASES: [&str; 7] = [
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"\p{N}{1,3}",
    r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
    r"\s*[\r\n]+",
    r"\s+(?!\S)",
    r"\s+",
];

/// What splits text and merges it to tokens.
enum Kind {
    /// Byte pairs as GPT-2 has them.
    ByteLevel,
    /// Those of SentencePiece.
    Pieces,
}

impl Gguf {
    pub fn tokenizer(&self) -> Result<Tokenizer, LoadError> {
        let (tokens, types) = (self.strings("tokenizer.ggml.tokens")?, self.types()?);
        if types.len() != tokens.len() {
            let (types, tokens) = (types.len(), tokens.len());
            return Err(self.error(format!("tokenizer.ggml.token_type: has {types} entries for {tokens} tokens")));
        }
        let added = tokens.iter().zip(&types).enumerate().filter_map(|(id, (token, kind))| {
            let special = match *kind {
                CONTROL => true,
                USER_DEFINED => false,
                _ => return None,
            };
            Some(json!({
                "id": id, "content": token, "special": special,
                "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
            }))
        });
        let added: Vec<Value> = added.collect();
        let mut document = match self.kind()? {
            Kind::ByteLevel => self.byte_level(&tokens)?,
            Kind::Pieces => self.pieces(&tokens, &types)?,
        };
        document["version"] = json!("1.0");
        document["added_tokens"] = json!(added);
        let bytes = serde_json::to_vec(&document).map_err(|error| self.error(error))?;
        Tokenizer::from_bytes(bytes).map_err(|error| self.error(format!("tokenizer: {error}")))
    }

    /// Whether texts begin with a token of their own.
    pub fn adds_begin(&self) -> bool {
        let by_default = matches!(self.kind(), Ok(Kind::Pieces));
        self.flag("tokenizer.ggml.add_bos_token").unwrap_or(by_default)
    }

    fn kind(&self) -> Result<Kind, LoadError> {
        match self.string("tokenizer.ggml.model")? {
            "gpt2" => Ok(Kind::ByteLevel),
            "llama" => Ok(Kind::Pieces),
            other => Err(self.error(format!(
                "tokenizer.ggml.model: {other:?} is not supported; gpt2 (byte-level BPE) and llama (SentencePiece) are"
            ))),
        }
    }

    fn types(&self) -> Result<Vec<i64>, LoadError> {
        let types = self.list("tokenizer.ggml.token_type")?.iter().map(integer);
        types.collect::<Option<_>>().ok_or_else(|| self.error("tokenizer.ggml.token_type: holds what is no number"))
    }

    fn byte_level(&self, tokens: &[&str]) -> Result<Value, LoadError> {
        let bytes = json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true });
        Ok(json!({
            "normalizer": self.normalizer(),
            "pre_tokenizer": self.pre_tokenizer(&bytes)?,
            "decoder": bytes,
            "model": {
                "type": "BPE",
                "vocab": vocabulary(tokens),
                "merges": self.strings("tokenizer.ggml.merges")?,
                // Llama 3 has tokens that no merges lead to.
                "ignore_merges": self.string("tokenizer.ggml.pre")? == "llama-bpe",
            },
        }))
    }

    /// Qwen composes letters and their marks first.
    fn normalizer(&self) -> Option<Value> {
        (self.string("tokenizer.ggml.pre").ok()? == "qwen2").then(|| json!({ "type": "NFC" }))
    }

    /// How text is split before byte pairs are merged.
    fn pre_tokenizer(&self, byte_level: &Value) -> Result<Value, LoadError> {
        match self.string("tokenizer.ggml.pre")? {
            "smollm" => Ok(json!({
                "type": "Sequence",
                "pretokenizers": [{ "type": "Digits", "individual_digits": true }, byte_level],
            })),
            "gpt-2" => Ok(byte_level.clone()),
            "qwen2" | "deepseek-r1-qwen" => Ok(split("\\p{N}")),
            "llama-bpe" => Ok(split("\\p{N}{1,3}")),
            "gpt-4o" => Ok(isolated(&CASES.join("|"))),
            other => Err(self.error(format!(
                "tokenizer.ggml.pre: {other:?} is not supported; deepseek-r1-qwen, gpt-2, gpt-4o, llama-bpe, qwen2 and smollm are"
            ))),
        }
    }

    /// The whole of a text is merged, its spaces too. Scores tell in which order; what no token spells is told in bytes.
    fn pieces(&self, tokens: &[&str], types: &[i64]) -> Result<Value, LoadError> {
        let scores = self.floats("tokenizer.ggml.scores")?;
        if scores.len() != tokens.len() {
            let (scores, tokens) = (scores.len(), tokens.len());
            return Err(self.error(format!("tokenizer.ggml.scores: has {scores} entries for {tokens} tokens")));
        }
        let spaces = json!({ "type": "Replace", "pattern": { "String": " " }, "content": SPACE });
        let prefix = json!({ "type": "Prepend", "prepend": SPACE });
        let strip = json!({ "type": "Strip", "content": " ", "start": 1, "stop": 0 });
        let mut decoders = vec![
            json!({ "type": "Replace", "pattern": { "String": SPACE }, "content": " " }),
            json!({ "type": "ByteFallback" }),
            json!({ "type": "Fuse" }),
        ];
        let has_prefix = self.flag("tokenizer.ggml.add_space_prefix").unwrap_or(true);
        let normalizers = if has_prefix { vec![prefix, spaces] } else { vec![spaces] };
        decoders.extend(has_prefix.then_some(strip));
        let unknown = self.number("tokenizer.ggml.unknown_token_id").unwrap_or(0);
        Ok(json!({
            "normalizer": { "type": "Sequence", "normalizers": normalizers },
            "decoder": { "type": "Sequence", "decoders": decoders },
            "model": {
                "type": "BPE",
                "vocab": vocabulary(tokens),
                "merges": merges(tokens, types, &scores),
                "unk_token": tokens.get(unknown),
                "fuse_unk": true,
                "byte_fallback": types.contains(&BYTE),
            },
        }))
    }
}

fn vocabulary(tokens: &[&str]) -> Map<String, Value> {
    tokens.iter().enumerate().map(|(id, token)| ((*token).to_owned(), json!(id))).collect()
}

/// The pairs of tokens that become a token, that of the highest score first.
fn merges<'a>(tokens: &[&'a str], types: &[i64], scores: &[f32]) -> Vec<[&'a str; 2]> {
    let ids: HashMap<&str, usize> = tokens.iter().enumerate().map(|(id, token)| (*token, id)).collect();
    let mut found = Vec::new();
    for (id, token) in tokens.iter().enumerate().filter(|(id, _)| types[*id] == NORMAL) {
        for (at, _) in token.char_indices().skip(1) {
            let (left, right) = token.split_at(at);
            if let (Some(first), Some(second)) = (ids.get(left), ids.get(right)) {
                found.push((scores[id], *first, *second, [left, right]));
            }
        }
    }
    found.sort_by(|a, b| b.0.total_cmp(&a.0).then((a.1, a.2).cmp(&(b.1, b.2))));
    found.into_iter().map(|(.., pair)| pair).collect()
}

/// Words, numbers, signs and spaces apart, as Llama 3 and Qwen do it, which differ in how digits stand together.
fn split(digits: &str) -> Value {
    let pattern = [
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)",
        r"[^\r\n\p{L}\p{N}]?\p{L}+",
        digits,
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    ];
    isolated(&pattern.join("|"))
}

fn isolated(pattern: &str) -> Value {
    let bytes = json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false });
    let split = json!({ "type": "Split", "pattern": { "Regex": pattern }, "behavior": "Isolated", "invert": false });
    json!({ "type": "Sequence", "pretokenizers": [split, bytes] })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn digits_stand_together_as_the_models_were_trained() {
        let pieces = |digits: &str, text: &str| {
            let pre: tokenizers::PreTokenizerWrapper = serde_json::from_value(split(digits)).unwrap();
            let mut pieces = tokenizers::PreTokenizedString::from(text);
            tokenizers::PreTokenizer::pre_tokenize(&pre, &mut pieces).unwrap();
            let splits = pieces.get_splits(tokenizers::OffsetReferential::Original, tokenizers::OffsetType::Byte);
            splits.into_iter().map(|(piece, ..)| piece.replace('Ġ', " ").replace('Ċ', "\n")).collect::<Vec<_>>()
        };
        let text = "It's 12345 o'clock!\n\n  Now";
        let [qwen, llama] = ["\\p{N}", "\\p{N}{1,3}"].map(|digits| pieces(digits, text));
        assert_eq!(qwen, ["It", "'s", " ", "1", "2", "3", "4", "5", " o", "'clock", "!\n\n", " ", " Now"]);
        assert_eq!(llama, ["It", "'s", " ", "123", "45", " o", "'clock", "!\n\n", " ", " Now"]);
    }

    #[test]
    fn pieces_are_those_of_sentencepiece() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/decoders");
        let file = Gguf::open(&folder.join("pieces.gguf")).unwrap();
        let tokenizer = file.tokenizer().unwrap();
        assert!(file.adds_begin(), "as llama.cpp does where nothing is said");
        let golden: Vec<Value> = serde_json::from_slice(&std::fs::read(folder.join("pieces.json")).unwrap()).unwrap();
        assert!(golden.len() > 20);
        for case in golden {
            let (text, tokens) = (case["text"].as_str().unwrap(), &case["tokens"]);
            let ours = tokenizer.encode_fast(text, false).unwrap().get_ids().to_vec();
            assert_eq!(&json!(ours), tokens, "{text:?}");
            let again = text.replace(SPACE, " ");
            // Behind an added token text begins anew, with a space.
            let again = again.replace("<|user|>", "<|user|> ");
            assert_eq!(tokenizer.decode(&ours, false).unwrap(), again);
        }
    }
}
