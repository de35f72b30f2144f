//! Credentials that are changed while programs run: the next connection uses what is in the files then.

use std::path::Path;
use std::process::Output;

use connect::{FirstConnect, NatsArgs};
use producer::Client;
use schemas::codec::Encoding;
use schemas::stream::RESULTS;
use schemas::subject::Token;

use crate::logger::Logger;
use crate::support::{
    Accounts, Certificates, Deployment, PATIENCE, Server, WorkerProcess, chat, content, echo_registry, eventually,
    flags, program, run, submission,
};
use crate::topology::SMALL;

fn check_answered(output: &Output) {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(content(&serde_json::from_slice(&output.stdout).unwrap()), "hi");
}

const ACME: &str = "acme";
const ADMIN: [&str; 3] = ["rotate", "--service", "admin"];
const LOGGER: [&str; 3] = ["rotate", "--service", "logger"];
const SUBMIT: [&str; 6] = ["submit", "--model", "echo", "--message", "hi", "--wait"];

#[tokio::test]
async fn a_worker_goes_on_with_a_new_key_and_the_old_one_is_of_no_use() {
    for arguments in [&[][..], &["--operator"][..]] {
        let accounts = Accounts::start(&["acme"], arguments);
        let deployment = Deployment::through(accounts.nats("admin"), &echo_registry(0, "")).await;
        let mut worker = worker(&accounts, &deployment).await;
        check_answered(&deployment.inferq(&SUBMIT));

        let old = accounts.copied("worker");
        accounts.change(&["rotate", "--service", "worker"]).await;
        accounts.accepts("worker").await;
        accounts.refuses(&old).await;
        check_answered(&deployment.inferq(&SUBMIT));
        assert!(!worker.has_ended());
    }
}

/// A job of the tenant, from its submission to its result.
async fn check_job(client: &Client) {
    let mut job = submission(&chat("hi"), Encoding::Json);
    job.address.tenant = ACME.to_owned();
    client.submit(&job).await.unwrap();
    let acme = Token::encode(ACME).unwrap();
    let waiting = client.wait(&acme, &job.address.job_id);
    let result = tokio::time::timeout(PATIENCE, waiting).await.expect("an answer").unwrap();
    assert_eq!(content(&serde_json::to_value(result).unwrap()), "hi");
}

/// The client has been thrown out and is back.
async fn check_reconnects(client: &Client, before: u64) {
    let connects = &client.connection.connects;
    eventually("the client has made a new connection", async || (*connects.borrow() > before).then_some(())).await;
}

#[tokio::test]
async fn a_tenant_an_operator_and_a_logger_that_are_connected_go_on_with_new_keys() {
    for arguments in [&[][..], &["--operator"][..]] {
        let accounts = Accounts::start(&[ACME], arguments);
        let deployment = Deployment::through(accounts.nats("admin"), &echo_registry(0, "")).await;
        let _worker = worker(&accounts, &deployment).await;
        let folder = tempfile::tempdir().unwrap();
        let mut logger = logger(&accounts, &deployment, folder.path());
        let tenant = Client::new(accounts.connect("tenant-acme").await);
        check_job(&tenant).await;

        let clients = [("tenant-acme", &["rotate", ACME][..], &tenant), ("admin", &ADMIN[..], &deployment.client)];
        for (name, rotate, client) in clients {
            let (old, before) = (accounts.copied(name), *client.connection.connects.borrow());
            accounts.change(rotate).await;
            check_reconnects(client, before).await;
            accounts.refuses(&old).await;
            check_job(&tenant).await;
        }
        let jobs = deployment.count(RESULTS).await.0;
        assert_eq!(jobs, 3, "the operator's client can still ask");

        let old = accounts.copied("logger");
        accounts.change(&LOGGER).await;
        accounts.refuses(&old).await;
        check_job(&tenant).await;
        logged(folder.path(), jobs + 1).await;
        assert!(!logger.has_ended());
    }
}

