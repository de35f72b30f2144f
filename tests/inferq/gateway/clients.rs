//! OpenAI's own clients, unmodified, from their package registries.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::support::{Deployment, Gateway, echo_registry, node, python, root};

/// Runs a client's script against a gateway in front of an echo model that takes a moment for each token.
async fn runs(made: impl FnOnce() -> (PathBuf, PathBuf) + Send + 'static) {
    let registry = echo_registry(1, "in_flight = 16").replace("echo = {", "echo = { step_tokens = 1,");
    let (deployment, _worker) = Deployment::with_worker(&registry).await;
    let gateway = Gateway::open(&deployment).await;
    let url = gateway.url.clone();
    let run = move || {
        let (program, script) = made();
        Command::new(program).arg(script).arg(url).output().unwrap()
    };
    is_ok(&tokio::task::spawn_blocking(run).await.unwrap());
}

#[tokio::test]
async fn the_python_client_finds_what_it_knows() {
    runs(|| (Path::to_path_buf(python()), root().join("tests/python/openai_client.py"))).await;
}

#[tokio::test]
async fn the_node_client_finds_what_it_knows() {
    runs(|| node("openai_client.mjs")).await;
}

#[tokio::test]
async fn the_clients_get_answers_of_real_models() {
    const MODELS: [&str; 3] = ["SmolLM2-135M-Instruct", "all-MiniLM-L6-v2", "whisper-tiny.en"];
    let registry = std::fs::read_to_string(root().join("workers/models.toml")).unwrap();
    let deployment = Deployment::new(&registry).await;
    let _workers =
        [deployment.worker(MODELS[0]).await, deployment.worker(MODELS[1]).await, deployment.worker(MODELS[2]).await];
    let gateway = Gateway::open(&deployment).await;
    let (script, url, speech) =
        (root().join("tests/python/openai_model.py"), gateway.url.clone(), root().join("tests/speech"));
    let run = move || Command::new(python()).arg(script).arg(url).args(MODELS).arg(speech).output().unwrap();
    is_ok(&tokio::task::spawn_blocking(run).await.unwrap());
    let (url, speech) = (gateway.url.clone(), root().join("tests/speech"));
    let run = move || {
        let (node, script) = node("openai_model.mjs");
        Command::new(node).arg(script).arg(url).arg(MODELS[2]).arg(speech).output().unwrap()
    };
    is_ok(&tokio::task::spawn_blocking(run).await.unwrap());
}

fn is_ok(output: &Output) {
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && out.ends_with("ok\n"), "{out}\n{err}");
}
