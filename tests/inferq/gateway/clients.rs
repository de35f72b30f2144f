//! OpenAI's own clients, unmodified, from their package registries.

use std::process::Command;

use crate::support::{Deployment, Gateway, echo_registry, python, root};

#[tokio::test]
async fn the_python_client_finds_what_it_knows() {
    let registry = echo_registry(1, "in_flight = 16").replace("echo = {", "echo = { step_tokens = 1,");
    let (deployment, _worker) = Deployment::with_worker(&registry).await;
    let gateway = Gateway::open(&deployment).await;
    let script = root().join("tests/python/openai_client.py");
    let url = gateway.url.clone();
    let run = move || Command::new(python()).arg(script).arg(url).output().unwrap();
    let output = tokio::task::spawn_blocking(run).await.unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && out.ends_with("ok\n"), "{out}\n{err}");
}
