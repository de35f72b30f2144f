//! Servers that ask who is there: TLS, passwords, tokens, nkeys and credentials files.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use connect::NatsArgs;
use nkeys::KeyPair;

use crate::support::{Certificates, Deployment, Operator, Server, content, echo_registry, flags, program, run};

const USAGE: i32 = 64;
const FAILED: i32 = 1;

/// A job goes in and its result comes out, by the library, the command and a worker alike.
async fn check_accepted(nats: NatsArgs) {
    let deployment = Deployment::through(nats, &echo_registry(0, "")).await;
    let _worker = deployment.worker("echo").await;
    let output = deployment.inferq(&["submit", "--model", "echo", "--message", "hi", "--wait"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(content(&serde_json::from_slice(&output.stdout).unwrap()), "hi");
}

/// `inferq` ends with the code, says so, and shows no secret.
fn check_refused(nats: &NatsArgs, code: i32, says: &str, secrets: &[&str]) {
    let flags = flags(nats);
    let arguments: Vec<&str> = flags.iter().map(String::as_str).chain(["status"]).collect();
    let output = run(&program("inferq"), &arguments, &[]);
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{errors}");
    assert!(errors.contains(says), "{says:?} is not in: {errors}");
    assert!(secrets.iter().all(|secret| !errors.contains(secret)), "a secret is in: {errors}");
}

/// A worker says why it is not let in and goes on trying.
fn check_worker_waits(nats: &NatsArgs, says: &str) {
    let folder = tempfile::tempdir().unwrap();
    let registry = folder.path().join("models.toml");
    fs::write(&registry, echo_registry(0, "")).unwrap();
    let mut command = Command::new(program("inferq-worker"));
    command.args(["--model", "echo", "--admin", "127.0.0.1:0"]).arg("--registry").arg(&registry);
    let mut worker = command.args(flags(nats)).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(worker.stderr.take().unwrap()).lines().map(Result::unwrap);
    assert!(lines.any(|line| line.contains(says)), "the worker ended and had not said {says:?}");
    assert!(lines.any(|line| line.contains("nats connection event")), "the worker has not tried again");
    worker.kill().unwrap();
    worker.wait().unwrap();
}

fn url(server: &Server) -> NatsArgs {
    NatsArgs::to(&server.url)
}

/// A folder with one file in it.
fn file(text: &str) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("secret");
    fs::write(&path, text).unwrap();
    (folder, path)
}

#[tokio::test]
async fn a_user_comes_in_with_the_right_password_only() {
    let server = Server::with("authorization { user: ann, password: \"ses@me\" }");
    let with = |user: &str, password: &str| NatsArgs {
        user: Some(user.to_owned()),
        password: Some(password.to_owned()),
        ..url(&server)
    };
    check_accepted(with("ann", "ses@me")).await;
    check_accepted(NatsArgs::to(&server.url.replace("://", "://ann:ses%40me@"))).await;
    check_refused(&with("ann", "s3cret"), FAILED, "does not accept user \"ann\"", &["s3cret"]);
    let in_url = NatsArgs::to(&server.url.replace("://", "://ann:s3cret@"));
    check_refused(&in_url, FAILED, "what stands before the @", &["s3cret"]);
    check_refused(&url(&server), FAILED, "a client without credentials; give --creds", &[]);
}

#[tokio::test]
async fn a_token_is_a_user_without_a_password() {
    let server = Server::with("authorization { token: sesame }");
    let with = |token: &str| NatsArgs { user: Some(token.to_owned()), ..url(&server) };
    check_accepted(with("sesame")).await;
    check_refused(&with("s3cret"), FAILED, "does not accept the token", &["s3cret"]);
}

#[tokio::test]
async fn an_nkey_is_known_by_its_seed() {
    let (user, stranger) = (KeyPair::new_user(), KeyPair::new_user());
    let server = Server::with(&format!("authorization {{ users: [ {{ nkey: {} }} ] }}", user.public_key()));
    let (seed, strange) = (user.seed().unwrap(), stranger.seed().unwrap());
    let (_folder, right) = file(&format!("# Ann's\n{seed}\n"));
    check_accepted(NatsArgs { nkey: Some(right), ..url(&server) }).await;
    let (_folder, wrong) = file(&strange);
    check_refused(&NatsArgs { nkey: Some(wrong), ..url(&server) }, FAILED, "does not accept the nkey of", &[&strange]);
    let broken = seed.replace("SU", "SUX");
    let (_folder, malformed) = file(&broken);
    check_refused(&NatsArgs { nkey: Some(malformed), ..url(&server) }, USAGE, "holds no nkey seed", &[&broken, &seed]);
}

#[tokio::test]
async fn a_credentials_file_is_checked_by_the_operators_signature() {
    let operator = Operator::new();
    let server = Server::with(&operator.config());
    let (user, stranger) = (KeyPair::new_user(), KeyPair::new_user());
    let seed = user.seed().unwrap();
    let (_folder, right) = file(&operator.credentials(&user, &seed));
    check_accepted(NatsArgs { creds: Some(right), ..url(&server) }).await;

    let strange = stranger.seed().unwrap();
    let (_folder, wrong) = file(&operator.credentials(&user, &strange));
    check_refused(&NatsArgs { creds: Some(wrong), ..url(&server) }, FAILED, "the credentials of --creds", &[&strange]);
    let (_folder, other) = file(&Operator::new().credentials(&user, &seed));
    check_refused(&NatsArgs { creds: Some(other), ..url(&server) }, FAILED, "the credentials of --creds", &[&seed]);
    let (_folder, malformed) = file(&seed);
    check_refused(&NatsArgs { creds: Some(malformed), ..url(&server) }, USAGE, "holds no user JWT", &[&seed]);
    let missing = NatsArgs { creds: Some("/missing.creds".into()), ..url(&server) };
    check_refused(&missing, USAGE, "--creds \"/missing.creds\" cannot be read", &[]);
}

#[tokio::test]
async fn a_servers_certificate_is_checked() {
    let (certificates, others) = (Certificates::new(), Certificates::new());
    let server = Server::with(&certificates.server(""));
    let with = |ca: PathBuf| NatsArgs { tlsca: Some(ca), ..url(&server) };
    check_accepted(with(certificates.file("ca.pem"))).await;
    check_refused(&with(others.file("ca.pem")), FAILED, "UnknownIssuer; --tlsca names the authority", &[]);
    check_refused(&url(&server), FAILED, "UnknownIssuer; --tlsca names the authority", &[]);
    check_refused(&with(certificates.file("server.key")), USAGE, "holds no certificate", &[]);
    check_worker_waits(&with(others.file("ca.pem")), "UnknownIssuer; --tlsca names the authority");
    check_refused(&with("/missing.pem".into()), USAGE, "--tlsca \"/missing.pem\" cannot be read", &[]);
}

#[tokio::test]
async fn a_server_can_ask_for_a_clients_certificate() {
    let (certificates, others) = (Certificates::new(), Certificates::new());
    let server = Server::with(&certificates.server("verify: true"));
    let with = |client: Option<&Certificates>| NatsArgs {
        tlsca: Some(certificates.file("ca.pem")),
        tlscert: client.map(|from| from.file("client.pem")),
        tlskey: client.map(|from| from.file("client.key")),
        ..url(&server)
    };
    check_accepted(with(Some(&certificates))).await;
    check_refused(&with(None), FAILED, "--tlscert and --tlskey the client's own", &[]);
    check_refused(&with(Some(&others)), FAILED, "--tlscert and --tlskey the client's own", &[]);
    let swapped = NatsArgs { tlskey: Some(certificates.file("client.pem")), ..with(Some(&certificates)) };
    check_refused(&swapped, USAGE, "holds no private key", &[]);
}

#[tokio::test]
async fn new_certificates_are_of_the_same_authority() {
    let certificates = Certificates::new();
    let read = |name: &str| std::fs::read(certificates.file(name)).unwrap();
    let before = ["ca.pem", "ca.key", "server.pem", "server.key", "client.pem", "client.key"].map(read);
    let server = Server::with(&certificates.server("verify: true"));
    certificates.renew("nats.internal");
    let after = ["ca.pem", "ca.key", "server.pem", "server.key", "client.pem", "client.key"].map(read);
    assert_eq!(before[..2], after[..2]);
    assert!((2..6).all(|file| before[file] != after[file]));
    for name in ["ca.key", "server.key", "client.key"] {
        let mode = std::fs::metadata(certificates.file(name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
    // The server still has its first one.
    let nats = NatsArgs {
        tlsca: Some(certificates.file("ca.pem")),
        tlscert: Some(certificates.file("client.pem")),
        tlskey: Some(certificates.file("client.key")),
        ..url(&server)
    };
    check_accepted(nats.clone()).await;
    let elsewhere = Server::with(&certificates.server("verify: true"));
    check_refused(
        &NatsArgs { server: elsewhere.url.clone(), ..nats },
        FAILED,
        "certificate is only valid for DnsName(\"nats.internal\")",
        &[],
    );
    let folder = certificates.file("").display().to_string();
    let wrong = run(&program("inferq"), &["certificates", "n\u{e4}ts", "--out", &folder], &[]);
    assert_eq!(wrong.status.code(), Some(64), "{}", String::from_utf8_lossy(&wrong.stderr));
}

#[tokio::test]
async fn the_handshake_can_come_first() {
    let certificates = Certificates::new();
    let server = Server::with(&certificates.server("handshake_first: true"));
    let later = NatsArgs { tlsca: Some(certificates.file("ca.pem")), ..url(&server) };
    check_accepted(NatsArgs { tlsfirst: true, ..later.clone() }).await;
    check_refused(&later, FAILED, "waits for --tlsfirst", &[]);
    let flags = flags(&later);
    let arguments: Vec<&str> = flags.iter().map(String::as_str).chain(["status"]).collect();
    for (value, code) in [("true", 0), ("1", 0), ("false", FAILED), ("perhaps", USAGE)] {
        let output = run(&program("inferq"), &arguments, &[("NATS_TLSFIRST", value)]);
        assert_eq!(output.status.code(), Some(code), "{value}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

#[tokio::test]
async fn a_password_is_not_told_to_a_server_without_tls_where_an_authority_is_named() {
    let server = Server::with("authorization { user: ann, password: sesame }");
    let certificates = Certificates::new();
    let nats = NatsArgs {
        user: Some("ann".to_owned()),
        password: Some("sesame".to_owned()),
        tlsca: Some(certificates.file("ca.pem")),
        ..url(&server)
    };
    check_refused(&nats, FAILED, "no TLS with", &["sesame"]);
}
