//! Dead letters: listed, shown, sent again and deleted.

use std::process::Output;

use async_nats::HeaderMap;
use schemas::header::{DeadClass, Life};
use schemas::stream::{ATTEMPTS_BUCKET, DEAD, DEAD_BUCKET, JOBS, RESULTS};
use serde_json::{Value, json};

use crate::support::{Deployment, TENANT, chat, content, echo_registry};

const HEADERS: [(&str, &str); 6] = [
    ("Content-Type", "application/json"),
    ("Nats-Msg-Id", "default/j"),
    ("Inferq-Max-Attempts", "2"),
    ("Inferq-Deadline", "2020-01-01T00:00:00Z"),
    ("Inferq-Attempt", "3"),
    ("Inferq-Worker", "w-1"),
];

/// Publishes a dead letter as a worker does.
async fn bury(deployment: &Deployment, place: &str, class: &str, reason: &str, more: &[(&str, &str)]) {
    let mut headers = HeaderMap::new();
    HEADERS.iter().chain(more).for_each(|(name, value)| headers.insert(*name, *value));
    headers.insert("Nats-Msg-Id", format!("dead/{place}"));
    headers.insert("Inferq-Dead-Class", class);
    headers.insert("Inferq-Dead-Reason", reason);
    publish(deployment, &format!("inferq.dead.{place}"), headers, &chat("once more")).await;
}

async fn publish(deployment: &Deployment, subject: &str, headers: HeaderMap, payload: &Value) {
    let jetstream = &deployment.client.connection.jetstream;
    let payload = payload.to_string().into();
    jetstream.publish_with_headers(subject.to_owned(), headers, payload).await.unwrap().await.unwrap();
}

/// Four letters of two models, three classes and two tenants.
async fn with_letters() -> Deployment {
    let deployment = Deployment::new(&echo_registry(0, "")).await;
    bury(&deployment, "echo.default.default.a", "poison", "the engine failed: out of memory", &[]).await;
    bury(&deployment, "echo.flex.default.b", "exhausted", "three attempts failed", &[]).await;
    bury(&deployment, "other=2E1.default.default.c", "exhausted", "out of memory", &[]).await;
    bury(&deployment, "echo.default.acme.d", "expired", "too late", &[]).await;
    deployment
}

fn dead(deployment: &Deployment, arguments: &[&str]) -> Output {
    deployment.inferq(&[&["dead"], arguments].concat())
}

