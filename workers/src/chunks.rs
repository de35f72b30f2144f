//! Chunks: the answers of a job that streams, published as they are made, so that no reader ever sees a part twice.
//!
//! Each chunk is published with the sequence of the one before as the last of its subject: two workers that run the same
//! job after a fault cannot both append. The one that comes second reads what is there and goes on behind it. Both make
//! the same tokens, since sampling depends on seed and position alone.

use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::stream::Stream;
use async_nats::jetstream::{Context, context::GetStreamError};
use connect::{PublishFailure, classify_publish};
use schemas::chunk::{self, Chunk};
use schemas::codec::Encoding;
use schemas::log::Usage;
use schemas::{header, stream};
use tokio::sync::watch;

use crate::endpoint::{Answer, Part, Stamp};
use crate::engine::thread::{Followed, Generated};
use crate::engine::{FinishReason, Logprobs, Output, SamplingParams};

/// Tokens made within this time share a message.
const COALESCE: Duration = Duration::from_millis(30);
/// How long to wait before a chunk that was not confirmed is published again.
const RETRY_DELAY: Duration = Duration::from_millis(200);

/// The stream of chunks.
#[derive(Clone, Debug)]
pub struct Chunks {
    jetstream: Context,
    stream: Stream<()>,
}

/// Whose chunks they are.
#[derive(Clone, Copy)]
pub struct Of<'a> {
    pub subject: &'a str,
    pub answer: &'a Answer,
    pub stamp: Stamp<'a>,
    /// How the answers are generated.
    pub params: &'a SamplingParams,
    /// Answers of the job.
    pub count: usize,
}

/// What is published of one job.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Published {
    answers: Vec<PublishedAnswer>,
    /// Chunks.
    count: u64,
    /// The stream's sequence of the last one.
    sequence: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct PublishedAnswer {
    tokens: Vec<u32>,
    /// Bytes of text.
    text: usize,
    is_ended: bool,
}

/// One of a job's answers, as far as it has come.
#[derive(Clone, Copy)]
struct Now<'a> {
    index: usize,
    tokens: &'a [u32],
    text: &'a str,
    /// Of the tokens after so many; none where they are not wanted.
    logprobs: &'a [Logprobs],
    logprobs_after: usize,
    end: Option<FinishReason>,
    usage: Option<Usage>,
}

impl Chunks {
    pub async fn new(jetstream: Context) -> Result<Self, GetStreamError> {
        let stream = jetstream.get_stream_no_info(stream::TOKENS).await?;
        Ok(Self { jetstream, stream })
    }

    /// Begins to tell of a job, or goes on where another delivery of it `was_begun`.
    pub async fn tell<'a>(&'a self, of: Of<'a>, was_begun: bool) -> Telling<'a> {
        let none = Published { answers: vec![PublishedAnswer::default(); of.count], ..Published::default() };
        let published = if was_begun { self.read(of).await } else { none };
        let before = published.answers.iter().map(|answer| answer.tokens.clone()).collect();
        Telling { chunks: self, of, before, published }
    }

    /// Reads what is published. Ids that are no tokens of the model are none of a worker's, nor are more answers.
    async fn read(&self, of: Of<'_>) -> Published {
        let mut published = Published { answers: vec![PublishedAnswer::default(); of.count], ..Published::default() };
        let after = |published: &Published| Some(published.sequence + 1);
        while let Ok(message) = self.stream.direct_get_next_for_subject(of.subject, after(&published)).await {
            published.sequence = message.sequence;
            published.count += 1;
            let Ok(chunk) = Encoding::Json.decode::<Chunk>(&message.payload) else { continue };
            let Some(answer) = published.answers.get_mut(chunk.index()) else { continue };
            let ids = message.headers.get(header::TOKEN_IDS).map_or("", |ids| ids.as_str());
            let vocabulary = of.stamp.text.vocab_size();
            answer.tokens.extend(chunk::read_token_ids(ids).into_iter().filter(|&id| (id as usize) < vocabulary));
            answer.is_ended |= chunk.finish_reason().is_some();
        }
        for answer in &mut published.answers {
            answer.text = of.settled(&answer.tokens).len();
        }
        published
    }
}

impl Of<'_> {
    fn settled(&self, tokens: &[u32]) -> String {
        let text = self.stamp.text.decode_with(tokens, self.params.skip_special_tokens);
        settled_text(&text, &self.params.stop)
    }
}

/// Tells of one job.
pub struct Telling<'a> {
    chunks: &'a Chunks,
    of: Of<'a>,
    /// Tokens of each answer that were published before this delivery.
    before: Vec<Vec<u32>>,
    published: Published,
}

