//! Batch files: every row once, whatever happens in the middle.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use schemas::stream::{JOBS, RESULTS};
use serde_json::{Value, json};

use crate::support::{Deployment, echo_registry, eventually, lasting, program, signal};

const ROWS: usize = 2_000;
/// Every so many rows, one is refused by the worker.
const BAD_EVERY: usize = 100;

/// Embeddings, chats and completions in turn, some of them wrong.
fn row(number: usize) -> Value {
    let (url, mut body) = match number % 3 {
        0 => ("/v1/embeddings", json!({ "input": format!("text {number}") })),
        1 => ("/v1/chat/completions", json!({ "messages": [{ "role": "user", "content": format!("text {number}") }] })),
        _ => ("/v1/completions", json!({ "prompt": format!("text {number}"), "max_tokens": 100 })),
    };
    body["model"] = json!("echo");
    if number % BAD_EVERY == 7 {
        body["temperature"] = json!(9);
        body["dimensions"] = json!(9);
    }
    json!({ "custom_id": format!("row-{number}"), "method": "POST", "url": url, "body": body })
}

struct Files {
    input: PathBuf,
    output: PathBuf,
    errors: PathBuf,
}

fn write_input(folder: &Path, rows: impl Iterator<Item = Value>) -> Files {
    let lines: Vec<String> = rows.map(|row| row.to_string()).collect();
    let input = folder.join("in.jsonl");
    std::fs::write(&input, lines.join("\n")).unwrap();
    Files { input, output: folder.join("out.jsonl"), errors: folder.join("out.errors.jsonl") }
}

fn start(deployment: &Deployment, files: &Files) -> Child {
    let mut command = Command::new(program("inferq"));
    command.args(["batch", "run"]).arg(&files.input).arg("-o").arg(&files.output);
    command.env("NATS_URL", &deployment.server.url).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().unwrap()
}

fn lines(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Each row stands once in one of the files, with its own answer.
fn check_outputs(files: &Files) {
    let mut seen = HashMap::new();
    for (path, is_error) in [(&files.output, false), (&files.errors, true)] {
        for line in lines(path) {
            let number: usize = line["custom_id"].as_str().unwrap().strip_prefix("row-").unwrap().parse().unwrap();
            assert!(seen.insert(number, ()).is_none(), "row {number} stands twice");
            assert_eq!(is_error, number % BAD_EVERY == 7, "{line}");
            check_answer(number, &line);
        }
    }
    assert_eq!(seen.len(), ROWS);
}

fn check_answer(number: usize, line: &Value) {
    let body = &line["response"]["body"];
    if number % BAD_EVERY == 7 {
        assert_eq!(body["error"]["type"], "invalid_request_error", "{line}");
        return;
    }
    match number % 3 {
        0 => assert_eq!(body["data"][0]["embedding"].as_array().unwrap().len(), 8),
        1 => assert_eq!(body["choices"][0]["message"]["content"], format!("text {number}")),
        _ => assert_eq!(body["choices"][0]["text"], format!("text {number}")),
    }
}

#[tokio::test]
async fn a_file_of_two_thousand_mixed_rows_is_answered_row_for_row() {
    let (deployment, _worker) = Deployment::with_worker(&echo_registry(0, "")).await;
    let files = write_input(deployment.folder.path(), (0..ROWS).map(row));
    let output = start(&deployment, &files).wait_with_output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "some rows failed: {errors}");
    assert!(errors.contains("2000/2000 rows  100.0%") && errors.contains("20 failed"), "{errors}");
    assert!(String::from_utf8_lossy(&output.stdout).contains("2000 rows in"));
    check_outputs(&files);
}

#[tokio::test]
async fn a_run_killed_in_the_middle_goes_on_without_sending_or_losing_a_row_twice() {
    // About 400 rows a second, so that there is a middle.
    let (deployment, worker) = Deployment::with_worker(&echo_registry(40, "batch = 16")).await;
    let files = write_input(deployment.folder.path(), (0..ROWS).map(row));
    let mut killed = start(&deployment, &files);
    eventually("some rows are written", async || {
        let written = std::fs::metadata(&files.output).is_ok_and(|file| file.len() > 20_000);
        written.then_some(())
    })
    .await;
    killed.kill().unwrap();
    killed.wait().unwrap();
    // A line that the crash cut short.
    let mut torn = std::fs::read(&files.output).unwrap();
    torn.extend_from_slice(b"{\"id\":\"batch_");
    std::fs::write(&files.output, torn).unwrap();

    let output = start(&deployment, &files).wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stderr));
    check_outputs(&files);
    assert_eq!(deployment.count(RESULTS).await.0, ROWS as u64);
    assert_eq!(deployment.count(JOBS).await.1, ROWS as u64, "a row was stored as a job again");

    let again = start(&deployment, &files).wait_with_output().unwrap();
    assert!(String::from_utf8_lossy(&again.stdout).contains("2000 from an earlier run"));
    assert_eq!(deployment.count(JOBS).await.1, ROWS as u64);
    drop(worker);
}

