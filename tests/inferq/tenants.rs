//! `inferq tenants`: what it writes, and that everybody can do their work with it, on a real server.

use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Output, Stdio};

use schemas::stream::{JOBS, RESULTS};
use serde_json::Value;

use crate::logger::{free_address, metrics};
use crate::support::{Accounts, Deployment, TENANT, WorkerProcess, content, echo_registry, eventually, program, run};

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn errors(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A deployment that the operator has set up, with a worker of its own credentials.
async fn deployment(accounts: &Accounts, registry: &str) -> (Deployment, WorkerProcess) {
    let deployment = Deployment::through(accounts.nats("admin"), registry).await;
    let arguments = accounts.arguments("worker", &[]);
    let worker = deployment.worker_with("echo", &arguments.iter().map(String::as_str).collect::<Vec<_>>()).await;
    (deployment, worker)
}

/// Runs `inferq` with the credentials of a tenant and under its name.
fn inferq(accounts: &Accounts, tenant: &str, arguments: &[&str]) -> Output {
    let arguments = accounts.arguments(&format!("tenant-{tenant}"), arguments);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    run(&program("inferq"), &arguments, &[("INFERQ_TENANT", tenant)])
}

/// All that a tenant does, with its own credentials.
async fn check_tenant(accounts: &Accounts, tenant: &str) {
    let submitted = inferq(accounts, tenant, &["submit", "--model", "echo", "--message", "hi", "--id", "a", "--wait"]);
    assert!(submitted.status.success(), "{}", errors(&submitted));
    assert_eq!(content(&serde_json::from_slice(&submitted.stdout).unwrap()), "hi");
    let again = inferq(accounts, tenant, &["submit", "--model", "echo", "--message", "hi", "--id", "a"]);
    assert!(errors(&again).contains("is answered already"), "{}", errors(&again));

    let words = "one two three four five six seven eight";
    let arguments = ["submit", "--model", "echo", "--message", words, "--id", "s", "--stream", "--output", "json"];
    let streamed = inferq(accounts, tenant, &arguments);
    assert!(streamed.status.success(), "{}", errors(&streamed));
    let chunks: Vec<Value> = text(&streamed).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let said = chunks.iter().filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str());
    assert_eq!((said.collect::<String>().as_str(), chunks.len() > 1), (words, true), "{chunks:?}");

    let result = inferq(accounts, tenant, &["results", "s"]);
    assert_eq!(content(&serde_json::from_slice(&result.stdout).unwrap()), words);
    let log = inferq(accounts, tenant, &["logs", "a", "--follow"]);
    assert!(text(&log).contains("finished with status 200"), "{}{}", text(&log), errors(&log));
    // Its chunks are gone for somebody who listens only now; the answer is not.
    let tokens = inferq(accounts, tenant, &["tokens", "s"]);
    assert!(tokens.status.success() && text(&tokens).contains(words), "{}{}", text(&tokens), errors(&tokens));

    let unknown = inferq(accounts, tenant, &["submit", "--model", "gpt-9", "--message", "hi"]);
    assert!(errors(&unknown).contains("\"gpt-9\" has no lane default"), "{}", errors(&unknown));
    let large = "x".repeat(2 << 20);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("job.json");
    let body = serde_json::json!({ "model": "echo", "messages": [{ "role": "user", "content": large }] });
    std::fs::write(&file, serde_json::json!({ "url": "/v1/chat/completions", "body": body }).to_string()).unwrap();
    let refused = inferq(accounts, tenant, &["submit", file.to_str().unwrap()]);
    assert!(errors(&refused).contains("at most 1048576 are taken"), "{}", errors(&refused));
}

fn check_batch(accounts: &Accounts, tenant: &str) {
    let folder = tempfile::tempdir().unwrap();
    let [input, output] = ["in.jsonl", "out.jsonl"].map(|name| folder.path().join(name));
    let row = |model: &str, number: usize| {
        let body = serde_json::json!({ "model": model, "input": format!("text {number}") });
        let job = serde_json::json!({ "custom_id": format!("r{number}"), "method": "POST", "url": "/v1/embeddings" });
        let Value::Object(mut job) = job else { unreachable!() };
        job.insert("body".to_owned(), body);
        Value::Object(job).to_string() + "\n"
    };
    let mut rows: String = (0..300).map(|number| row("echo", number)).collect();
    std::fs::write(&input, &rows).unwrap();
    let arguments = ["batch", "run", input.to_str().unwrap(), "-o", output.to_str().unwrap()];
    let ran = inferq(accounts, tenant, &arguments);
    assert!(ran.status.success(), "{}", errors(&ran));
    let kept = std::fs::read_to_string(&output).unwrap();
    assert_eq!(kept.lines().count(), 300);

    // A run that was cut off reads back what was answered.
    let cut: String = kept.lines().take(100).map(|line| format!("{line}\n")).collect();
    std::fs::write(&output, cut).unwrap();
    let resumed = inferq(accounts, tenant, &[&arguments[..], &["--output", "json"]].concat());
    let summary: Value = serde_json::from_slice(&resumed.stdout).unwrap();
    assert_eq!((&summary["rows"], &summary["resumed"], &summary["failed"]), (&300.into(), &100.into(), &0.into()));

    rows.push_str(&row("gpt-9", 300));
    std::fs::write(&input, rows).unwrap();
    let ran = inferq(accounts, tenant, &[&arguments[..], &["--restart"]].concat());
    assert_eq!(ran.status.code(), Some(1), "{}", errors(&ran));
    let failed = std::fs::read_to_string(folder.path().join("out.errors.jsonl")).unwrap();
    assert!(failed.lines().count() == 1 && failed.contains("model_not_found"), "{failed}");
}

