//! Loading: from a model of the registry and its files to an engine in memory.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::Device;
use schemas::registry::{Dtype, Model, Task};
use sha2::{Digest, Sha256};

use super::Engine;
use super::decoder::{self, Decoder};
use super::echo::{self, Echo};
use super::encoder::Encoder;
use super::speech::{self, Speech};
use super::tensors;
use super::text::Text;

/// The input limit of the echo engine, which has no model to set one.
const ECHO_TOKENS_MAX: usize = 16 << 20;

const CPU: &str = "cpu";

/// A model in memory: its text side for the deliveries, its engine for the thread.
pub struct Loaded {
    pub text: Arc<Text>,
    pub engine: Box<dyn Engine + Send>,
    /// SHA-256 of the file with the weights.
    pub digest: Option<String>,
    /// What computes: `cpu` or `cuda`.
    pub device: &'static str,
}

/// Why a model's files cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("{path}: {reason}", path = path.display())]
    File { path: PathBuf, reason: String },
    #[error("the model has no files; give it a source in the registry")]
    NoFiles,
    #[error("no threads can be started: {0}")]
    Threads(rayon::ThreadPoolBuildError),
    #[error("dtype {0:?} needs a GPU; on a processor models compute in f32 or int8")]
    NeedsGpu(Dtype),
    #[error("dtype {0:?} is for processors; on a GPU models compute in f32, f16 or bf16")]
    NeedsCpu(Dtype),
    #[error("dtype {0:?} is for models that generate texts")]
    NeedsDecoder(Dtype),
    #[error("no GPU can be used: {0}")]
    Device(candle_core::Error),
}

impl LoadError {
    pub(super) fn file(path: &Path, reason: impl std::fmt::Display) -> Self {
        Self::File { path: path.to_owned(), reason: reason.to_string() }
    }
}

/// Loads a model. `files` is the folder or file its source was brought to; the echo engine needs none.
///
/// A corrupt file is an error: the readers of other crates may panic on one, which is caught here.
pub fn load(model: &Model, files: Option<&Path>) -> Result<Loaded, LoadError> {
    let loaded = std::panic::catch_unwind(|| load_unguarded(model, files));
    loaded.unwrap_or_else(|_| Err(LoadError::file(files.unwrap_or(Path::new("")), "is corrupt: reading it panicked")))
}

fn load_unguarded(model: &Model, files: Option<&Path>) -> Result<Loaded, LoadError> {
    let limits = &model.limits;
    let name = |device: &Device| if device.is_cuda() { "cuda" } else { CPU };
    match (model.task, files) {
        (Task::Echo, _) => {
            let text = Text::bytes(limits.prompt_tokens.unwrap_or(ECHO_TOKENS_MAX), echo::DIMENSIONS);
            let engine = Box::new(Echo::new(limits.batch, model.echo));
            Ok(Loaded { text: Arc::new(text), engine, digest: None, device: CPU })
        }
        (Task::Embed | Task::Classify | Task::Rerank, Some(folder)) => {
            let device = device()?;
            let (text, encoder) = Encoder::load(folder, model, &device)?;
            let digest = Some(digest(&tensors::files(folder)?)?);
            Ok(Loaded { text: Arc::new(text), engine: Box::new(encoder), digest, device: name(&device) })
        }
        (Task::Generate, Some(path)) => {
            let device = device()?;
            let (text, decoder) = Decoder::load(path, model, &device)?;
            let digest = Some(digest(&decoder::weight_files(path)?)?);
            Ok(Loaded { text, engine: Box::new(decoder), digest, device: name(&device) })
        }
        (Task::Transcribe, Some(folder)) => {
            let device = device()?;
            let (text, speech) = Speech::load(folder, model, &device)?;
            let digest = Some(digest(&speech::weight_files(folder)?)?);
            Ok(Loaded { text, engine: Box::new(speech), digest, device: name(&device) })
        }
        (_, None) => Err(LoadError::NoFiles),
    }
}

/// The first GPU, where the program was built for GPUs. It does without none: a processor would be too slow by far.
pub fn device() -> Result<Device, LoadError> {
    #[cfg(feature = "cuda")]
    return kernels::cuda::open(0).map_err(LoadError::Device);
    #[cfg(not(feature = "cuda"))]
    Ok(Device::Cpu)
}

/// Of all files, one after the other.
fn digest(weights: &[PathBuf]) -> Result<String, LoadError> {
    let mut hasher = Sha256::new();
    for path in weights {
        let read = std::fs::File::open(path).and_then(|mut file| std::io::copy(&mut file, &mut hasher));
        read.map_err(|error| LoadError::file(path, error))?;
    }
    Ok(format!("{:x}", hasher.finalize()))
}
