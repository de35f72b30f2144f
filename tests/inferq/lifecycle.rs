//! The life of a worker: draining, sudden death, a server that goes away.

use std::process::Command;

use schemas::codec::Encoding;
use schemas::stream::{JOBS, RESULTS};

use crate::support::{Deployment, chat, content, echo_registry, eventually, free_port, program, provenance, root, run};

/// Publishes so many jobs and gives their ids.
async fn submit_many(deployment: &Deployment, count: usize) -> Vec<String> {
    let mut ids = Vec::new();
    for number in 0..count {
        ids.push(deployment.submit(&chat(&number.to_string()), Encoding::Json).await.to_string());
    }
    ids
}

async fn check_all_answered(deployment: &Deployment, ids: &[String]) {
    for (number, id) in ids.iter().enumerate() {
        assert_eq!(content(&deployment.result(id).await.1), number.to_string());
    }
    eventually("the queue is empty", async || (deployment.count(JOBS).await.0 == 0).then_some(())).await;
    assert_eq!(deployment.count(RESULTS).await, (ids.len() as u64, ids.len() as u64), "one result for each job");
}

#[tokio::test]
async fn sigterm_finishes_what_runs_and_takes_nothing_new() {
    // ack_wait is far longer than the test: a job that was not handed back would be missed.
    let registry = echo_registry(400, "in_flight = 8\nbatch = 4\nack_wait_seconds = 600");
    let (deployment, mut worker) = Deployment::with_worker(&registry).await;
    let ids = submit_many(&deployment, 40).await;
    eventually("jobs are running", async || (deployment.in_flight().await > 0).then_some(())).await;
    worker.signal("-TERM");
    assert_eq!(worker.exit_code().await, Some(0));
    assert_eq!(deployment.in_flight().await, 0, "jobs were neither answered nor handed back");
    let (answered, _) = deployment.count(RESULTS).await;
    assert!(answered > 0 && answered < 40, "{answered} of 40 answered");
    let _second = deployment.worker("echo").await;
    check_all_answered(&deployment, &ids).await;
    let (headers, _) = deployment.result(ids.last().unwrap()).await;
    assert_eq!(provenance(&headers).attempt, 1, "a job that waited was delivered once");
}

#[tokio::test]
async fn jobs_that_outlast_the_grace_period_are_handed_back_at_once() {
    let registry = echo_registry(120_000, "in_flight = 8\nack_wait_seconds = 600");
    let deployment = Deployment::new(&registry).await;
    let mut worker = deployment.worker_with("echo", &["--grace-seconds", "1"]).await;
    let id = submit_many(&deployment, 1).await.remove(0);
    eventually("the job is running", async || (deployment.in_flight().await == 1).then_some(())).await;
    worker.signal("-TERM");
    assert_eq!(worker.exit_code().await, Some(0));
    std::fs::write(&deployment.registry, echo_registry(0, "ack_wait_seconds = 600")).unwrap();
    let _second = deployment.worker("echo").await;
    let (headers, _) = deployment.result(&id).await;
    assert_eq!(provenance(&headers).attempt, 1, "a job that was handed back has lost an attempt");
}

#[tokio::test]
async fn a_killed_workers_jobs_are_answered_by_another_once() {
    let registry = echo_registry(300, "in_flight = 8\nbatch = 4\nack_wait_seconds = 2");
    let (deployment, mut worker) = Deployment::with_worker(&registry).await;
    let ids = submit_many(&deployment, 24).await;
    eventually("jobs are running", async || (deployment.in_flight().await >= 4).then_some(())).await;
    worker.signal("-KILL");
    assert_eq!(worker.exit_code().await, None);
    let _second = deployment.worker("echo").await;
    check_all_answered(&deployment, &ids).await;
    let mut attempts = Vec::new();
    for id in &ids {
        attempts.push(provenance(&deployment.result(id).await.0).attempt);
    }
    assert!(attempts.contains(&2), "no job was delivered again: {attempts:?}");
}

#[tokio::test]
async fn progress_keeps_a_job_that_runs_longer_than_ack_wait() {
    let registry = echo_registry(5_000, "in_flight = 8\nack_wait_seconds = 2");
    let (deployment, _worker) = Deployment::with_worker(&registry).await;
    let id = submit_many(&deployment, 1).await.remove(0);
    let (headers, _) = deployment.result(&id).await;
    assert_eq!(provenance(&headers).attempt, 1);
}