impl Telling<'_> {
    pub fn before(&self) -> &[Vec<u32>] {
        &self.before
    }

    /// Publishes tokens as they are made, until the caller drops it.
    pub async fn follow(&mut self, mut made: watch::Receiver<Followed>) {
        loop {
            if made.changed().await.is_err() {
                // The engine is done: the caller publishes the end.
                return std::future::pending().await;
            }
            tokio::time::sleep(COALESCE).await;
            let answers = made.borrow_and_update().answers.clone();
            for (index, Generated { tokens, logprobs }) in answers.iter().enumerate() {
                let before = self.before.get(index).map_or(&[][..], Vec::as_slice);
                let known = self.published.answers.get(index).map_or(0, |answer| answer.tokens.len());
                if before.len() + tokens.len() <= known {
                    continue;
                }
                let (tokens, logprobs_after) = ([before, tokens].concat(), before.len());
                let text = self.of.settled(&tokens);
                let (tokens, text) = (&tokens[..], &text[..]);
                let now = Now { index, tokens, text, logprobs, logprobs_after, end: None, usage: None };
                self.publish(now).await;
            }
        }
    }

    /// Publishes what is left of the answers, and that they have ended.
    pub async fn end(&mut self, followed: &Followed, outputs: &[Output]) {
        let usage = self.of.stamp.generated(outputs);
        for (index, output) in outputs.iter().enumerate() {
            let Output::Completion { text, finish_reason, logprobs, .. } = output else { return };
            let made = followed.answers.get(index).map_or(&[][..], |made| &made.tokens);
            let tokens = &[self.before.get(index).map_or(&[][..], Vec::as_slice), made].concat()[..];
            let usage = (index + 1 == outputs.len()).then_some(usage);
            let end = Some(*finish_reason);
            self.publish(Now { index, tokens, text, logprobs, logprobs_after: 0, end, usage }).await;
        }
    }

    async fn publish(&mut self, now: Now<'_>) {
        loop {
            let Some(published) = self.published.answers.get(now.index) else { return };
            let new = now.tokens.get(published.tokens.len()..).unwrap_or_default();
            if published.is_ended || (new.is_empty() && now.end.is_none()) {
                return;
            }
            let known = published.tokens.len().saturating_sub(now.logprobs_after);
            let part = Part {
                index: now.index,
                text: now.text,
                from: published.text,
                tokens_before: &published.tokens,
                logprobs: now.logprobs.get(known..).unwrap_or_default(),
                end: now.end,
                usage: now.usage,
            };
            let Some(chunk) = self.of.answer.chunk(&part, self.of.stamp) else { return };
            match self.publish_once(new, &chunk).await {
                Ok(sequence) => {
                    self.published.count += 1;
                    self.published.sequence = sequence;
                    let published = &mut self.published.answers[now.index];
                    published.tokens.extend_from_slice(new);
                    published.text = published.text.max(now.text.len());
                    published.is_ended = now.end.is_some();
                    return;
                }
                // Another delivery was quicker, or this one's publish was stored and not confirmed.
                Err(PublishFailure::AlreadyStored) => self.published = self.chunks.read(self.of).await,
                Err(failure) if failure.is_transient() => tokio::time::sleep(RETRY_DELAY).await,
                Err(failure) => {
                    tracing::warn!(%failure, "chunk not published");
                    return;
                }
            }
        }
    }

    async fn publish_once(&self, new: &[u32], chunk: &Chunk) -> Result<u64, PublishFailure> {
        let mut headers = HeaderMap::new();
        headers.insert(header::CHUNK, self.published.count.to_string());
        headers.insert(header::TOKEN_IDS, chunk::write_token_ids(new));
        let message = PublishMessage::build()
            .payload(Encoding::Json.encode(chunk).into())
            .headers(headers)
            .expected_last_subject_sequence(self.published.sequence);
        let sent = match self.chunks.jetstream.send_publish(self.of.subject.to_owned(), message).await {
            Ok(ack) => ack.await,
            Err(error) => Err(error),
        };
        sent.map(|ack| ack.sequence).map_err(|error| classify_publish(&error))
    }
}

/// As much of a text as no later token can change: without a character that is not whole yet, and without what may be the
/// beginning of a stop string.
fn settled_text(text: &str, stop: &[String]) -> String {
    let end = stop.iter().filter_map(|stop| text.find(stop.as_str())).min().unwrap_or(text.len());
    let whole = text[..end].trim_end_matches(char::REPLACEMENT_CHARACTER);
    let begins_stop = |at: usize| stop.iter().any(|stop| stop.starts_with(&whole[at..]));
    let held = whole.char_indices().map(|(at, _)| at).find(|&at| begins_stop(at)).unwrap_or(whole.len());
    whole[..held].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_that_may_still_change_is_held_back() {
        let stop = ["\n\nEND".to_owned(), "xy".to_owned()];
        assert_eq!(settled_text("hello", &stop), "hello");
        assert_eq!(settled_text("hello\n", &stop), "hello");
        assert_eq!(settled_text("hello\n\nEN", &stop), "hello");
        assert_eq!(settled_text("hello\n\nENJOY", &stop), "hello\n\nENJOY");
        assert_eq!(settled_text("hello\n\nEND and more", &stop), "hello");
        assert_eq!(settled_text("axb", &stop), "axb");
        assert_eq!(settled_text("Gr\u{fffd}", &[]), "Gr");
    }
}