fn text(output: &Output) -> String {
    assert!(output.status.success(), "{}", errors(output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn errors(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The ids that a list has, in its order.
fn listed(deployment: &Deployment, filters: &[&str]) -> String {
    let output = text(&dead(deployment, &[&["list", "--output", "json"], filters].concat()));
    let id = |line: &str| serde_json::from_str::<Value>(line).unwrap()["job_id"].as_str().unwrap().to_owned();
    output.lines().map(id).collect::<Vec<_>>().join(" ")
}

#[tokio::test]
async fn letters_are_listed_with_the_newest_last_and_filtered() {
    let deployment = with_letters().await;
    let table = text(&dead(&deployment, &["list"]));
    let lines: Vec<&str> = table.lines().collect();
    assert_eq!(lines.len(), 5, "{table}");
    for (line, parts) in [(1, ["a ", "poison", "echo", "out of memory"]), (3, ["c ", "exhausted", "other.1", "memory"])]
    {
        assert!(parts.iter().all(|part| lines[line].contains(part)), "{parts:?} in {table}");
    }
    let cases: [(&[&str], &str); 9] = [
        (&[], "a b c d"),
        (&["--model", "other.1"], "c"),
        (&["--class", "exhausted"], "b c"),
        (&["--reason", "out of memory"], "a c"),
        (&["--reason", "memory", "--class", "poison"], "a"),
        (&["--tenant", "acme"], "d"),
        (&["--newer-than", "1h"], "a b c d"),
        (&["--older-than", "90s"], ""),
        (&["--model", "nobody"], ""),
    ];
    for (filters, ids) in cases {
        assert_eq!(listed(&deployment, filters), ids, "{filters:?}");
    }
    assert_eq!(dead(&deployment, &["list", "--class", "strange"]).status.code(), Some(64));
    assert_eq!(dead(&deployment, &["list", "--older-than", "soon"]).status.code(), Some(64));
}

#[tokio::test]
async fn a_letter_is_shown_with_its_log_and_its_history() {
    let deployment = Deployment::new(&echo_registry(0, "")).await;
    let record = json!({ "time": "2027-01-01T00:00:00Z", "job_id": "a", "model": "echo", "worker": "w-1", "attempt": 1,
        "event": "retried", "reason": "no memory", "delay_seconds": 0.5 });
    let life = json!({ "time": "2026-12-31T00:00:00Z", "class": "poison", "reason": "before", "attempts": 2, "worker": "w-0" });
    let (log, history) = (json!([record]).to_string(), json!([life]).to_string());
    let more = [("Inferq-Dead-Log", log.as_str()), ("Inferq-History", history.as_str())];
    bury(&deployment, "echo.default.default.a", "exhausted", "no memory", &more).await;
    let shown = text(&dead(&deployment, &["show", "a"]));
    for part in [
        "job a of tenant default",
        "  Inferq-Dead-Class: exhausted\n",
        "\"content\": \"once more\"",
        "attempt 1 failed: no memory; next in 0.5 s",
        "2026-12-31T00:00:00Z  poison after 2 attempts on w-0: before",
    ] {
        assert!(shown.contains(part), "{part} in {shown}");
    }
    let shown: Value = serde_json::from_str(&text(&dead(&deployment, &["show", "a", "--output", "json"]))).unwrap();
    assert_eq!(
        (&shown["class"], &shown["attempts"], &shown["lane"]),
        (&json!("exhausted"), &json!(3), &json!("default"))
    );
    assert_eq!((&shown["log"], &shown["history"]), (&json!([record]), &json!([life])));
    assert_eq!(shown["body"]["body"]["model"], "echo");
    assert_eq!(shown["headers"]["Inferq-Max-Attempts"], "2");
    let unknown = dead(&deployment, &["show", "b"]);
    assert_eq!(unknown.status.code(), Some(1));
    assert!(errors(&unknown).contains("job b is not among the dead letters"), "{}", errors(&unknown));
}

#[tokio::test]
async fn letters_are_deleted_only_where_somebody_said_which() {
    let deployment = with_letters().await;
    for command in ["purge", "replay"] {
        let refused = dead(&deployment, &[command]);
        assert_eq!(refused.status.code(), Some(64));
        assert!(errors(&refused).contains("a filter such as --class, or --all"), "{}", errors(&refused));
    }
    assert_eq!(
        text(&dead(&deployment, &["purge", "--class", "exhausted", "--model", "echo"])),
        "1 dead letters deleted\n"
    );
    assert_eq!(listed(&deployment, &[]), "a c d");
    let some = dead(&deployment, &["purge", "d", "nobody"]);
    assert_eq!((some.status.code(), listed(&deployment, &[])), (Some(1), "a c".to_owned()));
    assert!(errors(&some).contains("job nobody is not among"), "{}", errors(&some));
    let all = text(&dead(&deployment, &["purge", "--all", "--output", "json"]));
    assert_eq!(serde_json::from_str::<Value>(&all).unwrap(), json!({ "purged": 2 }));
    assert_eq!(deployment.count(DEAD).await.0, 0);
}

#[tokio::test]
async fn a_letters_body_is_deleted_with_it() {
    let deployment = Deployment::new(&echo_registry(0, "")).await;
    let bodies = deployment.client.connection.jetstream.get_object_store(DEAD_BUCKET).await.unwrap();
    let body = chat("large").to_string();
    for (id, name) in [("a", "default/a/1"), ("b", "default/a/1")] {
        bodies.put(name, &mut body.as_bytes()).await.unwrap();
        bury(&deployment, &format!("echo.default.default.{id}"), "poison", "why", &[("Inferq-Body", name)]).await;
    }
    let shown: Value = serde_json::from_str(&text(&dead(&deployment, &["show", "a", "--output", "json"]))).unwrap();
    assert_eq!(shown["body"], chat("large"));
    text(&dead(&deployment, &["purge", "b"]));
    assert!(bodies.info("default/a/1").await.is_ok(), "a job has named the body of another");
    text(&dead(&deployment, &["purge", "a"]));
    assert!(bodies.info("default/a/1").await.is_err());
}

#[tokio::test]
async fn a_job_is_sent_again_under_its_id_and_answered() {
    let deployment = Deployment::new(&echo_registry(0, "")).await;
    let life = json!({ "time": "2026-12-31T00:00:00Z", "class": "poison", "reason": "before", "attempts": 2, "worker": "w-0" });
    let history = json!([life]).to_string();
    bury(&deployment, "echo.flex.default.a", "exhausted", "no memory", &[("Inferq-History", history.as_str())]).await;
    let mut failed = HeaderMap::new();
    failed.insert("Inferq-Status", "500");
    publish(&deployment, "inferq.results.default.a", failed, &json!({})).await;
    let attempts = deployment.client.connection.jetstream.get_key_value(ATTEMPTS_BUCKET).await.unwrap();
    attempts.put("default.a", "3".into()).await.unwrap();

    let dry = text(&dead(&deployment, &["replay", "a", "--dry-run"]));
    assert_eq!(dry, "a would be replayed\n");
    assert_eq!((deployment.count(JOBS).await.0, deployment.count(DEAD).await.0), (0, 1));

    let replayed = dead(&deployment, &["replay", "--reason", "memory"]);
    assert_eq!(text(&replayed), "a replayed\n");
    assert!(errors(&replayed).contains("its deadline had passed and was dropped"), "{}", errors(&replayed));
    assert_eq!((deployment.count(DEAD).await.0, deployment.count(RESULTS).await.0), (0, 0));
    assert!(attempts.get("default.a").await.unwrap().is_none());
    let jobs = deployment.stream(JOBS).await;
    let job = jobs.direct_get_last_for_subject("inferq.jobs.echo.flex.default.a").await.unwrap();
    let value = |name: &str| job.headers.get(name).map(|value| value.as_str());
    assert!(value("Nats-Msg-Id").is_some_and(|id| id != "default/j"), "the server may still know its first id");
    assert_eq!(
        (value("Inferq-Max-Attempts"), value("Inferq-Deadline"), value("Inferq-Attempt")),
        (Some("2"), None, None)
    );
    let history: Value = serde_json::from_str(value("Inferq-History").unwrap()).unwrap();
    assert_eq!((&history[0], &history[1]["class"], &history[1]["worker"]), (&life, &json!("exhausted"), &json!("w-1")));

    let _worker = deployment.worker("echo").await;
    assert_eq!(content(&deployment.result("a").await.1), "once more");
}

#[tokio::test]
async fn a_replay_that_was_cut_off_is_done_again_without_a_second_job() {
    let deployment = Deployment::new(&echo_registry(0, "")).await;
    bury(&deployment, "echo.default.default.a", "exhausted", "why", &[]).await;
    let letter = deployment.stream(DEAD).await.direct_get_last_for_subject("inferq.dead.echo.default.default.a").await;
    let life = Life {
        time: letter.unwrap().time.format(&time::format_description::well_known::Rfc3339).unwrap(),
        class: DeadClass::Exhausted,
        reason: "why".to_owned(),
        attempts: 3,
        worker: "w-1".to_owned(),
    };
    let history = serde_json::to_string(&[life]).unwrap();
    deployment.publish_as("a", chat("once more").to_string().as_bytes(), &[("Inferq-History", &history)]).await;
    assert_eq!(text(&dead(&deployment, &["replay", "a"])), "a replayed\n");
    assert_eq!((deployment.count(JOBS).await, deployment.count(DEAD).await.0), ((1, 1), 0));
}

#[tokio::test]
async fn a_job_whose_last_delivery_is_not_over_is_not_replayed() {
    let deployment = Deployment::new(&echo_registry(0, "")).await;
    // Its worker has kept the letter and waits for room for the result.
    deployment.publish_as("a", chat("once more").to_string().as_bytes(), &[]).await;
    bury(&deployment, "echo.default.default.a", "exhausted", "why", &[]).await;
    let replayed = dead(&deployment, &["replay", "a"]);
    assert_eq!(replayed.status.code(), Some(1));
    assert!(errors(&replayed).contains("job a: it is still queued or in flight"), "{}", errors(&replayed));
    assert_eq!((deployment.count(JOBS).await.0, deployment.count(DEAD).await.0), (1, 1), "the letter stays");
}

#[tokio::test]
async fn an_answer_is_never_thrown_away_for_a_letter() {
    let deployment = Deployment::new(&echo_registry(0, "")).await;
    bury(&deployment, "echo.default.default.a", "exhausted", "why", &[]).await;
    let mut answered = HeaderMap::new();
    answered.insert("Inferq-Status", "200");
    publish(&deployment, &format!("inferq.results.{TENANT}.a"), answered, &json!({})).await;
    assert_eq!(text(&dead(&deployment, &["replay", "--all"])), "a answered\n");
    assert_eq!(deployment.count(RESULTS).await, (1, 1));
    assert_eq!((deployment.count(JOBS).await.0, deployment.count(DEAD).await.0), (0, 0));
}

#[tokio::test]
async fn letters_that_nobody_serves_stay_where_they_are() {
    let deployment = with_letters().await;
    let mut failed = HeaderMap::new();
    failed.insert("Inferq-Status", "500");
    publish(&deployment, "inferq.results.default.c", failed, &json!({})).await;
    let replayed = dead(&deployment, &["replay", "--class", "exhausted"]);
    assert_eq!(replayed.status.code(), Some(1));
    assert_eq!(String::from_utf8_lossy(&replayed.stdout), "b replayed\nc failed\n");
    assert!(errors(&replayed).contains("model \"other.1\" is no longer registered"), "{}", errors(&replayed));
    assert_eq!(listed(&deployment, &[]), "a c d");
    assert_eq!(deployment.count(RESULTS).await.0, 1, "its result stays too");
}
