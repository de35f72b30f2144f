//! What a refused publish means. JetStream says some of it only in words, so the reading stands in one place.

use std::error::Error as _;

use async_nats::jetstream;
use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::context::{PublishError, PublishErrorKind};

/// Why JetStream did not store a message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PublishFailure {
    /// The subject holds a message already, and the stream keeps one for each.
    #[error("a message with this subject is already stored")]
    AlreadyStored,
    /// The stream's messages or bytes are used up, or the server's storage is.
    #[error("the stream is full: {0}")]
    Full(String),
    /// No stream takes the subject, or its leader is away just now.
    #[error("no stream takes this subject")]
    NoStream,
    #[error("{0}")]
    TooLarge(String),
    /// It may have been stored all the same: try again with the same subject and id.
    #[error("no answer from the server: {0}")]
    Unconfirmed(String),
    #[error("{0}")]
    Refused(String),
}

impl PublishFailure {
    /// Whether the same publish may succeed later.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Full(_) | Self::NoStream | Self::Unconfirmed(_))
    }
}

/// Reads the client library's error.
pub fn classify_publish(error: &PublishError) -> PublishFailure {
    match error.kind() {
        PublishErrorKind::WrongLastSequence => PublishFailure::AlreadyStored,
        PublishErrorKind::StreamNotFound => PublishFailure::NoStream,
        PublishErrorKind::MaxPayloadExceeded => PublishFailure::TooLarge(error.to_string()),
        PublishErrorKind::TimedOut | PublishErrorKind::BrokenPipe | PublishErrorKind::MaxAckPending => {
            PublishFailure::Unconfirmed(error.to_string())
        }
        PublishErrorKind::WrongLastMessageId => PublishFailure::Refused(error.to_string()),
        PublishErrorKind::Other => match error.source().and_then(|source| source.downcast_ref::<jetstream::Error>()) {
            Some(answer) => classify_answer(answer),
            None => PublishFailure::Unconfirmed(error.to_string()),
        },
    }
}

/// 10077 is used for a full stream and for a full subject; only the description tells them apart.
fn classify_answer(answer: &jetstream::Error) -> PublishFailure {
    let text = answer.to_string();
    match answer.error_code() {
        ErrorCode::STREAM_WRONG_LAST_SEQUENCE | ErrorCode::STREAM_WRONG_LAST_SEQUENCE_CONSTANT => {
            PublishFailure::AlreadyStored
        }
        ErrorCode::STREAM_STORE_FAILED if text.contains("per subject") => PublishFailure::AlreadyStored,
        ErrorCode::STREAM_STORE_FAILED | ErrorCode::INSUFFICIENT_RESOURCES | ErrorCode::STORAGE_RESOURCES_EXCEEDED => {
            PublishFailure::Full(text)
        }
        _ if answer.code() >= 500 => PublishFailure::Unconfirmed(text),
        _ => PublishFailure::Refused(text),
    }
}
