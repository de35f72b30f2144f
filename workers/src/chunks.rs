//! Chunks: the answer of a job that streams, published as it is made, so that no reader ever sees a part twice.
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
use crate::engine::thread::Followed;
use crate::engine::{FinishReason, text::Text};

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

/// What is published of one job.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Published {
    pub tokens: Vec<u32>,
    /// Bytes of text.
    text: usize,
    /// Chunks.
    count: u64,
    /// The stream's sequence of the last one.
    sequence: u64,
    is_ended: bool,
}

/// Whose chunks they are.
#[derive(Clone, Copy)]
pub struct Of<'a> {
    pub subject: &'a str,
    pub answer: &'a Answer,
    pub stamp: Stamp<'a>,
    pub text: &'a Text,
    /// A text ends before any of these.
    pub stop: &'a [String],
}

impl Chunks {
    pub async fn new(jetstream: Context) -> Result<Self, GetStreamError> {
        let stream = jetstream.get_stream_no_info(stream::TOKENS).await?;
        Ok(Self { jetstream, stream })
    }

    /// Reads what another delivery of the job has published. Ids that are no tokens of the model are none of a worker's.
    pub async fn read(&self, subject: &str, vocabulary: usize) -> Published {
        let mut published = Published::default();
        while let Ok(message) = self.stream.direct_get_next_for_subject(subject, Some(published.sequence + 1)).await {
            let ids = message.headers.get(header::TOKEN_IDS).map_or("", |ids| ids.as_str());
            published.tokens.extend(chunk::read_token_ids(ids).into_iter().filter(|&id| (id as usize) < vocabulary));
            published.sequence = message.sequence;
            published.count += 1;
            if let Ok(chunk) = Encoding::Json.decode::<Chunk>(&message.payload) {
                published.text += chunk.text().len();
                published.is_ended |= chunk.finish_reason().is_some();
            }
        }
        published
    }

    /// Publishes tokens as they are made, after those that are `published`, until the caller drops it.
    pub async fn follow(&self, published: &mut Published, mut made: watch::Receiver<Followed>, of: Of<'_>) {
        let before = published.tokens.clone();
        loop {
            if made.changed().await.is_err() {
                // The engine is done: the caller publishes the end.
                return std::future::pending().await;
            }
            tokio::time::sleep(COALESCE).await;
            let tokens = [&before[..], &made.borrow_and_update().tokens].concat();
            let text = settled_text(&of.text.decode(&tokens), of.stop);
            self.publish(published, &tokens, &text, None, of).await;
        }
    }

    /// Publishes what is left of the text, and that it has ended.
    pub async fn end(
        &self,
        published: &mut Published,
        tokens: &[u32],
        text: &str,
        end: (FinishReason, Usage),
        of: Of<'_>,
    ) {
        self.publish(published, tokens, text, Some(end), of).await;
    }

    async fn publish(
        &self,
        published: &mut Published,
        tokens: &[u32],
        text: &str,
        end: Option<(FinishReason, Usage)>,
        of: Of<'_>,
    ) {
        loop {
            let new = tokens.get(published.tokens.len()..).unwrap_or_default();
            if published.is_ended || (new.is_empty() && end.is_none()) {
                return;
            }
            let part =
                Part { text: text.get(published.text..).unwrap_or_default(), is_first: published.count == 0, end };
            let Some(chunk) = of.answer.chunk(part, of.stamp) else { return };
            match self.publish_once(published, new, &chunk, of.subject).await {
                Ok(sequence) => {
                    published.tokens.extend_from_slice(new);
                    published.text += part.text.len();
                    published.count += 1;
                    published.sequence = sequence;
                    published.is_ended = end.is_some();
                    return;
                }
                // Another delivery was quicker, or this one's publish was stored and not confirmed.
                Err(PublishFailure::AlreadyStored) => *published = self.read(of.subject, of.text.vocab_size()).await,
                Err(failure) if failure.is_transient() => tokio::time::sleep(RETRY_DELAY).await,
                Err(failure) => {
                    tracing::warn!(%failure, "chunk not published");
                    return;
                }
            }
        }
    }

    async fn publish_once(
        &self,
        published: &Published,
        new: &[u32],
        chunk: &Chunk,
        subject: &str,
    ) -> Result<u64, PublishFailure> {
        let mut headers = HeaderMap::new();
        headers.insert(header::CHUNK, published.count.to_string());
        headers.insert(header::TOKEN_IDS, chunk::write_token_ids(new));
        let message = PublishMessage::build()
            .payload(Encoding::Json.encode(chunk).into())
            .headers(headers)
            .expected_last_subject_sequence(published.sequence);
        let sent = match self.jetstream.send_publish(subject.to_owned(), message).await {
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
