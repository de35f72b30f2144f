//! The files of an encoder: configuration, tokenizer, weights, and how sentence-transformers pools.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use candle_core::{Device, Tensor};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokenizers::Tokenizer;

use crate::engine::LoadError;

pub const WEIGHTS: &str = "model.safetensors";

/// All that an encoder is made of.
pub struct Files {
    pub config: Config,
    pub pooling: Pooling,
    /// The limit sentence-transformers sets, which may be below the positions the model has.
    pub tokens_max: Option<usize>,
    pub tokenizer: Tokenizer,
    pub weights: HashMap<String, Tensor>,
}

/// What we use of `config.json`.
#[derive(Clone, Debug, Deserialize)]
pub struct Config {
    pub model_type: String,
    pub hidden_size: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    pub max_position_embeddings: usize,
    pub hidden_act: String,
    pub layer_norm_eps: f64,
}

/// How a sequence's token vectors become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pooling {
    Mean,
    Cls,
}

#[derive(Deserialize)]
struct SentenceBert {
    max_seq_length: Option<usize>,
}

#[derive(Deserialize)]
struct PoolingConfig {
    #[serde(default)]
    pooling_mode_cls_token: bool,
    #[serde(default)]
    pooling_mode_mean_tokens: bool,
}

impl Files {
    pub fn read(folder: &Path, device: &Device) -> Result<Self, LoadError> {
        let config: Config = required(folder, "config.json")?;
        if config.model_type != "bert" || config.hidden_act != "gelu" {
            let reason = format!(
                "model_type {:?} with {:?}: only bert with gelu is supported",
                config.model_type, config.hidden_act
            );
            return Err(LoadError::file(&folder.join("config.json"), reason));
        }
        let tokenizer_path = folder.join("tokenizer.json");
        let tokenizer =
            Tokenizer::from_file(&tokenizer_path).map_err(|error| LoadError::file(&tokenizer_path, error))?;
        let weights_path = folder.join(WEIGHTS);
        let weights = candle_core::safetensors::load(&weights_path, device)
            .map_err(|error| LoadError::file(&weights_path, error))?;
        let sentence_bert: Option<SentenceBert> = optional(folder, "sentence_bert_config.json")?;
        Ok(Self {
            config,
            pooling: pooling(folder)?,
            tokens_max: sentence_bert.and_then(|sentence_bert| sentence_bert.max_seq_length),
            tokenizer,
            weights,
        })
    }
}

fn pooling(folder: &Path) -> Result<Pooling, LoadError> {
    const NAME: &str = "1_Pooling/config.json";
    match optional::<PoolingConfig>(folder, NAME)? {
        None | Some(PoolingConfig { pooling_mode_mean_tokens: true, pooling_mode_cls_token: false }) => {
            Ok(Pooling::Mean)
        }
        Some(PoolingConfig { pooling_mode_cls_token: true, pooling_mode_mean_tokens: false }) => Ok(Pooling::Cls),
        Some(_) => Err(LoadError::file(&folder.join(NAME), "only pooling by mean or by cls token is supported")),
    }
}

fn required<T: DeserializeOwned>(folder: &Path, name: &str) -> Result<T, LoadError> {
    optional(folder, name)?.ok_or_else(|| LoadError::file(&folder.join(name), "is missing"))
}

fn optional<T: DeserializeOwned>(folder: &Path, name: &str) -> Result<Option<T>, LoadError> {
    let path = folder.join(name);
    match fs::read(&path) {
        Ok(text) => serde_json::from_slice(&text).map(Some).map_err(|error| LoadError::file(&path, error)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(LoadError::file(&path, error)),
    }
}
