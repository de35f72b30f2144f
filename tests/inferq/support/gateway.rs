//! A gateway in front of a deployment, as a process.

use std::process::{Child, Command, Stdio};

use reqwest::{Method, RequestBuilder};
use serde_json::Value;

use super::{Deployment, eventually, free_port, program, signal};

pub struct Gateway {
    /// `http://127.0.0.1:PORT`.
    pub url: String,
    /// Of /livez, /readyz and /metrics.
    pub admin: String,
    process: Child,
    client: reqwest::Client,
}

impl Gateway {
    /// One that asks for no keys.
    pub async fn open(deployment: &Deployment) -> Self {
        Self::start(deployment, &["--keys", "off"]).await
    }

    /// Starts one and waits until it is ready.
    pub async fn start(deployment: &Deployment, arguments: &[&str]) -> Self {
        let [port, admin] = [free_port(), free_port()].map(|port| format!("127.0.0.1:{port}"));
        let mut command = Command::new(program("inferq"));
        command.args(["gateway", "--server", &deployment.server.url, "--listen", &port, "--admin", &admin]);
        command.args(["--log", "warn"]).args(arguments).stdin(Stdio::null());
        let process = command.spawn().unwrap();
        let (url, admin, client) = (format!("http://{port}"), format!("http://{admin}"), reqwest::Client::new());
        let mut gateway = Self { url, admin, process, client };
        eventually("the gateway is ready", async || {
            assert!(gateway.process.try_wait().unwrap().is_none(), "the gateway has ended");
            let answer = gateway.client.get(format!("{}/readyz", gateway.admin)).send().await.ok()?;
            answer.status().is_success().then_some(())
        })
        .await;
        gateway
    }

    pub fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.client.request(method, format!("{}{path}", self.url))
    }

    pub fn get(&self, path: &str) -> RequestBuilder {
        self.request(Method::GET, path)
    }

    pub fn post(&self, path: &str, body: &Value) -> RequestBuilder {
        self.request(Method::POST, path).json(body)
    }

    pub fn signal(&self, name: &str) {
        signal(name, self.process.id());
    }

    /// Waits for its end and gives its exit code.
    pub async fn exit_code(&mut self) -> Option<i32> {
        eventually("the gateway ends", async || self.process.try_wait().unwrap()).await.code()
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        // It may have been stopped by the test.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
