//! Headers of jobs that a tenant may publish: what they ask of the stream, and of the worker.

use std::time::Duration;

use producer::{Client, Submitted};
use schemas::codec::Encoding;
use schemas::subject::JobId;

use super::tenant::result_of;
use super::{ATTACKER, SECRET, Stage, VICTIM, answer, headers, job, tells};
use crate::support::{chat, eventually, submission};

#[tokio::test]
async fn no_header_makes_a_job_change_the_stream() {
    let stage = Stage::new().await;
    let attacker = stage.accounts.connect(&format!("tenant-{ATTACKER}")).await;
    let before = stage.seen().await;
    for (name, value) in [
        ("Nats-Rollup", "all"),
        ("Nats-Rollup", "sub"),
        ("Nats-TTL", "1s"),
        ("Nats-TTL", "never"),
        ("Nats-Schedule", "@at 2020-01-01T00:00:00Z"),
        ("Nats-Batch-Id", "b"),
        ("Nats-Incr", "1"),
        ("Nats-Expected-Stream", "INFERQ_RESULTS"),
        ("Nats-Expected-Last-Sequence", "7"),
        ("Nats-Expected-Last-Subject-Sequence", "7"),
    ] {
        let mut sent = headers(&[(name, value)]);
        if name == "Nats-Schedule" {
            sent.insert("Nats-Schedule-Target", "inferq.results.acme.forged");
        }
        if name == "Nats-Batch-Id" {
            sent.insert("Nats-Batch-Sequence", "1");
            sent.insert("Nats-Batch-Commit", "1");
        }
        let subject = "inferq.jobs.echo.default.mallory.h";
        let answered = answer(&attacker.client, subject, Some(sent), &job()).await;
        let text =
            answered.as_ref().map_or(String::new(), |answer| String::from_utf8_lossy(&answer.payload).into_owned());
        assert!(text.contains("\"error\""), "{name}: {value}: {text}");
        assert!(!tells(&answered.unwrap()), "{name}: {value}: {text}");
        stage.check_unchanged(&before, name).await;
    }
}

#[tokio::test]
async fn a_tenant_that_notes_itself_takes_no_other_note_away() {
    let stage = Stage::new().await;
    let attacker = stage.accounts.connect(&format!("tenant-{ATTACKER}")).await;
    let before = stage.seen().await;
    let subject = "$KV.inferq-tenants.echo.default.mallory";
    for value in ["all", "sub"] {
        let refused = answer(&attacker.client, subject, Some(headers(&[("Nats-Rollup", value)])), "").await.unwrap();
        assert!(String::from_utf8_lossy(&refused.payload).contains("\"error\""), "{refused:?}");
        stage.check_unchanged(&before, "a note").await;
    }
    let noted = answer(&attacker.client, subject, None, "").await.unwrap();
    assert!(!String::from_utf8_lossy(&noted.payload).contains("\"error\""), "{noted:?}");
}

/// Only its own subject may be expected something of, or the answer would tell of another tenant's jobs.
#[tokio::test]
async fn no_header_tells_of_other_tenants_jobs() {
    let stage = Stage::new().await;
    let victim = Client::new(stage.accounts.connect(&format!("tenant-{VICTIM}")).await);
    let mut submission = submission(&chat(SECRET), Encoding::Json);
    submission.address.tenant = VICTIM.to_owned();
    submission.address.job_id = JobId::new("acme-order-1").unwrap();
    assert_eq!(victim.submit(&submission).await.unwrap(), Submitted::Queued);
    let attacker = stage.accounts.connect(&format!("tenant-{ATTACKER}")).await;
    let before = stage.seen().await;
    for (name, value) in [
        ("Nats-Expected-Last-Msg-Id", "x"),
        ("Nats-Expected-Last-Subject-Sequence-Subject", "inferq.jobs.echo.default.acme.acme-order-1"),
        ("Nats-Expected-Last-Subject-Sequence-Subject", "inferq.jobs.echo.default.acme.*"),
    ] {
        let mut sent = headers(&[(name, value)]);
        if name.ends_with("-Subject") {
            sent.insert("Nats-Expected-Last-Subject-Sequence", "1");
        }
        let asked = answer(&attacker.client, "inferq.jobs.echo.default.mallory.h", Some(sent), &job()).await;
        let text = asked.as_ref().map_or(String::new(), |answer| String::from_utf8_lossy(&answer.payload).into_owned());
        assert!(text.contains("\"error\"") && !tells(&asked.unwrap()), "{name}: {value}: {text}");
        stage.check_unchanged(&before, name).await;
    }
}

#[tokio::test]
async fn a_message_id_that_is_guessed_drops_nobodys_job() {
    let stage = Stage::new().await;
    let attacker = stage.accounts.connect(&format!("tenant-{ATTACKER}")).await;
    for (number, id) in ["acme/order-2", "order-2", "acme.order-2"].into_iter().enumerate() {
        let subject = format!("inferq.jobs.echo.default.mallory.g{number}");
        let stored = answer(&attacker.client, &subject, Some(headers(&[("Nats-Msg-Id", id)])), &job()).await;
        assert!(stored.is_some_and(|ack| String::from_utf8_lossy(&ack.payload).contains("\"seq\"")));
    }
    let victim = Client::new(stage.accounts.connect(&format!("tenant-{VICTIM}")).await);
    let mut submission = submission(&chat(SECRET), Encoding::Json);
    submission.address.tenant = VICTIM.to_owned();
    submission.address.job_id = JobId::new("order-2").unwrap();
    assert_eq!(victim.submit(&submission).await.unwrap(), Submitted::Queued);
    // Its own are still one and the same.
    assert_eq!(victim.submit(&submission).await.unwrap(), Submitted::Duplicate);
}

