//! The peer: the same operations on JetStream by the client library alone.

use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_nats::jetstream::consumer::{PullConsumer, pull};
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::stream::{Config, DiscardPolicy, Republish, RetentionPolicy};
use async_nats::jetstream::{self, Context};
use bytes::Bytes;
use futures::stream::{self, StreamExt};
use tokio::sync::Semaphore;

use crate::support::{Server, eventually};
use crate::{BODY_BYTES, IN_FLIGHT, JOBS, LONE_JOBS, Measured, WINDOW, cpu};

/// Set for the process that is the bare worker.
pub const WORKER_URL: &str = "BENCH_BARE_WORKER_URL";

pub struct Bare {
    server: Server,
    worker: Child,
    jetstream: Context,
}

impl Bare {
    pub async fn start() -> Self {
        let server = Server::start();
        let jetstream = jetstream::new(async_nats::connect(&server.url).await.unwrap());
        set_up(&jetstream).await;
        let mut command = Command::new(std::env::current_exe().unwrap());
        let worker = command.env(WORKER_URL, &server.url).stdin(Stdio::null()).spawn().unwrap();
        let jobs = jetstream.get_stream("JOBS").await.unwrap();
        eventually("the bare worker pulls", async || {
            (jobs.consumer_info("worker").await.unwrap().num_waiting > 0).then_some(())
        })
        .await;
        Self { server, worker, jetstream }
    }

    pub async fn measure(&self, round: usize) -> Measured {
        let client = self.jetstream.client();
        let mut live = client.subscribe("live.>").await.unwrap();
        client.flush().await.unwrap();
        let processes = cpu::Processes { server: self.server.process_id(), worker: self.worker.id() };
        let before = processes.used();
        let started = Instant::now();
        let publish =
            stream::iter(0..JOBS).for_each_concurrent(WINDOW, |number| self.publish(format!("r{round}-{number}")));
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
            self.publish(format!("l{round}-{number}")).await;
            live.next().await.unwrap();
            lone.push(sent.elapsed());
        }
        Measured { jobs_per_second, cpu, lone }
    }

    async fn publish(&self, id: String) {
        let payload = Bytes::from_static(&[b'x'; BODY_BYTES]);
        let message = PublishMessage::build().payload(payload).message_id(&id);
        self.jetstream.send_publish(format!("jobs.bench.{id}"), message).await.unwrap().await.unwrap();
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        // It runs until it is killed.
        let _ = self.worker.kill();
        let _ = self.worker.wait();
    }
}

/// The settings of our job and result stream and of our consumer.
async fn set_up(jetstream: &Context) {
    let jobs = Config {
        name: "JOBS".to_owned(),
        subjects: vec!["jobs.*.*".to_owned()],
        retention: RetentionPolicy::WorkQueue,
        ..stream_config()
    };
    let results = Config {
        name: "RESULTS".to_owned(),
        subjects: vec!["results.*.*".to_owned()],
        republish: Some(Republish {
            source: "results.>".to_owned(),
            destination: "live.>".to_owned(),
            headers_only: false,
        }),
        ..stream_config()
    };
    let jobs = jetstream.create_stream(jobs).await.unwrap();
    jetstream.create_stream(results).await.unwrap();
    let consumer = pull::Config {
        durable_name: Some("worker".to_owned()),
        ack_wait: Duration::from_secs(30),
        max_ack_pending: 10_000,
        ..Default::default()
    };
    jobs.create_consumer(consumer).await.unwrap();
}

fn stream_config() -> Config {
    Config {
        discard: DiscardPolicy::New,
        discard_new_per_subject: true,
        max_messages_per_subject: 1,
        max_bytes: 4 << 30,
        allow_direct: true,
        num_replicas: 1,
        ..Default::default()
    }
}

/// The bare worker: pull what there is room for, answer, acknowledge.
pub async fn work(url: &str) {
    let jetstream = jetstream::new(async_nats::connect(url).await.unwrap());
    let consumer: PullConsumer = jetstream.get_consumer_from_stream("worker", "JOBS").await.unwrap();
    let permits = Arc::new(Semaphore::new(IN_FLIGHT));
    loop {
        let first = Arc::clone(&permits).acquire_owned().await.unwrap();
        let free = permits.available_permits() + 1;
        drop(first);
        let mut batch = consumer.fetch().max_messages(free).expires(Duration::from_secs(1)).messages().await.unwrap();
        while let Some(message) = batch.next().await {
            let message = message.unwrap();
            let permit = Arc::clone(&permits).acquire_owned().await.unwrap();
            let jetstream = jetstream.clone();
            tokio::spawn(async move {
                let subject = message.subject.replacen("jobs.", "results.", 1);
                let result = PublishMessage::build().payload(message.payload.clone()).expected_last_subject_sequence(0);
                jetstream.send_publish(subject, result).await.unwrap().await.unwrap();
                message.ack().await.unwrap();
                drop(permit);
            });
        }
    }
}
