//! The `config.json` of a model in the layout of the Hugging Face hub, and the other files of JSON beside it.

use std::path::{Path, PathBuf};

use kernels::Activation;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::LoadError;

/// `config.json`, with errors that name the key.
#[derive(Clone, Debug)]
pub struct Config {
    pub path: PathBuf,
    pub values: Value,
}

impl Config {
    pub fn read(folder: &Path) -> Result<Self, LoadError> {
        Ok(Self { path: folder.join("config.json"), values: required(folder, "config.json")? })
    }

    pub fn invalid(&self, key: &str, reason: &str) -> LoadError {
        LoadError::file(&self.path, format!("{key}: {reason}"))
    }

    pub fn text(&self, key: &str) -> Result<&str, LoadError> {
        self.values[key].as_str().ok_or_else(|| self.invalid(key, "is missing or no text"))
    }

    /// A number of at least 1.
    pub fn count(&self, key: &str) -> Result<usize, LoadError> {
        let count = self.values[key].as_u64().filter(|count| (1..=1 << 24).contains(count));
        count.map(|count| count as usize).ok_or_else(|| self.invalid(key, "is missing or no number of things"))
    }

    pub fn count_or(&self, key: &str, default: usize) -> Result<usize, LoadError> {
        if self.values[key].is_null() { Ok(default) } else { self.count(key) }
    }

    pub fn number_or(&self, key: &str, default: f64) -> Result<f64, LoadError> {
        match &self.values[key] {
            Value::Null => Ok(default),
            value => value.as_f64().ok_or_else(|| self.invalid(key, "is no number")),
        }
    }

    pub fn flag_or(&self, key: &str, default: bool) -> bool {
        self.values[key].as_bool().unwrap_or(default)
    }

    pub fn activation(&self, key: &str) -> Result<Activation, LoadError> {
        match self.text(key)? {
            "gelu" => Ok(Activation::Gelu),
            "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" => Ok(Activation::GeluTanh),
            "silu" | "swish" => Ok(Activation::Silu),
            "quick_gelu" => Ok(Activation::QuickGelu),
            "relu" => Ok(Activation::Relu),
            "tanh" => Ok(Activation::Tanh),
            other => Err(self.invalid(key, &format!("{other:?} is not supported"))),
        }
    }

    /// Heads and the values of each.
    pub fn heads(&self, hidden: usize, heads: &str) -> Result<(usize, usize), LoadError> {
        let heads_count = self.count(heads)?;
        match hidden % heads_count {
            0 => Ok((heads_count, hidden / heads_count)),
            _ => Err(self.invalid(heads, &format!("{heads_count} do not divide {hidden} values"))),
        }
    }
}

/// What is in a file of JSON.
pub fn required<T: DeserializeOwned>(folder: &Path, name: &str) -> Result<T, LoadError> {
    optional(folder, name)?.ok_or_else(|| LoadError::file(&folder.join(name), "is missing"))
}

/// The same, of a file that need not be there.
pub fn optional<T: DeserializeOwned>(folder: &Path, name: &str) -> Result<Option<T>, LoadError> {
    let path = folder.join(name);
    match std::fs::read(&path) {
        Ok(text) => serde_json::from_slice(&text).map(Some).map_err(|error| LoadError::file(&path, error)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(LoadError::file(&path, error)),
    }
}
