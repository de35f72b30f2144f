//! A worker's and a logger's credentials, used on what a worker or a logger has no business with.

use serde_json::json;

use super::{SECRET, Stage, answer, heard, job};

/// Requests that change or describe what is the operator's alone.
fn requests() -> Vec<(String, String)> {
    let mut all = vec![("STREAM.NAMES".to_owned(), String::new()), ("STREAM.LIST".to_owned(), String::new())];
    all.push(("STREAM.CREATE.MINE".to_owned(), json!({ "name": "MINE", "subjects": ["x"] }).to_string()));
    for name in ["INFERQ_JOBS", "INFERQ_RESULTS", "INFERQ_LOGS", "INFERQ_TOKENS", "INFERQ_DEAD", "INFERQ_ADVISORIES"] {
        let config =
            json!({ "config": { "name": "spy", "ack_policy": "none", "deliver_subject": "spy" }, "stream_name": name });
        all.extend([
            (format!("STREAM.INFO.{name}"), String::new()),
            (format!("STREAM.UPDATE.{name}"), json!({ "name": name, "subjects": ["x"] }).to_string()),
            (format!("STREAM.PURGE.{name}"), String::new()),
            (format!("STREAM.DELETE.{name}"), String::new()),
            (format!("STREAM.MSG.GET.{name}"), json!({ "seq": 1 }).to_string()),
            (format!("CONSUMER.CREATE.{name}.spy"), config.to_string()),
            (format!("CONSUMER.DURABLE.CREATE.{name}.spy"), config.to_string()),
            (format!("CONSUMER.NAMES.{name}"), String::new()),
        ]);
    }
    for name in ["INFERQ_RESULTS", "INFERQ_DEAD", "INFERQ_LOGS", "INFERQ_TOKENS"] {
        all.push((format!("STREAM.MSG.DELETE.{name}"), json!({ "seq": 1 }).to_string()));
    }
    for name in ["KV_inferq-cache", "KV_inferq-attempts", "KV_inferq-tenants", "OBJ_inferq-inputs", "OBJ_inferq-blobs"]
    {
        all.push((format!("STREAM.DELETE.{name}"), String::new()));
        all.push((format!("STREAM.UPDATE.{name}"), json!({ "name": name }).to_string()));
    }
    for consumer in ["INFERQ_JOBS.echo_default", "INFERQ_RESULTS.logger_results"] {
        all.push((format!("CONSUMER.DELETE.{consumer}"), String::new()));
        all.push((format!("CONSUMER.PAUSE.{consumer}"), json!({ "pause_until": "2099-01-01T00:00:00Z" }).to_string()));
    }
    all.push(("CONSUMER.MSG.NEXT.INFERQ_DEAD.logger_dead".to_owned(), json!({ "batch": 1 }).to_string()));
    all.push(("CONSUMER.MSG.NEXT.INFERQ_RESULTS.logger_results".to_owned(), json!({ "batch": 1 }).to_string()));
    all
}

async fn check_api(stage: &Stage, name: &str, is_own: impl Fn(&str) -> bool) {
    let connection = stage.accounts.connect(name).await;
    let before = stage.seen().await;
    for (request, body) in requests().into_iter().filter(|(request, _)| !is_own(request)) {
        for prefix in ["CORE.API", "$JS.API"] {
            let subject = format!("{prefix}.{request}");
            if let Some(answer) = answer(&connection.client, &subject, None, &body).await {
                let text = String::from_utf8_lossy(&answer.payload).into_owned();
                assert!(text.contains("\"code\":503"), "{subject} {body}: {text}");
            }
        }
    }
    stage.check_unchanged(&before, name).await;
}

#[tokio::test]
async fn a_worker_makes_changes_and_deletes_no_stream_and_no_consumer() {
    for arguments in [&[][..], &["--operator"][..]] {
        check_api(&Stage::with(arguments).await, "worker", |_| false).await;
    }
}

