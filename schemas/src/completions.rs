//! `/v1/chat/completions` and `/v1/completions`.
//!
//! Fields that would change the answer and that no engine has are not here: a job that sets one is refused, instead of
//! being answered wrongly. All others are ignored.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::input::{Stop, TextOrTokens};
use crate::log::Usage;
use crate::tools::{Tool, ToolCall, ToolChoice};

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
    /// Whether the logarithms of the tokens' probabilities are wanted.
    #[serde(default)]
    pub logprobs: Option<bool>,
    /// Of how many of the most probable tokens at each place; needs `logprobs`.
    #[serde(default)]
    #[schemars(range(max = 20))]
    pub top_logprobs: Option<u64>,
    /// What the answer may call.
    #[serde(default)]
    pub tools: Option<Vec<Tool>>,
    /// `auto` unless it is given.
    #[serde(default)]
    pub tool_choice: Option<ToolChoice>,
    /// How long a model thinks that was trained to be told: `none`, `minimal`, `low`, `medium`, `high` or `xhigh`.
    #[serde(default)]
    pub reasoning_effort: Option<String>,
    /// Whether an answer may call several; true unless it is given.
    #[serde(default)]
    pub parallel_tool_calls: Option<bool>,
}

/// The body of a job for `/v1/completions`, without its [`Sampling`].
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema, PartialEq)]
pub struct CompletionRequest {
    pub model: String,
    pub prompt: TextOrTokens,
    /// Asks for the logarithms of the tokens' probabilities, and of so many of the most probable ones at each place.
    #[serde(default)]
    #[schemars(range(max = 5))]
    pub logprobs: Option<u64>,
    /// Refused unless it is `n`.
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
    /// Answers to each prompt, up to 128.
    #[serde(default)]
    #[schemars(range(min = 1, max = 128))]
    pub n: Option<u64>,
    /// Taken from the logit of a token for each time that it was generated before.
    #[serde(default, deserialize_with = "crate::number::finite")]
    #[schemars(range(min = -2.0, max = 2.0))]
    pub frequency_penalty: Option<f32>,
    /// Taken from the logit of a token that was generated before.
    #[serde(default, deserialize_with = "crate::number::finite")]
    #[schemars(range(min = -2.0, max = 2.0))]
    pub presence_penalty: Option<f32>,
    /// Added to the logits of tokens, by their ids: -100 to 100.
    #[serde(default, deserialize_with = "crate::number::finite")]
    pub logit_bias: Option<BTreeMap<String, f32>>,
    /// vLLM's: only so many of the most probable tokens are drawn from. 0 and -1 are for all.
    #[serde(default)]
    #[schemars(range(min = -1))]
    pub top_k: Option<i64>,
    /// vLLM's: only tokens are drawn from that are at least so probable, as a part of the most probable one.
    #[serde(default, deserialize_with = "crate::number::finite")]
    #[schemars(range(min = 0.0, max = 1.0))]
    pub min_p: Option<f32>,
    /// What the answer has to look like.
    #[serde(default)]
    pub response_format: Option<ResponseFormat>,
    /// Whether the answer is wanted in chunks as it is made, too.
    #[serde(default)]
    pub stream: Option<bool>,
}

#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema, PartialEq)]
pub struct ResponseFormat {
    #[serde(rename = "type")]
    pub kind: ResponseFormatKind,
    /// With the type `json_schema`.
    #[serde(default)]
    pub json_schema: Option<JsonSchemaFormat>,
}

#[derive(Clone, Copy, Debug, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum ResponseFormatKind {
    Text,
    /// Any object.
    JsonObject,
    JsonSchema,
}

#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema, PartialEq)]
pub struct JsonSchemaFormat {
    #[serde(default)]
    pub name: Option<String>,
    /// The answer always follows it, whether `strict` or not.
    pub schema: Value,
}

#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema, PartialEq)]
pub struct ChatMessage {
    pub role: Role,
    /// A string, or parts of which all are text.
    #[serde(default)]
    pub content: Option<Content>,
    /// Of an assistant that calls tools: what it thought before.
    #[serde(default)]
    pub reasoning_content: Option<String>,
    /// Of an assistant.
    #[serde(default)]
    pub tool_calls: Option<Vec<ToolCall>>,
    /// Of a tool: the call that it answers.
    #[serde(default)]
    pub tool_call_id: Option<String>,
}

#[derive(Clone, Copy, Debug, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Read as `system`.
    Developer,
    System,
    User,
    Assistant,
    Tool,
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
    /// `stop`, `length` or `tool_calls`.
    pub finish_reason: String,
    pub logprobs: Option<ChatLogprobs>,
}

#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema, PartialEq)]
pub struct ChatLogprobs {
    /// Of each token.
    pub content: Vec<TokenLogprob>,
}

#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema, PartialEq)]
pub struct TokenLogprob {
    #[serde(flatten)]
    pub token: TopLogprob,
    /// Of the most probable tokens at this place, the best first.
    pub top_logprobs: Vec<TopLogprob>,
}

#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema, PartialEq)]
pub struct TopLogprob {
    /// Bytes that are no UTF-8 are U+FFFD here.
    pub token: String,
    /// The natural logarithm of its probability, and -9999 where that is 0.
    pub logprob: f32,
    pub bytes: Vec<u8>,
}

#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema, PartialEq)]
pub struct AnswerMessage {
    pub role: Role,
    /// None of an answer that only calls tools.
    pub content: Option<String>,
    /// What the model thought before, in a channel of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reasoning_content: Option<String>,
    pub refusal: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCall>,
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
    pub logprobs: Option<CompletionLogprobs>,
}

#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema, PartialEq)]
pub struct CompletionLogprobs {
    pub tokens: Vec<String>,
    /// The natural logarithms of their probabilities, and -9999 where that is 0.
    pub token_logprobs: Vec<f32>,
    /// The same of the most probable tokens at each place.
    pub top_logprobs: Vec<BTreeMap<String, f32>>,
    /// Where each token begins in the text, in characters.
    pub text_offset: Vec<usize>,
}
