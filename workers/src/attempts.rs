//! Attempts: how often a job was begun. The server counts deliveries, but a delivery that was handed back, or that waited
//! when its worker died, has tried nothing.
//!
//! The first delivery is the first attempt and costs no write. From the second on, an attempt is noted in a bucket
//! before it begins, so that a job that kills its worker is counted all the same. The last attempt runs alone and is
//! noted when its turn has come: a job that is given up has killed or failed the engine by itself.

use async_nats::jetstream::context::KeyValueError;
use async_nats::jetstream::{Context, kv};
use schemas::header::DeadClass;
use schemas::stream;
use serde::{Deserialize, Serialize};

use crate::outcome::Attempts;
use crate::received::Received;

/// What is noted of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// Of the message in the job stream: a mark of an earlier job under the same id does not count.
    pub sequence: u64,
    /// Attempts that have begun.
    pub begun: u32,
    /// Whether the last of them failed with nothing else in the engine.
    pub suspect: bool,
}

/// The next attempt of a job, or that there is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    Run { attempts: Attempts, alone: bool },
    GiveUp { attempts: Attempts, class: DeadClass },
}

/// The bucket of marks.
#[derive(Clone, Debug)]
pub struct Ledger {
    marks: kv::Store,
}

impl Ledger {
    pub async fn new(jetstream: &Context) -> Result<Self, KeyValueError> {
        Ok(Self { marks: jetstream.get_key_value(stream::ATTEMPTS_BUCKET).await? })
    }

    /// What is noted of the job. A bucket that cannot be read is no reason not to answer: the deliveries count then.
    pub async fn read(&self, received: &Received) -> Option<Mark> {
        let entry = self.marks.get(received.tokens().key()).await;
        let mark = entry.inspect_err(|error| tracing::warn!(%error, "attempts of a job not read")).ok()??;
        serde_json::from_slice(&mark).ok().filter(|mark: &Mark| mark.sequence == received.sequence)
    }

    /// Notes an attempt. True if it is stored.
    pub async fn write(&self, received: &Received, begun: u32, suspect: bool) -> bool {
        let mark = Mark { sequence: received.sequence, begun, suspect };
        let payload = serde_json::to_vec(&mark).expect("a mark is plain JSON");
        let stored = self.marks.put(received.tokens().key(), payload.into()).await;
        stored.inspect_err(|error| tracing::warn!(%error, "attempt of a job not noted")).is_ok()
    }
}

/// What the next attempt is, after so many deliveries and with what is noted.
pub fn next(delivered: u64, mark: Option<Mark>, max: u32) -> Next {
    let mark = mark.filter(|_| delivered > 1);
    // The first attempt is not noted.
    let begun = mark.map_or(u32::from(delivered > 1), |mark| mark.begun);
    let attempts = Attempts { current: begun + 1, max };
    if begun >= max {
        let ran_alone = max > 1 || mark.is_some_and(|mark| mark.suspect);
        let class = if ran_alone { DeadClass::Poison } else { DeadClass::Exhausted };
        return Next::GiveUp { attempts: Attempts { current: begun, max }, class };
    }
    let is_last = begun > 0 && attempts.current == max;
    Next::Run { attempts, alone: is_last || mark.is_some_and(|mark| mark.suspect) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn mark(begun: u32, suspect: bool) -> Option<Mark> {
        Some(Mark { sequence: 1, begun, suspect })
    }

    #[test]
    fn the_first_delivery_is_the_first_attempt_in_company() {
        let first = Next::Run { attempts: Attempts { current: 1, max: 3 }, alone: false };
        assert_eq!(next(1, None, 3), first);
        assert_eq!(next(1, mark(3, true), 3), first, "a mark of an earlier life counts for nothing");
        assert_eq!(next(1, None, 1), Next::Run { attempts: Attempts { current: 1, max: 1 }, alone: false });
    }

    #[test]
    fn the_last_attempt_and_a_suspect_run_alone() {
        assert_eq!(next(2, None, 3), Next::Run { attempts: Attempts { current: 2, max: 3 }, alone: false });
        assert_eq!(next(3, mark(2, false), 3), Next::Run { attempts: Attempts { current: 3, max: 3 }, alone: true });
        assert_eq!(next(2, mark(1, true), 3), Next::Run { attempts: Attempts { current: 2, max: 3 }, alone: true });
    }

    #[test]
    fn deliveries_that_began_nothing_do_not_count() {
        assert_eq!(next(9, mark(0, false), 3), Next::Run { attempts: Attempts { current: 1, max: 3 }, alone: false });
        assert!(matches!(next(9, mark(2, false), 3), Next::Run { .. }));
    }

    #[test]
    fn a_job_whose_attempts_are_spent_is_given_up_with_its_class() {
        assert!(matches!(next(4, mark(3, false), 3), Next::GiveUp { class: DeadClass::Poison, .. }));
        assert!(matches!(next(2, None, 1), Next::GiveUp { class: DeadClass::Exhausted, .. }));
    }

    proptest! {
        #[test]
        fn no_job_begins_more_often_than_it_may(max in 1u32..10, deliveries in 1u64..50) {
            let (mut begun, mut noted) = (0, None);
            for delivered in 1..=deliveries {
                if let Next::Run { attempts, .. } = next(delivered, noted, max) {
                    begun += 1;
                    prop_assert_eq!(attempts.current, begun);
                    noted = mark(begun, false);
                }
            }
            prop_assert!(begun <= max);
        }
    }
}
