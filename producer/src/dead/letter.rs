//! One dead letter: what its subject and its headers say, and what is in it.

use async_nats::HeaderMap;
use async_nats::jetstream::Message;
use bytes::Bytes;
use schemas::codec::DecodeError;
use schemas::header::{self, DeadClass, Life};
use schemas::log::LogRecord;
use schemas::subject::Token;
use serde::Serialize;
use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::client::decode;

/// A letter without its body.
#[derive(Clone, Debug, Serialize)]
pub struct Letter {
    pub job_id: String,
    /// None if the worker gave none.
    pub class: Option<DeadClass>,
    pub model: String,
    pub lane: String,
    pub tenant: String,
    /// When it was given up.
    #[serde(with = "time::serde::rfc3339")]
    pub time: OffsetDateTime,
    pub attempts: u32,
    pub worker: String,
    pub reason: String,
    /// In the stream of dead letters.
    pub sequence: u64,
    #[serde(skip)]
    pub subject: String,
    #[serde(skip)]
    pub headers: HeaderMap,
}

/// A letter with all that is in it.
#[derive(Clone, Debug)]
pub struct OpenLetter {
    /// The job as it came, or its bytes as text where they are no job, or null where its body has expired.
    pub body: Value,
    /// What happened to it in its last life.
    pub log: Vec<LogRecord>,
    pub history: Vec<Life>,
}

impl Letter {
    /// Reads subject and headers; none if the subject is not that of a dead letter.
    pub fn new(subject: String, headers: HeaderMap, time: OffsetDateTime, sequence: u64) -> Option<Self> {
        let tokens: Vec<&str> = subject.split('.').collect();
        let ["inferq", "dead", model, lane, tenant, job_id] = tokens.as_slice() else { return None };
        // A job may have been given up because of its names.
        let name = |token: &str| Token::decode(token).unwrap_or_else(|_| token.to_owned());
        let value = |name: &str| headers.get(name).map(|value| value.as_str());
        Some(Self {
            job_id: (*job_id).to_owned(),
            class: value(header::DEAD_CLASS).and_then(|class| class.parse().ok()),
            model: name(model),
            lane: (*lane).to_owned(),
            tenant: name(tenant),
            time,
            attempts: value(header::ATTEMPT).and_then(|attempts| attempts.parse().ok()).unwrap_or(0),
            worker: value(header::WORKER).unwrap_or_default().to_owned(),
            reason: value(header::DEAD_REASON).unwrap_or_default().to_owned(),
            sequence,
            subject: subject.clone(),
            headers,
        })
    }

    /// A letter of the stream, and how many follow it.
    pub(super) fn of_message(message: &Message) -> Result<(Self, u64), async_nats::Error> {
        let stored = message.info()?;
        let headers = message.headers.clone().unwrap_or_default();
        let letter = Self::new(message.subject.to_string(), headers, stored.published, stored.stream_sequence);
        Ok((letter.ok_or_else(|| format!("{} is no subject of a dead letter", message.subject))?, stored.pending))
    }

    /// The lives before this one.
    pub fn history(&self) -> Result<Vec<Life>, serde_json::Error> {
        self.headers.get(header::HISTORY).map_or(Ok(Vec::new()), |value| serde_json::from_str(value.as_str()))
    }

    /// This life, as the history of the next one has it.
    pub(super) fn life(&self) -> Life {
        Life {
            time: self.time.format(&Rfc3339).unwrap_or_default(),
            class: self.class.unwrap_or(DeadClass::Exhausted),
            reason: self.reason.clone(),
            attempts: self.attempts,
            worker: self.worker.clone(),
        }
    }
}

impl OpenLetter {
    pub(super) fn new(letter: &Letter, payload: Option<Bytes>) -> anyhow::Result<Self> {
        let read = |payload: Bytes| {
            let decoded: Result<Value, DecodeError> = decode(Some(&letter.headers), &payload);
            decoded.unwrap_or_else(|_| String::from_utf8_lossy(&payload).into_owned().into())
        };
        let body = payload.map_or(Value::Null, read);
        let log = letter.headers.get(header::DEAD_LOG);
        let log = log.map_or(Ok(Vec::new()), |value| serde_json::from_str(value.as_str()));
        Ok(Self { body, log: log.unwrap_or_default(), history: letter.history().unwrap_or_default() })
    }
}
