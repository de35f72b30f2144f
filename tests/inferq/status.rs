//! Backlog and place: how long what waits will take, where one job stands, and who is noted to have jobs.

use producer::standing::Standing;
use producer::{Submission, SubmitOptions};
use schemas::codec::Encoding;
use schemas::stream::JOBS;
use schemas::subject::{JobId, Lane};
use serde_json::{Value, json};

use crate::support::{Deployment, chat, echo_registry, eventually, submission, tenant};

const JOBS_WAITING: u64 = 300;
const COST: f64 = 100.0;

/// A worker takes 50 ms for each job.
fn registry() -> String {
    echo_registry(50, "in_flight = 4\nbatch = 1")
}

fn costing(cost: f64) -> Submission {
    let options = SubmitOptions { cost: Some(cost), ..SubmitOptions::default() };
    Submission { options, ..submission(&chat("x"), Encoding::Json) }
}

/// Publishes jobs of one cost and gives their ids in their order.
async fn publish(deployment: &Deployment) -> Vec<JobId> {
    let mut ids = Vec::new();
    for _ in 0..JOBS_WAITING {
        let submission = costing(COST);
        deployment.client.submit(&submission).await.unwrap();
        ids.push(submission.address.job_id);
    }
    ids
}

fn status(deployment: &Deployment) -> Value {
    serde_json::from_slice(&deployment.inferq(&["status", "--output", "json"]).stdout).unwrap()
}

/// The columns of the default lane's line.
fn columns(deployment: &Deployment) -> Vec<String> {
    let text = String::from_utf8(deployment.inferq(&["status"]).stdout).unwrap();
    let line = text.lines().find(|line| line.starts_with("echo") && line.contains(" default ")).unwrap();
    line.split_whitespace().map(str::to_owned).collect()
}

fn lane(status: &Value, name: &str) -> Value {
    status["lanes"].as_array().unwrap().iter().find(|lane| lane["lane"] == name).unwrap().clone()
}

#[tokio::test]
async fn a_backlog_is_told_in_seconds_once_a_worker_knows_its_pace() {
    let deployment = Deployment::new(&registry()).await;
    publish(&deployment).await;
    let before = status(&deployment);
    assert_eq!(lane(&before, "default")["queued"], JOBS_WAITING);
    assert_eq!(lane(&before, "default")["backlog_seconds"], Value::Null);
    assert_eq!(before["models"]["echo"]["backlog_seconds"], Value::Null);
    assert_eq!(columns(&deployment)[5], "-");

    let _worker = deployment.worker("echo").await;
    let known = eventually("the backlog is known", async || {
        let status = status(&deployment);
        status["models"]["echo"]["backlog_seconds"].is_f64().then_some(status)
    })
    .await;
    let (model, lane) = (&known["models"]["echo"], lane(&known, "default"));
    let unit_seconds = model["unit_seconds"].as_f64().unwrap();
    assert!(unit_seconds >= 0.000_4, "a job of 100 units takes 50 ms: {known}");
    assert_eq!(model["job_cost"], COST);
    let (queued, backlog) = (lane["queued"].as_f64().unwrap(), lane["backlog_seconds"].as_f64().unwrap());
    assert!(queued > 0.0 && (backlog - queued * COST * unit_seconds).abs() < 1e-6, "{known}");
    assert_eq!(model["backlog_seconds"], lane["backlog_seconds"], "no other lane has jobs");
    assert!(columns(&deployment)[5].ends_with(['s', 'm']), "{:?}", columns(&deployment));
}

