//! The cache: identical work is done once, for those who may share it.

use schemas::provenance::CacheUse;
use serde_json::{Value, json};

use crate::support::{Deployment, TENANT, echo_registry, provenance};

fn greedy(prompt: &str) -> String {
    json!({ "url": "/v1/completions", "body": { "model": "echo", "prompt": prompt, "temperature": 0, "max_tokens": 99 } })
        .to_string()
}

/// Publishes a job and gives its text and how the cache was used.
async fn ask(deployment: &Deployment, job: &str, headers: &[(&str, &str)]) -> (String, String) {
    let id = deployment.publish_raw(job.as_bytes(), headers).await;
    answer(deployment, &id).await
}

async fn answer(deployment: &Deployment, id: &str) -> (String, String) {
    let (headers, result) = deployment.result(id).await;
    let text = result["response"]["body"]["choices"][0]["text"].as_str().unwrap_or_else(|| panic!("{result}"));
    assert_eq!(result["response"]["body"]["id"], format!("cmpl-{id}"), "another job's id");
    (text.to_owned(), provenance(&headers).cache.map_or("", CacheUse::as_str).to_owned())
}

#[tokio::test]
async fn the_same_work_again_is_answered_from_the_cache_even_by_another_worker() {
    let (deployment, worker) = Deployment::with_worker(&echo_registry(20, "")).await;
    assert_eq!(ask(&deployment, &greedy("a"), &[]).await, ("a".into(), "miss".into()));
    assert_eq!(ask(&deployment, &greedy("b"), &[]).await, ("b".into(), "miss".into()));
    assert_eq!(ask(&deployment, &greedy("a"), &[]).await, ("a".into(), "hit".into()));
    drop(worker);
    let _second = deployment.worker("echo").await;
    // Another form of the same work.
    let other = greedy("a").replace("\"max_tokens\":99", "\"max_tokens\":99,\"user\":\"someone\"");
    assert_eq!(ask(&deployment, &other, &[]).await, ("a".into(), "hit".into()));
    let shorter = greedy("a").replace("99", "98");
    assert_eq!(ask(&deployment, &shorter, &[]).await, ("a".into(), "miss".into()));
}

#[tokio::test]
async fn a_job_may_keep_out_of_the_cache_and_random_ones_always_do() {
    let (deployment, _worker) = Deployment::with_worker(&echo_registry(20, "")).await;
    let no_store = [("Inferq-Cache", "no-store")];
    assert_eq!(ask(&deployment, &greedy("a"), &no_store).await.1, "");
    assert_eq!(ask(&deployment, &greedy("a"), &[]).await.1, "miss", "it was stored all the same");
    assert_eq!(ask(&deployment, &greedy("a"), &no_store).await.1, "", "it was read all the same");
    let random = greedy("a").replace("\"temperature\":0", "\"temperature\":1");
    assert_eq!(ask(&deployment, &random, &[]).await.1, "");
    assert_eq!(ask(&deployment, &random, &[]).await.1, "");
    let seeded = random.replace("\"temperature\":1", "\"temperature\":1,\"seed\":7");
    assert_eq!(ask(&deployment, &seeded, &[]).await.1, "miss");
    assert_eq!(ask(&deployment, &seeded, &[]).await.1, "hit");
}

#[tokio::test]
async fn identical_jobs_in_flight_are_computed_once() {
    let (deployment, _worker) = Deployment::with_worker(&echo_registry(700, "")).await;
    let mut ids = Vec::new();
    for _ in 0..5 {
        ids.push(deployment.publish_raw(greedy("same").as_bytes(), &[]).await);
    }
    let mut used = Vec::new();
    for id in &ids {
        used.push(answer(&deployment, id).await.1);
    }
    used.sort();
    assert_eq!(used, ["miss", "shared", "shared", "shared", "shared"]);
}

#[tokio::test]
async fn tenants_share_answers_only_where_the_registry_says_so() {
    for (scope, second) in [("tenant", "miss"), ("shared", "hit")] {
        let registry = echo_registry(20, "") + &format!("[models.cache]\nscope = \"{scope}\"\n");
        let (deployment, _worker) = Deployment::with_worker(&registry).await;
        assert_eq!(ask(&deployment, &greedy("a"), &[]).await.1, "miss");
        let jetstream = &deployment.client.connection.jetstream;
        let subject = "inferq.jobs.echo.default.other.job-1";
        jetstream.publish(subject, greedy("a").into()).await.unwrap().await.unwrap();
        let results = deployment.stream(schemas::stream::RESULTS).await;
        let stored = crate::support::eventually("a result is stored", async || {
            results.direct_get_last_for_subject("inferq.results.other.job-1").await.ok()
        })
        .await;
        assert_eq!(provenance(&stored.headers).cache.unwrap().as_str(), second, "scope {scope}");
        assert_ne!(TENANT, "other");
        assert!(serde_json::from_slice::<Value>(&stored.payload).is_ok());
    }
}