#[tokio::test]
async fn a_logger_reads_and_that_is_all() {
    let stage = Stage::new().await;
    // What waits is its business too.
    let is_own = |request: &str| request.starts_with("CONSUMER.MSG.NEXT") || request == "STREAM.INFO.INFERQ_JOBS";
    check_api(&stage, "logger", is_own).await;
    let logger = stage.accounts.connect("logger").await;
    let before = stage.seen().await;
    for subject in [
        "inferq.jobs.echo.default.acme.forged",
        "inferq.results.acme.forged",
        "inferq.dead.echo.default.acme.forged",
        "inferq.cancel.echo.acme.waiting",
        "$JS.ACK.INFERQ_JOBS.echo_default.1.1.1.1.1",
        "CORE.API.CONSUMER.MSG.NEXT.INFERQ_JOBS.echo_default",
        "CORE.API.STREAM.MSG.DELETE.INFERQ_JOBS",
        "CORE.API.DIRECT.GET.INFERQ_RESULTS.inferq.results.acme.done",
        "$KV.inferq-cache.0123",
    ] {
        assert!(answer(&logger.client, subject, None, "{\"seq\":1}").await.is_none(), "{subject}");
    }
    stage.check_unchanged(&before, "the logger's publishes").await;
    // What it pulls goes where it says inside of its own account alone.
    let next = "CORE.API.CONSUMER.MSG.NEXT.INFERQ_LOGS.logger_logs";
    logger.client.publish_with_reply(next, "inferq.results.acme.forged", "1".into()).await.unwrap();
    logger.client.flush().await.unwrap();
    let results = stage.deployment.stream("INFERQ_RESULTS").await;
    assert!(results.direct_get_last_for_subject("inferq.results.acme.forged").await.is_err());
}

#[tokio::test]
async fn a_worker_replaces_no_result_and_publishes_no_job() {
    let stage = Stage::new().await;
    let worker = stage.accounts.connect("worker").await;
    let before = stage.seen().await;
    for lane in ["default", "priority", "flex"] {
        let subject = format!("inferq.jobs.echo.{lane}.acme.forged");
        assert!(answer(&worker.client, &subject, None, &job()).await.is_none(), "{subject}");
    }
    for headers in [&[][..], &[("Nats-Rollup", "sub")][..], &[("Nats-Rollup", "all")][..]] {
        let headers = super::headers(headers);
        let refused = answer(&worker.client, "inferq.results.acme.done", Some(headers), "forged").await.unwrap();
        assert!(String::from_utf8_lossy(&refused.payload).contains("\"error\""), "{refused:?}");
    }
    stage.check_unchanged(&before, "a stored result").await;
    let free = answer(&worker.client, "inferq.results.acme.free", None, "made").await.unwrap();
    assert!(!String::from_utf8_lossy(&free.payload).contains("\"error\""), "a worker stores results");
}

#[tokio::test]
async fn a_worker_hears_jobs_and_cancellations_and_nothing_else() {
    let stage = Stage::new().await;
    let worker = stage.accounts.connect("worker").await;
    let mut all = worker.client.subscribe(">").await.unwrap();
    worker.client.flush().await.unwrap();
    let admin = stage.admin();
    for subject in ["inferq.results.acme.new", "inferq.logs.acme.new", "inferq.tokens.acme.new", "$KV.inferq-cache.45"]
    {
        admin.jetstream.publish(subject, SECRET.into()).await.unwrap().await.unwrap();
    }
    admin.client.publish("inferq.live.acme.new", SECRET.into()).await.unwrap();
    admin.client.publish("inferq.cancel.echo.acme.new", "".into()).await.unwrap();
    admin.jetstream.publish("inferq.jobs.echo.default.acme.new", SECRET.into()).await.unwrap().await.unwrap();
    stage.deployment.inferq(&["results", "new", "--tenant", "acme"]);
    let heard: Vec<String> =
        heard(&worker.client, &mut all).await.into_iter().map(|message| message.subject.to_string()).collect();
    let is_allowed = |subject: &String| subject.starts_with("inferq.cancel.") || subject.starts_with("inferq.jobs.");
    assert!(heard.iter().all(is_allowed), "{heard:?}");
    assert_eq!(heard.len(), 2, "{heard:?}");
}
