//! `/v1/rerank`, in the shape that Cohere, Jina and vLLM share.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::input::Documents;
use crate::log::Usage;

/// The body of a job for `/v1/rerank`.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema, PartialEq)]
pub struct RerankRequest {
    pub model: String,
    #[schemars(length(min = 1))]
    pub query: String,
    pub documents: Documents,
    /// Only so many of the best are answered; all unless given.
    #[serde(default)]
    pub top_n: Option<usize>,
    /// Whether results hold the documents' texts.
    #[serde(default)]
    pub return_documents: Option<bool>,
    /// Cut documents so that query and document together have at most this many tokens, instead of refusing them; -1 is
    /// the model's limit.
    #[serde(default)]
    pub truncate_prompt_tokens: Option<i64>,
    #[serde(default)]
    pub user: Option<String>,
}

/// The answer of `/v1/rerank`.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema, PartialEq)]
pub struct RerankResponse {
    /// `rerank-` and the job id.
    pub id: String,
    pub model: String,
    /// The most relevant first; documents of the same score in their order.
    pub results: Vec<Ranked>,
    pub usage: Usage,
}

#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema, PartialEq)]
pub struct Ranked {
    /// Of the document in the request.
    pub index: usize,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub document: Option<Document>,
    pub relevance_score: f32,
}

#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema, PartialEq)]
pub struct Document {
    pub text: String,
}
