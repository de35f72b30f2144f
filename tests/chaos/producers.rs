//! The producers: each on a connection of its own, sending jobs at a steady rate until the faults are over, and each job
//! until JetStream has acknowledged it.

use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::Context;
use async_nats::jetstream::message::PublishMessage;
use connect::{FirstConnect, NatsArgs, PublishFailure, classify_publish};
use schemas::header;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

use crate::job::Job;
use crate::ledger::Ledger;
use crate::support::lasting;

const PRODUCERS: usize = 4;
/// Jobs of one producer that are not acknowledged yet; with more it waits.
const WINDOW: usize = 256;
/// Between two tries of the same job.
const TRY_AGAIN: Duration = Duration::from_millis(200);
/// The first producer sends a poisonous job among so many others.
const POISON_EVERY: usize = 50;

/// What is sent.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    pub jobs_per_second: u32,
    /// More are sent where the faults last longer.
    pub jobs_min: usize,
    /// The share of jobs that are published again after they were acknowledged.
    pub repeated: f64,
    /// How often which prompt is sent that the engine does not survive.
    pub poison: Option<(&'static str, usize)>,
    /// Whether jobs ask for a copy of their result on a subject where nobody listens.
    pub asks_nobody: bool,
    /// Whether all jobs ask for an embedding of a short text.
    pub are_embedded: bool,
}

impl Default for Load {
    fn default() -> Self {
        Self {
            jobs_per_second: 800,
            jobs_min: 1500,
            repeated: 0.02,
            poison: None,
            asks_nobody: false,
            are_embedded: false,
        }
    }
}

struct Producer {
    jetstream: Context,
    ledger: Arc<Ledger>,
    load: Load,
}

/// Ends when the faults are over, enough was sent, and all of it is acknowledged.
pub async fn produce(urls: String, load: Load, seed: u64, ledger: Arc<Ledger>) {
    let mut producers = JoinSet::new();
    for number in 0..PRODUCERS {
        let connection = connect::connect(&NatsArgs::to(&urls), "producer", FirstConnect::Retry).await.unwrap();
        let producer = Producer { jetstream: connection.jetstream, ledger: Arc::clone(&ledger), load };
        producers.spawn(Arc::new(producer).run(number, seed));
    }
    while let Some(ended) = producers.join_next().await {
        ended.unwrap();
    }
}

impl Producer {
    async fn run(self: Arc<Self>, number: usize, seed: u64) {
        let mut dice = fastrand::Rng::with_seed(seed.wrapping_add(number as u64));
        let mut ticks = tokio::time::interval(Duration::from_secs(PRODUCERS as u64) / self.load.jobs_per_second);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut sent, mut poisoned, mut sending) = (0, 0, JoinSet::new());
        while !self.ledger.is_over() || sent < self.load.jobs_min / PRODUCERS {
            ticks.tick().await;
            while sending.len() >= WINDOW || sending.try_join_next().is_some() {
                if sending.len() >= WINDOW {
                    sending.join_next().await.expect("it is not empty").unwrap();
                }
            }
            let id = format!("{number}-{sent}");
            let job = match self.load.poison {
                Some((prompt, times)) if number == 0 && sent % POISON_EVERY == POISON_EVERY - 1 && poisoned < times => {
                    poisoned += 1;
                    Job::poison(id, prompt)
                }
                _ => Job::draw(id, self.load.are_embedded, &mut dice),
            };
            let (is_repeated, knows_id) = (dice.f64() < self.load.repeated, dice.bool());
            sending.spawn(Arc::clone(&self).send(job, is_repeated, knows_id));
            sent += 1;
        }
        while let Some(ended) = sending.join_next().await {
            ended.unwrap();
        }
    }

    /// Publishes a job until it is acknowledged; some once more after that, with the message id or without.
    async fn send(self: Arc<Self>, job: Job, is_repeated: bool, knows_id: bool) {
        self.ledger.sent(job.clone());
        self.publish(&job, true).await;
        self.ledger.acknowledged(&job.id);
        if is_repeated {
            self.publish(&job, knows_id).await;
            self.ledger.repeated(&job.id);
        }
    }

    async fn publish(&self, job: &Job, has_message_id: bool) {
        loop {
            let mut message = PublishMessage::build().payload(job.payload.clone()).headers(job.headers.clone());
            if self.load.asks_nobody {
                message = message.header(header::REPLY_TO, "_INBOX.nobody.listens.here");
            }
            if has_message_id {
                message = message.message_id(job.message_id());
            }
            let sent = match self.jetstream.send_publish(job.subject.clone(), message).await {
                Ok(ack) => ack.await,
                Err(error) => Err(error),
            };
            match sent.map_err(|error| classify_publish(&error)) {
                // Stored already is stored: an earlier try got through, though its acknowledgement did not.
                Ok(_) | Err(PublishFailure::AlreadyStored) => return,
                Err(failure) => {
                    self.ledger.refused(&failure);
                    assert!(failure.is_transient(), "job {} was refused for good: {failure}", job.id);
                }
            }
            lasting(TRY_AGAIN).await;
        }
    }
}
