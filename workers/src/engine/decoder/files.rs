//! What a decoder is loaded from: a GGUF file, or a folder in the layout of the Hugging Face hub.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tokenizers::Tokenizer;

use super::blueprint::Source;
use super::family;
use crate::engine::LoadError;
use crate::engine::gguf::Gguf;
use crate::engine::model_config::{Config, optional};
use crate::engine::template::ChatTemplate;
use crate::engine::text::Text;

/// A model and how it reads and writes.
pub struct Files {
    pub source: Source,
    /// Tokens that end a text.
    ends: Vec<u32>,
    tokenizer: Tokenizer,
    template: Option<ChatTemplate>,
    /// The token that raw prompts begin with.
    begin: Option<u32>,
}

/// The file, or files, with the weights.
pub fn weights(path: &Path) -> Result<Vec<PathBuf>, LoadError> {
    match path.join("config.json").exists() {
        true => crate::engine::tensors::files(path),
        false => gguf_file(path).map(|file| vec![file]),
    }
}

impl Files {
    pub fn read(path: &Path) -> Result<Self, LoadError> {
        match path.join("config.json").exists() {
            true => from_folder(path),
            false => from_gguf(&gguf_file(path)?),
        }
    }

    /// The weights, what reads and writes texts of so many tokens, and the tokens that end a text.
    pub fn take(self, context: usize) -> (Source, Text, Vec<u32>) {
        let Self { source, ends, tokenizer, template, begin } = self;
        (source, Text::generation(tokenizer, template, begin, ends.first().copied(), context), ends)
    }
}

fn from_gguf(path: &Path) -> Result<Files, LoadError> {
    let file = Gguf::open(path)?;
    let id = |key: &str| file.number(key).ok().and_then(|id| u32::try_from(id).ok());
    let token = |key: &str| file.number(key).and_then(|id| file.token(id)).unwrap_or_default();
    let (begin, end) = (token("tokenizer.ggml.bos_token_id"), token("tokenizer.ggml.eos_token_id"));
    let template = match file.string("tokenizer.chat_template") {
        Ok(source) => Some(ChatTemplate::new(source, begin, end).map_err(|error| file.error(error))?),
        Err(_) => None,
    };
    let ends: Vec<u32> =
        ["tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id"].into_iter().filter_map(id).collect();
    let begin = file.adds_begin().then(|| id("tokenizer.ggml.bos_token_id")).flatten();
    let tokenizer = file.tokenizer()?;
    Ok(Files { source: family::read_gguf(file)?, ends, tokenizer, template, begin })
}

fn from_folder(folder: &Path) -> Result<Files, LoadError> {
    let config = Config::read(folder)?;
    let source = family::read(folder, &config)?;
    let path = folder.join("tokenizer.json");
    let tokenizer = Tokenizer::from_file(&path).map_err(|error| LoadError::file(&path, error))?;
    let (last, known) = (tokenizer.get_vocab(true).into_values().max(), source.words.len() / source.shape.hidden);
    if let Some(last) = last.filter(|last| *last as usize >= known) {
        let reason = format!("has tokens up to {last}, the model has vectors for {known} of them");
        return Err(LoadError::file(&path, reason));
    }
    let generation: Value = optional(folder, "generation_config.json")?.unwrap_or_default();
    let ends = [&generation["eos_token_id"], &config.values["eos_token_id"]];
    let ends = ends.into_iter().find(|ends| !ends.is_null()).map_or(Vec::new(), ids);
    // Whatever the tokenizer puts before a text that is empty.
    let around = tokenizer.encode("", true).map_err(|error| LoadError::file(&path, error))?;
    let begin = around.get_ids().first().copied().filter(|id| !ends.contains(id));
    Ok(Files { source, ends, template: template(folder)?, tokenizer, begin })
}

/// In a file of its own, or in `tokenizer_config.json`; of several the one that is the default.
fn template(folder: &Path) -> Result<Option<ChatTemplate>, LoadError> {
    let settings: Value = optional(folder, "tokenizer_config.json")?.unwrap_or_default();
    let own = folder.join("chat_template.jinja");
    let source = match (fs::read_to_string(&own), &settings["chat_template"]) {
        (Ok(source), _) => Some(source),
        (Err(_), Value::Array(several)) => {
            let default = several.iter().find(|one| one["name"] == "default");
            default.and_then(|one| one["template"].as_str()).map(str::to_owned)
        }
        (Err(_), one) => one.as_str().map(str::to_owned),
    };
    let token = |key: &str| settings[key].as_str().or(settings[key]["content"].as_str()).unwrap_or_default();
    let made = source.map(|source| ChatTemplate::new(&source, token("bos_token"), token("eos_token"))).transpose();
    made.map_err(|error| LoadError::file(folder, error))
}

/// One id, or several.
fn ids(value: &Value) -> Vec<u32> {
    let one = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    value.as_array().map_or_else(|| one(value).into_iter().collect(), |all| all.iter().filter_map(one).collect())
}

/// The file itself, or the only one of a folder.
fn gguf_file(path: &Path) -> Result<PathBuf, LoadError> {
    if !path.is_dir() {
        return Ok(path.to_owned());
    }
    let entries = fs::read_dir(path).map_err(|error| LoadError::file(path, error))?;
    let is_gguf = |file: &PathBuf| file.extension().is_some_and(|extension| extension == "gguf");
    let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).filter(is_gguf).collect();
    match (files.pop(), files.is_empty()) {
        (Some(file), true) => Ok(file),
        (Some(_), false) => Err(LoadError::file(path, "holds several .gguf files; name one with `path`")),
        (None, _) => Err(LoadError::file(path, "holds neither a config.json nor a .gguf file")),
    }
}
