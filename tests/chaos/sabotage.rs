//! A check of the account itself: what is stored is spoiled in every way it watches for, and it must notice each.

use async_nats::HeaderMap;
use bytes::Bytes;
use schemas::stream;
use schemas::subject::ReplyTokens;

use crate::account::Account;
use crate::check::Verdict;
use crate::job::{MODEL, TENANT};
use crate::stage::Stage;

/// What the account has to say about it.
const NOTICED: [&str; 5] = [
    "acknowledged, and no result is stored",
    "the answer is wrong",
    "a job never sent",
    "a sound job became a dead letter",
    "results are stored, but",
];

/// Takes a result away, gives another one the answer of a third, and adds a result and a dead letter.
pub async fn spoil(stage: &Stage) {
    let results = stage.connection.jetstream.get_stream(stream::RESULTS).await.unwrap();
    let second = results.get_raw_message(2).await.unwrap();
    let third = results.get_raw_message(3).await.unwrap();
    let fourth = results.get_raw_message(4).await.unwrap();
    results.delete_message(1).await.unwrap();
    results.delete_message(2).await.unwrap();
    publish(stage, second.subject.to_string(), third.headers.clone(), third.payload.clone()).await;
    let never_sent = ReplyTokens { tenant: TENANT, job_id: "never-sent" }.result_subject();
    publish(stage, never_sent, third.headers, third.payload).await;
    let id = fourth.subject.rsplit('.').next().unwrap_or_default();
    publish(stage, format!("inferq.dead.{MODEL}.default.{TENANT}.{id}"), fourth.headers, fourth.payload).await;
}

/// Whether the account has noticed everything. What it has noticed is no longer wrong.
pub fn judge(account: &mut Account) -> Verdict {
    let wrongs = std::mem::take(&mut account.wrongs);
    let missed: Vec<&str> =
        NOTICED.into_iter().filter(|noticed| !wrongs.iter().any(|wrong| wrong.contains(noticed))).collect();
    let passed = missed.is_empty() && wrongs.len() == NOTICED.len();
    let text = match passed {
        true => format!("{} wrongs were committed, and all were noticed", NOTICED.len()),
        false => format!("not noticed: {missed:?}; noticed: {wrongs:?}"),
    };
    Verdict { text, passed }
}

async fn publish(stage: &Stage, subject: String, headers: HeaderMap, payload: Bytes) {
    stage.connection.jetstream.publish_with_headers(subject, headers, payload).await.unwrap().await.unwrap();
}
