//! A tenant's credentials, used on what is another tenant's or the operator's.

use async_nats::connection::State;
use futures::StreamExt;
use serde_json::json;

use super::{ATTACKER, SECRET, Stage, VICTIM, answer, heard, job, tells};
use crate::support::eventually;

/// Where a tenant has no business to publish.
const SUBJECTS: [&str; 25] = [
    "inferq.jobs.echo.default.acme.forged",
    "inferq.jobs.echo.priority.acme.forged",
    "inferq.jobs.echo.flex.acme.forged",
    "inferq.jobs.echo.lifted.acme.forged",
    "inferq.jobs.echo.lifted.mallory.forged",
    "inferq.jobs.echo.default.*.forged",
    "inferq.jobs.echo.default.>",
    "inferq.results.acme.forged",
    "inferq.results.acme.done",
    "inferq.results.mallory.forged",
    "inferq.live.acme.forged",
    "inferq.logs.acme.done",
    "inferq.logs.mallory.forged",
    "inferq.tokens.acme.done",
    "inferq.tokens.mallory.forged",
    "inferq.dead.echo.default.acme.dead",
    "inferq.cancel.echo.acme.waiting",
    "inferq.pace",
    "$SRV.PING.inferq-worker",
    "$KV.inferq-cache.0123",
    "$KV.inferq-attempts.acme.waiting",
    "$KV.inferq-tenants.echo.default.acme",
    "$O.inferq-inputs.C.chunk",
    "$O.inferq-inputs.M.bWV0YQ==",
    "$O.inferq-blobs.M.bWV0YQ==",
];

