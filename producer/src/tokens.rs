//! Reading token streams: the chunks of a job's answer as they are published, from any of them on.
//!
//! What counts is the number in a chunk's header. A tenant's own credentials hear only the chunks that are published after
//! they began to listen.

use std::time::Duration;

use async_nats::header::{NATS_LAST_SEQUENCE, NATS_SEQUENCE};
use async_nats::jetstream::message::StreamMessage;
use async_nats::jetstream::stream::{DirectGetErrorKind, LastRawMessageErrorKind, RawMessageErrorKind};
use async_nats::{HeaderMap, Message, Subscriber};
use futures::future::BoxFuture;
use futures::{FutureExt, Stream, StreamExt};
use schemas::chunk::Chunk;
use schemas::subject::{JobId, ReplyTokens, Token, live_token_subject};
use schemas::{header, stream};

use crate::client::{Client, ReadError, decode, server, stream_handle};
use crate::reach::Reach;

/// How long to wait before a server that did not answer is asked again.
const RETRY_DELAY: Duration = Duration::from_millis(200);
/// How long nothing may be heard before the stream is asked.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
/// How long a chunk may take that was published before the result, once the result is there.
const LATE_MAX: Duration = Duration::from_secs(2);

impl Client {
    /// The chunks of a job's answer with their numbers, from one number on: in order, none twice, none left out. Ends
    /// after the chunk with the usage, and where there is none, since a job may fail, with what was published
    /// when the job's result is stored. Waits for as long as the caller does; ends at its first error.
    pub async fn tokens(
        &self,
        tenant: &Token,
        job_id: &JobId,
        from: u64,
    ) -> Result<impl Stream<Item = Result<(u64, Chunk), ReadError>> + use<>, ReadError> {
        let subject = ReplyTokens { tenant: tenant.as_str(), job_id: job_id.as_str() }.token_subject();
        let reach = self.reach().await?;
        let (client, live, state) = (self.clone(), None, Catching::Done);
        let mut published = Published { client, subject, reach, live, after: 0, state };
        published.open().await?;
        let all = published_in_all(self.clone(), tenant.clone(), job_id.clone(), published.subject.clone());
        let reader = Reader { published, from, next: from, end: None, all: all.boxed() };
        Ok(futures::stream::try_unfold(reader, Reader::read))
    }
}

struct Reader {
    published: Published,
    /// The number of the first chunk that is wanted.
    from: u64,
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
                () = tokio::time::sleep(LATE_MAX), if self.is_missed() => return match self.next == self.from {
                    // Nobody listened in time: as if there were no chunks.
                    true => Ok(None),
                    false => Err(ReadError::Gap { missing: self.next, found: self.end.unwrap_or(self.next) }),
                },
                end = &mut self.all, if self.end.is_none() => {
                    self.end = Some(end?);
                    continue;
                }
            };
            let Some((number, chunk)) = numbered(&message)? else { continue };
            if chunk.is_last() {
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

    /// Whether all was published that is, and is not published again.
    fn is_missed(&self) -> bool {
        self.end.is_some() && self.published.reach == Reach::Own
    }
}

/// A chunk and its number; none if the message has no number, which is nothing of ours.
fn numbered(message: &Message) -> Result<Option<(u64, Chunk)>, ReadError> {
    let headers = message.headers.as_ref();
    let number = headers.and_then(|headers| headers.get(header::CHUNK)?.as_str().parse().ok());
    let Some(number) = number else { return Ok(None) };
    Ok(Some((number, decode(headers, &message.payload)?)))
}

/// The messages on a job's token subject: those that are stored, then each as it is published, which the server sends to
/// whoever listens. That costs the server nothing while nothing happens, however many read; what was missed is read from
/// the stream.
struct Published {
    client: Client,
    subject: String,
    reach: Reach,
    live: Option<Subscriber>,
    /// The sequence of the last message that was given out.
    after: u64,
    state: Catching,
}

/// Whether stored messages are to be read before the next live one.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Catching {
    Up,
    /// There is one for certain, which a replica that is behind may not have yet.
    Certain,
    Done,
}

