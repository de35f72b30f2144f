//! The lag of a consumer as KEDA's scaler reads it: `num_pending` and `num_ack_pending` of the monitoring's `/jsz`. In a
//! cluster only the consumer's leader knows them, and that node is asked first from then on.
//!
//! Source: `pkg/scalers/nats_jetstream_scaler.go` of KEDA 2.20. There a node's name is looked up in DNS; here all nodes have
//! one address and ports of their own, so each is asked for its name.

use anyhow::{Context, bail};
use serde_json::Value;

use super::rule::TriggerMetadata;

pub struct LagReader {
    /// The monitoring of each node.
    nodes: Vec<String>,
    trigger: TriggerMetadata,
    /// The name and the monitoring of the node that led when it was last asked.
    leader: Option<(String, String)>,
}

impl LagReader {
    pub fn new(nodes: Vec<String>, trigger: TriggerMetadata) -> Self {
        Self { nodes, trigger, leader: None }
    }

    /// `None` where it cannot be read. After a failure KEDA makes the scaler anew, which forgets the leader, and asks once
    /// more.
    pub async fn read(&mut self) -> Option<u64> {
        if let Ok(lag) = self.ask().await {
            return Some(lag);
        }
        self.leader = None;
        self.ask().await.ok()
    }

    async fn ask(&mut self) -> anyhow::Result<u64> {
        let cached = self.leader.clone();
        // The headless service gives any node's address.
        let any = &self.nodes[fastrand::usize(..self.nodes.len())];
        let page = self.jetstream(cached.as_ref().map_or(any, |(_, monitor)| monitor)).await?;
        let consumer = self.consumer(&page);
        let leads = |consumer: &Value, name: &str| consumer["cluster"]["leader"] == name;
        if let (Some(consumer), Some((name, _))) = (consumer, &cached)
            && leads(consumer, name)
        {
            return lag(consumer);
        }
        if page["meta_cluster"]["cluster_size"].as_u64().unwrap_or(1) <= 1 {
            return lag(consumer.context("no such consumer")?);
        }
        for node in &self.nodes {
            let name = get(&format!("{node}/varz")).await?["server_name"].as_str().context("no name")?.to_owned();
            let page = self.jetstream(node).await?;
            if let Some(consumer) = self.consumer(&page).filter(|consumer| leads(consumer, &name)) {
                let lag = lag(consumer);
                self.leader = Some((name, node.clone()));
                return lag;
            }
        }
        bail!("no node leads it");
    }

    async fn jetstream(&self, node: &str) -> anyhow::Result<Value> {
        get(&format!("{node}/jsz?acc={}&consumers=true&config=true", self.trigger.account)).await
    }

    fn consumer<'a>(&self, page: &'a Value) -> Option<&'a Value> {
        let named = |list: &'a Value, name: &str| list.as_array()?.iter().find(|entry| entry["name"] == name);
        let account = named(&page["account_details"], &self.trigger.account)?;
        named(&named(&account["stream_detail"], &self.trigger.stream)?["consumer_detail"], &self.trigger.consumer)
    }
}

fn lag(consumer: &Value) -> anyhow::Result<u64> {
    let count = |name: &str| consumer[name].as_u64().with_context(|| format!("no {name}"));
    Ok(count("num_pending")? + count("num_ack_pending")?)
}

async fn get(url: &str) -> anyhow::Result<Value> {
    Ok(serde_json::from_slice(&reqwest::get(url).await?.error_for_status()?.bytes().await?)?)
}
