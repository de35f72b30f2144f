//! Credentials that are changed while programs run: the next connection uses what is in the files then.

use std::path::Path;
use std::process::Output;

use connect::NatsArgs;

use crate::support::{
    Accounts, Certificates, Deployment, Server, content, echo_registry, eventually, flags, program, run,
};

fn check_answered(output: &Output) {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(content(&serde_json::from_slice(&output.stdout).unwrap()), "hi");
}

const SUBMIT: [&str; 6] = ["submit", "--model", "echo", "--message", "hi", "--wait"];

#[tokio::test]
async fn a_worker_goes_on_with_a_new_key_and_the_old_one_is_of_no_use() {
    for arguments in [&[][..], &["--operator"][..]] {
        let accounts = Accounts::start(&["acme"], arguments);
        let deployment = Deployment::through(accounts.nats("admin"), &echo_registry(0, "")).await;
        let flags = accounts.arguments("worker", &[]);
        let mut worker = deployment.worker_with("echo", &flags.iter().map(String::as_str).collect::<Vec<_>>()).await;
        check_answered(&deployment.inferq(&SUBMIT));

        let copy = accounts.folder().join("copy");
        std::fs::copy(accounts.secret("worker"), &copy).unwrap();
        let mut old = accounts.nats("worker");
        for path in [&mut old.creds, &mut old.nkey].into_iter().flatten() {
            path.clone_from(&copy);
        }
        accounts.change(&["rotate", "--service", "worker"]).await;
        accounts.accepts("worker").await;
        accounts.refuses(&old).await;
        check_answered(&deployment.inferq(&SUBMIT));
        assert!(!worker.has_ended());
    }
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
