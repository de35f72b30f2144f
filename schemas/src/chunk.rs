//! Chunks: parts of an answer as it is made, on the job's token subject.
//!
//! A message holds one chunk with one choice: the text of one or more tokens of one of the job's answers. Its number stands
//! in `Inferq-Chunk`, its tokens in `Inferq-Token-Ids`: a worker that takes the job over goes on from there. The last
//! chunk of an answer has a `finish_reason`, the last one of the job has `usage`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::completions::{ChatLogprobs, CompletionLogprobs, Role};
use crate::log::Usage;
use crate::tools::ToolCallDelta;

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
    /// In the last chunk.
    pub usage: Option<Usage>,
}

#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema, PartialEq)]
pub struct ChatChunkChoice {
    pub index: usize,
    pub delta: Delta,
    /// `stop`, `length` or `tool_calls` in the answer's last chunk, null before.
    pub finish_reason: Option<String>,
    /// Of the chunk's tokens.
    #[serde(default)]
    pub logprobs: Option<ChatLogprobs>,
}

#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema, PartialEq)]
pub struct Delta {
    /// In the answer's first chunk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<Role>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reasoning_content: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCallDelta>,
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
    /// Of the chunk's tokens.
    #[serde(default)]
    pub logprobs: Option<CompletionLogprobs>,
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
    /// Which of the job's answers it belongs to.
    pub fn index(&self) -> usize {
        match self {
            Self::Chat(chunk) => chunk.choices.first().map_or(0, |choice| choice.index),
            Self::Completion(chunk) => chunk.choices.first().map_or(0, |choice| choice.index),
        }
    }

    /// The text it adds.
    pub fn text(&self) -> &str {
        match self {
            Self::Chat(chunk) => {
                chunk.choices.first().and_then(|choice| choice.delta.content.as_deref()).unwrap_or_default()
            }
            Self::Completion(chunk) => chunk.choices.first().map_or("", |choice| choice.text.as_str()),
        }
    }

    /// What it adds to calls of tools.
    pub fn tool_calls(&self) -> &[ToolCallDelta] {
        match self {
            Self::Chat(chunk) => chunk.choices.first().map_or(&[], |choice| &choice.delta.tool_calls),
            Self::Completion(_) => &[],
        }
    }

    /// Whether it is the job's last.
    pub fn is_last(&self) -> bool {
        match self {
            Self::Chat(chunk) => chunk.usage.is_some(),
            Self::Completion(chunk) => chunk.usage.is_some(),
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
