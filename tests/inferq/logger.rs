//! The logger: what it writes, that nothing is missing after it was killed, and when it gives up.

use std::collections::BTreeSet;
use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use async_nats::HeaderMap;
use async_nats::jetstream::consumer::{AckPolicy, pull};
use async_nats::jetstream::stream;
use futures::StreamExt;
use schemas::codec::Encoding;
use schemas::header::{ATTEMPT, DEAD_CLASS, DEAD_REASON};
use schemas::stream::{DEAD, JOBS, LOGS, RESULTS, logger_consumers};
use serde_json::{Value, json};

use crate::support::{Deployment, chat, echo_registry, eventually, program, run, signal};

/// Killed when it is dropped.
pub struct Logger(Child);

impl Logger {
    /// A logger that writes to files in a folder.
    pub fn start(deployment: &Deployment, folder: &Path, arguments: &[&str]) -> Self {
        Self::spawn(deployment, command().arg("--out").arg(folder).args(arguments))
    }

    /// One that writes nowhere, and the address of its metrics.
    fn with_metrics(deployment: &Deployment) -> (Self, String) {
        let address = free_address();
        let logger = Self::spawn(deployment, command().args(["--admin", &address]).stdout(Stdio::null()));
        (logger, address)
    }

    fn spawn(deployment: &Deployment, command: &mut Command) -> Self {
        Self(command.args(["--server", &deployment.server.url, "--log", "warn"]).spawn().unwrap())
    }

    pub fn has_ended(&mut self) -> bool {
        self.0.try_wait().unwrap().is_some()
    }

    async fn end(&mut self, how: &str) -> Option<i32> {
        signal(how, self.0.id());
        self.exit_code().await
    }

    async fn exit_code(&mut self) -> Option<i32> {
        eventually("the logger ends", async || self.0.try_wait().unwrap()).await.code()
    }
}

impl Drop for Logger {
    fn drop(&mut self) {
        // It may have been ended by the test.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn command() -> Command {
    let mut command = Command::new(program("inferq-logger"));
    command.args(["--admin", "127.0.0.1:0"]).stdin(Stdio::null());
    command
}

/// The whole lines of all files in a folder.
fn lines(folder: &Path) -> Vec<Value> {
    // A file may be rotated meanwhile.
    let read = |name: &String| std::fs::read_to_string(folder.join(name)).unwrap_or_default();
    let text: String = files(folder).iter().map(read).collect();
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    whole.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect()
}

/// The names of the files, the oldest first.
fn files(folder: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.filter(|name| name.starts_with("inferq.jsonl")).collect();
    names.sort_by_key(|name| std::cmp::Reverse(name.rsplit('.').next().unwrap().parse::<u32>().unwrap_or(0)));
    names
}

fn of_kind<'a>(lines: &'a [Value], kind: &str) -> Vec<&'a Value> {
    lines.iter().filter(|line| line["kind"] == kind).collect()
}

/// Waits for a line, and gives it.
async fn line_where(folder: &Path, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
    eventually(what, async || lines(folder).into_iter().find(|line| wanted(line))).await
}

/// What happened to which job in which attempt, told by log lines or records.
fn events<'a>(records: impl IntoIterator<Item = &'a Value>) -> BTreeSet<String> {
    records
        .into_iter()
        .map(|record| format!("{} {} {}", record["job_id"], record["event"], record["attempt"]))
        .collect()
}

/// The records that the server has of all jobs.
async fn stored_events(deployment: &Deployment) -> BTreeSet<String> {
    let (stream, (_, last)) = (deployment.stream(LOGS).await, deployment.count(LOGS).await);
    let mut records: Vec<Value> = Vec::new();
    for sequence in 1..=last {
        let message = stream.direct_get(sequence).await.unwrap();
        records.extend(serde_json::from_slice::<Vec<Value>>(&message.payload).unwrap());
    }
    events(&records)
}