/// Requests of the JetStream API, each with a body that does harm or tells something where it is allowed.
fn requests() -> Vec<(String, String)> {
    let stream = json!({ "name": "MINE", "subjects": ["inferq.results.>"] }).to_string();
    let consumer = |stream: &str, filter: &str| {
        let config = json!({ "name": "spy", "filter_subject": filter, "deliver_subject": "spy", "ack_policy": "none" });
        json!({ "stream_name": stream, "config": config }).to_string()
    };
    let get = |body: serde_json::Value| body.to_string();
    let mut all = vec![
        ("INFO".to_owned(), String::new()),
        ("STREAM.NAMES".to_owned(), String::new()),
        ("STREAM.LIST".to_owned(), String::new()),
        ("STREAM.CREATE.MINE".to_owned(), stream.clone()),
        ("META.LEADER.STEPDOWN".to_owned(), String::new()),
        ("ACCOUNT.PURGE.CORE".to_owned(), String::new()),
        ("SERVER.REMOVE".to_owned(), get(json!({ "peer": "x" }))),
    ];
    for name in ["INFERQ_JOBS", "INFERQ_RESULTS", "INFERQ_LOGS", "INFERQ_TOKENS", "INFERQ_DEAD", "INFERQ_ADVISORIES"] {
        let more = [
            (format!("STREAM.INFO.{name}"), get(json!({ "subjects_filter": ">" }))),
            (format!("STREAM.UPDATE.{name}"), stream.clone()),
            (format!("STREAM.PURGE.{name}"), String::new()),
            (format!("STREAM.DELETE.{name}"), String::new()),
            (format!("STREAM.MSG.GET.{name}"), get(json!({ "seq": 1 }))),
            (format!("STREAM.MSG.DELETE.{name}"), get(json!({ "seq": 1 }))),
            (format!("STREAM.SNAPSHOT.{name}"), get(json!({ "deliver_subject": "spy" }))),
            (format!("STREAM.LEADER.STEPDOWN.{name}"), String::new()),
            (format!("DIRECT.GET.{name}"), get(json!({ "seq": 1 }))),
            (format!("DIRECT.GET.{name}"), get(json!({ "multi_last": [">"], "batch": 10 }))),
            (format!("CONSUMER.NAMES.{name}"), String::new()),
            (format!("CONSUMER.LIST.{name}"), String::new()),
            (format!("CONSUMER.CREATE.{name}"), consumer(name, "")),
            (format!("CONSUMER.CREATE.{name}.spy"), consumer(name, "")),
            (
                format!("CONSUMER.CREATE.{name}.spy.inferq.results.mallory.*"),
                consumer(name, "inferq.results.mallory.*"),
            ),
            (format!("CONSUMER.DURABLE.CREATE.{name}.spy"), consumer(name, "")),
        ];
        all.extend(more);
    }
    for name in ["KV_inferq-cache", "KV_inferq-attempts", "KV_inferq-tenants", "OBJ_inferq-inputs", "OBJ_inferq-blobs"]
    {
        for (verb, body) in [
            ("STREAM.INFO", json!({})),
            ("STREAM.PURGE", json!({})),
            ("STREAM.DELETE", json!({})),
            ("DIRECT.GET", json!({ "seq": 1 })),
        ] {
            all.push((format!("{verb}.{name}"), body.to_string()));
        }
    }
    for consumer in ["INFERQ_JOBS.echo_default", "INFERQ_JOBS.echo_lifted", "INFERQ_RESULTS.logger_results"] {
        all.push((format!("CONSUMER.MSG.NEXT.{consumer}"), get(json!({ "batch": 10, "expires": 1_000_000_000_u64 }))));
        all.push((format!("CONSUMER.DELETE.{consumer}"), String::new()));
        all.push((format!("CONSUMER.PAUSE.{consumer}"), get(json!({ "pause_until": "2099-01-01T00:00:00Z" }))));
        all.push((format!("CONSUMER.LEADER.STEPDOWN.{consumer}"), String::new()));
        all.push((format!("CONSUMER.UNPIN.{consumer}"), get(json!({ "group": "x" }))));
    }
    for subject in [
        "INFERQ_RESULTS.inferq.results.acme.done",
        "INFERQ_RESULTS.inferq.results.*.done",
        "INFERQ_RESULTS.inferq.results.>",
        "INFERQ_RESULTS.>",
        "INFERQ_LOGS.inferq.logs.acme.done",
        "INFERQ_TOKENS.inferq.tokens.acme.done",
        "INFERQ_JOBS.inferq.jobs.echo.default.acme.waiting",
        "INFERQ_JOBS.inferq.jobs.echo.default.mallory.waiting",
        "INFERQ_DEAD.inferq.dead.echo.default.acme.dead",
        "KV_inferq-cache.$KV.inferq-cache.0123",
        "OBJ_inferq-blobs.$O.inferq-blobs.C.chunk",
    ] {
        all.push((format!("DIRECT.GET.{subject}"), String::new()));
    }
    // What is its own to ask for, with a body that names something else.
    for body in [
        json!({ "last_by_subj": "inferq.results.acme.done" }),
        json!({ "next_by_subj": "inferq.results.acme.*", "seq": 1 }),
        json!({ "seq": 1 }),
        json!({ "multi_last": ["inferq.results.acme.*"], "batch": 10 }),
    ] {
        all.push(("DIRECT.GET.INFERQ_RESULTS.inferq.results.mallory.done".to_owned(), body.to_string()));
        all.push(("DIRECT.GET.INFERQ_RESULTS.inferq.results.mallory.*".to_owned(), body.to_string()));
    }
    all
}

async fn check_publishing(stage: &Stage) {
    let attacker = stage.accounts.connect(&format!("tenant-{ATTACKER}")).await;
    let before = stage.seen().await;
    for subject in SUBJECTS {
        assert!(answer(&attacker.client, subject, None, "forged").await.is_none(), "{subject} was answered");
        stage.check_unchanged(&before, subject).await;
    }
    // The same is done by whom it is allowed to.
    let victim = stage.accounts.connect(&format!("tenant-{VICTIM}")).await;
    assert!(answer(&victim.client, SUBJECTS[0], None, &job()).await.is_some_and(|ack| !ack.payload.is_empty()));
    assert_ne!(before, stage.seen().await);
}