impl Published {
    async fn open(&mut self) -> Result<(), ReadError> {
        let live = self.client.connection.client.subscribe(live_token_subject(&self.subject)).await;
        self.live = Some(live.map_err(server)?);
        self.catch(Catching::Up);
        Ok(())
    }

    fn catch(&mut self, state: Catching) {
        if self.reach == Reach::All {
            self.state = state;
        }
    }

    /// The next message. May be dropped while it waits.
    async fn next(&mut self) -> Result<Message, ReadError> {
        loop {
            if self.state != Catching::Done {
                match self.stored().await {
                    Ok(Some((sequence, message))) => {
                        self.after = sequence;
                        return Ok(message);
                    }
                    Ok(None) => self.state = Catching::Done,
                    Err(error) if error.is_transient() => tokio::time::sleep(RETRY_DELAY).await,
                    Err(error) => return Err(error),
                }
                continue;
            }
            let Some(live) = &mut self.live else {
                tokio::time::sleep(RETRY_DELAY).await;
                self.open().await.or_else(|error| if error.is_transient() { Ok(()) } else { Err(error) })?;
                continue;
            };
            match tokio::time::timeout(LOOK_AGAIN, live.next()).await {
                Ok(Some(message)) if self.reach == Reach::Own => return Ok(message),
                Ok(Some(message)) => {
                    let number = |name| message.headers.as_ref()?.get(name)?.as_str().parse::<u64>().ok();
                    match (number(NATS_SEQUENCE), number(NATS_LAST_SEQUENCE)) {
                        (Some(sequence), _) if sequence <= self.after => {}
                        (Some(sequence), Some(last)) if last <= self.after => {
                            self.after = sequence;
                            return Ok(message);
                        }
                        _ => self.catch(Catching::Certain),
                    }
                }
                Ok(None) => self.live = None,
                // Core NATS drops for slow readers and while a connection is down.
                Err(_) => self.catch(Catching::Up),
            }
        }
    }

    /// The next stored message and its sequence.
    async fn stored(&self) -> Result<Option<(u64, Message)>, ReadError> {
        let tokens = stream_handle(&self.client.connection.jetstream, stream::TOKENS).await?;
        match tokens.direct_get_next_for_subject(self.subject.as_str(), Some(self.after + 1)).await {
            Ok(found) => return Ok(Some(read(found))),
            Err(error) if error.kind() == DirectGetErrorKind::NotFound => {}
            Err(error) if error.to_string().contains("no responders") => {
                return Err(ReadError::NoStream(stream::TOKENS));
            }
            Err(error) => return Err(server(error)),
        }
        if self.state != Catching::Certain {
            return Ok(None);
        }
        // From the leader.
        let asked = tokens.raw_message_builder().next_by_subject(self.subject.as_str()).sequence(self.after + 1);
        match asked.send().await {
            Ok(found) => Ok(Some(read(found))),
            Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => Ok(None),
            Err(error) => Err(server(error)),
        }
    }
}

fn read(found: StreamMessage) -> (u64, Message) {
    let StreamMessage { subject, sequence, headers, payload, .. } = found;
    let length = payload.len();
    let message =
        Message { subject, reply: None, payload, headers: Some(headers), status: None, description: None, length };
    (sequence, message)
}

/// Waits until a job is answered, after which no chunk is published any more, and says how many there are.
async fn published_in_all(client: Client, tenant: Token, job_id: JobId, subject: String) -> Result<u64, ReadError> {
    client.wait(&tenant, &job_id).await?;
    let number =
        |headers: &HeaderMap| headers.get(header::CHUNK).and_then(|number| number.as_str().parse::<u64>().ok());
    if client.reach().await? == Reach::Own {
        let last = client.last_message(stream::TOKENS, &subject).await?;
        return Ok(last.and_then(|last| number(&last.headers)).map_or(0, |number| number + 1));
    }
    let tokens = stream_handle(&client.connection.jetstream, stream::TOKENS).await?;
    loop {
        // From the leader: another replica may not have the last chunk yet.
        match tokens.get_last_raw_message_by_subject(&subject).await {
            Ok(last) => return Ok(number(&last.headers).map_or(0, |number| number + 1)),
            Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => return Ok(0),
            Err(_) => tokio::time::sleep(RETRY_DELAY).await,
        }
    }
}
