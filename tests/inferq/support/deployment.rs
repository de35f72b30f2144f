//! A deployment: a server with streams set up from a registry, workers as processes, and a client.

use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};

use async_nats::HeaderMap;
use async_nats::jetstream::stream::Stream;
use connect::{Connection, FirstConnect, NatsArgs};
use producer::{Client, Submission, SubmitOptions, Submitted};
use schemas::codec::Encoding;
use schemas::header;
use schemas::subject::{Address, JobId, Lane, ReplyTokens, Token};
use serde_json::Value;
use tempfile::TempDir;
use uuid::Uuid;

use super::{Server, eventually, program, run, signal};

pub const TENANT: &str = "default";

pub struct Deployment {
    pub server: Server,
    /// How every program connects.
    nats: NatsArgs,
    pub client: Client,
    pub folder: TempDir,
    pub registry: PathBuf,
}

/// A worker process; killed when it is dropped.
pub struct WorkerProcess(Child);

impl Deployment {
    /// A server on which `inferq setup` has run with this registry.
    pub async fn new(registry_text: &str) -> Self {
        let server = Server::start();
        let nats = NatsArgs::to(&server.url);
        Self::made(server, nats, registry_text).await
    }

    /// On servers that the caller runs; their URLs are separated by commas.
    pub async fn on(urls: &str, registry_text: &str) -> Self {
        Self::through(NatsArgs::to(urls), registry_text).await
    }

    /// The same, with options of the connection, which the workers and `inferq` get as flags.
    pub async fn through(nats: NatsArgs, registry_text: &str) -> Self {
        Self::made(Server::at(&nats.server), nats, registry_text).await
    }

    async fn made(server: Server, nats: NatsArgs, registry_text: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let registry = folder.path().join("models.toml");
        std::fs::write(&registry, registry_text).unwrap();
        let connection = connect::connect(&nats, "tests", FirstConnect::Fail).await.unwrap();
        let deployment = Self { client: Client::new(connection), server, nats, folder, registry };
        deployment.set_up();
        deployment
    }

    /// Makes streams and consumers, those that are missing.
    pub fn set_up(&self) {
        let setup = self.inferq(&["setup", "--registry", self.registry.to_str().unwrap()]);
        assert!(setup.status.success(), "{}", String::from_utf8_lossy(&setup.stderr));
    }

    /// The same, with a running worker of its only model.
    pub async fn with_worker(registry_text: &str) -> (Self, WorkerProcess) {
        let deployment = Self::new(registry_text).await;
        let worker = deployment.worker("echo").await;
        (deployment, worker)
    }

    /// Starts a worker and waits until it is ready.
    pub async fn worker(&self, model: &str) -> WorkerProcess {
        self.worker_with(model, &[]).await
    }

    pub async fn worker_with(&self, model: &str, arguments: &[&str]) -> WorkerProcess {
        let before = self.workers(model).await;
        let mut worker = self.spawn_worker(model, arguments);
        eventually("the worker is ready", async || {
            assert!(worker.0.try_wait().unwrap().is_none(), "the worker has ended");
            (self.workers(model).await > before).then_some(())
        })
        .await;
        worker
    }

    /// Starts a worker that may end before it is ready.
    pub fn spawn_worker(&self, model: &str, arguments: &[&str]) -> WorkerProcess {
        let mut command = Command::new(program("inferq-worker"));
        command.args(["--model", model, "--admin", "127.0.0.1:0", "--log", "warn"]).args(flags(&self.nats));
        command.arg("--registry").arg(&self.registry).args(arguments).stdin(Stdio::null());
        WorkerProcess(command.spawn().unwrap())
    }

    async fn workers(&self, model: &str) -> usize {
        let Connection { client, jetstream, .. } = &self.client.connection;
        producer::status::status(client, jetstream).await.unwrap().workers.get(model).copied().unwrap_or(0)
    }

    /// Runs `inferq` against this server.
    pub fn inferq(&self, arguments: &[&str]) -> Output {
        let flags = flags(&self.nats);
        let arguments: Vec<&str> = flags.iter().map(String::as_str).chain(arguments.iter().copied()).collect();
        run(&program("inferq"), &arguments, &[])
    }

    /// Publishes a job through the library.
    pub async fn submit(&self, job: &Value, encoding: Encoding) -> JobId {
        let submission = submission(job, encoding);
        assert_eq!(self.client.submit(&submission).await.unwrap(), Submitted::Queued);
        submission.address.job_id
    }