#[tokio::test]
async fn a_worker_waits_for_setup_and_starts_when_it_was_done() {
    let deployment = Deployment::new(&echo_registry(0, "")).await;
    let jetstream = &deployment.client.connection.jetstream;
    jetstream.delete_consumer_from_stream("echo_flex", JOBS).await.unwrap();
    let mut command = Command::new(program("inferq-worker"));
    command.args(["--model", "echo", "--server", &deployment.server.url, "--admin", "127.0.0.1:0"]);
    let mut waiting =
        command.arg("--registry").arg(&deployment.registry).stderr(std::process::Stdio::null()).spawn().unwrap();
    let id = submit_many(&deployment, 1).await.remove(0);
    deployment.set_up();
    assert_eq!(content(&deployment.result(&id).await.1), "0");
    waiting.kill().unwrap();
    waiting.wait().unwrap();
}

#[tokio::test]
async fn health_says_whether_the_program_at_the_admin_address_is_ready() {
    let deployment = Deployment::new(&echo_registry(0, "")).await;
    let jetstream = &deployment.client.connection.jetstream;
    jetstream.delete_consumer_from_stream("echo_flex", JOBS).await.unwrap();
    let admin = format!("0.0.0.0:{}", free_port());
    let health = |name: &str| {
        // As in a container: the address and more is in the environment.
        let environment = [("INFERQ_ADMIN", admin.as_str()), ("INFERQ_MODEL", "echo")];
        let output = run(&program(name), &["health"], &environment);
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    for name in ["inferq-worker", "inferq-logger"] {
        let (code, says) = health(name);
        assert!(code == Some(1) && says.contains("give the address"), "{name}: {code:?} {says}");
    }
    let _worker = deployment.spawn_worker("echo", &["--admin", &admin]);
    eventually("the worker listens and waits for its consumers", async || {
        (health("inferq-worker") == (Some(1), "inferq-worker: not ready: starting\n".to_owned())).then_some(())
    })
    .await;
    deployment.set_up();
    eventually("the worker is ready", async || (health("inferq-worker").0 == Some(0)).then_some(())).await;
    assert_eq!(health("inferq-logger").0, Some(0), "it asks the same question");
}

#[tokio::test]
async fn a_wrong_configuration_ends_with_64_before_a_connection_is_made() {
    let folder = tempfile::tempdir().unwrap();
    let registry = folder.path().join("models.toml");
    std::fs::write(&registry, echo_registry(0, "in_flight = 0")).unwrap();
    let registry = registry.to_str().unwrap();
    let good = folder.path().join("good.toml");
    std::fs::write(&good, echo_registry(0, "")).unwrap();
    let good = good.to_str().unwrap();
    let demo = root().join("workers/models.toml");
    let (demo, embedder) = (demo.to_str().unwrap(), "all-MiniLM-L6-v2");
    let no_cache = folder.path().join("cache");
    let offline = ["--offline", "--cache-dir", no_cache.to_str().unwrap()];
    let offline = [&["--model", embedder, "--registry", demo][..], &offline].concat();
    // Nothing listens there: a connection would be tried for ever.
    let server = ["--server", "nats://127.0.0.1:1"];
    let cases: [(&[&str], &str); 7] = [
        (&["--model", "echo", "--registry", registry], "limits.in_flight: is 0"),
        (&["--model", "nope", "--registry", good], "\"nope\" is not in it"),
        (&["--model", "echo", "--registry", "/missing.toml"], "--registry /missing.toml"),
        (&["--model", "echo", "--registry", good, "--log", "=="], "--log"),
        (&["--model", "echo", "--registry", good, "--admin", "here"], "--admin"),
        (&["--registry", good], "--model"),
        (&offline, "`inferq-worker fetch --model all-MiniLM-L6-v2` puts it there"),
    ];
    for (arguments, says) in cases {
        let output = run(&program("inferq-worker"), &[arguments, &server[..]].concat(), &[]);
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(64), "{arguments:?}: {errors}");
        assert!(errors.contains(says), "{arguments:?}: {errors}");
    }
}
