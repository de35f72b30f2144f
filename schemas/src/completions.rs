//! `/v1/chat/completions` and `/v1/completions`.
//!
//! Fields that would change the answer and that the engine does not have are declared too, so that a job which sets
//! them is refused instead of being answered wrongly. All others are ignored.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::input::{Stop, TextOrTokens};
use crate::log::Usage;

/// The body of a job for `/v1/chat/completions`, without its [`Sampling`].
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema, PartialEq)]
pub struct ChatCompletionRequest {
    pub model: String,
    #[schemars(length(min = 1))]
    pub messages: Vec<ChatMessage>,
    /// Takes precedence over `max_tokens`.
    #[serde(default)]
    #[schemars(range(min = 1))]
    pub max_completion_tokens: Option<u64>,
    /// Refused unless false.
    #[serde(default)]
    pub logprobs: Option<Value>,
    /// Refused unless empty.
    #[serde(default)]
    pub tools: Option<Value>,
    /// Refused unless `text`.
    #[serde(default)]
    pub response_format: Option<Value>,
}

/// The body of a job for `/v1/completions`, without its [`Sampling`].
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema, PartialEq)]
pub struct CompletionRequest {
    pub model: String,
    pub prompt: TextOrTokens,
    /// Refused.
    #[serde(default)]
    pub logprobs: Option<Value>,
    /// Refused unless false.
    #[serde(default)]
    pub echo: Option<bool>,
    /// Refused.
    #[serde(default)]
    pub suffix: Option<String>,
    /// Refused above 1.
    #[serde(default)]
    pub best_of: Option<u64>,
}

/// What both endpoints share, read from the same body. (Not a flattened field: serde loses the path of a bad value there.)
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema, PartialEq)]
pub struct Sampling {
    #[serde(default)]
    #[schemars(range(min = 1))]
    pub max_tokens: Option<u64>,
    /// 0 to 2; 0 is greedy.
    #[serde(default, deserialize_with = "crate::number::finite")]
    #[schemars(range(min = 0.0, max = 2.0))]
    pub temperature: Option<f32>,
    /// Above 0, up to 1.
    #[serde(default, deserialize_with = "crate::number::finite")]
    #[schemars(range(max = 1.0), extend("exclusiveMinimum" = 0.0))]
    pub top_p: Option<f32>,
    #[serde(default)]
    pub seed: Option<i64>,
    #[serde(default)]
    pub stop: Stop,
    /// Refused above 1.
    #[serde(default)]
    pub n: Option<u64>,
    /// Refused unless 0.
    #[serde(default, deserialize_with = "crate::number::finite")]
    pub frequency_penalty: Option<f32>,
    /// Refused unless 0.
    #[serde(default, deserialize_with = "crate::number::finite")]
    pub presence_penalty: Option<f32>,
    /// Refused unless empty.
    #[serde(default)]
    pub logit_bias: Option<Value>,
    /// Refused: a job's answer is one message.
    #[serde(default)]
    pub stream: Option<bool>,
}

#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema, PartialEq)]
pub struct ChatMessage {
    pub role: Role,
    /// A string, or parts of which all are text.
    #[serde(default)]
    pub content: Option<Content>,
}

#[derive(Clone, Copy, Debug, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Read as `system`.
    Developer,
    System,
    User,
    Assistant,
}

#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema, PartialEq)]
#[serde(untagged, expecting = "content is neither a string nor an array of parts, each with a type")]
pub enum Content {
    Text(String),
    Parts(Vec<Part>),
}

#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema, PartialEq)]
pub struct Part {
    #[serde(rename = "type")]
    pub kind: String,
    #[serde(default)]
    pub text: Option<String>,
}

/// The answer of `/v1/chat/completions`.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema, PartialEq)]
pub struct ChatCompletionResponse {
    pub id: String,
    /// `chat.completion`.
    pub object: String,
    /// Unix seconds.
    pub created: i64,
    pub model: String,
    pub choices: Vec<ChatChoice>,
    pub usage: Usage,
}

#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema, PartialEq)]
pub struct ChatChoice {
    pub index: usize,
    pub message: AnswerMessage,
    /// `stop` or `length`.
    pub finish_reason: String,
    pub logprobs: Option<Value>,
}

#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema, PartialEq)]
pub struct AnswerMessage {
    pub role: Role,
    pub content: String,
    pub refusal: Option<String>,
}

/// The answer of `/v1/completions`.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema, PartialEq)]
pub struct CompletionResponse {
    pub id: String,
    /// `text_completion`.
    pub object: String,
    /// Unix seconds.
    pub created: i64,
    pub model: String,
    pub choices: Vec<CompletionChoice>,
    pub usage: Usage,
}

#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema, PartialEq)]
pub struct CompletionChoice {
    pub index: usize,
    pub text: String,
    /// `stop` or `length`.
    pub finish_reason: String,
    pub logprobs: Option<Value>,
}