async fn check_api(stage: &Stage) {
    let attacker = stage.accounts.connect(&format!("tenant-{ATTACKER}")).await;
    let before = stage.seen().await;
    for (name, body) in requests() {
        for prefix in ["CORE.API", "$JS.API", "$JS.CORE.API", "$JS.hub.API"] {
            let subject = format!("{prefix}.{name}");
            if let Some(answer) = answer(&attacker.client, &subject, None, &body).await {
                let text = String::from_utf8_lossy(&answer.payload).into_owned();
                // Its own account has no JetStream, and what is its own to get is not there, or asked for wrongly.
                let is_refusal = answer.status.is_some_and(|status| status.as_u16() >= 400);
                assert!(is_refusal || text.contains("\"code\":503"), "{subject} {body}: {text}");
                assert!(!tells(&answer), "{subject} {body}: {text}");
            }
        }
    }
    stage.check_unchanged(&before, "requests of the API").await;
    let operator = answer(&stage.admin().client, "$JS.API.STREAM.MSG.GET.INFERQ_RESULTS", None, "{\"seq\":1}").await;
    assert!(operator.is_some_and(|answer| answer.payload.len() > 50));
}

#[tokio::test]
async fn a_tenant_publishes_nowhere_but_to_its_own_jobs() {
    check_publishing(&Stage::new().await).await;
}

#[tokio::test]
async fn a_tenant_asks_the_api_for_nothing_but_its_own_results() {
    check_api(&Stage::new().await).await;
}

#[tokio::test]
async fn an_operators_claims_draw_the_same_borders() {
    let stage = Stage::with(&["--operator"]).await;
    check_publishing(&stage).await;
    check_api(&stage).await;
}

#[tokio::test]
async fn a_tenant_acknowledges_no_jobs() {
    let stage = Stage::new().await;
    // A job is delivered to a worker that is still at it.
    let worker = stage.accounts.connect("worker").await;
    let consumer: async_nats::jetstream::consumer::PullConsumer =
        worker.jetstream.get_consumer_from_stream("echo_default", "INFERQ_JOBS").await.unwrap();
    let delivered = consumer.fetch().max_messages(1).messages().await.unwrap().next().await.unwrap().unwrap();
    let ack = delivered.message.reply.clone().unwrap().to_string();
    assert!(ack.starts_with("$JS.ACK."), "{ack}");
    let before = stage.seen().await;
    let tokens: Vec<&str> = ack.split('.').skip(2).collect();
    let other = format!("$JS.ACK.hub.hash.{}", tokens.join("."));
    let attacker = stage.accounts.connect(&format!("tenant-{ATTACKER}")).await;
    for subject in [ack.clone(), other, format!("CORE.API.{ack}"), "$JS.ACK.INFERQ_JOBS.>".to_owned()] {
        for kind in ["+ACK", "+TERM", "-NAK", "+WPI", "+NXT", ""] {
            assert!(answer(&attacker.client, &subject, None, kind).await.is_none(), "{subject} {kind}");
        }
    }
    stage.check_unchanged(&before, "acknowledgements").await;
    delivered.double_ack().await.unwrap();
    eventually("the worker's own is taken", async || (before != stage.seen().await).then_some(())).await;
}

