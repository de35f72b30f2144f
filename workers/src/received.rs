//! A job as it came: its message, and what its subject and headers say. Reading them does no I/O.

use async_nats::HeaderMap;
use async_nats::jetstream::Message;
use schemas::codec::{Encoding, UnknownContentType};
use schemas::header;
use schemas::subject::{self, Address, LIFTED, Lane, ReplyTokens};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::asked;
use crate::endpoint::Reject;

/// The headers of a job that go with it to another stream: all but those that speak to the stream it was in, such as its
/// message id or what it expected there, and those that are `left_out`.
pub fn own_headers(headers: &HeaderMap, left_out: &[&str]) -> HeaderMap {
    let is_own = |name: &str| !name.to_ascii_lowercase().starts_with("nats-") && !left_out.contains(&name);
    let own = headers.iter().filter(|(name, _)| is_own(name.as_ref()));
    own.filter_map(|(name, values)| Some((name.clone(), values.first()?.clone()))).collect()
}

/// A delivered message with a job's subject.
pub struct Received {
    pub message: Message,
    /// The number of the delivery, from 1.
    pub delivered: u64,
    /// In the stream: another job under the same id has another one.
    pub sequence: u64,
    /// When the server stored the job, of a lifted one at first.
    pub published: OffsetDateTime,
}

impl Received {
    /// `None` when the message has no job's subject, which no consumer's filter lets through.
    pub fn new(message: Message) -> Option<Self> {
        ReplyTokens::parse(&message.subject).ok()?;
        let (delivered, sequence, stored) = {
            let info = message.info().ok()?;
            (u64::try_from(info.delivered).unwrap_or(1), info.stream_sequence, info.published)
        };
        let mut received = Self { message, delivered, sequence, published: stored };
        let before = received.header(header::PUBLISHED).filter(|_| received.is_lifted());
        if let Some(before) = before.and_then(|before| OffsetDateTime::parse(before, &Rfc3339).ok()) {
            received.published = before;
        }
        Some(received)
    }

    pub fn tokens(&self) -> ReplyTokens<'_> {
        ReplyTokens::parse(&self.message.subject).expect("checked when it was received")
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.message.headers.as_ref()?.get(name).map(|value| value.as_str())
    }

    /// How the job is written, and how its result will be.
    pub fn encoding(&self) -> Result<Encoding, UnknownContentType> {
        Encoding::from_content_type(self.header(header::CONTENT_TYPE))
    }

    pub fn is_lifted(&self) -> bool {
        subject::is_lifted(&self.message.subject)
    }

    /// The lane, of a lifted job the one it came from.
    pub fn lane(&self) -> Lane {
        let lane = match self.is_lifted() {
            true => self.header(header::LANE),
            false => self.message.subject.split('.').nth(3),
        };
        lane.and_then(|lane| lane.parse().ok()).unwrap_or_default()
    }

    /// The subject it was published on, of a lifted job the one it had before.
    pub fn subject(&self) -> String {
        match self.is_lifted() {
            true => self.message.subject.replacen(&format!(".{LIFTED}."), &format!(".{}.", self.lane()), 1),
            false => self.message.subject.to_string(),
        }
    }

    /// Refuses a subject that names nothing.
    pub fn check_subject(&self) -> Result<(), Reject> {
        Address::parse(&self.subject()).map(drop).map_err(|error| {
            let param = error.to_string().split(':').next().unwrap_or_default().to_owned();
            Reject::invalid("invalid_value", param, error.to_string())
        })
    }

    /// When the job expires: at the earlier of its deadline and the end of its time-out.
    pub fn deadline(&self) -> Result<Option<OffsetDateTime>, Reject> {
        Ok(asked::deadline(self.header(header::DEADLINE), self.header(header::TIMEOUT), self.published)?)
    }

    /// How often the job may be tried, within the model's own limit.
    pub fn attempts_max(&self, limit: u32) -> Result<u32, Reject> {
        Ok(asked::attempts_max(self.header(header::MAX_ATTEMPTS), limit)?)
    }

    /// Whether the answer may come from the cache and be kept in it.
    pub fn may_cache(&self) -> Result<bool, Reject> {
        Ok(asked::may_cache(self.header(header::CACHE))?)
    }

    /// Whether the answer is wanted in chunks, as far as the headers say.
    pub fn streams(&self) -> Result<bool, Reject> {
        Ok(asked::streams(self.header(header::STREAM))?)
    }

    /// The producer's estimate, in the model's units.
    pub fn cost(&self) -> Option<f64> {
        asked::cost(self.header(header::COST))
    }

    /// The producer's own name for the job in `payload`, even where the rest of the job cannot be read.
    pub fn custom_id(&self, payload: &[u8]) -> Option<String> {
        #[derive(serde::Deserialize)]
        struct Named {
            custom_id: Option<String>,
        }
        self.encoding().unwrap_or_default().decode::<Named>(payload).ok()?.custom_id
    }
}
