//! Lookups in the bucket, many in one request: the server's direct get of the last message of each of several subjects
//! (ADR-31). While one request is on its way, the next one gathers.

use std::collections::HashMap;
use std::time::Duration;

use async_nats::{Client, Message, Subscriber};
use bytes::Bytes;
use futures::StreamExt;
use schemas::stream::CACHE_BUCKET;
use serde::Serialize;
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

#[derive(Serialize)]
struct Request<'a> {
    multi_last: Vec<&'a str>,
    batch: usize,
}

async fn serve(client: Client, subject: String, mut asked: mpsc::Receiver<Asked>) {
    let inbox = client.new_inbox();
    // One subscription for all requests: to make one costs the server as much as an answer.
    let mut answers = match client.subscribe(format!("{inbox}.*")).await {
        Ok(answers) => answers,
        Err(error) => return tracing::error!(%error, "the cache cannot be read"),
    };
    let mut batch = Vec::with_capacity(BATCH_MAX);
    let mut number = 0_u64;
    while asked.recv_many(&mut batch, BATCH_MAX).await > 0 {
        number += 1;
        let multi_last = batch.iter().map(|asked: &Asked| asked.subject.as_str()).collect();
        let request = Request { multi_last, batch: batch.len() };
        let request = serde_json::to_vec(&request).expect("text and numbers are JSON");
        let inbox = format!("{inbox}.{number}");
        let answered = async {
            client.publish_with_reply(subject.clone(), inbox.clone(), request.into()).await.ok()?;
            hand_out(&mut answers, &inbox, &mut batch).await
        };
        if !matches!(tokio::time::timeout(ANSWER_MAX, answered).await, Ok(Some(()))) {
            tracing::debug!(keys = batch.len(), "cache not reached, its entries count as missing");
        }
        // Those that are left are told by the end of their channel.
        batch.clear();
    }
}

/// Answers those whose key is there. What comes to another inbox is of a request that was given up.
async fn hand_out(answers: &mut Subscriber, inbox: &str, batch: &mut Vec<Asked>) -> Option<()> {
    let mut waiting: HashMap<String, oneshot::Sender<Bytes>> = HashMap::new();
    while let Some(message) = answers.next().await {
        if message.subject.as_str() != inbox {
            continue;
        }
        // 204 ends the answers, 404 says that there are none.
        if message.status.is_some() {
            return Some(());
        }
        waiting.extend(batch.drain(..).map(|Asked { subject, answer }| (subject, answer)));
        if let Some(answer) = key_of(&message).and_then(|key| waiting.remove(key)) {
            let _ = answer.send(message.payload);
        }
    }
    None
}

fn key_of(message: &Message) -> Option<&str> {
    Some(message.headers.as_ref()?.get(async_nats::header::NATS_SUBJECT)?.as_str())
}
