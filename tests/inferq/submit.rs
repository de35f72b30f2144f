//! Submitting: what a job may say, what is told of one that is there already, and a queue that is full.

use connect::PublishFailure;
use producer::{Submission, SubmitError, SubmitOptions, Submitted, WhenFull};
use schemas::codec::Encoding;
use schemas::stream::JOBS;
use serde_json::{Value, json};

use crate::support::{Deployment, PATIENCE, chat, echo_registry, submission};

fn with(options: SubmitOptions, text: &str) -> Submission {
    Submission { options, ..submission(&chat(text), Encoding::Json) }
}

#[tokio::test]
async fn what_a_job_asks_for_stands_in_its_headers() {
    let deployment = Deployment::new(&echo_registry(0, "")).await;
    let asked = ["--expires-in", "90.5", "--max-attempts", "2", "--no-cache", "--cost", "17", "--id", "a"];
    // There is no worker to wait for.
    let stream = ["--stream", "--timeout-seconds", "1"];
    let submit = ["submit", "--model", "echo", "--message", "hi"];
    let streamed = deployment.inferq(&[&submit[..], &asked[..], &stream[..]].concat());
    assert_eq!(streamed.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&streamed.stderr).contains("no result within 1 s"));
    assert!(deployment.inferq(&[&submit[..], &["--id", "b", "--set", "max_tokens=100"]].concat()).status.success());
    let jobs = deployment.stream(JOBS).await;
    let header = async |id: &str, name: &str| {
        let job = jobs.direct_get_last_for_subject(format!("inferq.jobs.echo.default.default.{id}")).await.unwrap();
        job.headers.get(name).map(|value| value.to_string()).unwrap_or_default()
    };
    assert_eq!(header("a", "Inferq-Timeout").await, "90.5");
    assert_eq!(header("a", "Inferq-Max-Attempts").await, "2");
    assert_eq!(header("a", "Inferq-Cache").await, "no-store");
    assert_eq!(header("a", "Inferq-Stream").await, "tokens");
    assert_eq!(header("a", "Inferq-Cost").await, "17");
    let estimate: f64 = header("b", "Inferq-Cost").await.parse().unwrap();
    assert!((120.0..160.0).contains(&estimate), "{estimate}");
    for wrong in [["--expires-in", "0"], ["--expires-in", "soon"], ["--max-attempts", "0"], ["--cost", "-1"]] {
        assert_eq!(deployment.inferq(&[&submit[..], &wrong[..]].concat()).status.code(), Some(64), "{wrong:?}");
    }
}

#[tokio::test]
async fn a_job_that_waits_or_is_answered_is_not_stored_again() {
    let deployment = Deployment::new(&echo_registry(0, "")).await;
    let submit = || {
        let output =
            deployment.inferq(&["submit", "--model", "echo", "--message", "hi", "--id", "a", "--output", "json"]);
        let printed: Value = serde_json::from_slice(&output.stdout).unwrap();
        (printed, String::from_utf8_lossy(&output.stderr).into_owned())
    };
    assert_eq!(submit().0, json!({ "job_id": "a", "duplicate": false, "answered": false }));
    let (printed, note) = submit();
    assert_eq!(printed, json!({ "job_id": "a", "duplicate": true, "answered": false }));
    assert!(note.contains("it was not stored again"), "{note}");
    assert!(deployment.inferq(&["cancel", "a"]).status.success());
    let (printed, note) = submit();
    assert_eq!(printed, json!({ "job_id": "a", "duplicate": true, "answered": true }));
    assert!(note.contains("answered already") && note.contains("inferq results a"), "{note}");
    assert_eq!(deployment.count(JOBS).await, (0, 1));
}

#[tokio::test]
async fn a_full_queue_refuses_or_is_waited_for() {
    let registry = format!("{}[storage]\njobs_bytes = 20000\n", echo_registry(0, ""));
    let deployment = Deployment::new(&registry).await;
    let text = "x".repeat(4_000);
    let refuse = SubmitOptions { when_full: WhenFull::Refuse, ..Default::default() };
    let mut stored = 0;
    let error = loop {
        match deployment.client.submit(&with(refuse.clone(), &text)).await {
            Ok(submitted) => assert_eq!(submitted, Submitted::Queued),
            Err(error) => break error,
        }
        stored += 1;
    };
    assert!(matches!(error, SubmitError::Failed(PublishFailure::Full(_))), "{error}");
    assert_eq!(deployment.count(JOBS).await.0, stored);
    let refused = deployment.inferq(&["submit", "--model", "echo", "--message", &text, "--when-full", "refuse"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("the stream is full"));

    let client = deployment.client.clone();
    let waiting = tokio::spawn(async move { client.submit(&with(SubmitOptions::default(), &text)).await });
    deployment.stream(JOBS).await.purge().await.unwrap();
    let submitted = tokio::time::timeout(PATIENCE, waiting).await.unwrap().unwrap();
    assert_eq!(submitted.unwrap(), Submitted::Queued);
}