#[tokio::test]
async fn a_worker_answers_to_no_other_subject_than_the_jobs() {
    let stage = Stage::new().await;
    let _worker = stage.worker().await;
    eventually("what waits is answered", async || (stage.deployment.count("INFERQ_JOBS").await.0 == 0).then_some(()))
        .await;
    let attacker = stage.accounts.connect(&format!("tenant-{ATTACKER}")).await;
    let answered = stage.deployment.count("INFERQ_RESULTS").await.0;
    let tries = [
        ("Inferq-Reply-To", "inferq.results.acme.forged"),
        ("Inferq-Reply-To", "inferq.jobs.echo.default.acme.forged"),
        ("Inferq-Reply-To", "inferq.live.acme.forged"),
        ("Inferq-Reply-To", "$JS.API.STREAM.PURGE.INFERQ_RESULTS"),
        ("Inferq-Reply-To", "CORE.API.STREAM.MSG.DELETE.INFERQ_JOBS"),
        ("Inferq-Reply-To", "$JS.ACK.INFERQ_JOBS.echo_default.1.1.1.1.1"),
        ("Inferq-Reply-To", "_INBOX.>"),
        ("Inferq-Reply-To", "_INBOX.forged"),
        ("Inferq-Body", "acme/waiting"),
        ("Inferq-Body", "mallory/../acme/waiting"),
        ("Inferq-Lane", "priority"),
        ("Inferq-Published", "2000-01-01T00:00:00Z"),
        ("Inferq-Cost", "1e308"),
        ("Inferq-Cost", "NaN"),
        ("Nats-Trace-Dest", "inferq.results.acme.forged"),
        ("Nats-Trace-Dest", "own.trace"),
    ];
    let victim = stage.accounts.connect(&format!("tenant-{VICTIM}")).await;
    let _all = victim.client.subscribe(">").await.unwrap();
    let mut traced = attacker.client.subscribe("own.trace").await.unwrap();
    for (number, (name, value)) in tries.into_iter().enumerate() {
        let subject = format!("inferq.jobs.echo.default.mallory.w{number}");
        let sent = headers(&[(name, value)]);
        attacker.jetstream.publish_with_headers(subject, sent, job().into()).await.unwrap().await.unwrap();
        let (_, result) = result_of(&stage, ATTACKER, &format!("w{number}")).await;
        assert!(!result.contains(SECRET), "{name}: {value}: {result}");
        assert_eq!(result.contains("\"status_code\":400"), name == "Inferq-Body", "{name}: {value}: {result}");
    }
    let count = stage.deployment.count("INFERQ_RESULTS").await.0;
    assert_eq!(count, answered + tries.len() as u64, "a result for each job and no more");
    let results = stage.deployment.stream("INFERQ_RESULTS").await;
    assert!(results.direct_get_last_for_subject("inferq.results.acme.forged").await.is_err());
    // What it learns of the way of its message ends at the border.
    let trace = tokio::time::timeout(Duration::from_secs(1), futures::StreamExt::next(&mut traced)).await;
    assert!(!trace.is_ok_and(|trace| trace.is_some_and(|trace| tells(&trace))));
    let pace = stage.deployment.inferq(&["status", "--output", "json"]);
    let status: serde_json::Value = serde_json::from_slice(&pace.stdout).unwrap();
    assert!(status["models"]["echo"]["units_per_second"].is_number(), "{status}");
}

/// A subject with a wildcard in it is one like any other to the server: what comes of it stays with its tenant.
#[tokio::test]
async fn a_wildcard_as_a_job_id_reaches_nobody_else() {
    let stage = Stage::new().await;
    let attacker = stage.accounts.connect(&format!("tenant-{ATTACKER}")).await;
    let before = stage.deployment.count("INFERQ_JOBS").await.0;
    answer(&attacker.client, "inferq.jobs.*.default.mallory.x", None, &job()).await;
    assert_eq!(stage.deployment.count("INFERQ_JOBS").await.0, before, "a model that is none");
    answer(&attacker.client, "inferq.jobs.echo.default.mallory.*", None, &job()).await.unwrap();
    let _worker = stage.worker().await;
    eventually("the queue is empty", async || (stage.deployment.count("INFERQ_JOBS").await.0 == 0).then_some(())).await;
    let results = stage.deployment.stream("INFERQ_RESULTS").await;
    let of_victim = results.direct_get_last_for_subject("inferq.results.acme.done").await.unwrap();
    assert_eq!(of_victim.payload, SECRET);
    let (_, result) = result_of(&stage, ATTACKER, "*").await;
    assert!(result.contains("\"status_code\":400"), "{result}");
}
