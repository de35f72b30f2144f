//! Dead letters: jobs that workers gave up. They are listed, shown, sent again and deleted.
//!
//! A letter is read without its body first, so that a list of many large ones needs neither memory nor time.

mod letter;
mod replay;

use std::time::Duration;

use anyhow::Context as _;
use async_nats::jetstream::consumer::{DeliverPolicy, pull};
use connect::bucket::{BODY_BYTES_MAX, BucketError};
use futures::{Stream, StreamExt, TryStreamExt, stream};
use schemas::header::{self, DeadClass};
use schemas::stream::DEAD;
use schemas::subject::{JobId, ReplyTokens, Token};
use time::OffsetDateTime;

pub use letter::{Letter, OpenLetter};
pub use replay::Replayed;

use crate::client::{Client, ReadError, server, stream_handle};

/// How long the next letter may take.
const SILENCE: Duration = Duration::from_secs(10);

/// Which letters are meant; the default means all.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Filter {
    pub job_ids: Vec<JobId>,
    pub model: Option<Token>,
    pub tenant: Option<Token>,
    pub class: Option<DeadClass>,
    /// Part of the reason.
    pub reason: Option<String>,
    pub older_than: Option<Duration>,
    pub newer_than: Option<Duration>,
}

impl Filter {
    /// What the server sorts by.
    fn subjects(&self) -> Vec<String> {
        let part = |token: &Option<Token>| token.as_ref().map_or("*", Token::as_str).to_owned();
        let (model, tenant) = (part(&self.model), part(&self.tenant));
        let subject = |job_id: &str| format!("inferq.dead.{model}.*.{tenant}.{job_id}");
        let mut job_ids: Vec<&str> = self.job_ids.iter().map(JobId::as_str).collect();
        // The server refuses filters that overlap.
        job_ids.sort_unstable();
        job_ids.dedup();
        match job_ids.is_empty() {
            true => vec![subject("*")],
            false => job_ids.into_iter().map(subject).collect(),
        }
    }

    /// What is left to sort by here.
    fn takes(&self, letter: &Letter, now: OffsetDateTime) -> bool {
        let age = now - letter.time;
        self.class.is_none_or(|class| letter.class == Some(class))
            && self.reason.as_ref().is_none_or(|part| letter.reason.contains(part.as_str()))
            && self.older_than.is_none_or(|limit| age > limit)
            && self.newer_than.is_none_or(|limit| age < limit)
    }
}

impl Client {
    /// The dead letters that are there now, oldest first, without their bodies.
    pub async fn dead_letters(
        &self,
        filter: Filter,
    ) -> Result<impl Stream<Item = Result<Letter, ReadError>> + use<>, ReadError> {
        let dead = stream_handle(&self.connection.jetstream, DEAD).await?;
        let config = pull::OrderedConfig {
            filter_subjects: filter.subjects(),
            deliver_policy: DeliverPolicy::All,
            headers_only: true,
            ..Default::default()
        };
        let consumer = dead.create_consumer(config).await.map_err(|error| match error.to_string() {
            text if text.contains("stream not found") => ReadError::NoStream(DEAD),
            text => ReadError::Server(text),
        })?;
        let stored = consumer.cached_info().num_pending;
        let messages = consumer.messages().await.map_err(server)?;
        let now = OffsetDateTime::now_utc();
        // Letters that come while these are read are not read: they may be those that were just sent again.
        let letters = stream::try_unfold((messages, stored), |(mut messages, left)| async move {
            if left == 0 {
                return Ok(None);
            }
            let next = tokio::time::timeout(SILENCE, messages.next()).await;
            let Ok(Some(message)) = next else { return Err(server("the dead letters did not all come")) };
            let message = message.map_err(server)?;
            let (letter, pending) = Letter::of_message(&message).map_err(server)?;
            Ok(Some((letter, (messages, pending.min(left - 1)))))
        });
        Ok(letters.try_filter(move |letter| std::future::ready(filter.takes(letter, now))))
    }

