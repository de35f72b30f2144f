//! What tests stand on: a real nats-server, real worker processes, and waiting without ordering things by time.

#[allow(dead_code, reason = "the tests use it")]
mod accounts;
mod certificates;
mod cluster;
mod deployment;
#[allow(dead_code, reason = "the tests use it")]
mod gateway;
mod operator;
mod programs;
#[allow(dead_code, reason = "the chaos program uses it")]
mod proxy;
mod server;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

#[allow(unused_imports, reason = "the tests name it")]
pub use accounts::Accounts;
pub use certificates::Certificates;
pub use cluster::Cluster;
#[allow(unused_imports, reason = "the benchmarks name it")]
pub use deployment::WorkerProcess;
pub use deployment::{Deployment, TENANT, flags, submission, tenant};
#[allow(unused_imports, reason = "the tests name it")]
pub use gateway::Gateway;
pub use operator::Operator;
#[allow(unused_imports, reason = "the tests name it")]
pub use programs::node;
pub use programs::{program, python, run, signal};
#[allow(unused_imports, reason = "the chaos program names them")]
pub use proxy::{Line, Proxy};
pub use server::Server;
#[allow(unused_imports, reason = "the tests name it")]
pub use server::free_port;

/// How long anything may take that takes no time on an idle machine.
pub const PATIENCE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(50);

/// The root of the repository.
pub fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// Waits until `condition` gives a value; fails with `what` when it never does.
pub async fn eventually<T>(what: &str, mut condition: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = condition().await {
            return value;
        }
        assert!(Instant::now() < deadline, "did not happen within {PATIENCE:?}: {what}");
        tokio::time::sleep(POLL).await;
    }
}

/// How long a fault lasts, or a moment between two tries or two requests. Nothing is ordered by it.
#[allow(dead_code, reason = "the chaos program and a benchmark use it")]
pub async fn lasting(duration: Duration) {
    tokio::time::sleep(duration).await;
}

/// A registry with one echo model named `echo`. `limits` are lines of its `[models.limits]`.
pub fn echo_registry(step_milliseconds: u64, limits: &str) -> String {
    format!(
        "[[models]]\nname = \"echo\"\ntask = \"echo\"\necho = {{ step_milliseconds = {step_milliseconds} }}\n[models.limits]\n{limits}\n"
    )
}

/// A chat job for the echo model.
pub fn chat(content: &str) -> Value {
    let body = json!({ "model": "echo", "messages": [{ "role": "user", "content": content }] });
    json!({ "url": "/v1/chat/completions", "body": body })
}

/// How a result was made.
#[allow(dead_code, reason = "the tests use it")]
pub fn provenance(headers: &async_nats::HeaderMap) -> schemas::provenance::Provenance {
    let value = headers.get(schemas::header::PROVENANCE).expect("a worker stored the result");
    serde_json::from_str(value.as_str()).unwrap()
}

/// The text of a chat result's only choice.
pub fn content(result: &Value) -> &str {
    result["response"]["body"]["choices"][0]["message"]["content"]
        .as_str()
        .unwrap_or_else(|| panic!("no content in {result}"))
}
