//! What the dashboard is fed with, and who is let in.

use futures::StreamExt;
use serde_json::{Value, json};

use super::keys::create;
use crate::support::{Deployment, Gateway, chat, echo_registry, eventually};

/// The first event.
async fn snapshot(answer: reqwest::Response) -> Value {
    let (mut bytes, mut text) = (answer.bytes_stream(), String::new());
    loop {
        text += std::str::from_utf8(&bytes.next().await.unwrap().unwrap()).unwrap();
        if let Some((event, _)) = text.split_once("\n\n") {
            return serde_json::from_str(event.strip_prefix("data: ").unwrap()).unwrap();
        }
    }
}

#[tokio::test]
async fn operators_see_queues_workers_and_dead_letters() {
    let (deployment, _worker) = Deployment::with_worker(&echo_registry(0, "attempts = 1")).await;
    let gateway = Gateway::start(&deployment, &["--keys", "off", "--show-payloads"]).await;
    let page = gateway.get("/").send().await.unwrap();
    assert!(page.headers()["content-security-policy"].to_str().unwrap().contains("script-src 'self'"));
    let page = page.text().await.unwrap();
    for part in page.split("\"/dashboard/").skip(1).map(|rest| rest.split('"').next().unwrap()) {
        assert_eq!(gateway.get(&format!("/dashboard/{part}")).send().await.unwrap().status(), 200, "{part}");
    }
    let id = deployment.publish_raw(b"no job", &[]).await;
    deployment.result(&id).await;
    let seen = eventually("the dead letter is counted", async || {
        let seen = snapshot(gateway.get("/dashboard/events").send().await.unwrap()).await;
        (seen["dead"]["messages"] == 1).then_some(seen)
    })
    .await;
    assert_eq!(seen["workers"][0]["device"], "cpu");
    let lanes: Vec<&str> =
        seen["queues"].as_array().unwrap().iter().map(|queue| queue["lane"].as_str().unwrap()).collect();
    assert_eq!(lanes, ["default", "flex", "lifted", "priority"]);
    let dead = gateway.get("/dashboard/dead").send().await.unwrap().json::<Value>().await.unwrap();
    assert_eq!((&dead["data"][0]["job_id"], &dead["data"][0]["class"]), (&json!(id), &json!("invalid")));
    let place = format!("/dashboard/dead/default/{id}");
    let shown = gateway.get(&place).send().await.unwrap().json::<Value>().await.unwrap();
    assert_eq!(shown["body"], "no job");
    eventually("the job is gone", async || (deployment.count(schemas::stream::JOBS).await.0 == 0).then_some(())).await;
    let replayed = gateway.request(reqwest::Method::POST, &format!("{place}/replay")).send().await.unwrap();
    assert_eq!(replayed.json::<Value>().await.unwrap()["replayed"], "queued");
}

#[tokio::test]
async fn a_tenants_key_does_not_open_what_is_everybodys() {
    let deployment = Deployment::new(&echo_registry(0, "")).await;
    let (own, operator) = (create(&deployment, &[]), create(&deployment, &["--operator"]));
    let gateway = Gateway::start(&deployment, &[]).await;
    gateway.post("/v1/jobs", &chat("x")).bearer_auth(&own).send().await.unwrap().error_for_status().unwrap();
    for path in ["/dashboard/events", "/dashboard/dead"] {
        assert_eq!(gateway.get(path).send().await.unwrap().status(), 401, "{path}");
        assert_eq!(gateway.get(path).bearer_auth(&own).send().await.unwrap().status(), 403, "{path}");
        assert_eq!(gateway.get(path).bearer_auth(&operator).send().await.unwrap().status(), 200, "{path}");
    }
    // Payloads are nobody's business unless the gateway was told so.
    let answer = gateway.get("/dashboard/dead/default/x").bearer_auth(&operator).send().await.unwrap();
    assert_eq!(answer.status(), 403);
}
