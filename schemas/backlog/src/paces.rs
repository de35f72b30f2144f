//! What workers say when all of them are asked.

use std::time::Duration;

use async_nats::Client;
use futures::StreamExt;
use schemas::pace::{self, Pace};
use serde::de::DeserializeOwned;

/// How long workers have to answer.
const ROLL_CALL: Duration = Duration::from_millis(400);

/// What each worker says of its pace. One that has done no work yet answers too.
pub async fn paces(client: &Client) -> Result<Vec<Pace>, async_nats::Error> {
    ask(client, pace::SUBJECT.to_owned()).await
}

/// Asks all workers, and keeps the answers that come in time and can be read.
pub async fn ask<T: DeserializeOwned>(client: &Client, subject: String) -> Result<Vec<T>, async_nats::Error> {
    let inbox = client.new_inbox();
    let mut answers = client.subscribe(inbox.clone()).await?;
    client.publish_with_reply(subject, inbox, "".into()).await?;
    let mut read = Vec::new();
    let deadline = tokio::time::Instant::now() + ROLL_CALL;
    while let Ok(Some(answer)) = tokio::time::timeout_at(deadline, answers.next()).await {
        // No responders: there is no worker at all.
        if answer.status.is_some() {
            break;
        }
        read.extend(serde_json::from_slice(&answer.payload).ok());
    }
    Ok(read)
}
