//! Jobs: a line of an OpenAI batch input file is the payload of a job.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::subject::Lane;

/// One job.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema, PartialEq)]
pub struct Job {
    /// The producer's own name for the job, given back in the result. The job id stands in for it when it is missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub custom_id: Option<String>,
    #[serde(default)]
    pub method: Method,
    /// The endpoint: `/v1/embeddings`, `/v1/rerank`, `/v1/classify`, `/v1/chat/completions`,
    /// `/v1/completions`, `/v1/audio/transcriptions` or `/v1/audio/translations`.
    pub url: String,
    /// The request of that endpoint. In MessagePack a text may be binary: it is read as its base64.
    #[serde(deserialize_with = "crate::codec::value")]
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

    /// The lane its body asks for by OpenAI's `service_tier`. `auto` leaves the choice to whoever publishes the job.
    pub fn lane(&self) -> Result<Option<Lane>, String> {
        let Some(tier) = self.body.get("service_tier").filter(|tier| !tier.is_null()) else { return Ok(None) };
        match tier.as_str() {
            Some("auto") => Ok(None),
            Some(lane) if lane.parse::<Lane>().is_ok() => Ok(lane.parse().ok()),
            _ => Err(format!("body.service_tier: {tier} is no tier; it is one of auto, priority, default, flex")),
        }
    }
}

/// What a job may ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Endpoint {
    Embeddings,
    Rerank,
    Classify,
    ChatCompletions,
    Completions,
    Transcriptions,
    Translations,
}

impl Endpoint {
    pub const ALL: [Self; 7] = [
        Self::Embeddings,
        Self::Rerank,
        Self::Classify,
        Self::ChatCompletions,
        Self::Completions,
        Self::Transcriptions,
        Self::Translations,
    ];

    /// Those that a text is given to.
    pub const OF_TEXT: [Self; 5] =
        [Self::Embeddings, Self::Rerank, Self::Classify, Self::ChatCompletions, Self::Completions];

    pub fn url(self) -> &'static str {
        match self {
            Self::Embeddings => "/v1/embeddings",
            Self::Rerank => "/v1/rerank",
            Self::Classify => "/v1/classify",
            Self::ChatCompletions => "/v1/chat/completions",
            Self::Completions => "/v1/completions",
            Self::Transcriptions => "/v1/audio/transcriptions",
            Self::Translations => "/v1/audio/translations",
        }
    }

    pub fn from_url(url: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|endpoint| endpoint.url() == url)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_service_tier_is_a_lane_and_an_unknown_one_is_an_error() {
        let lane = |body| Job { custom_id: None, method: Method::Post, url: String::new(), body }.lane();
        assert_eq!(lane(json!({})), Ok(None));
        assert_eq!(lane(json!({ "service_tier": null })), Ok(None));
        assert_eq!(lane(json!({ "service_tier": "auto" })), Ok(None));
        assert_eq!(lane(json!({ "service_tier": "flex" })), Ok(Some(Lane::Flex)));
        assert!(lane(json!({ "service_tier": "fast" })).unwrap_err().starts_with("body.service_tier: \"fast\" is no"));
        assert!(lane(json!({ "service_tier": 1 })).is_err());
    }
}
