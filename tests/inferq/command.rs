//! The `inferq` command as a person or a script uses it.

use std::io::{BufRead, BufReader};
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};

use crate::support::{Deployment, Server, chat, content, echo_registry, eventually, program, run, signal};

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn errors(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[tokio::test]
async fn setup_says_what_it_does_and_does_nothing_twice() {
    let server = Server::start();
    let folder = tempfile::tempdir().unwrap();
    let registry = folder.path().join("models.toml");
    std::fs::write(&registry, echo_registry(0, "")).unwrap();
    let registry_path = registry.to_str().unwrap();
    let setup = |arguments: &[&str]| {
        let arguments = [&["setup", "--registry", registry_path], arguments].concat();
        let output = run(&program("inferq"), &arguments, &[("NATS_URL", &server.url)]);
        assert!(output.status.success(), "{}", errors(&output));
        text(&output)
    };
    let dry = setup(&["--dry-run"]);
    assert!(
        dry.contains("would create stream INFERQ_JOBS") && dry.contains("would create consumer echo_flex"),
        "{dry}"
    );
    let first = setup(&[]);
    assert_eq!(first.lines().count(), dry.lines().count());
    assert!(first.lines().all(|line| line.starts_with("created ")), "{first}");
    let second = setup(&[]);
    assert!(second.lines().all(|line| line.starts_with("unchanged ")), "{second}");
    std::fs::write(&registry, echo_registry(0, "ack_wait_seconds = 7").replace("\"echo\"\ntask", "\"other\"\ntask"))
        .unwrap();
    let changes: Value = serde_json::from_str(&setup(&["--output", "json"])).unwrap();
    let action = |name: &str| {
        let change = changes.as_array().unwrap().iter().find(|change| change["name"] == name).unwrap();
        change["action"].as_str().unwrap().to_owned()
    };
    assert_eq!(action("INFERQ_JOBS"), "changed");
    assert_eq!(action("INFERQ_RESULTS"), "unchanged");
    assert_eq!(action("other_default"), "created");
    assert_eq!(action("echo_default"), "unregistered");
}

#[tokio::test]
async fn a_job_is_submitted_from_flags_a_file_or_standard_input() {
    let (deployment, _worker) = Deployment::with_worker(&echo_registry(0, "")).await;
    let waited =
        deployment.inferq(&["submit", "--model", "echo", "--message", "hi", "--set", "max_tokens=1", "--wait"]);
    assert_eq!(waited.status.code(), Some(0), "{}", errors(&waited));
    let result: Value = serde_json::from_str(&text(&waited)).unwrap();
    assert_eq!(content(&result), "h");

    let file = deployment.folder.path().join("job.json");
    std::fs::write(&file, chat("from a file").to_string()).unwrap();
    let submitted = deployment.inferq(&["submit", file.to_str().unwrap(), "--id", "my-job", "--encoding", "msgpack"]);
    assert_eq!(text(&submitted), "my-job\n");
    let results = deployment.inferq(&["results", "my-job", "--wait"]);
    assert_eq!(content(&serde_json::from_str(&text(&results)).unwrap()), "from a file");

    let mut command = Command::new(program("inferq"));
    command.args(["submit", "-", "--output", "json"]).env("NATS_URL", &deployment.server.url);
    let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    std::io::Write::write_all(&mut process.stdin.take().unwrap(), chat("piped").to_string().as_bytes()).unwrap();
    let submitted: Value = serde_json::from_str(&text(&process.wait_with_output().unwrap())).unwrap();
    assert_eq!(submitted["duplicate"], json!(false));
    assert_eq!(content(&deployment.result(submitted["job_id"].as_str().unwrap()).await.1), "piped");
}

#[tokio::test]
async fn logs_and_status_are_readable_and_scriptable() {
    let (deployment, _worker) = Deployment::with_worker(&echo_registry(0, "")).await;
    let submitted = deployment.inferq(&["submit", "--model", "echo", "--prompt", "x", "--id", "a"]);
    assert!(submitted.status.success());
    let followed = text(&deployment.inferq(&["logs", "a", "--follow"]));
    for part in ["queued for echo in lane default", "started by ", "finished with status 200"] {
        assert!(followed.contains(part), "{part} in {followed}");
    }
    let logs = text(&deployment.inferq(&["logs", "a", "--output", "json"]));
    let events: Vec<Value> = logs.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let names: Vec<&str> = events.iter().map(|event| event["event"].as_str().unwrap()).collect();
    assert_eq!(names, ["queued", "started", "finished"]);

    let status: Value = serde_json::from_str(&text(&deployment.inferq(&["status", "--output", "json"]))).unwrap();
    assert_eq!(status["workers"], json!({ "echo": 1 }));
    assert_eq!(status["lanes"].as_array().unwrap().len(), 4);
    assert_eq!(status["results"]["messages"], 1);
    assert!(text(&deployment.inferq(&["status"])).contains("MODEL"));
}

#[tokio::test]
async fn mistakes_end_with_a_code_and_say_what_to_do_next() {
    let deployment = Deployment::new(&echo_registry(0, "")).await;
    let server = deployment.server.url.clone();
    let bad = deployment.folder.path().join("bad.json");
    std::fs::write(&bad, "{\"url\":7}").unwrap();
    let bad = bad.to_str().unwrap();
    let cases: [(&[&str], i32, &str); 9] = [
        (&["results", "nope"], 1, "has no result"),
        (&["results", "a b"], 64, "' '"),
        (&["logs", "nope"], 1, "has no log"),
        (&["submit", "--model", "echo"], 64, "--input, --classify, --query, --audio, --message or --prompt"),
        (&["submit", "--model", "gpt-9", "--prompt", "x"], 1, "Registered: echo (priority), echo (default)"),
        (&["submit", bad], 65, "url: invalid type: integer `7`"),
        (&["submit", "--model", "echo", "--prompt", "x", "--deadline", "soon"], 64, "RFC 3339"),
        (&["setup", "--registry", "/missing.toml"], 64, "/missing.toml"),
        (&["frobnicate"], 64, "frobnicate"),
    ];
    for (arguments, code, says) in cases {
        let output = run(&program("inferq"), arguments, &[("NATS_URL", &server)]);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {}", errors(&output));
        assert!(errors(&output).contains(says), "{arguments:?}: {}", errors(&output));
    }
    let nobody = run(&program("inferq"), &["status", "--server", "nats://user:secret@127.0.0.1:1"], &[]);
    assert_eq!(nobody.status.code(), Some(1));
    assert!(
        errors(&nobody).contains("is nats-server running there?") && !errors(&nobody).contains("secret"),
        "{}",
        errors(&nobody)
    );
    let missing = Server::start();
    let unset = run(&program("inferq"), &["status"], &[("NATS_URL", &missing.url)]);
    assert!(errors(&unset).contains("run `inferq setup`"), "{}", errors(&unset));
}

#[tokio::test]
async fn help_and_completions_name_every_command() {
    let help = text(&run(&program("inferq"), &["--help"], &[]));
    let completions = text(&run(&program("inferq"), &["completions", "bash"], &[]));
    for command in ["setup", "submit", "batch", "results", "tokens", "logs", "cancel", "dead", "status", "up"] {
        assert!(help.contains(&format!("\n  {command} ")), "{command} in {help}");
        assert!(completions.contains(command), "{command}");
    }
}

#[tokio::test]
async fn up_runs_a_command_and_leaves_nothing_running() {
    let folder = tempfile::tempdir().unwrap();
    let registry = folder.path().join("models.toml");
    std::fs::write(&registry, echo_registry(0, "")).unwrap();
    let data = folder.path().join("data");
    let (registry, data) = (registry.to_str().unwrap(), data.to_str().unwrap());
    let inferq = program("inferq");
    let submit = [inferq.to_str().unwrap(), "submit", "--model", "echo", "--message", "hi", "--wait"];
    let arguments = [&["up", "--registry", registry, "--data", data, "--port", "0", "--"][..], &submit[..]].concat();
    // Credentials for another server, which must not reach this one.
    let output = run(&inferq, &arguments, &[("NATS_CREDS", "/missing.creds")]);
    assert_eq!(output.status.code(), Some(0), "{}", errors(&output));
    assert_eq!(content(&serde_json::from_str(&text(&output)).unwrap()), "hi");
    assert_eq!(processes_naming(data), 0);
    assert_eq!(processes_naming(registry), 0);
}

#[tokio::test]
async fn one_interrupt_stops_everything_that_up_started() {
    let folder = tempfile::tempdir().unwrap();
    let registry = folder.path().join("models.toml");
    std::fs::write(&registry, echo_registry(0, "")).unwrap();
    let data = folder.path().join("data");
    let mut command = Command::new(program("inferq"));
    command.args(["up", "--port", "0", "--registry"]).arg(&registry).arg("--data").arg(&data);
    let mut up = command.stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(up.stderr.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().starts_with("ready: echo")));
    assert!(processes_naming(data.to_str().unwrap()) > 0);
    signal("-INT", up.id());
    let status = eventually("up ends", async || up.try_wait().unwrap()).await;
    assert_eq!(status.code(), Some(130));
    assert_eq!(processes_naming(data.to_str().unwrap()) + processes_naming(registry.to_str().unwrap()), 0);
}

/// Processes whose command line has this text.
fn processes_naming(text: &str) -> usize {
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let command_lines = entries.filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok());
    command_lines.filter(|line| String::from_utf8_lossy(line).contains(text)).count()
}