#[tokio::test]
async fn a_cluster_has_the_same_accounts_on_each_node_and_takes_new_keys() {
    for arguments in [&[][..], &["--operator"][..]] {
        let (accounts, cluster) = Accounts::on_cluster(&[ACME], arguments).await;
        let registry = echo_registry(0, "") + SMALL + "replicas = 3\n";
        let deployment = Deployment::through(accounts.nats("admin"), &registry).await;
        let mut worker = worker(&accounts, &deployment).await;
        let folder = tempfile::tempdir().unwrap();
        let mut logger = logger(&accounts, &deployment, folder.path());
        let through = async |node: &str| {
            let nats = NatsArgs { server: node.to_owned(), ..accounts.nats("tenant-acme") };
            connect::connect(&nats, "tests", FirstConnect::Fail).await.map(Client::new)
        };
        let mut tenants = Vec::new();
        for node in cluster.each() {
            tenants.push(through(node).await.unwrap());
            check_job(tenants.last().unwrap()).await;
        }

        let names = ["tenant-acme", "worker", "admin", "logger"];
        let old = names.map(|name| accounts.copied(name));
        let before: Vec<u64> = tenants.iter().map(|tenant| *tenant.connection.connects.borrow()).collect();
        for rotate in [&["rotate", ACME][..], &["rotate", "--service", "worker"], &ADMIN, &LOGGER] {
            assert!(accounts.tenants(rotate).status.success());
        }
        cluster.reload().await;
        for (tenant, before) in tenants.iter().zip(before) {
            check_reconnects(tenant, before).await;
            check_job(tenant).await;
        }
        for (node, old) in cluster.each().flat_map(|node| old.iter().map(move |old| (node, old))) {
            accounts.refuses(&NatsArgs { server: node.to_owned(), ..old.clone() }).await;
        }
        logged(folder.path(), 2 * tenants.len() as u64).await;
        assert!(!worker.has_ended() && !logger.has_ended());
    }
}

async fn worker(accounts: &Accounts, deployment: &Deployment) -> WorkerProcess {
    let flags = accounts.arguments("worker", &[]);
    deployment.worker_with("echo", &flags.iter().map(String::as_str).collect::<Vec<_>>()).await
}

fn logger(accounts: &Accounts, deployment: &Deployment, folder: &Path) -> Logger {
    let flags = accounts.arguments("logger", &[]);
    Logger::start(deployment, folder, &flags.iter().map(String::as_str).collect::<Vec<_>>())
}

/// Waits until the logger has written a line for so many results.
async fn logged(folder: &Path, results: u64) {
    eventually("all results are lines", async || {
        let text = std::fs::read_to_string(folder.join("inferq.jsonl")).unwrap_or_default();
        (text.matches("\"kind\":\"result\"").count() as u64 >= results).then_some(())
    })
    .await;
}

/// The server is started anew with another authority; the files that the worker names are those of that one then.
#[tokio::test]
async fn a_worker_goes_on_with_new_certificates() {
    let (before, after) = (Certificates::new(), Certificates::new());
    let files = tempfile::tempdir().unwrap();
    let bring = |from: &Certificates| {
        for name in ["ca.pem", "server.pem", "server.key", "client.pem", "client.key"] {
            std::fs::copy(from.file(name), files.path().join(name)).unwrap();
        }
    };
    bring(&before);
    let file = |name: &str| files.path().join(name);
    let [cert, key, ca] = ["server.pem", "server.key", "ca.pem"].map(|name| file(name).display().to_string());
    let server =
        Server::with(&format!("tls {{ cert_file: {cert:?}\n key_file: {key:?}\n ca_file: {ca:?}\n verify: true }}\n"));
    let nats = NatsArgs {
        tlsca: Some(file("ca.pem")),
        tlscert: Some(file("client.pem")),
        tlskey: Some(file("client.key")),
        ..NatsArgs::to(&server.url)
    };
    let deployment = Deployment::through(nats.clone(), &echo_registry(0, "")).await;
    let mut worker = deployment.worker("echo").await;
    check_answered(&deployment.inferq(&SUBMIT));
    server.end("-TERM");
    bring(&after);
    server.restart();
    eventually("the worker is back", async || {
        let output = run_flags(&nats, &["status", "--output", "json"]);
        let status: serde_json::Value = serde_json::from_slice(&output.stdout).ok()?;
        (status["workers"]["echo"] == 1).then_some(())
    })
    .await;
    check_answered(&deployment.inferq(&SUBMIT));
    assert!(!worker.has_ended());
}

fn run_flags(nats: &NatsArgs, arguments: &[&str]) -> Output {
    let flags = flags(nats);
    let arguments: Vec<&str> = flags.iter().map(String::as_str).chain(arguments.iter().copied()).collect();
    run(Path::new(&program("inferq")), &arguments, &[])
}
