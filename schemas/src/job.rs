//! Jobs: a line of an OpenAI batch input file is the payload of a job.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// One job.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema, PartialEq)]
pub struct Job {
    /// The producer's own name for the job, given back in the result. The job id stands in for it when it is missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub custom_id: Option<String>,
    #[serde(default)]
    pub method: Method,
    /// The endpoint: `/v1/embeddings`, `/v1/chat/completions` or `/v1/completions`.
    pub url: String,
    /// The request of that endpoint.
    pub body: Value,
}

#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
pub enum Method {
    #[default]
    #[serde(rename = "POST")]
    Post,
}

impl Job {
    /// The model a job asks for, where its body says it.
    pub fn model(&self) -> Option<&str> {
        self.body.get("model").and_then(Value::as_str)
    }
}

/// What a job may ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Endpoint {
    Embeddings,
    ChatCompletions,
    Completions,
}

impl Endpoint {
    pub const ALL: [Self; 3] = [Self::Embeddings, Self::ChatCompletions, Self::Completions];

    pub fn url(self) -> &'static str {
        match self {
            Self::Embeddings => "/v1/embeddings",
            Self::ChatCompletions => "/v1/chat/completions",
            Self::Completions => "/v1/completions",
        }
    }

    pub fn from_url(url: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|endpoint| endpoint.url() == url)
    }
}