/// What the operator does: look, cancel, and look after dead letters.
async fn check_operator(accounts: &Accounts, deployment: &Deployment, tenant: &str) {
    let status = deployment.inferq(&["status", "--output", "json"]);
    let status: Value = serde_json::from_slice(&status.stdout).unwrap();
    assert_eq!(status["workers"]["echo"], 1, "{status}");
    let invalid = ["submit", "--model", "echo", "--input", "x", "--set", "encoding_format=no", "--id", "bad", "--wait"];
    assert_eq!(inferq(accounts, tenant, &invalid).status.code(), Some(1));
    let dead = deployment.inferq(&["dead", "list", "--tenant", tenant]);
    assert!(text(&dead).contains("bad"), "{}{}", text(&dead), errors(&dead));

    let long = "word ".repeat(3000);
    let slow = ["submit", "--model", "echo", "--message", &long, "--id", "slow"];
    assert!(inferq(accounts, tenant, &slow).status.success());
    eventually("the job runs", async || (deployment.in_flight().await == 1).then_some(())).await;
    let cancelled = deployment.inferq(&["cancel", "--tenant", tenant, "slow"]);
    assert!(cancelled.status.success(), "{}", errors(&cancelled));
    eventually("the worker has heard of it", async || (deployment.in_flight().await == 0).then_some(())).await;
    let result = inferq(accounts, tenant, &["results", "slow"]);
    assert!(text(&result).contains("batch_cancelled"), "{}", text(&result));
}

/// The logger writes a line for each result and tells of the queue, with its own credentials.
async fn check_logger(accounts: &Accounts, deployment: &Deployment) {
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new(program("inferq-logger"));
    let address = free_address();
    command.args(["--admin", &address, "--log", "warn", "--out"]).arg(folder.path());
    let mut logger = command.args(accounts.arguments("logger", &[])).stdin(Stdio::null()).spawn().unwrap();
    let results = deployment.count(RESULTS).await.0;
    eventually("all results are lines", async || {
        let text = std::fs::read_to_string(folder.path().join("inferq.jsonl")).unwrap_or_default();
        (text.matches("\"kind\":\"result\"").count() as u64 == results).then_some(())
    })
    .await;
    eventually("all are acknowledged", async || {
        let stream = deployment.stream(RESULTS).await;
        let consumer = stream.consumer_info("logger_results").await.unwrap();
        (consumer.num_ack_pending == 0 && consumer.num_pending == 0).then_some(())
    })
    .await;
    eventually("the queue is told of", async || {
        let metrics = metrics(&address).await?;
        let told = ["inferq_workers{model=\"echo\"} 1", "inferq_queue_jobs{lane=\"default\",model=\"echo\"} 0"];
        told.iter().all(|series| metrics.contains(series)).then_some(())
    })
    .await;
    logger.kill().unwrap();
    logger.wait().unwrap();
}

const REGISTRY: &str = "[[models]]\nname = \"echo\"\ntask = \"echo\"\n\
                        echo = { step_milliseconds = 5, step_tokens = 1 }\n";

async fn check_everybody(arguments: &[&str]) {
    let accounts = Accounts::start(&["acme", "globex"], arguments);
    let (deployment, _worker) = deployment(&accounts, REGISTRY).await;
    for tenant in ["acme", "globex"] {
        check_tenant(&accounts, tenant).await;
    }
    check_batch(&accounts, "acme");
    check_operator(&accounts, &deployment, "acme").await;
    check_logger(&accounts, &deployment).await;
    assert_eq!(deployment.count(JOBS).await.0, 0);
    // The operator, too, can submit for anybody, and large bodies at that.
    let large = "y".repeat(2 << 20);
    let own =
        deployment.inferq(&["submit", "--tenant", TENANT, "--model", "echo", "--input", &large[..100_000], "--wait"]);
    assert!(own.status.success(), "{}", errors(&own));
}

#[tokio::test]
async fn everybody_can_do_their_work_in_accounts_of_a_configuration() {
    check_everybody(&[]).await;
}

#[tokio::test]
async fn everybody_can_do_their_work_in_accounts_that_an_operator_has_signed() {
    check_everybody(&["--operator"]).await;
}

