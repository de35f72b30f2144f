//! What the producers know: which jobs they sent, which were acknowledged, what was refused.

use std::collections::{BTreeMap, HashMap};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use connect::PublishFailure;
use time::OffsetDateTime;

use crate::job::Job;

/// One job as its producer knows it.
pub struct Entry {
    pub job: Job,
    /// When JetStream confirmed it.
    pub acknowledged_at: Option<OffsetDateTime>,
    /// How often it was published again on purpose after that.
    pub repeats: usize,
}

/// The book of all producers.
#[derive(Default)]
pub struct Ledger {
    entries: Mutex<HashMap<String, Entry>>,
    refusals: Mutex<BTreeMap<&'static str, usize>>,
    is_over: AtomicBool,
}

impl Ledger {
    /// Before the job is published: from now on a result of it may appear.
    pub fn sent(&self, job: Job) {
        let id = job.id.clone();
        let entry = Entry { job, acknowledged_at: None, repeats: 0 };
        let earlier = self.entries.lock().unwrap().insert(id, entry);
        assert!(earlier.is_none(), "each job has an id of its own");
    }

    pub fn acknowledged(&self, id: &str) {
        self.entries.lock().unwrap().get_mut(id).expect("it was sent").acknowledged_at =
            Some(OffsetDateTime::now_utc());
    }

    pub fn repeated(&self, id: &str) {
        self.entries.lock().unwrap().get_mut(id).expect("it was sent").repeats += 1;
    }

    /// One try that was not acknowledged.
    pub fn refused(&self, failure: &PublishFailure) {
        let why = match failure {
            PublishFailure::Full(_) => "stream full",
            PublishFailure::NoStream => "no stream",
            PublishFailure::Unconfirmed(_) => "unconfirmed",
            PublishFailure::AlreadyStored | PublishFailure::TooLarge(_) | PublishFailure::Refused(_) => "refused",
        };
        *self.refusals.lock().unwrap().entry(why).or_default() += 1;
    }

    pub fn refusals(&self) -> BTreeMap<&'static str, usize> {
        self.refusals.lock().unwrap().clone()
    }

    /// All jobs, by their ids, taken out.
    pub fn close(&self) -> HashMap<String, Entry> {
        std::mem::take(&mut *self.entries.lock().unwrap())
    }

    /// Tells the producers that the faults are over: they send no new jobs.
    pub fn end(&self) {
        self.is_over.store(true, Ordering::Relaxed);
    }

    pub fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Relaxed)
    }
}
