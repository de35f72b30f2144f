//! `/v1/embeddings`.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use schemas::codec::decode_body;
use schemas::embeddings::{Embedding, EmbeddingRequest, EmbeddingResponse, EncodingFormat, Vector};
use schemas::input::Prompt;
use schemas::log::Usage;
use schemas::registry::Model;
use serde_json::Value;

use super::{Answer, Body, Plan, Reject, Stamp, check_inputs, misshapen, prompt_param, tokens_of, too_long};
use crate::engine::text::Text;
use crate::engine::{Goal, Output, Sequence};

/// How the vectors are given.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    format: EncodingFormat,
    dimensions: Option<usize>,
}

pub fn prepare(body: &Value, model: &Model, text: &Text) -> Result<Plan, Reject> {
    let request: EmbeddingRequest = decode_body(body).map_err(misshapen)?;
    let dimensions = check_dimensions(request.dimensions, text)?;
    let prompts = request.input.prompts();
    check_inputs(prompts.len(), "body.input", &model.limits)?;
    let truncate = truncation(request.truncate_prompt_tokens, text)?;
    let mut sequences = Vec::with_capacity(prompts.len());
    for (index, prompt) in prompts.into_iter().enumerate() {
        let param = prompt_param("input", request.input.is_list(), index);
        sequences.push(sequence(prompt, &param, truncate, text)?);
    }
    let shape = Shape { format: request.encoding_format.unwrap_or_default(), dimensions };
    Ok(Plan { sequences, answer: Answer::Embeddings(shape), seed: None, is_repeatable: true, streams: false })
}

pub fn body(shape: Shape, outputs: Vec<Output>, stamp: Stamp<'_>) -> (Body, Usage) {
    let usage =
        Usage { prompt_tokens: stamp.prompt_tokens, completion_tokens: None, total_tokens: stamp.prompt_tokens };
    let embed = |(index, output)| match output {
        Output::Embedding(values) => {
            Embedding { object: "embedding".to_owned(), index, embedding: shape.vector(values) }
        }
        Output::Completion { .. } => unreachable!("an engine answers each goal with its own output"),
    };
    let response = EmbeddingResponse {
        object: "list".to_owned(),
        data: outputs.into_iter().enumerate().map(embed).collect(),
        model: stamp.model.to_owned(),
        usage,
    };
    (Body::Embeddings(response), usage)
}

impl Shape {
    fn vector(self, mut values: Vec<f32>) -> Vector {
        if let Some(dimensions) = self.dimensions.filter(|&dimensions| dimensions < values.len()) {
            // Matryoshka models are trained so that a prefix, normalised again, is a vector of its own.
            values.truncate(dimensions);
            let norm = values.iter().map(|value| value * value).sum::<f32>().sqrt().max(f32::MIN_POSITIVE);
            values.iter_mut().for_each(|value| *value /= norm);
        }
        match self.format {
            EncodingFormat::Float => Vector::Float(values),
            EncodingFormat::Base64 => {
                let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
                Vector::Base64(STANDARD.encode(bytes))
            }
        }
    }
}

fn sequence(prompt: Prompt<'_>, param: &str, truncate: Option<usize>, text: &Text) -> Result<Sequence, Reject> {
    let mut tokens = tokens_of(prompt, param, text, |content| text.encode(content))?;
    let max = text.prompt_tokens_max();
    match truncate {
        Some(limit) => text.truncate(&mut tokens, limit),
        None if tokens.len() > max => {
            let advice = "Shorten it, or set truncate_prompt_tokens to -1 to have it cut.";
            return Err(too_long(param, tokens.len(), max, advice));
        }
        None => {}
    }
    Ok(Sequence::new(tokens, Goal::Embed))
}

fn check_dimensions(asked: Option<usize>, text: &Text) -> Result<Option<usize>, Reject> {
    let (Some(asked), Some(own)) = (asked, text.dimensions()) else { return Ok(asked) };
    match asked {
        _ if asked == own => Ok(None),
        0 => Err(Reject::value("body.dimensions", "0 is not a number of dimensions")),
        _ if asked > own => Err(Reject::value("body.dimensions", format!("{asked} is more than the model's {own}"))),
        _ if text.can_shorten() => Ok(Some(asked)),
        _ => Err(Reject::value("body.dimensions", format!("{asked}: this model cannot shorten its vectors of {own}"))),
    }
}

fn truncation(asked: Option<i64>, text: &Text) -> Result<Option<usize>, Reject> {
    let max = text.prompt_tokens_max();
    match asked {
        None => Ok(None),
        Some(-1) => Ok(Some(max)),
        Some(limit) => match usize::try_from(limit) {
            Ok(limit) if (1..=max).contains(&limit) => Ok(Some(limit)),
            _ => Err(Reject::value("body.truncate_prompt_tokens", format!("{limit} is not -1 or 1 to {max}"))),
        },
    }
}
