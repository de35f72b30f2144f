//! What the Kubernetes manifests say of the programs is compared with the programs: names of streams and consumers, ports,
//! paths, flags and environment variables. The manifests are what the Helm chart renders; k8s/check.sh holds them fresh.

use std::collections::BTreeSet;

use clap::Parser;
use producer::access::plan::{API_PREFIX, CORE};
use schemas::registry::Registry;
use schemas::stream;
use serde_json::Value;
use workers::{config, logger};

use crate::support::{Deployment, program, root, run};

/// What a pod is given beyond the worker's own grace period, at the least: to end a pull, to hand jobs back, to close.
const MARGIN_SECONDS: u64 = 15;

/// Every object in k8s/manifests.
fn objects() -> Vec<Value> {
    let folder = root().join("k8s/manifests");
    let read = |entry: std::io::Result<std::fs::DirEntry>| std::fs::read_to_string(entry.unwrap().path()).unwrap();
    let texts = std::fs::read_dir(folder).unwrap().map(read);
    texts.flat_map(|text| serde_saphyr::from_multiple::<Value>(&text).unwrap()).collect()
}

pub fn of_kind(kind: &str) -> Vec<Value> {
    let found: Vec<Value> = objects().into_iter().filter(|object| object["kind"] == kind).collect();
    assert!(!found.is_empty(), "no {kind} in k8s/manifests");
    found
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("{value} is no text"))
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// The specs of all pods.
fn pods() -> Vec<Value> {
    let made = of_kind("Deployment").into_iter().chain(of_kind("Job"));
    made.map(|object| object["spec"]["template"]["spec"].clone()).collect()
}

/// All containers, those of the initialisation too.
fn containers(pod: &Value) -> impl Iterator<Item = &Value> {
    list(&pod["containers"]).iter().chain(list(&pod["initContainers"]))
}

fn variable<'a>(container: &'a Value, name: &str) -> Option<&'a str> {
    list(&container["env"]).iter().find(|variable| variable["name"] == name).map(|variable| text(&variable["value"]))
}

/// The pods that serve models, each with its container.
fn workers() -> Vec<(Value, Value)> {
    let serving = |pod: Value| {
        let container = pod["containers"][0].clone();
        variable(&container, "INFERQ_MODEL").is_some().then_some((pod, container))
    };
    pods().into_iter().filter_map(serving).collect()
}

