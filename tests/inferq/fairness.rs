//! Tenants and lanes share a worker: many jobs of one do not hold back a few of another.

use schemas::stream::{JOBS, RESULTS};

use crate::support::{Deployment, chat, echo_registry, eventually};

/// Ten jobs in a second.
const REGISTRY: (u64, &str) = (100, "batch = 1\nin_flight = 16");

async fn publish(deployment: &Deployment, lane: &str, tenant: &str, count: usize) {
    let jetstream = &deployment.client.connection.jetstream;
    let payload = bytes::Bytes::from(chat("hi").to_string());
    let mut stored = Vec::new();
    for number in 0..count {
        let subject = format!("inferq.jobs.echo.{lane}.{tenant}.{lane}-{number}");
        stored.push(jetstream.publish(subject, payload.clone()).await.unwrap());
    }
    for ack in stored {
        ack.await.unwrap();
    }
}

/// Results of a tenant, or of one of its lanes.
async fn answered(deployment: &Deployment, of: &str) -> usize {
    let results = deployment.stream(RESULTS).await;
    let info = results.info_with_subjects(format!("inferq.results.{of}")).await.unwrap();
    let mut count = 0;
    let mut subjects = std::pin::pin!(info);
    while let Some(subject) = futures::StreamExt::next(&mut subjects).await {
        count += usize::from(subject.is_ok());
    }
    count
}

#[tokio::test]
async fn ten_jobs_of_one_tenant_do_not_wait_for_the_thousands_of_another() {
    let (deployment, _worker) = Deployment::with_worker(&echo_registry(REGISTRY.0, REGISTRY.1)).await;
    publish(&deployment, "default", "many", 3000).await;
    eventually("the worker knows its pace", async || (answered(&deployment, "many.*").await >= 15).then_some(())).await;
    let before = answered(&deployment, "many.*").await;
    publish(&deployment, "default", "few", 10).await;
    eventually("the few are answered", async || (answered(&deployment, "few.*").await == 10).then_some(())).await;
    let meanwhile = answered(&deployment, "many.*").await - before;
    // Half of the engine is theirs; beside that they wait for what is found to be waiting.
    assert!(meanwhile <= 30, "{meanwhile} jobs of the other tenant were answered before the last of ten");
    assert!(meanwhile >= 5, "the other tenant was held back: {meanwhile} of its jobs were answered beside ten");
}

#[tokio::test]
async fn tenants_that_were_waiting_before_the_worker_came_are_found_if_they_are_known() {
    let deployment = Deployment::new(&echo_registry(REGISTRY.0, REGISTRY.1)).await;
    let jetstream = &deployment.client.connection.jetstream;
    let tenants = jetstream.get_key_value(schemas::stream::TENANTS_BUCKET).await.unwrap();
    tenants.put("echo.default.few", "".into()).await.unwrap();
    publish(&deployment, "default", "many", 3000).await;
    publish(&deployment, "default", "few", 10).await;
    let _worker = deployment.worker("echo").await;
    eventually("the few are answered", async || (answered(&deployment, "few.*").await == 10).then_some(())).await;
    let many = answered(&deployment, "many.*").await;
    assert!(many <= 100, "{many} jobs of the other tenant were answered before the last of ten");
    assert!(deployment.count(JOBS).await.0 > 2000);
}

#[tokio::test]
async fn a_priority_job_passes_a_queue_and_flex_is_not_starved() {
    let registry = echo_registry(20, "batch = 1\nin_flight = 16");
    let (deployment, _worker) = Deployment::with_worker(&registry).await;
    publish(&deployment, "default", "t", 2000).await;
    publish(&deployment, "flex", "t", 20).await;
    eventually("the queue moves", async || (answered(&deployment, "t.*").await >= 20).then_some(())).await;
    let before = answered(&deployment, "t.*").await;
    publish(&deployment, "priority", "t", 10).await;
    let first = |lane: &str, count: usize| {
        let last = format!("t.{lane}-{}", count - 1);
        let deployment = &deployment;
        async move {
            eventually("answered", async || (answered(deployment, &last).await == 1).then_some(())).await;
            answered(deployment, "t.*").await
        }
    };
    let after_priority = first("priority", 10).await;
    assert!(after_priority - before <= 40, "{} others went before ten of priority", after_priority - before - 10);
    let after_flex = first("flex", 20).await;
    assert!(deployment.count(JOBS).await.0 > 0 && after_flex < 2000, "flex waited for the whole queue");
}