#[tokio::test]
async fn a_run_goes_on_after_the_server_was_killed() {
    let deployment = Deployment::new(&echo_registry(20, "in_flight = 8\nbatch = 8\nack_wait_seconds = 2")).await;
    let _worker = deployment.worker("echo").await;
    let files = write_input(deployment.folder.path(), (0..ROWS).map(row));
    let running = start(&deployment, &files);
    eventually("rows are answered", async || (deployment.count(RESULTS).await.0 > 0).then_some(())).await;
    deployment.server.kill();
    // For longer than a reader waits for the server's heartbeat.
    lasting(Duration::from_secs(3)).await;
    deployment.server.restart();
    let output = running.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(said.contains("2000 rows in"), "{said}{}", String::from_utf8_lossy(&output.stderr));
    check_outputs(&files);
    assert_eq!(deployment.count(RESULTS).await, (ROWS as u64, ROWS as u64), "one result for each job");
}

#[tokio::test]
async fn an_interrupted_run_says_how_to_go_on() {
    let deployment = Deployment::new(&echo_registry(0, "")).await;
    let files = write_input(deployment.folder.path(), (0..ROWS).map(row));
    let running = start(&deployment, &files);
    eventually("rows are published", async || (deployment.count(JOBS).await.0 > 0).then_some(())).await;
    signal("-INT", running.id());
    let output = running.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130));
    assert!(String::from_utf8_lossy(&output.stderr).contains("run the same command again"));
    let _worker = deployment.worker("echo").await;
    start(&deployment, &files).wait_with_output().unwrap();
    check_outputs(&files);
}

#[tokio::test]
async fn a_file_with_problems_is_refused_whole_with_their_lines() {
    let deployment = Deployment::new(&echo_registry(0, "")).await;
    let unknown = json!({ "custom_id": "x", "url": "/v1/embeddings", "body": { "model": "gpt-9", "input": "a" } });
    let rows = [row(0), row(1), row(0), unknown, json!({ "url": "/v1/embeddings" })];
    let files = write_input(deployment.folder.path(), rows.into_iter());
    let output = start(&deployment, &files).wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(65));
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    for part in [
        "nothing was submitted",
        "line 3: custom_id stands in line 1 already",
        "line 4: body.model: \"gpt-9\"",
        "line 5: missing field `body`",
    ] {
        assert!(errors.contains(part), "{part} in {errors}");
    }
    assert_eq!(deployment.count(JOBS).await.1, 0);
    assert!(!files.output.exists());
}

#[tokio::test]
async fn an_output_that_belongs_to_another_input_is_not_touched() {
    let (deployment, _worker) = Deployment::with_worker(&echo_registry(0, "")).await;
    let files = write_input(deployment.folder.path(), (0..3).map(row));
    assert_eq!(start(&deployment, &files).wait_with_output().unwrap().status.code(), Some(0));
    let before = std::fs::read(&files.output).unwrap();
    write_input(deployment.folder.path(), (0..4).map(row));
    let output = start(&deployment, &files).wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("holds rows of another input"));
    assert_eq!(std::fs::read(&files.output).unwrap(), before);
}

#[tokio::test]
async fn an_input_is_never_taken_for_an_output() {
    let deployment = Deployment::new(&echo_registry(0, "")).await;
    let files = write_input(deployment.folder.path(), (0..3).map(row));
    let input = files.input.to_str().unwrap();
    let before = std::fs::read(&files.input).unwrap();
    for arguments in [["-o", input, "--restart"], ["-o", "x.jsonl", "--errors=x.jsonl"]] {
        let output = deployment.inferq(&[&["batch", "run", input], &arguments[..]].concat());
        assert_eq!(output.status.code(), Some(1));
        assert!(String::from_utf8_lossy(&output.stderr).contains("is named twice"));
    }
    assert_eq!(std::fs::read(&files.input).unwrap(), before);
}

#[tokio::test]
async fn a_run_publishes_on_as_many_connections_as_it_is_told() {
    let deployment = Deployment::new(&echo_registry(0, "")).await;
    let files = write_input(deployment.folder.path(), (0..ROWS).map(row));
    let running = Command::new(program("inferq"))
        .args(["batch", "run", "--connections", "3"])
        .arg(&files.input)
        .arg("-o")
        .arg(&files.output)
        .env("NATS_URL", &deployment.server.url)
        .stderr(Stdio::null())
        .spawn();
    let mut running = running.unwrap();
    eventually("rows are published", async || (deployment.count(JOBS).await.0 > 0).then_some(())).await;
    assert_eq!(sockets_of(running.id()), 3);
    running.kill().unwrap();
    running.wait().unwrap();
}

/// TCP connections of a process.
fn sockets_of(process: u32) -> usize {
    let inodes: Vec<String> = std::fs::read_dir(format!("/proc/{process}/fd"))
        .unwrap()
        .flatten()
        .filter_map(|entry| std::fs::read_link(entry.path()).ok())
        .filter_map(|link| Some(link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned()))
        .collect();
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let inode = |line: &str| line.split_whitespace().nth(9).map(str::to_owned);
    // The table changes while it is read, and then has lines twice.
    let own: HashSet<String> = table.lines().filter_map(inode).filter(|inode| inodes.contains(inode)).collect();
    own.len()
}
