//! How far a client's credentials reach: to all streams, or, as a tenant's own do, to what bears the tenant's name.
//!
//! The second kind gets results, and the last message of a log and of a token stream, by their subject, and hears of results
//! and chunks from now on. Lists, consumers and object stores are closed to it: [`crate::access::plan`] says why.

use std::time::Duration;

use async_nats::jetstream::message::StreamMessage;
use async_nats::jetstream::stream::DirectGetErrorKind;
use connect::NatsArgs;
use futures::stream::BoxStream;
use futures::{StreamExt, stream};
use schemas::log::LogMessage;
use schemas::stream as streams;
use schemas::subject::{Lane, Token, consumer_name};

use crate::client::{Client, ReadError, decode, server, stream_handle};

/// How often a log is looked at that is followed.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    All,
    Own,
}

/// Whether nobody was there to answer, as the client library says it of requests and of those of the API.
fn is_unanswered(error: &str) -> bool {
    ["no responders", "requested JetStream resource does not exist"].iter().any(|text| error.contains(text))
}

impl Client {
    /// Asks once, and remembers.
    pub async fn reach(&self) -> Result<Reach, ReadError> {
        let ask = || async {
            // In the streams' own account nothing is closed.
            if self.connection.api_prefix == NatsArgs::JS_API_PREFIX {
                return Ok(Reach::All);
            }
            match self.connection.jetstream.get_stream(streams::RESULTS).await {
                Ok(_) => Ok(Reach::All),
                // Nobody answers to what was not imported; a stream without a leader would not be heard of at all.
                Err(error) if is_unanswered(&error.to_string()) => Ok(Reach::Own),
                Err(error) => Err(server(error)),
            }
        };
        self.reach.get_or_try_init(ask).await.copied()
    }

    /// Whether there is a consumer of that model and lane.
    pub(crate) async fn has_consumer(&self, model: &Token, lane: Lane) -> Result<bool, ReadError> {
        let jobs = stream_handle(&self.connection.jetstream, streams::JOBS).await?;
        match jobs.consumer_info(consumer_name(model, lane)).await {
            Ok(_) => Ok(true),
            Err(error) if error.to_string().contains("not found") => Ok(false),
            Err(error) => Err(server(error)),
        }
    }

    /// The last message of a log; with `follow`, each message that is the last one when it is looked for again.
    pub(crate) async fn last_logs(
        &self,
        subject: String,
        follow: bool,
    ) -> Result<BoxStream<'static, Result<LogMessage, ReadError>>, ReadError> {
        let read = |message: &StreamMessage| Ok(decode(Some(&message.headers), &message.payload)?);
        let last = self.last_message(streams::LOGS, &subject).await?;
        if !follow {
            return Ok(stream::iter(last.as_ref().map(read)).boxed());
        }
        let (client, mut first) = (self.clone(), last);
        let next = move |seen: u64| {
            let (client, subject, mut found) = (client.clone(), subject.clone(), first.take());
            async move {
                loop {
                    if let Some(message) = found.filter(|message| message.sequence > seen) {
                        return Ok(Some((decode(Some(&message.headers), &message.payload)?, message.sequence)));
                    }
                    tokio::time::sleep(LOOK_AGAIN).await;
                    found = client.last_message(streams::LOGS, &subject).await?;
                }
            }
        };
        Ok(stream::try_unfold(0, next).boxed())
    }

    /// The last stored message of a subject.
    pub(crate) async fn last_message(
        &self,
        stream: &'static str,
        subject: &str,
    ) -> Result<Option<StreamMessage>, ReadError> {
        match stream_handle(&self.connection.jetstream, stream).await?.direct_get_last_for_subject(subject).await {
            Ok(message) => Ok(Some(message)),
            Err(error) if error.kind() == DirectGetErrorKind::NotFound => Ok(None),
            Err(error) => match error.to_string() {
                text if text.contains("no responders") => Err(ReadError::NoStream(stream)),
                text => Err(ReadError::Server(text)),
            },
        }
    }
}
