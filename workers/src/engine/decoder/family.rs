//! The families of decoders: what each names its tensors and the keys of its configuration, told in the words of
//! `blueprint`. The reference for each is its file in Hugging Face's transformers.

mod experts;
mod gguf;
mod gpt2;
mod llama;

pub use self::gguf::read as read_gguf;

use std::path::Path;

use super::blueprint::Source;
use crate::engine::LoadError;
use crate::engine::model_config::Config;
use crate::engine::tensors::Tensors;

/// Reads a model in the layout of the Hugging Face hub.
pub fn read(folder: &Path, config: &Config) -> Result<Source, LoadError> {
    match config.text("model_type")? {
        name @ ("llama" | "mistral" | "qwen2" | "qwen3" | "qwen3_moe" | "gemma2" | "gemma3_text" | "gpt_oss") => {
            llama::read(name, config, Tensors::open(folder, &["model."])?)
        }
        "gpt2" => gpt2::read(config, Tensors::open(folder, &["transformer."])?),
        other => {
            let known = "gemma2, gemma3_text, gpt2, gpt_oss, llama, mistral, qwen2, qwen3 and qwen3_moe";
            Err(config.invalid("model_type", &format!("is {other:?}; decoders are {known}")))
        }
    }
}