#[tokio::test]
async fn a_tenant_hears_nothing_of_others() {
    let stage = Stage::new().await;
    let _worker = stage.worker().await;
    let attacker = stage.accounts.connect(&format!("tenant-{ATTACKER}")).await;
    let victim = stage.accounts.connect(&format!("tenant-{VICTIM}")).await;
    // Each on its own, since an import is found by what it has in common with a subscription.
    let wanted = [
        ">",
        "*",
        "_INBOX.>",
        "_INBOX.*.*",
        "_R_.>",
        "$SYS.>",
        "$JS.>",
        "$JS.EVENT.>",
        "$SRV.>",
        "$KV.>",
        "$O.>",
        "CORE.API.>",
        "inferq.>",
        "inferq.live.>",
        "inferq.live.*.*",
        "inferq.live.acme.*",
        "inferq.*.acme.>",
        "inferq.jobs.>",
        "inferq.results.acme.*",
        "inferq.logs.*.*",
        "inferq.tokens.*.*",
        "inferq.cancel.>",
        "inferq.dead.>",
        "inferq.pace",
    ];
    let mut ears = Vec::new();
    for subject in wanted {
        ears.push((subject, attacker.client.subscribe(subject).await.unwrap()));
    }
    let mut all = victim.client.subscribe(">").await.unwrap();
    attacker.client.flush().await.unwrap();
    victim.client.flush().await.unwrap();
    let body = json!({ "model": "echo", "messages": [{ "role": "user", "content": SECRET }], "stream": true });
    let job = json!({ "url": "/v1/chat/completions", "body": body }).to_string();
    victim.jetstream.publish("inferq.jobs.echo.default.acme.j", job.into()).await.unwrap().await.unwrap();
    let (_, result) = result_of(&stage, "acme", "j").await;
    assert!(result.contains(SECRET));
    let logs = stage.deployment.stream("INFERQ_LOGS").await;
    eventually("its log is stored", async || logs.direct_get_last_for_subject("inferq.logs.acme.j").await.ok()).await;
    stage.deployment.inferq(&["status"]);
    stage.deployment.inferq(&["cancel", "--tenant", VICTIM, "waiting"]);
    // A control: the victim hears of its result and its tokens.
    let of_victim = heard(&victim.client, &mut all).await;
    for name in ["inferq.live.acme.j", "inferq.live.tokens.acme.j"] {
        assert!(of_victim.iter().any(|message| message.subject.as_str() == name), "{name} was not heard");
    }
    let (_, mut everything) = ears.remove(0);
    for message in heard(&attacker.client, &mut everything).await {
        assert!(!tells(&message) && !message.subject.contains("acme"), "heard {message:?}");
    }
    // What has come to one that hears everything has come to the others.
    for (subject, mut ear) in ears {
        while let Some(Some(message)) = futures::FutureExt::now_or_never(ear.next()) {
            let is_own = message.subject.starts_with("_INBOX.") || message.subject.as_str() == "own.last.word";
            assert!(is_own && !tells(&message), "{subject} has heard {message:?}");
        }
    }
    assert_eq!(attacker.client.connection_state(), State::Connected);
}

#[tokio::test]
async fn a_reply_subject_leads_out_of_no_account() {
    let stage = Stage::new().await;
    let attacker = stage.accounts.connect(&format!("tenant-{ATTACKER}")).await;
    let before = stage.seen().await;
    for reply in [
        "inferq.results.acme.forged",
        "inferq.jobs.echo.default.acme.forged",
        "inferq.cancel.echo.acme.waiting",
        "$JS.API.STREAM.PURGE.INFERQ_JOBS",
        "$JS.API.STREAM.DELETE.INFERQ_RESULTS",
        "CORE.API.STREAM.PURGE.INFERQ_JOBS",
        "$JS.ACK.INFERQ_JOBS.echo_default.1.1.1.1.1",
        "$KV.inferq-cache.0123",
        "$SYS.REQ.SERVER.PING",
    ] {
        let get = "CORE.API.DIRECT.GET.INFERQ_RESULTS.inferq.results.mallory.x";
        attacker.client.publish_with_reply(get, reply, "".into()).await.unwrap();
        let refused = "inferq.jobs.none.default.mallory.x";
        attacker.client.publish_with_reply(refused, reply, "".into()).await.unwrap();
    }
    attacker.client.flush().await.unwrap();
    stage.check_unchanged(&before, "reply subjects").await;
    // Nor to where it may publish by itself: an answer is no request.
    let own = "inferq.jobs.echo.default.mallory.own";
    let get = "CORE.API.DIRECT.GET.INFERQ_RESULTS.inferq.results.mallory.x";
    attacker.client.publish_with_reply(get, own, "".into()).await.unwrap();
    attacker.client.flush().await.unwrap();
    stage.check_unchanged(&before, "an answer as a job").await;
    assert!(answer(&attacker.client, own, None, &job()).await.is_some(), "it may publish there");
}

/// The stored result of any tenant's job.
pub async fn result_of(stage: &Stage, tenant: &str, job_id: &str) -> (async_nats::HeaderMap, String) {
    let subject = format!("inferq.results.{tenant}.{job_id}");
    let results = stage.deployment.stream("INFERQ_RESULTS").await;
    let stored =
        eventually("a result is stored", async || results.direct_get_last_for_subject(&subject).await.ok()).await;
    (stored.headers, String::from_utf8_lossy(&stored.payload).into_owned())
}
