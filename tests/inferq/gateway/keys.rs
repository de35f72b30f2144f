//! API keys: who may ask, for whom and how much.

use schemas::subject::Lane;
use serde_json::{Value, json};

use crate::support::{Deployment, Gateway, chat, echo_registry, eventually};

/// Makes a key and gives its secret.
pub fn create(deployment: &Deployment, arguments: &[&str]) -> String {
    let output = deployment.inferq(&[&["keys", "create", "--name", "test"], arguments].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

fn body() -> Value {
    chat("hello")["body"].clone()
}

#[tokio::test]
async fn a_key_opens_its_tenant_until_it_is_revoked() {
    let (deployment, _worker) = Deployment::with_worker(&echo_registry(0, "")).await;
    let gateway = Gateway::start(&deployment, &[]).await;
    let ask =
        async |secret: &str| gateway.post("/v1/chat/completions", &body()).bearer_auth(secret).send().await.unwrap();
    assert_eq!(gateway.post("/v1/chat/completions", &body()).send().await.unwrap().status(), 401);
    assert_eq!(ask("sk-inferq-wrong").await.status(), 401);
    let secret = create(&deployment, &["--tenant", "acme"]);
    eventually("the key is known", async || (ask(&secret).await.status() == 200).then_some(())).await;
    let answer = ask(&secret).await;
    let job_id = answer.headers()["x-inferq-job-id"].to_str().unwrap().to_owned();
    let path = format!("/v1/jobs/{job_id}");
    assert_eq!(gateway.get(&path).bearer_auth(&secret).send().await.unwrap().status(), 200);
    let other = create(&deployment, &["--tenant", "other"]);
    eventually("it is not there for another tenant", async || {
        (gateway.get(&path).bearer_auth(&other).send().await.unwrap().status() == 404).then_some(())
    })
    .await;
    let listed = String::from_utf8(deployment.inferq(&["keys", "list", "--output", "json"]).stdout).unwrap();
    let keys: Vec<Value> = listed.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(keys.len() == 2 && !listed.contains(&secret), "{listed}");
    let id = keys.iter().find(|key| key["tenant"] == "acme").unwrap()["id"].as_str().unwrap().to_owned();
    assert!(deployment.inferq(&["keys", "revoke", &id]).status.success());
    eventually("the key is refused", async || (ask(&secret).await.status() == 401).then_some(())).await;
}

#[tokio::test]
async fn a_key_limits_lanes_rate_and_jobs() {
    // Nobody works: jobs stay.
    let deployment = Deployment::new(&echo_registry(0, "")).await;
    let flags = ["--lane", "flex", "--requests-per-minute", "4", "--jobs-max", "1"];
    let secret = create(&deployment, &flags);
    let gateway = Gateway::start(&deployment, &[]).await;
    let create = async |body: Value| {
        let job = json!({ "url": "/v1/chat/completions", "body": body });
        let answer = gateway.post("/v1/jobs", &job).bearer_auth(&secret).send().await.unwrap();
        let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
        (status, headers, answer.json::<Value>().await.unwrap())
    };
    let (status, _, job) = create(body()).await;
    assert_eq!((status, job["lane"].as_str()), (202, Some(Lane::Flex.as_str())));
    let mut urgent = body();
    urgent["service_tier"] = "priority".into();
    assert_eq!(create(urgent).await.0, 403);
    let (status, headers, refused) = create(body()).await;
    assert_eq!((status, refused["error"]["code"].as_str()), (429, Some("queue_limit_exceeded")));
    assert!(headers.contains_key("retry-after"));
    assert_eq!(create(body()).await.0, 429);
    let (status, headers, refused) = create(body()).await;
    assert_eq!((status, refused["error"]["code"].as_str()), (429, Some("rate_limit_exceeded")));
    assert!(headers["retry-after"].to_str().unwrap().parse::<u64>().unwrap() <= 15);
}
