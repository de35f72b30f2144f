//! How a tokenizer spells bytes in the texts of its tokens.

use tokenizers::Tokenizer;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spelling {
    /// A character for each byte, as GPT-2 has it.
    ByteLevel,
    /// As SentencePiece has it: `▁` for a space, and `<0x0A>` for a byte that is no token.
    Metaspace,
    Plain,
}

impl Spelling {
    pub fn of(tokenizer: &Tokenizer) -> Self {
        let decoder = tokenizer.get_decoder().and_then(|decoder| serde_json::to_string(decoder).ok());
        match decoder.unwrap_or_default() {
            decoder if decoder.contains("\"ByteLevel\"") => Self::ByteLevel,
            decoder if decoder.contains('▁') || decoder.contains("\"ByteFallback\"") => Self::Metaspace,
            _ => Self::Plain,
        }
    }

    /// The bytes of a token that stands for text.
    pub fn bytes(self, token: &str) -> Vec<u8> {
        let same = || token.as_bytes().to_vec();
        match self {
            Self::ByteLevel => token.chars().map(byte_of).collect::<Option<_>>().unwrap_or_else(same),
            Self::Metaspace => {
                let code = token.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
                match code.filter(|code| code.len() == 2).and_then(|code| u8::from_str_radix(code, 16).ok()) {
                    Some(byte) => vec![byte],
                    None => token.replace('▁', " ").into_bytes(),
                }
            }
            Self::Plain => same(),
        }
    }
}

/// Bytes that can be printed stand for themselves, the others have the characters from 256 on.
fn byte_of(character: char) -> Option<u8> {
    let is_printed = |byte: &u8| matches!(byte, 33..=126 | 161..=172 | 174..=255);
    match u8::try_from(u32::from(character)) {
        Ok(byte) => Some(byte).filter(is_printed),
        Err(_) => (0..=255).filter(|byte| !is_printed(byte)).nth(character as usize - 256),
    }
}

#[cfg(test)]
mod tests {
    use tokenizers::pre_tokenizers::byte_level::ByteLevel;
    use tokenizers::{PreTokenizedString, PreTokenizer};

    use super::*;

    #[test]
    fn bytes_are_read_as_they_were_written() {
        let text = "Hello wörld\n\t\u{1F980} \u{a0}\u{ad}";
        let mut split = PreTokenizedString::from(text);
        ByteLevel::default().add_prefix_space(false).use_regex(false).pre_tokenize(&mut split).unwrap();
        let (spelled, _, _) =
            split.get_splits(tokenizers::OffsetReferential::Normalized, tokenizers::OffsetType::Byte).remove(0);
        assert_eq!(Spelling::ByteLevel.bytes(spelled), text.as_bytes());
        assert_eq!(Spelling::ByteLevel.bytes("plain text"), b"plain text", "which is not spelled so");
        assert_eq!(Spelling::Metaspace.bytes("▁a▁b"), b" a b");
        assert_eq!(Spelling::Metaspace.bytes("<0x0A>"), b"\n");
        assert_eq!(Spelling::Metaspace.bytes("<0x0Ab>"), b"<0x0Ab>");
    }
}
