//! The whole path, from a job through NATS to its result, beside the engine alone.

use std::time::Instant;

use futures::stream::{self, StreamExt};
use schemas::codec::Encoding;
use serde_json::json;

use crate::engines::{MODEL, Ours, model_folder, registry};
use crate::report::{Report, Row, median};
use crate::support::{Deployment, tenant};
use crate::work::Work;

/// Texts in one job.
const INPUTS: usize = 64;
/// Jobs that are out at a time.
const CONCURRENT: usize = 8;

pub fn run(report: &mut Report, rounds: usize) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    for (dtype, jobs) in [("f32", 12), ("int8", 32)] {
        let work = Work::of_length(64, INPUTS * jobs);
        let mut alone = Ours::load(&model_folder(), dtype);
        runtime.block_on(async {
            let deployment = Deployment::new(&registry(dtype)).await;
            let _worker = deployment.worker(MODEL).await;
            let (mut queued, mut direct) = (Vec::new(), Vec::new());
            for round in 0..=rounds {
                let rates = (through(&deployment, &work).await, rate(&mut alone, &work));
                if round > 0 {
                    queued.push(rates.0);
                    direct.push(rates.1);
                }
            }
            let [queued, direct] = [queued, direct].map(|rates| median(rates.into_iter()));
            let row = Row::higher(format!("{dtype} through NATS"), "embeddings/s", queued);
            report.add(row.beside("the engine alone", direct));
        });
    }
}

fn rate(alone: &mut Ours, work: &Work) -> f64 {
    let started = Instant::now();
    alone.run(&work.sequences);
    work.sequences.len() as f64 / started.elapsed().as_secs_f64()
}

async fn through(deployment: &Deployment, work: &Work) -> f64 {
    let started = Instant::now();
    let results = stream::iter(work.sequences.chunks(INPUTS)).map(|input| async move {
        let body = json!({ "model": MODEL, "input": input, "encoding_format": "base64" });
        let id = deployment.submit(&json!({ "url": "/v1/embeddings", "body": body }), Encoding::Json).await;
        let result = deployment.client.wait(&tenant(), &id).await.unwrap();
        assert_eq!(result.status_code(), 200);
    });
    results.buffer_unordered(CONCURRENT).collect::<Vec<()>>().await;
    work.sequences.len() as f64 / started.elapsed().as_secs_f64()
}
