//! What ten jobs of one tenant wait behind a hundred thousand of another, beside what they wait on an idle queue of the
//! same rate.

use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::StreamExt;

use crate::report::{Report, Row, median};
use crate::support::{Deployment, chat, echo_registry, eventually};

const ROUNDS: usize = 3;
const MANY: usize = 100_000;
const FEW: usize = 10;
/// One job at a time, ten in a second.
const STEP_MILLISECONDS: u64 = 100;

pub async fn run(report: &mut Report) {
    let registry = echo_registry(STEP_MILLISECONDS, "batch = 1");
    let (deployment, _worker) = Deployment::with_worker(&registry).await;
    let mut idle = Vec::new();
    for round in 0..ROUNDS {
        idle.push(longest_wait(&deployment, &format!("idle-{round}")).await);
    }
    publish(&deployment, "many", "m", MANY).await;
    let results = deployment.stream(schemas::stream::RESULTS).await;
    eventually("the queue moves", async || results.direct_get_last_for_subject("inferq.results.many.m-9").await.ok())
        .await;
    let mut behind = Vec::new();
    for round in 0..ROUNDS {
        behind.push(longest_wait(&deployment, &format!("busy-{round}")).await);
    }
    let seconds = |waits: &[Duration]| median(waits.iter().map(Duration::as_secs_f64));
    let row = Row::lower("ten jobs behind 100,000", "p99 wait s", seconds(&behind));
    report.add(row.beside("the ten alone", seconds(&idle)));
}

/// Publishes jobs of the tenant `few` and gives the longest time until one was answered.
async fn longest_wait(deployment: &Deployment, prefix: &str) -> Duration {
    let client = &deployment.client.connection.client;
    let mut live = client.subscribe("inferq.live.few.*").await.unwrap();
    client.flush().await.unwrap();
    let started = Instant::now();
    publish(deployment, "few", prefix, FEW).await;
    for _ in 0..FEW {
        live.next().await.unwrap();
    }
    started.elapsed()
}

async fn publish(deployment: &Deployment, tenant: &str, prefix: &str, count: usize) {
    let jetstream = &deployment.client.connection.jetstream;
    let payload = Bytes::from(chat("hi").to_string());
    let publish = futures::stream::iter(0..count).for_each_concurrent(1024, |number| {
        let payload = payload.clone();
        async move {
            let subject = format!("inferq.jobs.echo.default.{tenant}.{prefix}-{number}");
            jetstream.publish(subject, payload).await.unwrap().await.unwrap();
        }
    });
    publish.await;
}