/// A long queue of one tenant does not hold back another one: workers learn of tenants, and lift, through the accounts.
#[tokio::test]
async fn workers_lift_jobs_of_other_tenants() {
    let accounts = Accounts::start(&["many", "few"], &[]);
    let registry = echo_registry(200, "in_flight = 4\nbatch = 1");
    let (deployment, _worker) = deployment(&accounts, &registry).await;
    let many = accounts.connect("tenant-many").await;
    for number in 0..200 {
        let subject = format!("inferq.jobs.echo.default.many.m{number}");
        let job = crate::support::chat("many").to_string();
        many.jetstream.publish(subject, job.into()).await.unwrap().await.unwrap();
    }
    // A tenant that nobody has noted is known to workers once they listen, which they do when a queue is long.
    eventually("a worker has learned its pace", async || (deployment.count(RESULTS).await.0 > 5).then_some(())).await;
    let few = inferq(&accounts, "few", &["submit", "--model", "echo", "--message", "few", "--wait"]);
    assert!(few.status.success(), "{}", errors(&few));
    assert!(deployment.count(JOBS).await.0 > 100, "the other tenant's jobs were not waited for");
}

#[tokio::test]
async fn tenants_come_and_go_without_a_restart_of_the_server() {
    for arguments in [&[][..], &["--operator"][..]] {
        let accounts = Accounts::start(&["acme"], arguments);
        let (_deployment, _worker) = deployment(&accounts, REGISTRY).await;
        accounts.change(&["add", "globex"]).await;
        accounts.accepts("tenant-globex").await;
        let submit = ["submit", "--model", "echo", "--message", "hi", "--wait"];
        let submitted = inferq(&accounts, "globex", &submit);
        assert!(submitted.status.success(), "{}", errors(&submitted));

        // Somebody who is connected is thrown out, and a copy of the key is of no use.
        let nats = accounts.copied("tenant-acme");
        let connected = accounts.connect("tenant-acme").await;
        accounts.change(&["remove", "acme"]).await;
        accounts.refuses(&nats).await;
        eventually("the connection has ended", async || {
            let state = connected.client.connection_state();
            (state != async_nats::connection::State::Connected).then_some(())
        })
        .await;
        assert!(!accounts.secret("tenant-acme").exists());
        assert!(inferq(&accounts, "globex", &submit).status.success());
    }
}

#[test]
fn a_folder_is_the_same_when_it_is_written_again() {
    for arguments in [&[][..], &["--operator"][..]] {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("made");
        let tenants = |more: &[&str]| {
            let output =
                run(&program("inferq"), &[&["tenants"], more, &["--out", out.to_str().unwrap()]].concat(), &[]);
            assert!(output.status.success(), "{}", errors(&output));
            output
        };
        tenants(&[&["add", "acme", "a b.*>"], arguments].concat());
        let read = || {
            let mut files: Vec<_> = [&out, &out.join("keys")]
                .into_iter()
                .flat_map(|folder| std::fs::read_dir(folder).unwrap())
                .map(|entry| entry.unwrap().path())
                .filter(|path| path.is_file())
                .map(|path| (path.clone(), std::fs::read_to_string(path).unwrap()))
                .collect();
            files.sort();
            files
        };
        let before = read();
        tenants(&[&["add", "acme"], arguments].concat());
        assert_eq!(before, read());
        for (path, text) in before {
            let mode = path.metadata().unwrap().permissions().mode() & 0o777;
            let has_seed = ["SU", "SA", "SO"].iter().any(|seed| text.lines().any(|line| line.starts_with(seed)));
            let in_keys = path.parent().unwrap().ends_with("keys");
            assert_eq!((mode == 0o600, has_seed), (in_keys, in_keys), "{}", path.display());
        }
        let listed: Value = serde_json::from_slice(&tenants(&["list", "--output", "json"]).stdout).unwrap();
        let names: Vec<&Value> = listed.as_array().unwrap().iter().map(|listed| &listed["tenant"]).collect();
        assert_eq!(names, [&Value::Null, &Value::Null, &Value::Null, &"a b.*>".into(), &"acme".into()]);
        tenants(&["remove", "acme"]);
        assert!(!text(&tenants(&["list"])).contains("acme"));
    }
}

#[test]
fn a_wrong_name_or_folder_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("made");
    let tenants =
        |more: &[&str]| run(&program("inferq"), &[&["tenants"], more, &["--out", out.to_str().unwrap()]].concat(), &[]);
    assert_eq!(tenants(&["list"]).status.code(), Some(1));
    assert!(errors(&tenants(&["remove", "acme"])).contains("does not hold accounts"));
    assert_eq!(tenants(&["add", ""]).status.code(), Some(64));
    assert!(tenants(&["add", "acme"]).status.success());
    assert!(errors(&tenants(&["remove", "globex"])).contains("tenant \"globex\" is not there"));
    assert_eq!(tenants(&["add", "globex", "--operator"]).status.code(), Some(64));
}
