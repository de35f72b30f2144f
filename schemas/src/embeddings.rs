//! `/v1/embeddings`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::input::MediaInput;
use crate::log::Usage;

/// The body of a job for `/v1/embeddings`.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema, PartialEq)]
pub struct EmbeddingRequest {
    pub model: String,
    /// Texts or tokens; for models that see, images too.
    pub input: MediaInput,
    #[serde(default)]
    pub encoding_format: Option<EncodingFormat>,
    /// A shorter vector, where the model was trained for it.
    #[serde(default)]
    pub dimensions: Option<usize>,
    #[serde(default)]
    pub user: Option<String>,
    /// Cut inputs that are longer than the model's limit to this many tokens instead of refusing them (vLLM's extension);
    /// -1 is the model's limit.
    #[serde(default)]
    pub truncate_prompt_tokens: Option<i64>,
    /// What is put before each text, by the name it has in the model (an extension of Text Embeddings Inference), such as
    /// `query`. Without it, what the model names as its default.
    #[serde(default)]
    pub prompt_name: Option<String>,
}

#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum EncodingFormat {
    #[default]
    Float,
    /// Little-endian f32.
    Base64,
}

/// The answer of `/v1/embeddings`.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema, PartialEq)]
pub struct EmbeddingResponse {
    /// `list`.
    pub object: String,
    /// In the order of the inputs.
    pub data: Vec<Embedding>,
    pub model: String,
    pub usage: Usage,
}

#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema, PartialEq)]
pub struct Embedding {
    /// `embedding`.
    pub object: String,
    pub index: usize,
    pub embedding: Vector,
}

/// A vector in the asked `encoding_format`.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema, PartialEq)]
#[serde(untagged)]
pub enum Vector {
    Float(#[serde(deserialize_with = "crate::number::finite")] Vec<f32>),
    Base64(String),
}
