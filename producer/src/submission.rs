//! What is published: a job, where it goes and how it is to be treated.

use std::time::Duration;

use async_nats::HeaderMap;
use bytes::Bytes;
use schemas::codec::Encoding;
use schemas::header;
use schemas::subject::Address;
use sha2::{Digest, Sha256};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use uuid::Uuid;

/// A job ready to be published.
#[derive(Clone, Debug)]
pub struct Submission {
    pub address: Address,
    pub encoding: Encoding,
    /// The encoded job.
    pub payload: Bytes,
    pub options: SubmitOptions,
}

/// How a job is to be treated. The default asks for nothing special.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SubmitOptions {
    pub deadline: Option<OffsetDateTime>,
    /// From publication to the deadline; the earlier of the two counts.
    pub timeout: Option<Duration>,
    /// Up to the model's own limit.
    pub max_attempts: Option<u32>,
    /// Neither read nor write the cache.
    pub no_store: bool,
    /// Publish the answer in chunks as it is made.
    pub stream: bool,
    /// In the model's units, see [`crate::cost`].
    pub cost: Option<f64>,
    pub when_full: WhenFull,
    /// The id was not made for this submission, so its result may be there already. Looking costs a round trip.
    pub may_exist: bool,
    /// Nobody can guess the job id, so the message id is made of it alone: another process that publishes the same job is
    /// known by it.
    pub is_id_random: bool,
}

/// What to do while the job stream is full.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WhenFull {
    /// Try again for as long as the caller waits.
    #[default]
    Wait,
    /// Say so at once.
    Refuse,
}

impl Submission {
    /// The headers of the message. The same `salt` gives the same message id, so that it is stored once.
    pub(crate) fn headers(&self, salt: Uuid) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, self.encoding.content_type());
        let Address { tenant, job_id, .. } = &self.address;
        let salt = if self.options.is_id_random { Uuid::nil() } else { salt };
        headers
            .insert(header::MESSAGE_ID, message_id(&[salt.as_bytes(), tenant.as_bytes(), job_id.as_str().as_bytes()]));
        let SubmitOptions { deadline, timeout, max_attempts, no_store, stream, cost, .. } = &self.options;
        if let Some(deadline) = deadline.and_then(|at| at.format(&Rfc3339).ok()) {
            headers.insert(header::DEADLINE, deadline);
        }
        if let Some(timeout) = timeout {
            headers.insert(header::TIMEOUT, timeout.as_secs_f64().to_string());
        }
        if let Some(attempts) = max_attempts {
            headers.insert(header::MAX_ATTEMPTS, attempts.to_string());
        }
        if *no_store {
            headers.insert(header::CACHE, "no-store");
        }
        if *stream {
            headers.insert(header::STREAM, "tokens");
        }
        if let Some(cost) = cost {
            headers.insert(header::COST, cost.to_string());
        }
        headers
    }
}

/// An id that only those can tell who know all parts: of messages, and of requests that may be made again.
pub(crate) fn message_id(parts: &[&[u8]]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    // Half of it is more than enough, and is in every job.
    hash.finalize()[..16].iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use schemas::subject::{JobId, Lane};

    use super::*;

    fn submission(options: SubmitOptions) -> Submission {
        let job_id = JobId::new("j").unwrap();
        let address = Address { model: "m".into(), lane: Lane::Default, tenant: "t".into(), job_id };
        Submission { address, encoding: Encoding::Json, payload: Bytes::new(), options }
    }

    #[test]
    fn what_is_not_asked_for_costs_no_header() {
        assert_eq!(submission(SubmitOptions::default()).headers(Uuid::nil()).len(), 2);
    }

    #[test]
    fn a_message_id_is_the_same_again_and_another_one_elsewhere() {
        let submission = submission(SubmitOptions::default());
        let id = |salt| submission.headers(salt).get(header::MESSAGE_ID).unwrap().to_string();
        assert_eq!(id(Uuid::nil()), id(Uuid::nil()));
        assert_ne!(id(Uuid::nil()), id(Uuid::max()));
    }

    #[test]
    fn every_option_is_a_header() {
        let options = SubmitOptions {
            deadline: Some(OffsetDateTime::UNIX_EPOCH),
            timeout: Some(Duration::from_millis(1500)),
            max_attempts: Some(2),
            no_store: true,
            stream: true,
            cost: Some(12.0),
            ..Default::default()
        };
        let headers = submission(options).headers(Uuid::nil());
        let value = |name| headers.get(name).map(|value| value.as_str());
        assert_eq!(value(header::DEADLINE), Some("1970-01-01T00:00:00Z"));
        assert_eq!(value(header::TIMEOUT), Some("1.5"));
        assert_eq!(value(header::MAX_ATTEMPTS), Some("2"));
        assert_eq!(value(header::CACHE), Some("no-store"));
        assert_eq!(value(header::STREAM), Some("tokens"));
        assert_eq!(value(header::COST), Some("12"));
    }
}