/// What a container's program says of itself and its subcommand.
fn help(container: &Value) -> String {
    let image = text(&container["image"]).rsplit('/').next().unwrap().split(':').next().unwrap();
    let name = if image == "inferq-producer" { "inferq" } else { image };
    let arguments = list(&container["args"]).iter().map(text);
    let subcommand = arguments.take_while(|argument| !argument.starts_with('-')).chain(["--help"]);
    let output = run(&program(name), &subcommand.collect::<Vec<_>>(), &[]);
    assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn registry(config_map: &str) -> Registry {
    let all = of_kind("ConfigMap");
    let found = all.iter().find(|object| object["metadata"]["name"] == config_map).unwrap();
    Registry::parse(text(&found["data"]["models.toml"])).unwrap()
}

#[test]
fn the_registry_of_the_manifests_is_the_one_of_the_demo() {
    let demo = std::fs::read_to_string(root().join("workers/models.toml")).unwrap();
    let demo = Registry::parse(&demo).unwrap();
    assert_eq!(registry("inferq-registry"), demo);
    assert_eq!(registry("inferq-setup"), demo);
}

#[test]
fn each_model_of_the_registry_is_served_and_scaled_by_its_consumers() {
    let registry = registry("inferq-registry");
    let deployments = of_kind("Deployment");
    let scaled = of_kind("ScaledObject");
    assert_eq!(scaled.len(), registry.models.len());
    for model in &registry.models {
        let serves = |object: &&Value| {
            let container = &object["spec"]["template"]["spec"]["containers"][0];
            variable(container, "INFERQ_MODEL") == Some(&model.name)
        };
        let deployment = deployments.iter().find(serves).unwrap();
        let targets = |object: &&Value| object["spec"]["scaleTargetRef"]["name"] == deployment["metadata"]["name"];
        let spec = &scaled.iter().find(targets).unwrap()["spec"];
        assert!(spec["cooldownPeriod"].as_u64().unwrap() >= 2 * model.limits.ack_wait_seconds);
        assert_eq!(spec["fallback"]["behavior"], "currentReplicasIfHigher");
        let held = spec["maxReplicaCount"].as_u64().unwrap() * model.limits.in_flight as u64;
        assert!(held <= model.limits.ack_pending.into());

        let triggers: Vec<&Value> = list(&spec["triggers"]).iter().map(|trigger| &trigger["metadata"]).collect();
        let asked: Vec<&str> = triggers.iter().map(|trigger| text(&trigger["consumer"])).collect();
        let consumers = stream::consumers(model);
        assert_eq!(asked, consumers.iter().map(|consumer| consumer.name.as_str()).collect::<Vec<_>>());
        for trigger in triggers {
            assert_eq!(trigger["stream"], stream::JOBS);
            assert_eq!(trigger["activationLagThreshold"], "0");
            assert!(text(&trigger["lagThreshold"]).parse::<usize>().unwrap() <= model.limits.in_flight);
        }
    }
}

#[test]
fn containers_are_told_only_what_their_programs_know() {
    for container in pods().iter().flat_map(containers) {
        let help = help(container);
        let words: BTreeSet<&str> = help.split(|c: char| !c.is_ascii_alphanumeric() && c != '-' && c != '_').collect();
        let variables = list(&container["env"]).iter().map(|variable| text(&variable["name"]));
        let ours = variables.filter(|name| name.starts_with("INFERQ_") || name.starts_with("NATS_"));
        let flags = list(&container["args"]).iter().map(text).filter(|argument| argument.starts_with("--"));
        for word in ours.chain(flags) {
            assert!(words.contains(word.split('=').next().unwrap()), "{} knows no {word}", container["image"]);
        }
    }
}

#[test]
fn the_admin_ports_are_the_programs_and_can_be_reached() {
    let worker = config::Cli::try_parse_from(["inferq-worker", "--model", "m"]).unwrap();
    let logger = logger::config::Cli::try_parse_from(["inferq-logger"]).unwrap();
    let mut seen = BTreeSet::new();
    for container in pods().iter().flat_map(|pod| list(&pod["containers"])) {
        let Some(admin) = variable(container, "INFERQ_ADMIN") else { continue };
        let admin: std::net::SocketAddr = admin.parse().unwrap();
        assert!(admin.ip().is_unspecified(), "{admin} cannot be reached from outside the pod");
        assert_eq!(container["ports"][0]["name"], "admin");
        assert_eq!(container["ports"][0]["containerPort"], admin.port());
        for (probe, path) in [("startupProbe", "/livez"), ("livenessProbe", "/livez"), ("readinessProbe", "/readyz")] {
            assert_eq!(container[probe]["httpGet"]["path"], path);
            assert_eq!(container[probe]["httpGet"]["port"], "admin");
        }
        seen.insert(admin.port());
    }
    assert_eq!(seen, [worker.worker.admin.port(), logger.admin.port()].into());
    for monitor in of_kind("PodMonitor") {
        let endpoint = &monitor["spec"]["podMetricsEndpoints"][0];
        assert_eq!((text(&endpoint["port"]), text(&endpoint["path"])), ("admin", "/metrics"));
    }
}

#[test]
fn a_pod_outlives_the_grace_period_of_its_worker() {
    for (pod, container) in workers() {
        let own: u64 = variable(&container, "INFERQ_GRACE_SECONDS").unwrap().parse().unwrap();
        let of_pod = pod["terminationGracePeriodSeconds"].as_u64().unwrap();
        assert!(of_pod >= own + MARGIN_SECONDS, "{of_pod} seconds are too few for {own}");
    }
}

#[test]
fn a_worker_finds_its_model_where_the_init_container_puts_it() {
    for (pod, worker) in workers() {
        let fetch = &pod["initContainers"][0];
        assert_eq!(fetch["image"], worker["image"]);
        for name in ["INFERQ_CACHE_DIR", "INFERQ_REGISTRY"] {
            assert_eq!(variable(fetch, name), variable(&worker, name));
        }
        assert_eq!(variable(&worker, "INFERQ_OFFLINE"), Some("true"), "it cannot write into the cache");
        let arguments: Vec<&str> = list(&fetch["args"]).iter().map(text).collect();
        assert_eq!(arguments, ["fetch", "--model", variable(&worker, "INFERQ_MODEL").unwrap()]);
    }
}

#[test]
fn the_chart_takes_the_keys_that_inferq_tenants_writes() {
    let folder = tempfile::tempdir().unwrap();
    let made = run(&program("inferq"), &["tenants", "add", "test", "--out", folder.path().to_str().unwrap()], &[]);
    assert!(made.status.success());
    for file in ["values-accounts.yaml", "values-production.yaml"] {
        let values = std::fs::read_to_string(root().join("k8s/chart").join(file)).unwrap();
        let values: Value = serde_saphyr::from_str(&values).unwrap();
        assert_eq!(values["nats"]["monitoring"]["account"], CORE);
        let tenant = format!("tenant-{}.nk", text(&values["test"]["tenant"]));
        for (client, key) in
            [("setup", "admin.nk"), ("worker", "worker.nk"), ("logger", "logger.nk"), ("test", tenant.as_str())]
        {
            let client = &values["nats"]["clients"][client];
            assert!(folder.path().join("keys").join(key).exists(), "{key}");
            assert_eq!((text(&client["credentials"]["key"]), text(&client["credentials"]["kind"])), (key, "nkey"));
            // The operator alone is in the account that has the streams.
            let prefix = if key == "admin.nk" { Value::Null } else { API_PREFIX.into() };
            assert_eq!(client["jsApiPrefix"], prefix, "{key}");
        }
    }
}

#[test]
fn no_pod_has_privileges_or_a_token() {
    for pod in pods() {
        assert_eq!(pod["automountServiceAccountToken"], false);
        assert_eq!(pod["securityContext"]["runAsUser"], 65532);
        assert_eq!(pod["securityContext"]["seccompProfile"]["type"], "RuntimeDefault");
        for container in containers(&pod) {
            let security = &container["securityContext"];
            assert_eq!(security["readOnlyRootFilesystem"], true);
            assert_eq!(security["allowPrivilegeEscalation"], false);
            assert_eq!(security["capabilities"]["drop"][0], "ALL");
        }
    }
}

#[tokio::test]
async fn the_server_of_the_compose_file_has_room_for_what_set_up_reserves() {
    let read = |path: &str| std::fs::read_to_string(root().join(path)).unwrap();
    let conf = read("docker/nats/nats.conf");
    let size = conf.lines().find_map(|line| line.trim().strip_prefix("max_file_store: ")?.strip_suffix("GB")).unwrap();
    let room = size.parse::<u64>().unwrap() << 30;
    let deployment = Deployment::new(&read("workers/models.toml")).await;
    let told = reqwest::get(format!("{}/jsz", deployment.server.monitor())).await.unwrap();
    let reserved = told.json::<Value>().await.unwrap()["reserved_storage"].as_u64().unwrap();
    assert!(reserved > 0 && reserved * 10 / 9 < room, "{reserved} of {room} bytes");
}
