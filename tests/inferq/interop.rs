//! Other people's clients, with no code of ours on their side: `nats-py` from PyPI.

use std::process::{Command, Output};

use crate::support::{Deployment, echo_registry, python, root};

fn run_python(deployment: &Deployment, script: &str, arguments: &[&str]) -> Output {
    let file = deployment.folder.path().join("script.py");
    std::fs::write(&file, script).unwrap();
    let mut command = Command::new(python());
    command.arg(&file).args(arguments).env("NATS_URL", &deployment.server.url);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output
}

#[tokio::test]
async fn nats_py_publishes_jobs_and_reads_results_and_logs_in_both_encodings() {
    let (deployment, _worker) = Deployment::with_worker(&echo_registry(0, "")).await;
    let script = std::fs::read_to_string(root().join("tests/python/jobs.py")).unwrap();
    let output = run_python(&deployment, &script, &[]);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "ok\n");
}

#[tokio::test]
async fn the_python_of_the_readme_runs_as_it_stands() {
    let readme = std::fs::read_to_string(root().join("README.md")).unwrap();
    let script = readme.split("```python\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
    let registry = std::fs::read_to_string(root().join("workers/models.toml")).unwrap();
    let deployment = Deployment::new(&registry).await;
    let _worker = deployment.worker("all-MiniLM-L6-v2").await;
    let output = run_python(&deployment, script, &[]);
    assert!(!output.stdout.is_empty());
}

#[tokio::test]
async fn generated_schemas_accept_the_messages_on_the_wire() {
    let (deployment, _worker) = Deployment::with_worker(&echo_registry(0, "")).await;
    let script = std::fs::read_to_string(root().join("tests/python/schemas.py")).unwrap();
    let folder = root().join("schemas/json");
    let output = run_python(&deployment, &script, &[folder.to_str().unwrap()]);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "ok\n");
}
