//! What endpoints have in common that take texts, tokens or files: their limits, and the name of an input in errors.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use schemas::input::{MediaInput, Prompt};
use schemas::registry::Limits;

use super::Reject;
use crate::engine::text::Text;
use crate::engine::{Goal, Pixels, Sequence, TextError};
use crate::picture;

/// How long an input may be, and what becomes of one that is longer.
#[derive(Clone, Copy, Debug)]
pub struct Length {
    pub max: usize,
    pub cut: bool,
}

impl Length {
    /// As vLLM's `truncate_prompt_tokens` says it: a number of tokens to cut inputs to, or -1 for the model's limit.
    pub fn new(truncate: Option<i64>, text: &Text) -> Result<Self, Reject> {
        let max = text.prompt_tokens_max();
        match truncate {
            None => Ok(Self { max, cut: false }),
            Some(-1) => Ok(Self { max, cut: true }),
            Some(limit) => match usize::try_from(limit) {
                Ok(limit) if (1..=max).contains(&limit) => Ok(Self { max: limit, cut: true }),
                _ => Err(Reject::value("body.truncate_prompt_tokens", format!("{limit} is not -1 or 1 to {max}"))),
            },
        }
    }

    pub fn check(self, tokens: usize, param: &str) -> Result<(), Reject> {
        match tokens > self.max {
            true => {
                let advice = "Shorten it, or set truncate_prompt_tokens to -1 to have it cut.";
                Err(too_long(param, tokens, self.max, advice))
            }
            false => Ok(()),
        }
    }
}

/// A sequence for each input, with `prompt` before each text.
pub fn sequences_of_all(
    input: &MediaInput,
    goal: &Goal,
    prompt: &str,
    length: Length,
    limits: &Limits,
    text: &Text,
) -> Result<Vec<Sequence>, Reject> {
    let inputs = input.prompts();
    check_inputs(inputs.len(), "body.input", limits)?;
    let tokens = |(index, one)| {
        let param = prompt_param("input", input.is_list(), index);
        let encode = |content: &str| match prompt {
            "" => text.encode(content),
            prompt => text.encode(&format!("{prompt}{content}")),
        };
        if let (Prompt::Image(image), Some(sight)) = (one, text.sight()) {
            let seen = sight.see(&picture_of(image, &param)?);
            return Ok(Sequence::of_image(seen, sight.places, goal.clone()));
        }
        let mut tokens = tokens_of(one, &param, text, encode)?;
        match length.cut {
            true => text.truncate(&mut tokens, length.max),
            false => length.check(tokens.len(), &param)?,
        }
        Ok(Sequence::new(tokens, goal.clone()))
    };
    inputs.into_iter().enumerate().map(tokens).collect()
}

/// The image of an input.
fn picture_of(image: &str, param: &str) -> Result<Pixels, Reject> {
    let file = file_of(image, param)?;
    picture::read(&file)
        .map_err(|reason| Reject::invalid("invalid_image", param.to_owned(), format!("{param}: {reason}")))
}

/// The bytes of a file, which is in base64 or a `data:` URL.
pub fn file_of(file: &str, param: &str) -> Result<Vec<u8>, Reject> {
    let wrong = |message: &str| Reject::value(param, message);
    if file.starts_with("http://") || file.starts_with("https://") {
        return Err(wrong("is an address; send the file itself, in base64"));
    }
    let encoded = match file.strip_prefix("data:") {
        Some(url) => match url.split_once(";base64,") {
            Some((_, encoded)) => encoded,
            None => return Err(wrong("is a data: URL without base64")),
        },
        None => file,
    };
    let bytes = STANDARD.decode(encoded.trim_ascii()).map_err(|error| wrong(&format!("is no base64: {error}")))?;
    if bytes.is_empty() { Err(wrong("is empty")) } else { Ok(bytes) }
}

/// The tokens of one prompt, within the model's limits. `param` is its place in the job.
pub fn tokens_of(
    prompt: Prompt<'_>,
    param: &str,
    text: &Text,
    encode: impl Fn(&str) -> Result<Vec<u32>, TextError>,
) -> Result<Vec<u32>, Reject> {
    let tokens = match prompt {
        Prompt::Text("") => return Err(empty(param)),
        Prompt::Text(content) => encode(content).map_err(|error| Reject::value(param, error))?,
        Prompt::Tokens(ids) => match ids.iter().position(|&id| id as usize >= text.vocab_size()) {
            Some(index) => {
                let message = format!("{} is no token of this model, which has {}", ids[index], text.vocab_size());
                return Err(Reject::value(&format!("{param}[{index}]"), message));
            }
            None => ids.to_vec(),
        },
        Prompt::Image(_) => return Err(Reject::value(param, "is an image, and this model reads texts alone")),
    };
    if tokens.is_empty() { Err(empty(param)) } else { Ok(tokens) }
}

/// The place of the prompt with that index.
pub fn prompt_param(field: &str, is_list: bool, index: usize) -> String {
    if is_list { format!("body.{field}[{index}]") } else { format!("body.{field}") }
}

pub fn check_inputs(count: usize, field: &str, limits: &Limits) -> Result<(), Reject> {
    if count <= limits.inputs {
        return Ok(());
    }
    Err(Reject::value(field, format!("{count} inputs in one job; at most {} are allowed", limits.inputs)))
}

pub fn too_long(param: &str, tokens: usize, max: usize, advice: &str) -> Reject {
    let message = format!("{param}: {tokens} tokens; the model takes at most {max}. {advice}");
    Reject::invalid("context_length_exceeded", param.to_owned(), message)
}

pub fn empty(param: &str) -> Reject {
    Reject::invalid("empty_input", param.to_owned(), format!("{param}: is empty; give at least one token"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_base64_or_a_data_url() {
        assert_eq!(file_of("YWJj", "body.file").unwrap(), b"abc");
        assert_eq!(file_of("data:audio/wav;base64,YWJj\n", "body.file").unwrap(), b"abc");
        for wrong in ["", "%", "data:audio/wav,abc", "http://localhost/a.wav"] {
            assert_eq!(file_of(wrong, "body.file").unwrap_err().error.param.as_deref(), Some("body.file"), "{wrong}");
        }
    }
}
