//! Secrets that programs are told stand in nothing that they print: no log, no help, no metric.

use std::fs;
use std::process::{Command, Output, Stdio};

use nkeys::KeyPair;

use crate::support::{Server, echo_registry, eventually, program, run, signal};

/// What is told, and must not be heard of again.
const PASSWORD: &str = "s3cret-password";

/// Flags, and variables.
type Way = (Vec<String>, Vec<(&'static str, String)>);

struct Told {
    folder: tempfile::TempDir,
    secrets: Vec<String>,
}

impl Told {
    /// Files with secrets in them.
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (user, other) = (KeyPair::new_user(), KeyPair::new_user());
        let (seed, other) = (user.seed().unwrap(), other.seed().unwrap());
        fs::write(folder.path().join("user.nk"), format!("{seed}\n")).unwrap();
        let jwt = "eyJoZWFkZXIiOjB9.eyJzZWNyZXQiOjF9.c2lnbmF0dXJl";
        let creds = format!(
            "-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n\
             -----BEGIN USER NKEY SEED-----\n{other}\n------END USER NKEY SEED------\n"
        );
        fs::write(folder.path().join("user.creds"), creds).unwrap();
        fs::write(folder.path().join("models.toml"), echo_registry(0, "")).unwrap();
        let secrets = [PASSWORD.to_owned(), seed, other, jwt.to_owned(), "hf_t0ken".to_owned()];
        Self { folder, secrets: secrets.to_vec() }
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    /// Each way to be told a secret: as flags, and as variables.
    fn ways(&self, url: &str) -> [Way; 5] {
        let in_url = url.replace("://", &format!("://ann:{PASSWORD}@"));
        let flag = |name: &str, value: String| vec![name.to_owned(), value];
        let token = "HF_TOKEN";
        [
            (flag("--server", in_url.clone()), vec![]),
            (vec![], vec![("NATS_URL", in_url), (token, "hf_t0ken".to_owned())]),
            (flag("--user", PASSWORD.to_owned()), vec![("NATS_URL", url.to_owned())]),
            (
                [flag("--user", "ann".to_owned()), flag("--password", PASSWORD.to_owned())].concat(),
                vec![("NATS_URL", url.to_owned()), ("NATS_NKEY", self.path("user.nk"))],
            ),
            (
                flag("--creds", self.path("user.creds")),
                vec![
                    ("NATS_URL", url.to_owned()),
                    ("NATS_PASSWORD", PASSWORD.to_owned()),
                    // Nobody listens there: what is said of that is looked at, too.
                    ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1".to_owned()),
                    ("OTEL_EXPORTER_OTLP_HEADERS", format!("authorization=Bearer {PASSWORD}")),
                    ("INFERQ_INDEX_URL", format!("https://ann:{PASSWORD}@index.test/simple")),
                ],
            ),
        ]
    }

    fn check(&self, text: &str, what: &str) {
        for secret in &self.secrets {
            assert!(!text.contains(secret), "{what} shows {secret:?}:\n{text}");
        }
    }
}

fn all(output: &Output) -> String {
    [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes).into_owned()).concat()
}

#[tokio::test]
async fn no_program_prints_a_secret_that_it_was_told() {
    let told = Told::new();
    // The first is let in, the others are refused: what is said then is looked at as well.
    let open = Server::start();
    let closed = Server::with(&format!("authorization {{ user: ann, password: {PASSWORD:?} }}"));
    let setup = run(&program("inferq"), &["setup", "-s", &open.url, "--registry", &told.path("models.toml")], &[]);
    assert!(setup.status.success(), "{}", all(&setup));
    for server in [&open, &closed] {
        for (flags, variables) in told.ways(&server.url) {
            let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
            let variables: Vec<(&str, &str)> = variables.iter().map(|(name, value)| (*name, value.as_str())).collect();
            for arguments in [&["status"][..], &["results", "none"], &["--help"], &["submit", "--help"]] {
                let output = run(&program("inferq"), &[&flags[..], arguments].concat(), &variables);
                told.check(&all(&output), &format!("inferq {arguments:?}"));
            }
            for (name, arguments) in
                [("inferq-worker", vec!["--model", "echo", "--registry", ""]), ("inferq-logger", vec![])]
            {
                let registry = told.path("models.toml");
                let arguments: Vec<&str> = arguments
                    .into_iter()
                    .map(|argument| if argument.is_empty() { registry.as_str() } else { argument })
                    .collect();
                let help = run(&program(name), &[&flags[..], &arguments, &["--help"]].concat(), &variables);
                assert!(help.status.success());
                told.check(&all(&help), &format!("{name} --help"));
                let said = service(name, &[&flags[..], &arguments].concat(), &variables).await;
                told.check(&said, name);
            }
        }
    }
}

/// All that a service prints at its most talkative, and its metrics, until it is ready or has been refused, and stopped.
async fn service(name: &str, arguments: &[&str], variables: &[(&str, &str)]) -> String {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    let file = fs::File::create(&log).unwrap();
    let mut command = Command::new(program(name));
    command.args(["--admin", "127.0.0.1:0", "--log", "trace"]).args(arguments).envs(variables.iter().copied());
    command.stdin(Stdio::null()).stdout(file.try_clone().unwrap()).stderr(file);
    let mut process = command.spawn().unwrap();
    let read = || fs::read_to_string(&log).unwrap();
    eventually("the service is ready or refused", async || {
        let text = read();
        let is_done = ["ready", "trying again", "inferq setup"].iter().any(|word| text.contains(word));
        (is_done || process.try_wait().unwrap().is_some()).then_some(())
    })
    .await;
    let mut shown = String::new();
    // It listens once it is connected.
    let address = read().split("admin=").nth(1).and_then(|rest| rest.split_whitespace().next().map(str::to_owned));
    if let Some(address) = address {
        for page in ["metrics", "readyz", "livez"] {
            shown += &reqwest::get(format!("http://{address}/{page}")).await.unwrap().text().await.unwrap();
        }
    }
    if process.try_wait().unwrap().is_none() {
        signal("-TERM", process.id());
        // One that is not connected yet has nothing to drain and is not waited for.
        let _ = process.kill();
    }
    process.wait().unwrap();
    assert!(!read().is_empty());
    read() + &shown
}