/// Deliveries of the logger's consumers that are not acknowledged, and messages that were not delivered.
async fn open(deployment: &Deployment) -> (usize, u64) {
    let (mut unacknowledged, mut waiting) = (0, 0);
    for declared in logger_consumers() {
        let stream = deployment.stream(declared.stream).await;
        let state = stream.consumer_info(&declared.name).await.unwrap();
        unacknowledged += state.num_ack_pending;
        waiting += state.num_pending;
    }
    (unacknowledged, waiting)
}

async fn answer_many(deployment: &Deployment, count: usize) {
    let before = deployment.count(RESULTS).await.1;
    for number in 0..count {
        deployment.submit(&chat(&number.to_string()), Encoding::Json).await;
    }
    eventually("jobs are answered", async || {
        let answered = deployment.count(RESULTS).await.1 >= before + count as u64;
        // A job leaves the queue after its log was published.
        (answered && deployment.count(JOBS).await.0 == 0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_job_leaves_lines_of_its_log_and_its_outcome() {
    let (deployment, _worker) = Deployment::with_worker(&echo_registry(0, "")).await;
    let folder = deployment.folder.path().join("made/by/it");
    let mut logger = Logger::start(&deployment, &folder, &[]);
    let job_id = deployment.submit(&chat("needle"), Encoding::Json).await.to_string();
    let result = line_where(&folder, "the outcome is written", |line| line["kind"] == "result").await;
    assert_eq!((&result["tenant"], &result["job_id"]), (&json!("default"), &json!(job_id)));
    assert_eq!((&result["status_code"], &result["attempt"]), (&json!(200), &json!(1)));
    assert!(result["bytes"].as_u64().unwrap() > 0 && result["worker"].is_string(), "{result}");
    line_where(&folder, "the log is written", |line| line["event"] == "finished").await;
    let written = lines(&folder);
    let log = of_kind(&written, "log");
    let expected = ["queued", "started", "finished"].map(|event| format!("\"{job_id}\" \"{event}\" 1"));
    assert_eq!(events(log.clone()), expected.into());
    assert!(log.iter().all(|line| line["tenant"] == "default" && line["model"] == "echo"), "{log:?}");
    assert!(!format!("{written:?}").contains("needle"), "a payload was logged");

    assert_eq!(logger.end("-TERM").await, Some(0));
    assert_eq!(open(&deployment).await, (0, 0));
    let before = lines(&folder);
    let mut second = Logger::start(&deployment, &folder, &[]);
    answer_many(&deployment, 1).await;
    eventually("both jobs are written", async || (of_kind(&lines(&folder), "log").len() >= 6).then_some(())).await;
    assert_eq!(second.end("-TERM").await, Some(0));
    let after = lines(&folder);
    assert_eq!(after[..before.len()], before);
    assert_eq!((of_kind(&after, "log").len(), of_kind(&after, "result").len()), (6, 2), "it went on where it stopped");
}

#[tokio::test]
async fn a_logger_stops_when_the_server_is_away_too() {
    let (deployment, _worker) = Deployment::with_worker(&echo_registry(0, "")).await;
    let folder = deployment.folder.path().join("log");
    let mut logger = Logger::start(&deployment, &folder, &[]);
    answer_many(&deployment, 1).await;
    line_where(&folder, "the outcome is written", |line| line["kind"] == "result").await;
    drop(deployment.server);
    assert_eq!(logger.end("-TERM").await, Some(0));
}

#[tokio::test]
async fn dead_letters_and_advisories_are_lines_too() {
    let deployment = Deployment::new(&echo_registry(0, "")).await;
    let folder = deployment.folder.path().join("log");
    let _logger = Logger::start(&deployment, &folder, &[]);
    let jetstream = &deployment.client.connection.jetstream;
    let mut headers = HeaderMap::new();
    for (name, value) in [(DEAD_CLASS, "poison"), (DEAD_REASON, "it crashed"), (ATTEMPT, "3")] {
        headers.insert(name, value);
    }
    let subject = "inferq.dead.echo.flex.a=40b.j-1";
    jetstream.publish_with_headers(subject, headers, "needle".into()).await.unwrap().await.unwrap();
    let dead = line_where(&folder, "the dead letter is written", |line| line["kind"] == "dead").await;
    let expected = json!({
        "time": dead["time"], "kind": "dead", "tenant": "a@b", "job_id": "j-1", "model": "echo", "lane": "flex",
        "class": "poison", "reason": "it crashed", "attempt": 3, "bytes": 6,
    });
    assert_eq!(dead, expected);

    // A consumer that gives a message up tells it when it is asked for the next one.
    let config = pull::Config {
        durable_name: Some("once".to_owned()),
        ack_policy: AckPolicy::Explicit,
        ack_wait: std::time::Duration::from_millis(1),
        max_deliver: 1,
        ..Default::default()
    };
    let once = deployment.stream(DEAD).await.create_consumer(config).await.unwrap();
    eventually("the consumer gives up", async || {
        let mut batch = once.fetch().max_messages(1).messages().await.unwrap();
        while batch.next().await.is_some() {}
        lines(&folder)
            .into_iter()
            .find(|line| line["type"] == "io.nats.jetstream.advisory.v1.max_deliver" && line["consumer"] == "once")
    })
    .await;
    // Not a deletion: a server that is busy may end the stream before it has sent its last advisory.
    let config = deployment.stream(DEAD).await.cached_info().config.clone();
    jetstream.update_stream(&stream::Config { description: Some("changed".to_owned()), ..config }).await.unwrap();
    let changed =
        line_where(&folder, "the change is written", |line| line["action"] == "modify" && line["stream"] == DEAD).await;
    assert_eq!(
        (&changed["kind"], &changed["tenant"], &changed["job_id"]),
        (&json!("advisory"), &json!(null), &json!(null))
    );
    assert!(changed["time"].is_string() && changed.get("timestamp").is_none(), "{changed}");
    let written = lines(&folder);
    assert!(of_kind(&written, "advisory").iter().all(|line| line["type"] != "io.nats.jetstream.advisory.v1.api_audit"));
}

#[tokio::test]
async fn a_logger_that_is_killed_again_and_again_loses_nothing() {
    let (deployment, _worker) = Deployment::with_worker(&echo_registry(0, "")).await;
    let folder = deployment.folder.path().join("log");
    let arguments = ["--rotate-bytes", "20000", "--keep", "1000"];
    for _ in 0..3 {
        let written = lines(&folder).len();
        let mut logger = Logger::start(&deployment, &folder, &arguments);
        let kill_it = async {
            eventually("lines are written", async || (lines(&folder).len() > written).then_some(())).await;
            assert_eq!(logger.end("-KILL").await, None);
        };
        tokio::join!(answer_many(&deployment, 300), kill_it);
    }
    // As a crash of the machine may leave it.
    let current = folder.join("inferq.jsonl");
    let text = std::fs::read_to_string(&current).unwrap();
    std::fs::write(&current, format!("{text}{{\"time\":\"20")).unwrap();

    let _last = Logger::start(&deployment, &folder, &arguments);
    let stored = eventually("the rest is written", async || {
        let stored = stored_events(&deployment).await;
        (stored.len() == 3 * 900 && open(&deployment).await == (0, 0)).then_some(stored)
    })
    .await;
    let written = lines(&folder);
    let logged = events(of_kind(&written, "log"));
    assert_eq!(stored.difference(&logged).collect::<Vec<_>>(), Vec::<&String>::new(), "these are missing");
    let results: BTreeSet<&str> =
        of_kind(&written, "result").iter().filter_map(|line| line["job_id"].as_str()).collect();
    assert_eq!(results.len(), 900);
}

#[tokio::test]
async fn replicas_share_the_lines_between_them() {
    let (deployment, _worker) = Deployment::with_worker(&echo_registry(0, "")).await;
    let folders = ["one", "other"].map(|name| deployment.folder.path().join(name));
    let _loggers = folders.each_ref().map(|folder| Logger::start(&deployment, folder, &[]));
    answer_many(&deployment, 50).await;
    eventually("all is written by one or the other", async || {
        let written: Vec<Value> = folders.iter().flat_map(|folder| lines(folder)).collect();
        (events(of_kind(&written, "log")).len() == 150 && of_kind(&written, "result").len() >= 50).then_some(())
    })
    .await;
}

#[tokio::test]
async fn full_files_are_rotated_and_the_oldest_go() {
    let (deployment, _worker) = Deployment::with_worker(&echo_registry(0, "")).await;
    let folder = deployment.folder.path().join("log");
    let mut logger = Logger::start(&deployment, &folder, &["--rotate-bytes", "2000", "--keep", "2"]);
    answer_many(&deployment, 30).await;
    eventually("all is written", async || (open(&deployment).await == (0, 0)).then_some(())).await;
    assert_eq!(logger.end("-TERM").await, Some(0));
    assert_eq!(files(&folder), ["inferq.jsonl.2", "inferq.jsonl.1", "inferq.jsonl"]);
    for name in files(&folder) {
        let length = std::fs::metadata(folder.join(&name)).unwrap().len();
        assert!(length > 0 && length <= 2000, "{name} has {length} bytes");
    }
}

#[tokio::test]
async fn what_cannot_be_written_is_not_acknowledged() {
    let (deployment, _worker) = Deployment::with_worker(&echo_registry(0, "")).await;
    answer_many(&deployment, 5).await;
    let full = || Stdio::from(File::options().write(true).open("/dev/full").unwrap());
    let closed = || Stdio::from(std::io::pipe().unwrap().1);
    for (stdout, says) in [(full(), "No space left on device"), (closed(), "Broken pipe")] {
        let mut logger = Logger::spawn(&deployment, command().stdout(stdout).stderr(Stdio::piped()));
        assert_eq!(logger.exit_code().await, Some(1));
        let errors = std::io::read_to_string(logger.0.stderr.take().unwrap()).unwrap();
        assert!(errors.contains("standard output") && errors.contains(says), "{errors}");
        let stream = deployment.stream(LOGS).await;
        let state = stream.consumer_info("logger_logs").await.unwrap();
        assert_eq!(state.ack_floor.stream_sequence, 0);
    }
    let mut logger = Logger::spawn(&deployment, command().stdout(Stdio::piped()));
    eventually("all is acknowledged", async || (open(&deployment).await == (0, 0)).then_some(())).await;
    assert_eq!(logger.end("-TERM").await, Some(0));
    let text = std::io::read_to_string(logger.0.stdout.take().unwrap()).unwrap();
    let written: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((events(of_kind(&written, "log")).len(), of_kind(&written, "result").len()), (15, 5));
}

#[tokio::test]
async fn the_loggers_admin_port_tells_what_was_written() {
    let (deployment, _worker) = Deployment::with_worker(&echo_registry(0, "")).await;
    let (_logger, address) = Logger::with_metrics(&deployment);
    answer_many(&deployment, 1).await;
    // A worker tells its pace after its first job: a look at the queue before that has no seconds yet.
    let expected = ["inferq_logger_records_total{kind=\"log\"} 3", "inferq_backlog_empty_seconds{"];
    let shown = eventually("the lines are counted and the pace is told", async || {
        metrics(&address).await.filter(|text| expected.iter().all(|series| text.contains(series)))
    })
    .await;
    for (name, _, help) in workers::logger::metrics::TABLE {
        let is_shown = shown.contains(&format!("# HELP {name} {help}"));
        assert!(is_shown || name == "inferq_logger_dead_letters_total", "{name}\n{shown}");
    }
    assert!(shown.contains("inferq_logger_lag{kind=\"log\"} 0"), "{shown}");
    for path in ["/livez", "/readyz"] {
        assert_eq!(reqwest::get(format!("http://{address}{path}")).await.unwrap().status().as_u16(), 200, "{path}");
    }
}

#[test]
fn what_a_logger_is_told_wrong_ends_with_64() {
    // Nothing listens there: a connection would be tried for ever.
    let server = ["--server", "nats://127.0.0.1:1"];
    let cases: [(&[&str], &str); 6] = [
        (&["--keep", "0"], "--keep"),
        (&["--rotate-bytes", "0"], "--rotate-bytes"),
        (&["--rotate-bytes", "much"], "--rotate-bytes"),
        (&["--log", "=="], "--log"),
        (&["--admin", "here"], "--admin"),
        (&["--model", "echo"], "--model"),
    ];
    for (arguments, says) in cases {
        let output = run(&program("inferq-logger"), &[arguments, &server[..]].concat(), &[]);
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(64), "{arguments:?}: {errors}");
        assert!(errors.contains(says), "{arguments:?}: {errors}");
    }
}

pub fn free_address() -> String {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

/// What stands at the logger's `/metrics`.
pub async fn metrics(address: &str) -> Option<String> {
    reqwest::get(format!("http://{address}/metrics")).await.ok()?.text().await.ok()
}

/// The value of a series.
fn value(metrics: &str, series: &str) -> Option<f64> {
    metrics.lines().find_map(|line| line.strip_prefix(series)?.trim().parse().ok())
}

#[tokio::test]
async fn a_queue_is_told_of_while_it_is_worked_on_and_when_nobody_does() {
    let deployment = Deployment::new(&echo_registry(50, "in_flight = 4\nbatch = 1")).await;
    let (_logger, address) = Logger::with_metrics(&deployment);
    let publish = async |count| {
        for _ in 0..count {
            // What a producer says of its age is not believed.
            let old = [("Inferq-Published", "1970-01-01T00:00:00Z")];
            deployment.publish_raw(chat("a question").to_string().as_bytes(), &old).await;
        }
    };
    let default = r#"{lane="default",model="echo"}"#;
    let told = async |what: &str, is_it: &dyn Fn(&str) -> bool| {
        eventually(what, async || metrics(&address).await.filter(|metrics| is_it(metrics))).await
    };

    publish(300).await;
    let jobs = format!("inferq_queue_jobs{default}");
    let idle = told("jobs that wait", &|metrics| value(metrics, &jobs) == Some(300.0)).await;
    let age = value(&idle, &format!("inferq_queue_age_seconds{default}")).unwrap();
    assert!((0.001..600.0).contains(&age), "{idle}");
    assert_eq!(value(&idle, r#"inferq_workers{model="echo"}"#), Some(0.0), "{idle}");
    assert!(!idle.contains("inferq_backlog_seconds{"), "nobody has told a pace: {idle}");

    let worker = deployment.worker("echo").await;
    let busy = told("work that waits", &|metrics| metrics.contains("inferq_backlog_empty_seconds{")).await;
    assert_eq!(value(&busy, r#"inferq_workers{model="echo"}"#), Some(1.0), "{busy}");
    let work = value(&busy, &format!("inferq_backlog_seconds{default}")).unwrap();
    let empty = value(&busy, r#"inferq_backlog_empty_seconds{model="echo"}"#).unwrap();
    assert!(work > 0.0 && (work - empty).abs() < 1e-6, "one worker does it alone: {busy}");

    drop(worker);
    let left = told("no worker", &|metrics| value(metrics, r#"inferq_workers{model="echo"}"#) == Some(0.0)).await;
    assert!(value(&left, &format!("inferq_backlog_seconds{default}")).unwrap() > 0.0, "its pace is remembered: {left}");
    assert!(!left.contains("inferq_backlog_empty_seconds{"), "{left}");
}

#[tokio::test]
async fn dead_letters_are_counted_by_model_and_class() {
    let (deployment, _worker) = Deployment::with_worker(&echo_registry(0, "")).await;
    let (_logger, address) = Logger::with_metrics(&deployment);
    deployment.publish_raw(b"no job", &[]).await;
    let series = r#"inferq_logger_dead_letters_total{class="invalid",model="echo"}"#;
    // It stands at 0 before, where the queue has been looked at.
    let counted =
        async || metrics(&address).await.and_then(|metrics| value(&metrics, series)).filter(|count| *count > 0.0);
    assert_eq!(eventually("the dead letter is counted", counted).await, 1.0);
}
