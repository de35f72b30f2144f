//! Chunks: parts of an answer as it is made, on the job's token subject.
//!
//! A message holds one chunk with the text of one or more tokens. Its number stands in `Inferq-Chunk`, its tokens in
//! `Inferq-Token-Ids`: a worker that takes the job over goes on from there. The last chunk has a `finish_reason`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::completions::Role;
use crate::log::Usage;

/// The payload of a message on `inferq.tokens.<tenant>.<job_id>`.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema, PartialEq)]
#[serde(untagged)]
pub enum Chunk {
    Chat(ChatCompletionChunk),
    Completion(CompletionChunk),
}

/// OpenAI's chunk of `/v1/chat/completions`.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema, PartialEq)]
pub struct ChatCompletionChunk {
    /// The same in all chunks and in the result.
    pub id: String,
    /// `chat.completion.chunk`.
    pub object: String,
    /// Unix seconds, the same in all chunks: when the job was published.
    pub created: i64,
    pub model: String,
    pub choices: Vec<ChatChunkChoice>,
    /// With the last chunk.
    pub usage: Option<Usage>,
}

#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema, PartialEq)]
pub struct ChatChunkChoice {
    pub index: usize,
    pub delta: Delta,
    /// `stop` or `length` in the last chunk, null before.
    pub finish_reason: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema, PartialEq)]
pub struct Delta {
    /// In the first chunk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<Role>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
}

/// OpenAI's chunk of `/v1/completions`, of the shape of its answer.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema, PartialEq)]
pub struct CompletionChunk {
    pub id: String,
    /// `text_completion`.
    pub object: String,
    pub created: i64,
    pub model: String,
    pub choices: Vec<CompletionChunkChoice>,
    pub usage: Option<Usage>,
}

#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema, PartialEq)]
pub struct CompletionChunkChoice {
    pub index: usize,
    pub text: String,
    pub finish_reason: Option<String>,
}

/// The value of the header `Inferq-Token-Ids`.
pub fn write_token_ids(ids: &[u32]) -> String {
    ids.iter().map(u32::to_string).collect::<Vec<_>>().join(",")
}

/// The ids in such a value. What is none is left out.
pub fn read_token_ids(value: &str) -> Vec<u32> {
    value.split(',').filter_map(|id| id.parse().ok()).collect()
}

impl Chunk {
    /// The text it adds.
    pub fn text(&self) -> &str {
        match self {
            Self::Chat(chunk) => {
                chunk.choices.first().and_then(|choice| choice.delta.content.as_deref()).unwrap_or_default()
            }
            Self::Completion(chunk) => chunk.choices.first().map_or("", |choice| choice.text.as_str()),
        }
    }

    /// Why the answer ended, in its last chunk.
    pub fn finish_reason(&self) -> Option<&str> {
        match self {
            Self::Chat(chunk) => chunk.choices.first()?.finish_reason.as_deref(),
            Self::Completion(chunk) => chunk.choices.first()?.finish_reason.as_deref(),
        }
    }
}
