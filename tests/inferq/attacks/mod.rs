//! Attacks: what tenants and workers try with their own credentials on what is not theirs, and that it has no effect.
//!
//! A stage has something of a victim in every stream. What an attack may have changed is found by comparing all that the
//! operator sees of all streams and consumers, before and after.

mod headers;
mod tenant;
mod worker;

use std::time::Duration;

use async_nats::{Client, HeaderMap, Message};
use connect::Connection;
use futures::{StreamExt, TryStreamExt};
use serde_json::{Value, json};

use crate::support::{Accounts, Deployment, WorkerProcess, chat, echo_registry};

/// Whose things are attacked, and by whom.
const VICTIM: &str = "acme";
const ATTACKER: &str = "mallory";
/// In everything that is the victim's.
const SECRET: &str = "the-victims-secret";

struct Stage {
    accounts: Accounts,
    deployment: Deployment,
}

impl Stage {
    async fn new() -> Self {
        Self::with(&[]).await
    }

    /// With flags of `inferq tenants add`.
    async fn with(arguments: &[&str]) -> Self {
        let accounts = Accounts::start(&[VICTIM, ATTACKER], arguments);
        let deployment = Deployment::through(accounts.nats("admin"), &echo_registry(0, "")).await;
        let stage = Self { accounts, deployment };
        for subject in [
            "inferq.jobs.echo.default.acme.waiting",
            "inferq.jobs.echo.lifted.acme.waiting",
            "inferq.results.acme.done",
            "inferq.logs.acme.done",
            "inferq.tokens.acme.done",
            "inferq.dead.echo.default.acme.dead",
            "$KV.inferq-cache.0123",
            "$KV.inferq-attempts.acme.waiting",
            "$KV.inferq-tenants.echo.default.acme",
            "$O.inferq-inputs.C.chunk",
            "$O.inferq-inputs.M.bWV0YQ==",
            "$O.inferq-blobs.C.chunk",
        ] {
            let stored = stage.admin().jetstream.publish(subject, SECRET.into()).await.unwrap().await;
            stored.unwrap_or_else(|error| panic!("{subject}: {error}"));
        }
        stage
    }

    fn admin(&self) -> &Connection {
        &self.deployment.client.connection
    }

    async fn worker(&self) -> WorkerProcess {
        let arguments = self.accounts.arguments("worker", &["--log", "error"]);
        self.deployment.worker_with("echo", &arguments.iter().map(String::as_str).collect::<Vec<_>>()).await
    }

    /// All that the operator sees: of each stream its configuration and what it holds, and each of its consumers.
    async fn seen(&self) -> Value {
        let jetstream = &self.admin().jetstream;
        let mut all = Vec::new();
        let mut names: Vec<String> = jetstream.stream_names().try_collect().await.unwrap();
        names.sort();
        for name in names {
            let stream = jetstream.get_stream(&name).await.unwrap();
            let info = stream.cached_info();
            let mut consumers: Vec<Value> = Vec::new();
            let mut infos = stream.consumers();
            while let Some(consumer) = infos.try_next().await.unwrap() {
                consumers.push(json!([
                    consumer.name,
                    consumer.config,
                    consumer.delivered.stream_sequence,
                    consumer.ack_floor.stream_sequence,
                    consumer.num_ack_pending,
                    consumer.num_redelivered,
                    consumer.num_pending,
                ]));
            }
            consumers.sort_by_key(Value::to_string);
            let state = &info.state;
            let held = [state.messages, state.bytes, state.first_sequence, state.last_sequence];
            // The server's own reports of what happens to streams are counted apart.
            let held = if name == "INFERQ_ADVISORIES" { Vec::new() } else { held.to_vec() };
            all.push(json!([name, info.config, held, consumers]));
        }
        Value::Array(all)
    }

    /// Fails if something is not as it was.
    async fn check_unchanged(&self, before: &Value, what: &str) {
        // What the attacker has sent has come to the server before it answers to the operator.
        assert_eq!(*before, self.seen().await, "{what}");
    }
}

/// What a request comes back with: nothing, if nobody is there who could answer.
async fn answer(client: &Client, subject: &str, headers: Option<HeaderMap>, payload: &str) -> Option<Message> {
    let mut request = async_nats::Request::new().payload(payload.to_owned().into());
    if let Some(headers) = headers {
        request = request.headers(headers);
    }
    // A request that is answered takes a moment; one that nobody takes comes back at once.
    let request = request.timeout(Some(Duration::from_secs(2)));
    let answer = client.send_request(subject.to_owned(), request).await.ok()?;
    answer.status.is_none_or(|status| status != async_nats::StatusCode::NO_RESPONDERS).then_some(answer)
}

/// Whether a message has anything of the victim in it.
fn tells(message: &Message) -> bool {
    let headers = format!("{:?}", message.headers);
    let text = String::from_utf8_lossy(&message.payload);
    [SECRET, "acme"].iter().any(|secret| text.contains(secret) || headers.contains(secret))
}

/// All messages that have come so far on a subscription of everything, once the client has heard of its own last word.
async fn heard(client: &Client, subscriber: &mut async_nats::Subscriber) -> Vec<Message> {
    client.publish("own.last.word", "".into()).await.unwrap();
    let mut messages = Vec::new();
    while let Some(message) = subscriber.next().await {
        if message.subject.as_str() == "own.last.word" {
            break;
        }
        messages.push(message);
    }
    messages
}

fn job() -> String {
    chat("hi").to_string()
}

fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    pairs.iter().for_each(|(name, value)| headers.insert(*name, *value));
    headers
}
