//! The log of one delivery: records are gathered and published together, so that a short job costs one message.

use std::sync::Mutex;

use async_nats::Client;
use schemas::codec::Encoding;
use schemas::log::{LogEvent, LogMessage, LogRecord};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// What every record of a delivery says.
#[derive(Clone, Copy, Debug)]
pub struct Stamp<'a> {
    pub job_id: &'a str,
    pub model: &'a str,
    pub worker: &'a str,
}

/// Events not published yet.
#[derive(Debug)]
pub struct JobLog {
    subject: String,
    events: Mutex<Vec<Event>>,
}

#[derive(Clone, Debug)]
struct Event {
    at: OffsetDateTime,
    attempt: u32,
    event: LogEvent,
}

impl JobLog {
    pub fn new(subject: String) -> Self {
        Self { subject, events: Mutex::new(Vec::with_capacity(3)) }
    }

    pub fn record(&self, at: OffsetDateTime, attempt: u32, event: LogEvent) {
        self.events.lock().expect("no panic while held").push(Event { at, attempt, event });
    }

    /// What was gathered and is not published yet.
    pub fn records(&self, stamp: Stamp<'_>) -> LogMessage {
        let events = self.events.lock().expect("no panic while held").clone();
        let owned = |record: LogRecord<&str>| LogRecord {
            time: record.time,
            job_id: record.job_id.to_owned(),
            model: record.model.to_owned(),
            worker: record.worker.to_owned(),
            attempt: record.attempt,
            event: record.event,
        };
        events.into_iter().map(|event| owned(event.stamped(stamp))).collect()
    }

    /// Publishes what was gathered, without waiting for the server: a lost log record must not hold up a result.
    pub async fn flush(&self, client: &Client, stamp: Stamp<'_>) {
        let events = std::mem::take(&mut *self.events.lock().expect("no panic while held"));
        if events.is_empty() {
            return;
        }
        let records: Vec<LogRecord<&str>> = events.into_iter().map(|event| event.stamped(stamp)).collect();
        let payload = Encoding::Json.encode(&records);
        if let Err(error) = client.publish(self.subject.clone(), payload.into()).await {
            tracing::warn!(job.id = stamp.job_id, %error, "job log not published");
        }
    }
}

impl Event {
    fn stamped(self, stamp: Stamp<'_>) -> LogRecord<&str> {
        let Stamp { job_id, model, worker } = stamp;
        LogRecord { time: rfc3339(self.at), job_id, model, worker, attempt: self.attempt, event: self.event }
    }
}

pub fn rfc3339(at: OffsetDateTime) -> String {
    at.format(&Rfc3339).unwrap_or_default()
}