#[tokio::test]
async fn a_waiting_job_knows_its_place_and_about_when_its_turn_comes() {
    let deployment = Deployment::new(&registry()).await;
    let (ids, tenant) = (publish(&deployment).await, tenant());
    let place = async |id: &JobId| match deployment.client.standing(&tenant, id).await.unwrap() {
        Standing::Waiting { position, eta_seconds, .. } => Some((position, eta_seconds)),
        _ => None,
    };
    for index in [0, 6, 299] {
        assert_eq!(place(&ids[index]).await, Some((index as u64 + 1, None)));
    }
    let text = deployment.inferq(&["status", ids[6].as_str()]);
    let text = String::from_utf8(text.stdout).unwrap();
    assert!(text.contains("waiting for echo in lane default, about number 7; no worker"), "{text}");

    let _worker = deployment.worker("echo").await;
    let eta = eventually("the last job has an ETA", async || {
        let (position, eta) = place(&ids[299]).await.expect("it waits for fifteen seconds and more");
        eta.map(|eta| (position, eta))
    })
    .await;
    // 50 ms for each of those before it, on a machine that has nothing else to do.
    assert!(eta.1 >= (eta.0 - 1) as f64 * 0.04, "{eta:?}");
    eventually("the first job is answered", async || {
        let standing = deployment.client.standing(&tenant, &ids[0]).await.unwrap();
        (standing == Standing::Answered { status_code: 200 }).then_some(())
    })
    .await;
    let answered = deployment.inferq(&["status", ids[0].as_str(), "--output", "json"]);
    let answered: Value = serde_json::from_slice(&answered.stdout).unwrap();
    assert_eq!(answered, json!({ "job_id": ids[0].as_str(), "state": "answered", "status_code": 200 }));
}

#[tokio::test]
async fn a_running_job_is_told_with_its_worker_and_an_unknown_one_with_an_exit_code() {
    let registry = echo_registry(50, "").replace("echo = {", "echo = { step_tokens = 1,");
    let deployment = Deployment::new(&registry).await;
    let _worker = deployment.worker_with("echo", &["--name", "w-1"]).await;
    let id = deployment.submit(&chat(&"x".repeat(1000)), Encoding::Json).await;
    let expected = Standing::Running {
        model: "echo".to_owned(),
        lane: "default".to_owned(),
        worker: Some("w-1".to_owned()),
        attempt: Some(1),
    };
    eventually("the job runs", async || {
        let standing = deployment.client.standing(&tenant(), &id).await.unwrap();
        assert!(!matches!(standing, Standing::Unknown | Standing::Answered { .. }), "{standing:?}");
        (standing == expected).then_some(())
    })
    .await;
    let running = String::from_utf8(deployment.inferq(&["status", id.as_str()]).stdout).unwrap();
    assert_eq!(running, format!("{id} running on w-1, attempt 1, for echo in lane default\n"));

    let unknown = deployment.inferq(&["status", "nope", "--output", "json"]);
    assert_eq!(unknown.status.code(), Some(1));
    assert_eq!(
        serde_json::from_slice::<Value>(&unknown.stdout).unwrap(),
        json!({ "job_id": "nope", "state": "unknown" })
    );
    let of_other = deployment.inferq(&["status", id.as_str(), "--tenant", "other"]);
    assert_eq!(of_other.status.code(), Some(1));
}

#[tokio::test]
async fn a_client_notes_each_tenant_of_a_lane_once() {
    let deployment = Deployment::new(&registry()).await;
    let noted = async || deployment.count("KV_inferq-tenants").await;
    let submit = async |lane: Lane, tenant: &str| {
        let mut submission = costing(COST);
        submission.address.lane = lane;
        submission.address.tenant = tenant.to_owned();
        // Clones know what the others have noted.
        deployment.client.clone().submit(&submission).await.unwrap();
    };
    submit(Lane::Default, "a.b").await;
    submit(Lane::Default, "a.b").await;
    submit(Lane::Flex, "a.b").await;
    submit(Lane::Default, "c").await;
    eventually("the last tenant is noted", async || {
        let bucket = deployment.stream("KV_inferq-tenants").await;
        bucket.direct_get_last_for_subject("$KV.inferq-tenants.echo.default.c").await.ok()
    })
    .await;
    // The second job of the first tenant would have been noted before.
    assert_eq!(noted().await, (3, 3));
    assert_eq!(deployment.count(JOBS).await.0, 4);
    let bucket = deployment.stream("KV_inferq-tenants").await;
    assert!(bucket.direct_get_last_for_subject("$KV.inferq-tenants.echo.flex.a=2Eb").await.is_ok());
}
