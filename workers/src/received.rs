//! A job as it came: its message, and what its subject and headers say. Reading them does no I/O.

use async_nats::jetstream::Message;
use schemas::codec::{Encoding, UnknownContentType};
use schemas::header;
use schemas::result::ErrorObject;
use schemas::subject::{Address, LIFTED, Lane, ReplyTokens};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::endpoint::Reject;

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
        self.message.subject.split('.').nth(3) == Some(LIFTED)
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
        deadline_of(self.header(header::DEADLINE), self.header(header::TIMEOUT), self.published)
    }

    /// How often the job may be tried, within the model's own limit.
    pub fn attempts_max(&self, limit: u32) -> Result<u32, Reject> {
        let Some(value) = self.header(header::MAX_ATTEMPTS) else { return Ok(limit) };
        match value.parse::<u32>() {
            Ok(asked) if asked > 0 => Ok(asked.min(limit)),
            _ => Err(wrong(header::MAX_ATTEMPTS, value, "a whole number from 1")),
        }
    }

    /// Whether the answer may come from the cache and be kept in it.
    pub fn may_cache(&self) -> Result<bool, Reject> {
        match self.header(header::CACHE) {
            None => Ok(true),
            Some("no-store") => Ok(false),
            Some(value) => Err(wrong(header::CACHE, value, "no-store")),
        }
    }

    /// Whether the answer is wanted in chunks, as far as the headers say.
    pub fn streams(&self) -> Result<bool, Reject> {
        match self.header(header::STREAM) {
            None => Ok(false),
            Some("tokens") => Ok(true),
            Some(value) => Err(wrong(header::STREAM, value, "tokens")),
        }
    }

    /// The producer's estimate, in the model's units.
    pub fn cost(&self) -> Option<f64> {
        self.header(header::COST)?.parse().ok().filter(|cost: &f64| cost.is_finite() && *cost >= 0.0)
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

/// The earlier of a deadline and the end of a time-out.
pub fn deadline_of(
    deadline: Option<&str>,
    timeout: Option<&str>,
    published: OffsetDateTime,
) -> Result<Option<OffsetDateTime>, Reject> {
    let deadline = deadline.map(|value| {
        OffsetDateTime::parse(value, &Rfc3339)
            .map_err(|_| wrong(header::DEADLINE, value, "an RFC 3339 time such as 2027-01-31T12:00:00Z"))
    });
    let timeout = timeout.map(|value| match value.parse::<f64>() {
        Ok(seconds) if seconds > 0.0 && seconds.is_finite() => {
            Ok(published.checked_add(time::Duration::seconds_f64(seconds.min(SECONDS_MAX))))
        }
        _ => Err(wrong(header::TIMEOUT, value, "a number of seconds above 0, such as 90 or 0.5")),
    });
    let (deadline, timeout) = (deadline.transpose()?, timeout.transpose()?.flatten());
    Ok(deadline.into_iter().chain(timeout).min())
}

/// A century: more would overflow a date.
const SECONDS_MAX: f64 = 3.2e9;

fn wrong(name: &'static str, value: &str, wanted: &str) -> Reject {
    let message = format!("{name}: {value:?} is not {wanted}");
    Reject { status: 400, error: ErrorObject::invalid("invalid_value", name.to_owned(), message) }
}