    /// Reads the body of a letter, its log and its history.
    pub async fn open(&self, letter: &Letter) -> anyhow::Result<OpenLetter> {
        let dead = stream_handle(&self.connection.jetstream, DEAD).await?;
        let message = dead.direct_get(letter.sequence).await;
        let message = message.with_context(|| format!("dead letter {}", letter.job_id))?;
        let payload = match letter.body_name() {
            Some(name) => match self.dead.get(name, BODY_BYTES_MAX).await {
                Ok(body) => Some(body),
                // The letter outlives it.
                Err(BucketError::Gone { .. }) => None,
                Err(error) => return Err(error.into()),
            },
            None => Some(message.payload),
        };
        OpenLetter::new(letter, payload)
    }

    /// Deletes a letter, and its body.
    pub async fn delete_dead(&self, letter: &Letter) -> anyhow::Result<()> {
        self.delete_letter(letter).await?;
        if let Some(name) = letter.body_name() {
            // What is left over after a crash expires.
            self.dead.remove(name).await?;
            // A replay that was cut off before it sent the job may have put it there.
            if self.queued_job(letter.tokens()).await?.is_none() {
                self.inputs.remove(&letter.tokens().input_name()).await?;
            }
        }
        Ok(())
    }

    /// Deletes the letter alone.
    async fn delete_letter(&self, letter: &Letter) -> anyhow::Result<()> {
        let dead = stream_handle(&self.connection.jetstream, DEAD).await?;
        let deleted = dead.delete_message(letter.sequence).await;
        deleted.with_context(|| format!("dead letter {} could not be deleted", letter.job_id)).map(drop)
    }
}

impl Letter {
    fn tokens(&self) -> ReplyTokens<'_> {
        let mut tokens = self.subject.rsplit('.');
        let job_id = tokens.next().unwrap_or_default();
        ReplyTokens { tenant: tokens.next().unwrap_or_default(), job_id }
    }

    /// The name of the job's body, where it was too large for a message: one that a worker gave it. What else a job had
    /// in this header is none of its own.
    fn body_name(&self) -> Option<&str> {
        let name = self.headers.get(header::BODY)?.as_str();
        name.strip_prefix(&self.tokens().input_name())?.starts_with('/').then_some(name)
    }
}

#[cfg(test)]
mod tests {
    use async_nats::HeaderMap;

    use super::*;

    fn letter(age: Duration) -> Letter {
        let mut headers = HeaderMap::new();
        headers.insert(header::DEAD_CLASS, "poison");
        headers.insert(header::DEAD_REASON, "the engine failed: out of memory");
        let time = OffsetDateTime::now_utc() - age;
        Letter::new("inferq.dead.m.flex.a=2Eb.j-1".to_owned(), headers, time, 7).unwrap()
    }

    #[test]
    fn a_filter_asks_the_server_for_what_a_subject_says() {
        let (model, tenant) = (Token::encode("m.1").ok(), Token::encode("t").ok());
        let job_ids = ["b", "a", "b"].map(|id| JobId::new(id).unwrap()).to_vec();
        let filter = Filter { model, tenant, job_ids, ..Default::default() };
        assert_eq!(filter.subjects(), ["inferq.dead.m=2E1.*.t.a", "inferq.dead.m=2E1.*.t.b"]);
        assert_eq!(Filter::default().subjects(), ["inferq.dead.*.*.*.*"]);
    }

    #[test]
    fn a_filter_takes_class_reason_and_age() {
        let letter = letter(Duration::from_secs(100));
        let takes = |filter: Filter| filter.takes(&letter, OffsetDateTime::now_utc());
        let (short, long) = (Some(Duration::from_secs(50)), Some(Duration::from_secs(200)));
        assert!(takes(Filter::default()));
        assert!(takes(Filter { class: Some(DeadClass::Poison), reason: Some("memory".into()), ..Default::default() }));
        assert!(!takes(Filter { class: Some(DeadClass::Expired), ..Default::default() }));
        assert!(!takes(Filter { reason: Some("Memory".into()), ..Default::default() }));
        assert!(takes(Filter { older_than: short, newer_than: long, ..Default::default() }));
        assert!(!takes(Filter { older_than: long, ..Default::default() }));
        assert!(!takes(Filter { newer_than: short, ..Default::default() }));
    }
}
