//! Lookups in the bucket, many in one request: the server's direct get of the last message of each of several subjects
//! (ADR-31). While one request is on its way, the next one gathers.

use std::collections::HashMap;
use std::time::Duration;

use async_nats::{Client, Message, Subscriber};
use bytes::Bytes;
use futures::StreamExt;
use schemas::stream::CACHE_BUCKET;
use serde_json::json;
use tokio::sync::{mpsc, oneshot};

/// Keys of one request.
const BATCH_MAX: usize = 256;
/// After this a lookup counts as a miss: computing is better than waiting for a server that is away.
const ANSWER_MAX: Duration = Duration::from_secs(1);

/// A task that looks up for all deliveries. It ends when this is dropped.
pub struct Lookups {
    asked: mpsc::Sender<Asked>,
}

struct Asked {
    subject: String,
    answer: oneshot::Sender<Bytes>,
}

impl Lookups {
    pub fn start(client: Client, api_prefix: &str) -> Self {
        let (asked, receiver) = mpsc::channel(BATCH_MAX);
        let subject = format!("{api_prefix}.DIRECT.GET.KV_{CACHE_BUCKET}");
        tokio::spawn(serve(client, subject, receiver));
        Self { asked }
    }

    /// The last message of a subject, if there is one and the server says so in time.
    pub async fn get(&self, subject: String) -> Option<Bytes> {
        let (answer, found) = oneshot::channel();
        self.asked.send(Asked { subject, answer }).await.ok()?;
        found.await.ok()
    }
}

async fn serve(client: Client, subject: String, mut asked: mpsc::Receiver<Asked>) {
    let mut batch = Vec::with_capacity(BATCH_MAX);
    while asked.recv_many(&mut batch, BATCH_MAX).await > 0 {
        let mut waiting: HashMap<String, oneshot::Sender<Bytes>> =
            batch.drain(..).map(|Asked { subject, answer }| (subject, answer)).collect();
        let answered = tokio::time::timeout(ANSWER_MAX, look_up(&client, &subject, &mut waiting)).await;
        if !matches!(answered, Ok(Some(()))) {
            tracing::debug!(keys = waiting.len(), "cache not reached, its entries count as missing");
        }
        // Those that are left are told by the end of their channel.
    }
}

/// Answers those whose key is there.
async fn look_up(client: &Client, subject: &str, waiting: &mut HashMap<String, oneshot::Sender<Bytes>>) -> Option<()> {
    let keys: Vec<&String> = waiting.keys().collect();
    let request = json!({ "multi_last": keys, "batch": keys.len() }).to_string();
    let inbox = client.new_inbox();
    let mut answers: Subscriber = client.subscribe(inbox.clone()).await.ok()?;
    client.publish_with_reply(subject.to_owned(), inbox, request.into()).await.ok()?;
    while let Some(message) = answers.next().await {
        // 204 ends the answers, 404 says that there are none.
        if message.status.is_some() {
            return Some(());
        }
        if let Some(answer) = key_of(&message).and_then(|key| waiting.remove(key)) {
            let _ = answer.send(message.payload);
        }
    }
    None
}

fn key_of(message: &Message) -> Option<&str> {
    Some(message.headers.as_ref()?.get(async_nats::header::NATS_SUBJECT)?.as_str())
}