    /// Publishes bytes as a job for the echo model, as any NATS client would, and gives its id.
    pub async fn publish_raw(&self, payload: &[u8], headers: &[(&str, &str)]) -> String {
        let job_id = Uuid::now_v7().to_string();
        self.publish_as(&job_id, payload, headers).await;
        job_id
    }

    pub async fn publish_as(&self, job_id: &str, payload: &[u8], headers: &[(&str, &str)]) {
        let mut map = HeaderMap::new();
        headers.iter().for_each(|(name, value)| map.insert(*name, *value));
        let subject = format!("inferq.jobs.echo.default.{TENANT}.{job_id}");
        let jetstream = &self.client.connection.jetstream;
        jetstream.publish_with_headers(subject, map, payload.to_vec().into()).await.unwrap().await.unwrap();
    }

    /// Waits for a result by its job id, as a message and decoded.
    pub async fn result(&self, job_id: &str) -> (HeaderMap, Value) {
        let subject = ReplyTokens { tenant: TENANT, job_id }.result_subject();
        let results = self.stream(schemas::stream::RESULTS).await;
        let message =
            eventually("a result is stored", async || results.direct_get_last_for_subject(&subject).await.ok()).await;
        let content_type = message.headers.get(header::CONTENT_TYPE).unwrap().as_str();
        let value = Encoding::from_content_type(Some(content_type)).unwrap().decode(&message.payload).unwrap();
        (message.headers, value)
    }

    pub async fn stream(&self, name: &str) -> Stream {
        let jetstream = &self.client.connection.jetstream;
        // A cluster that has no leader yet does not answer.
        eventually("the stream is described", async || jetstream.get_stream(name).await.ok()).await
    }

    /// Messages in a stream, and the sequence of its last.
    pub async fn count(&self, name: &str) -> (u64, u64) {
        let state = self.stream(name).await.cached_info().state.clone();
        (state.messages, state.last_sequence)
    }

    /// Deliveries of the echo model's default lane that are not acknowledged.
    pub async fn in_flight(&self) -> usize {
        let stream = self.stream(schemas::stream::JOBS).await;
        stream.consumer_info("echo_default").await.unwrap().num_ack_pending
    }
}

impl WorkerProcess {
    #[allow(dead_code, reason = "the benchmarks use it")]
    pub fn id(&self) -> u32 {
        self.0.id()
    }

    pub fn signal(&self, name: &str) {
        signal(name, self.0.id());
    }

    pub fn has_ended(&mut self) -> bool {
        self.0.try_wait().unwrap().is_some()
    }

    /// Waits for its end and gives its exit code.
    pub async fn exit_code(&mut self) -> Option<i32> {
        let status = eventually("the worker ends", async || self.0.try_wait().unwrap()).await;
        status.code()
    }
}

impl Drop for WorkerProcess {
    fn drop(&mut self) {
        // It may have been stopped by the test.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A job for the model its body names, with a new id.
pub fn submission(job: &Value, encoding: Encoding) -> Submission {
    let job: schemas::job::Job = serde_json::from_value(job.clone()).unwrap();
    let address = Address {
        model: job.model().unwrap().to_owned(),
        lane: Lane::Default,
        tenant: TENANT.to_owned(),
        job_id: JobId::new(Uuid::now_v7().to_string()).unwrap(),
    };
    Submission { address, encoding, payload: encoding.encode(&job).into(), options: SubmitOptions::default() }
}

/// The tenant of all tests, as a token.
pub fn tenant() -> Token {
    Token::encode(TENANT).unwrap()
}

/// The options of a connection as a command line has them.
pub fn flags(nats: &NatsArgs) -> Vec<String> {
    let text = |name: &str, value: &Option<String>| value.as_ref().map(|value| [name.to_owned(), value.clone()]);
    let file = |name: &str, value: &Option<PathBuf>| text(name, &value.as_ref().map(|path| path.display().to_string()));
    let given = [
        text("--server", &Some(nats.server.clone())),
        text("--user", &nats.user),
        text("--password", &nats.password),
        file("--creds", &nats.creds),
        file("--nkey", &nats.nkey),
        file("--tlscert", &nats.tlscert),
        file("--tlskey", &nats.tlskey),
        file("--tlsca", &nats.tlsca),
        text("--inbox-prefix", &nats.inbox_prefix),
        text("--js-api-prefix", &nats.js_api_prefix),
    ];
    let first = nats.tlsfirst.then(|| "--tlsfirst".to_owned());
    given.into_iter().flatten().flatten().chain(first).collect()
}
