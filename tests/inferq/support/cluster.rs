//! A JetStream cluster of three real servers.

use async_nats::jetstream::Context;
use connect::{FirstConnect, NatsArgs};

use super::eventually;
use super::server::{Server, free_port};

const NODES: usize = 3;

/// Killed when it is dropped.
pub struct Cluster {
    nodes: Vec<Server>,
    /// How somebody connects who may ask for JetStream, but for the server.
    admin: NatsArgs,
}

impl Cluster {
    /// Three servers that know each other and have chosen a leader.
    pub async fn start() -> Self {
        Self::with("", NatsArgs::to("")).await
    }

    /// With further lines in each server's configuration.
    pub async fn with(lines: &str, admin: NatsArgs) -> Self {
        let routes: Vec<u16> = (0..NODES).map(|_| free_port()).collect();
        let urls: Vec<String> = routes.iter().map(|port| format!("\"nats://127.0.0.1:{port}\"")).collect();
        let config = |node: usize| {
            let (name, port, urls) = (name(node), routes[node], urls.join(", "));
            format!(
                "server_name: {name}\ncluster {{ name: inferq, listen: \"127.0.0.1:{port}\", routes: [{urls}] }}\n{lines}"
            )
        };
        let cluster = Self { nodes: (0..NODES).map(|node| Server::with(&config(node))).collect(), admin };
        for node in 0..NODES {
            cluster.ready(node).await;
        }
        cluster
    }

    /// All nodes' URLs, separated by commas.
    pub fn urls(&self) -> String {
        self.nodes.iter().map(|node| node.url.as_str()).collect::<Vec<_>>().join(",")
    }

    /// The URL of each node.
    #[allow(dead_code, reason = "the tests use it")]
    pub fn each(&self) -> impl Iterator<Item = &str> {
        self.nodes.iter().map(|node| node.url.as_str())
    }

    /// Has all nodes read their configuration anew.
    #[allow(dead_code, reason = "the tests use it")]
    pub async fn reload(&self) {
        for node in &self.nodes {
            node.reload().await;
        }
    }

    /// The URL of each node's monitoring.
    #[allow(dead_code, reason = "the tests use it")]
    pub fn monitors(&self) -> Vec<String> {
        self.nodes.iter().map(|node| node.monitor().to_owned()).collect()
    }

    /// Takes a node away with no warning.
    pub fn kill(&self, node: usize) {
        self.nodes[node].kill();
    }

    /// Starts a node again and waits until it has caught up.
    pub async fn restart(&self, node: usize) {
        self.restart_all(&[node]).await;
    }

    /// The same for several, which may need each other to be ready.
    pub async fn restart_all(&self, nodes: &[usize]) {
        nodes.iter().for_each(|node| self.nodes[*node].restart());
        for node in nodes {
            self.ready(*node).await;
        }
    }

    /// The node that leads a stream.
    pub async fn leader(&self, jetstream: &Context, stream: &str) -> usize {
        eventually("the stream has a leader", async || {
            let stream = jetstream.get_stream(stream).await.ok()?;
            let leader = stream.cached_info().cluster.as_ref()?.leader.clone()?;
            (0..NODES).find(|node| name(*node) == leader)
        })
        .await
    }

    /// Waits until a node knows all others and their leader, its streams are up to date, and requests through it are
    /// answered.
    async fn ready(&self, node: usize) {
        let server = &self.nodes[node];
        let monitor = server.monitor();
        eventually("the cluster is ready", async || {
            let health = reqwest::get(format!("{monitor}/healthz")).await.ok()?;
            let text = reqwest::get(format!("{monitor}/jsz")).await.ok()?.text().await.ok()?;
            let jetstream: serde_json::Value = serde_json::from_str(&text).ok()?;
            let meta = &jetstream["meta_cluster"];
            let chosen = meta["leader"].is_string() && meta["cluster_size"] == NODES;
            if !health.status().is_success() || !chosen {
                return None;
            }
            let nats = NatsArgs { server: server.url.clone(), ..self.admin.clone() };
            let connection = connect::connect(&nats, "tests", FirstConnect::Fail).await.ok()?;
            connection.jetstream.query_account().await.ok().map(drop)
        })
        .await;
    }
}

fn name(node: usize) -> String {
    format!("n{node}")
}
