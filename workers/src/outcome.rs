//! The outcome of a delivery: decided as a value first, then carried out in one place (`delivery.rs`).

use std::time::Duration;

use schemas::header::DeadClass;
use schemas::log::Usage;
use time::OffsetDateTime;

use crate::endpoint::{Body, Reject};

/// How one delivery ended.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// Answered.
    Completed { body: Box<Body>, usage: Usage },
    /// The producer's mistake: another try would end the same.
    Rejected(Reject),
    /// Not answered this time. A suspect failed with nothing else in the engine.
    Retry { reason: String, suspect: bool },
    /// Not answered, and no attempts left.
    Exhausted { reason: String, class: DeadClass },
    /// Its deadline has passed.
    Expired { deadline: OffsetDateTime },
    /// Its producer does not want it any more.
    Cancelled,
    /// Another delivery has stored a result already.
    AlreadyStored { status: u16 },
    /// The grace period is over; another worker shall do it.
    Abandoned,
}

/// What the server is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Acknowledgement {
    Ack,
    /// Never deliver it again.
    Term,
    /// Deliver it again, after this time.
    Nak(Duration),
}

/// An attempt's number and how many a job may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attempts {
    /// From 1.
    pub current: u32,
    pub max: u32,
}

const BACKOFF_FIRST: Duration = Duration::from_secs(1);
const BACKOFF_MAX: Duration = Duration::from_secs(60);

impl Outcome {
    /// A failure that is not the producer's: tried again while attempts are left.
    pub fn failed(reason: String, suspect: bool, attempts: Attempts) -> Self {
        match (attempts.current < attempts.max, suspect) {
            (true, _) => Self::Retry { reason, suspect },
            (false, true) => Self::Exhausted { reason, class: DeadClass::Poison },
            (false, false) => Self::Exhausted { reason, class: DeadClass::Exhausted },
        }
    }

    /// What the server is told once the result, where there is one, is stored. `jitter` is between 0 and 1.
    pub fn acknowledgement(&self, attempts: Attempts, jitter: f64) -> Acknowledgement {
        match self {
            Self::Completed { .. } | Self::AlreadyStored { .. } => Acknowledgement::Ack,
            Self::Rejected(_) | Self::Exhausted { .. } | Self::Expired { .. } | Self::Cancelled => {
                Acknowledgement::Term
            }
            Self::Retry { .. } => Acknowledgement::Nak(backoff(attempts.current, jitter)),
            Self::Abandoned => Acknowledgement::Nak(Duration::ZERO),
        }
    }

    /// As what the job is kept with the dead letters, where it is.
    pub fn dead_class(&self) -> Option<DeadClass> {
        match self {
            Self::Rejected(_) => Some(DeadClass::Invalid),
            Self::Exhausted { class, .. } => Some(*class),
            Self::Expired { .. } => Some(DeadClass::Expired),
            Self::Completed { .. }
            | Self::Retry { .. }
            | Self::Cancelled
            | Self::AlreadyStored { .. }
            | Self::Abandoned => None,
        }
    }

    /// The label of metrics.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Completed { .. } => "completed",
            Self::Rejected(_) => "rejected",
            Self::Retry { .. } => "retry",
            Self::Exhausted { .. } => "exhausted",
            Self::Expired { .. } => "expired",
            Self::Cancelled => "cancelled",
            Self::AlreadyStored { .. } => "already_stored",
            Self::Abandoned => "abandoned",
        }
    }

    /// All labels, so that every series exists from the start.
    pub const LABELS: [&'static str; 8] =
        ["completed", "rejected", "retry", "exhausted", "expired", "cancelled", "already_stored", "abandoned"];
}

/// Doubles with each attempt up to a minute; half of it is random, so that jobs that failed together return apart.
fn backoff(attempt: u32, jitter: f64) -> Duration {
    let doubled = BACKOFF_FIRST.saturating_mul(1 << attempt.saturating_sub(1).min(16)).min(BACKOFF_MAX);
    doubled.mul_f64(0.5 + jitter.clamp(0.0, 1.0) / 2.0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const FIRST: Attempts = Attempts { current: 1, max: 3 };

    #[test]
    fn a_failure_is_retried_until_attempts_are_spent() {
        let last = Attempts { current: 3, max: 3 };
        assert_eq!(Outcome::failed("x".into(), true, FIRST).label(), "retry");
        assert_eq!(Outcome::failed("x".into(), true, last).dead_class(), Some(DeadClass::Poison));
        assert_eq!(Outcome::failed("x".into(), false, last).dead_class(), Some(DeadClass::Exhausted));
    }

    #[test]
    fn only_an_answered_job_is_acked_and_only_a_hopeless_one_is_termed() {
        assert_eq!(Outcome::AlreadyStored { status: 200 }.acknowledgement(FIRST, 0.0), Acknowledgement::Ack);
        let expired = Outcome::Expired { deadline: OffsetDateTime::UNIX_EPOCH };
        assert_eq!(expired.acknowledgement(FIRST, 0.0), Acknowledgement::Term);
        let exhausted = Outcome::Exhausted { reason: String::new(), class: DeadClass::Poison };
        assert_eq!(exhausted.acknowledgement(FIRST, 0.0), Acknowledgement::Term);
        assert_eq!(Outcome::Cancelled.acknowledgement(FIRST, 0.0), Acknowledgement::Term);
        assert_eq!(Outcome::Abandoned.acknowledgement(FIRST, 0.5), Acknowledgement::Nak(Duration::ZERO));
    }

    proptest! {
        #[test]
        fn backoff_stays_within_its_cap(attempt in 1u32..1000, jitter in 0.0f64..1.0) {
            let delay = backoff(attempt, jitter);
            prop_assert!(delay >= BACKOFF_FIRST / 2 && delay <= BACKOFF_MAX);
        }
    }
}
