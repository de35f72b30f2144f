//! `/v1/embeddings`.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use schemas::codec::decode_body;
use schemas::embeddings::{Embedding, EmbeddingRequest, EmbeddingResponse, EncodingFormat, Vector};
use schemas::log::Usage;
use schemas::registry::Model;
use serde_json::Value;

use super::inputs::{Length, sequences_of_all};
use super::{Answer, Body, Plan, Reject, Stamp, misshapen};
use crate::engine::text::Text;
use crate::engine::{Goal, OTHER_OUTPUT, Output};

/// How the vectors are given.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    format: EncodingFormat,
    dimensions: Option<usize>,
}

pub fn prepare(body: &Value, model: &Model, text: &Text) -> Result<Plan, Reject> {
    let request: EmbeddingRequest = decode_body(body).map_err(misshapen)?;
    let dimensions = check_dimensions(request.dimensions, text)?;
    let length = Length::new(request.truncate_prompt_tokens, text)?;
    let prompt = prompt(&request, text)?;
    let sequences = sequences_of_all(&request.input, &Goal::Embed, prompt, length, &model.limits, text)?;
    let shape = Shape { format: request.encoding_format.unwrap_or_default(), dimensions };
    Ok((sequences, Answer::Embeddings(shape)).into())
}

pub fn body(shape: Shape, outputs: Vec<Output>, stamp: Stamp<'_>) -> (Body, Usage) {
    let usage = stamp.usage();
    let embed = |(index, output)| match output {
        Output::Embedding(values) => {
            Embedding { object: "embedding".to_owned(), index, embedding: shape.vector(values) }
        }
        Output::Completion { .. } | Output::Scores(_) | Output::Transcript(_) => unreachable!("{OTHER_OUTPUT}"),
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

/// What is put before each text. Tokens are taken as they are.
fn prompt<'a>(request: &EmbeddingRequest, text: &'a Text) -> Result<&'a str, Reject> {
    let asked = request.prompt_name.as_deref();
    let prompt = text.prompts().get(asked);
    prompt.map_err(|known| Reject::value("body.prompt_name", format!("{:?}: {known}", asked.unwrap_or_default())))
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
