//! How a model is scaled, read from the rendered manifests. What is not known here is refused, so that a new setting of the
//! chart is not passed over in silence.

use std::time::Duration;

use serde::de::{Error, IgnoredAny};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use crate::manifests::of_kind;

/// The spec of a ScaledObject.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Rule {
    #[serde(deserialize_with = "seconds")]
    pub polling_interval: Duration,
    #[serde(deserialize_with = "seconds")]
    pub cooldown_period: Duration,
    pub min_replica_count: usize,
    pub max_replica_count: usize,
    pub triggers: Vec<Trigger>,
    advanced: Advanced,
    #[serde(rename = "scaleTargetRef")]
    _target: IgnoredAny,
    /// `currentReplicasIfHigher`, as another test sees to: what cannot be read changes nothing.
    #[serde(rename = "fallback")]
    _fallback: IgnoredAny,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Trigger {
    pub metadata: TriggerMetadata,
    #[serde(rename = "name")]
    _name: IgnoredAny,
    #[serde(rename = "type")]
    _scaler: NatsJetstream,
}

/// The one scaler that is played here.
#[derive(Clone, Copy, Debug, Deserialize)]
enum NatsJetstream {
    #[serde(rename = "nats-jetstream")]
    It,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TriggerMetadata {
    pub account: String,
    pub stream: String,
    pub consumer: String,
    #[serde(deserialize_with = "number")]
    pub lag_threshold: u64,
    #[serde(deserialize_with = "number")]
    pub activation_lag_threshold: u64,
    /// The test's servers are elsewhere.
    #[serde(rename = "natsServerMonitoringEndpoint")]
    _endpoint: IgnoredAny,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Advanced {
    horizontal_pod_autoscaler_config: AutoscalerConfig,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct AutoscalerConfig {
    behavior: Behavior,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Behavior {
    #[serde(default = "Scaling::up")]
    pub scale_up: Scaling,
    #[serde(default = "Scaling::down")]
    pub scale_down: Scaling,
}

/// Of several policies the one that allows the greatest change counts.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Scaling {
    #[serde(rename = "stabilizationWindowSeconds", deserialize_with = "seconds")]
    pub stabilization: Duration,
    pub policies: Vec<Policy>,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Policy {
    #[serde(rename = "type")]
    pub unit: Unit,
    pub value: usize,
    #[serde(rename = "periodSeconds", deserialize_with = "seconds")]
    pub period: Duration,
}

#[derive(Clone, Copy, Debug, Deserialize)]
pub enum Unit {
    Pods,
    Percent,
}

impl Rule {
    /// The rule for a model, and the seconds that its workers have to finish their jobs.
    pub fn of(model: &str) -> (Self, String) {
        let deployments = of_kind("Deployment");
        let serves = |object: &&Value| object["metadata"]["annotations"]["inferq/model-name"] == model;
        let deployment = deployments.iter().find(serves).unwrap();
        let scaled = of_kind("ScaledObject");
        let targets = |object: &&Value| object["spec"]["scaleTargetRef"]["name"] == deployment["metadata"]["name"];
        let rule = scaled.iter().find(targets).unwrap()["spec"].clone();
        let variables = deployment["spec"]["template"]["spec"]["containers"][0]["env"].as_array().unwrap();
        let grace = variables.iter().find(|variable| variable["name"] == "INFERQ_GRACE_SECONDS").unwrap();
        (serde_json::from_value(rule).unwrap(), grace["value"].as_str().unwrap().to_owned())
    }

    pub fn behavior(&self) -> &Behavior {
        &self.advanced.horizontal_pod_autoscaler_config.behavior
    }
}

impl Scaling {
    /// What Kubernetes does where nothing is said.
    fn up() -> Self {
        let period = Duration::from_secs(15);
        let policies = [(Unit::Pods, 4), (Unit::Percent, 100)].map(|(unit, value)| Policy { unit, value, period });
        Self { stabilization: Duration::ZERO, policies: policies.to_vec() }
    }

    fn down() -> Self {
        let policy = Policy { unit: Unit::Percent, value: 100, period: Duration::from_secs(15) };
        Self { stabilization: Duration::from_secs(300), policies: vec![policy] }
    }
}

fn seconds<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    u64::deserialize(deserializer).map(Duration::from_secs)
}

/// The metadata of a trigger are texts.
fn number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
}
