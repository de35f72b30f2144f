//! Provenance: what a result says of how it was made, in headers.

use std::time::Duration;

use async_nats::HeaderMap;
use schemas::header::{self, CacheUse};
use schemas::registry::{Dtype, Model};

/// What all results of a worker say.
#[derive(Clone, Debug)]
pub struct Provenance {
    fixed: Vec<(&'static str, String)>,
    headers: HeaderMap,
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

impl Provenance {
    /// `weights` is the SHA-256 of the model's files.
    pub fn new(worker: &str, model: &Model, weights: Option<&str>) -> Self {
        let quantization = match model.dtype {
            Dtype::F32 => "f32",
        };
        let mut fixed = vec![
            (header::WORKER, worker.to_owned()),
            (header::ENGINE, concat!("inferq/", env!("CARGO_PKG_VERSION")).to_owned()),
            (header::QUANTIZATION, quantization.to_owned()),
        ];
        let revision = [model.source.as_deref(), model.path.as_deref()].into_iter().flatten().collect::<Vec<_>>();
        if !revision.is_empty() {
            fixed.push((header::REVISION, revision.join("#")));
        }
        if let Some(digest) = weights {
            fixed.push((header::WEIGHTS, digest.to_owned()));
        }
        let mut headers = HeaderMap::new();
        fixed.iter().for_each(|(name, value)| headers.insert(*name, value.as_str()));
        Self { fixed, headers }
    }

    pub fn headers(&self, attempt: u32, made: Made) -> HeaderMap {
        let mut headers = self.headers.clone();
        headers.insert(header::ATTEMPT, attempt.to_string());
        headers.insert(header::QUEUE_SECONDS, seconds(made.queue));
        if let Some((prefill, decode)) = made.run {
            headers.insert(header::PREFILL_SECONDS, seconds(prefill));
            headers.insert(header::DECODE_SECONDS, seconds(decode));
        }
        if let Some(seed) = made.seed {
            headers.insert(header::SEED, seed.to_string());
        }
        if let Some(cache) = made.cache {
            headers.insert(header::CACHE, cache.as_str());
        }
        headers
    }

    /// The model and its weights, as part of what an answer depends on.
    pub fn identity(&self) -> String {
        let of_model = |name: &&'static str| *name != header::WORKER;
        let parts = self.fixed.iter().filter(|(name, _)| of_model(name));
        parts.map(|(name, value)| format!("{name}={value}\n")).collect()
    }
}

fn seconds(duration: Duration) -> String {
    format!("{:.6}", duration.as_secs_f64())
}
