//! `/v1/classify`, in vLLM's shape.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::input::MediaInput;
use crate::log::Usage;

/// The body of a job for `/v1/classify`.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema, PartialEq)]
pub struct ClassifyRequest {
    pub model: String,
    /// Texts or tokens; images for models that see.
    pub input: MediaInput,
    #[serde(default)]
    pub user: Option<String>,
    /// Cut inputs that are longer than the model's limit to this many tokens instead of refusing them; -1 is the model's
    /// limit.
    #[serde(default)]
    pub truncate_prompt_tokens: Option<i64>,
    /// False gives the model's scores as they are, true (the default) what it makes of them: probabilities.
    #[serde(default)]
    pub use_activation: Option<bool>,
    /// For models that see: the classes, in words. (The names of this field and the next are those of transformers.)
    #[serde(default)]
    pub candidate_labels: Option<Vec<String>>,
    /// What is said with each class in place of `{}`; `This is a photo of {}.` unless it is given.
    #[serde(default)]
    pub hypothesis_template: Option<String>,
}

/// The answer of `/v1/classify`.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema, PartialEq)]
pub struct ClassifyResponse {
    /// `classify-` and the job id.
    pub id: String,
    /// `list`.
    pub object: String,
    /// Unix seconds.
    pub created: i64,
    pub model: String,
    /// In the order of the inputs.
    pub data: Vec<Classification>,
    pub usage: Usage,
}

#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema, PartialEq)]
pub struct Classification {
    pub index: usize,
    /// The class of the highest score.
    pub label: String,
    /// Of each class, in the model's order.
    #[serde(deserialize_with = "crate::number::finite")]
    pub probs: Vec<f32>,
    pub num_classes: usize,
}
