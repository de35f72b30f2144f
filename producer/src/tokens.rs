//! Reading token streams: the chunks of a job's answer as they are published, from any of them on.
//!
//! What counts is the number in a chunk's header, so a reader that has lost its consumer makes another one and goes on.

use std::time::Duration;

use async_nats::jetstream::Message;
use async_nats::jetstream::consumer::{DeliverPolicy, pull};
use async_nats::jetstream::stream::LastRawMessageErrorKind;
use futures::future::BoxFuture;
use futures::{FutureExt, Stream, StreamExt};
use schemas::chunk::Chunk;
use schemas::subject::{JobId, ReplyTokens, Token};
use schemas::{header, stream};

use crate::client::{Client, ReadError, decode, server, stream_handle};

/// How long to wait before a server that did not answer is asked again.
const RETRY_DELAY: Duration = Duration::from_millis(200);

impl Client {
    /// The chunks of a job's answer with their numbers, from one number on: in order, none twice, none left out. Ends
    /// after the chunk with a `finish_reason`, and where there is none, since a job may fail, with what was published
    /// when the job's result is stored. Waits for as long as the caller does; ends at its first error.
    pub async fn tokens(
        &self,
        tenant: &Token,
        job_id: &JobId,
        from: u64,
    ) -> Result<impl Stream<Item = Result<(u64, Chunk), ReadError>> + use<>, ReadError> {
        let subject = ReplyTokens { tenant: tenant.as_str(), job_id: job_id.as_str() }.token_subject();
        let mut published = Published { client: self.clone(), subject, messages: None };
        published.open().await?;
        let all = published_in_all(self.clone(), tenant.clone(), job_id.clone(), published.subject.clone());
        let reader = Reader { published, next: from, end: None, all: all.boxed() };
        Ok(futures::stream::try_unfold(reader, Reader::read))
    }
}

struct Reader {
    published: Published,
    /// The number of the next chunk.
    next: u64,
    /// The first number that no chunk has, once that is known.
    end: Option<u64>,
    /// Knows it when the job is answered.
    all: BoxFuture<'static, Result<u64, ReadError>>,
}

impl Reader {
    async fn read(mut self) -> Result<Option<((u64, Chunk), Self)>, ReadError> {
        while self.end.is_none_or(|end| self.next < end) {
            let message = tokio::select! {
                biased;
                message = self.published.next() => message?,
                end = &mut self.all, if self.end.is_none() => {
                    self.end = Some(end?);
                    continue;
                }
            };
            let Some((number, chunk)) = numbered(&message)? else { continue };
            if chunk.finish_reason().is_some() {
                self.end = Some(number + 1);
            }
            if number > self.next {
                return Err(ReadError::Gap { missing: self.next, found: number });
            }
            if number == self.next {
                self.next += 1;
                return Ok(Some(((number, chunk), self)));
            }
        }
        Ok(None)
    }
}

/// A chunk and its number; none if the message has no number, which is nothing of ours.
fn numbered(message: &Message) -> Result<Option<(u64, Chunk)>, ReadError> {
    let headers = message.headers.as_ref();
    let number = headers.and_then(|headers| headers.get(header::CHUNK)?.as_str().parse().ok());
    let Some(number) = number else { return Ok(None) };
    Ok(Some((number, decode(headers, &message.payload)?)))
}

/// The messages on a job's token subject, from the first on, and again from the first after a fault.
struct Published {
    client: Client,
    subject: String,
    messages: Option<pull::Ordered>,
}

impl Published {
    async fn open(&mut self) -> Result<(), ReadError> {
        let tokens = stream_handle(&self.client.connection.jetstream, stream::TOKENS).await?;
        let config = pull::OrderedConfig {
            filter_subject: self.subject.clone(),
            deliver_policy: DeliverPolicy::All,
            ..Default::default()
        };
        let consumer = tokens.create_consumer(config).await.map_err(server)?;
        self.messages = Some(consumer.messages().await.map_err(server)?);
        Ok(())
    }

    /// The next message. May be dropped while it waits.
    async fn next(&mut self) -> Result<Message, ReadError> {
        loop {
            match &mut self.messages {
                Some(messages) => match messages.next().await {
                    Some(Ok(message)) => return Ok(message),
                    Some(Err(_)) | None => self.messages = None,
                },
                None => {
                    tokio::time::sleep(RETRY_DELAY).await;
                    self.open().await.or_else(|error| if error.is_transient() { Ok(()) } else { Err(error) })?;
                }
            }
        }
    }
}

/// Waits until a job is answered, after which no chunk is published any more, and says how many there are.
async fn published_in_all(client: Client, tenant: Token, job_id: JobId, subject: String) -> Result<u64, ReadError> {
    client.wait(&tenant, &job_id).await?;
    let tokens = stream_handle(&client.connection.jetstream, stream::TOKENS).await?;
    loop {
        // From the leader: another replica may not have the last chunk yet.
        match tokens.get_last_raw_message_by_subject(&subject).await {
            Ok(last) => {
                let number = last.headers.get(header::CHUNK).and_then(|number| number.as_str().parse::<u64>().ok());
                return Ok(number.map_or(0, |number| number + 1));
            }
            Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => return Ok(0),
            Err(_) => tokio::time::sleep(RETRY_DELAY).await,
        }
    }
}
