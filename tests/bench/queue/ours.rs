//! The echo path: our producer library, a worker process, results on the live subjects.

use std::time::Instant;

use bytes::Bytes;
use futures::stream::{self, StreamExt};
use producer::{Submission, SubmitOptions};
use schemas::codec::Encoding;
use schemas::subject::{Address, JobId, Lane};

use crate::support::{Deployment, echo_registry};
use crate::{BODY_BYTES, IN_FLIGHT, JOBS, LONE_JOBS, Measured, WINDOW, cpu};

const TENANT: &str = "bench";

pub struct Ours {
    deployment: Deployment,
    worker: crate::support::WorkerProcess,
    jobs: Jobs,
    padding: String,
}

/// What is asked of the cache.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Jobs {
    /// Random generations, which are never cached.
    Random,
    /// All different: each is looked up and not found. Computing them is quicker than storing them, so they are not stored.
    Cold,
    /// The same, stored all the same.
    ColdAndStored,
}

impl Ours {
    pub async fn start(jobs: Jobs) -> Self {
        let limits = format!("in_flight = {IN_FLIGHT}\nbatch = {IN_FLIGHT}");
        let mut registry = echo_registry(0, &limits);
        if jobs == Jobs::ColdAndStored {
            registry += "[models.cache]\nstore_above_milliseconds = 0\n";
        }
        let (deployment, worker) = Deployment::with_worker(&registry).await;
        Self { deployment, worker, jobs, padding: "x".repeat(BODY_BYTES) }
    }

    /// A job of the wanted size whose prompt begins with its id.
    fn payload(&self, id: &str) -> Bytes {
        let temperature = if self.jobs == Jobs::Random { 1 } else { 0 };
        let head = format!(
            r#"{{"url":"/v1/completions","body":{{"model":"echo","max_tokens":4096,"temperature":{temperature},"prompt":"{id}"#
        );
        let tail = "\"}}";
        let mut job = head;
        job.push_str(&self.padding[..BODY_BYTES - job.len() - tail.len()]);
        Bytes::from(job + tail)
    }

    pub async fn measure(&self, round: usize) -> Measured {
        let client = &self.deployment.client;
        let mut live = client.connection.client.subscribe(format!("inferq.live.{TENANT}.*")).await.unwrap();
        client.connection.client.flush().await.unwrap();
        let processes = cpu::Processes { server: self.deployment.server.process_id(), worker: self.worker.id() };
        let before = processes.used();
        let started = Instant::now();
        let publish = stream::iter(0..JOBS).for_each_concurrent(WINDOW, |number| async move {
            client.submit(&self.submission(format!("r{round}-{number}"))).await.unwrap();
        });
        let collect = async {
            for _ in 0..JOBS {
                live.next().await.unwrap();
            }
        };
        tokio::join!(publish, collect);
        let jobs_per_second = JOBS as f64 / started.elapsed().as_secs_f64();
        let cpu = processes.used().microseconds_since(before, JOBS);
        let mut lone = Vec::with_capacity(LONE_JOBS);
        for number in 0..LONE_JOBS {
            let sent = Instant::now();
            client.submit(&self.submission(format!("l{round}-{number}"))).await.unwrap();
            live.next().await.unwrap();
            lone.push(sent.elapsed());
        }
        Measured { jobs_per_second, cpu, lone }
    }

    fn submission(&self, id: String) -> Submission {
        let payload = self.payload(&id);
        let address = Address {
            model: "echo".to_owned(),
            lane: Lane::Default,
            tenant: TENANT.to_owned(),
            job_id: JobId::new(id).unwrap(),
        };
        Submission { address, encoding: Encoding::Json, payload, options: SubmitOptions::default() }
    }
}
