//! What a worker's results say of how they were made.

use std::time::Duration;

use schemas::provenance::{CacheUse, Provenance};
use schemas::registry::{Dtype, Model};

/// What all results of a worker say.
#[derive(Clone, Debug)]
pub struct Origin {
    worker: String,
    engine: &'static str,
    quantization: &'static str,
    revision: Option<String>,
    weights: Option<String>,
}

/// What one result says beside it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Made {
    pub seed: Option<u64>,
    pub cache: Option<CacheUse>,
    pub queue: Duration,
    /// From the start of the attempt to the first token and from there to the end, where the engine was used.
    pub run: Option<(Duration, Duration)>,
}

impl Origin {
    /// `weights` is the SHA-256 of the model's files.
    pub fn new(worker: &str, model: &Model, weights: Option<&str>) -> Self {
        let quantization = match model.dtype {
            Dtype::F32 => "f32",
            Dtype::F16 => "f16",
            Dtype::Bf16 => "bf16",
            Dtype::Int8 => "int8",
            Dtype::Int4 => "int4",
        };
        let revision = [model.source.as_deref(), model.path.as_deref()].into_iter().flatten().collect::<Vec<_>>();
        Self {
            worker: worker.to_owned(),
            engine: concat!("inferq/", env!("CARGO_PKG_VERSION")),
            quantization,
            revision: (!revision.is_empty()).then(|| revision.join("#")),
            weights: weights.map(str::to_owned),
        }
    }

    /// The value of the header.
    pub fn provenance(&self, attempt: u32, made: Made) -> String {
        let provenance = Provenance {
            attempt,
            worker: self.worker.as_str(),
            engine: self.engine,
            quantization: self.quantization,
            revision: self.revision.as_deref(),
            weights: self.weights.as_deref(),
            seed: made.seed,
            cache: made.cache,
            queue_seconds: seconds(made.queue),
            prefill_seconds: made.run.map(|(prefill, _)| seconds(prefill)),
            decode_seconds: made.run.map(|(_, decode)| seconds(decode)),
        };
        serde_json::to_string(&provenance).expect("text and finite numbers are JSON")
    }

    /// The model and its weights, as part of what an answer depends on.
    pub fn identity(&self) -> String {
        let Self { engine, quantization, revision, weights, .. } = self;
        let (revision, weights) = (revision.as_deref().unwrap_or_default(), weights.as_deref().unwrap_or_default());
        format!("engine={engine}\nquantization={quantization}\nrevision={revision}\nweights={weights}\n")
    }
}

/// To the microsecond: more digits say nothing.
fn seconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e6
}
