//! The log of one delivery: records are gathered and published together, so that a short job costs one message.

use std::sync::Mutex;

use async_nats::Client;
use schemas::codec::Encoding;
use schemas::log::{LogEvent, LogRecord};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// What every record of a delivery says.
#[derive(Clone, Debug)]
pub struct Stamp {
    pub job_id: String,
    pub model: String,
    pub worker: String,
}

/// Records not published yet.
#[derive(Debug)]
pub struct JobLog {
    subject: String,
    stamp: Stamp,
    records: Mutex<Vec<LogRecord>>,
}

impl JobLog {
    pub fn new(subject: String, stamp: Stamp) -> Self {
        Self { subject, stamp, records: Mutex::new(Vec::with_capacity(3)) }
    }

    pub fn record(&self, at: OffsetDateTime, attempt: u32, event: LogEvent) {
        let Stamp { job_id, model, worker } = self.stamp.clone();
        let record = LogRecord { time: rfc3339(at), job_id, model, worker, attempt, event };
        self.records.lock().expect("no panic while held").push(record);
    }

    /// What was gathered and is not published yet.
    pub fn records(&self) -> Vec<LogRecord> {
        self.records.lock().expect("no panic while held").clone()
    }

    /// Publishes what was gathered, without waiting for the server: a lost log record must not hold up a result.
    pub async fn flush(&self, client: &Client) {
        let records = std::mem::take(&mut *self.records.lock().expect("no panic while held"));
        if records.is_empty() {
            return;
        }
        let payload = Encoding::Json.encode(&records);
        if let Err(error) = client.publish(self.subject.clone(), payload.into()).await {
            tracing::warn!(job.id = self.stamp.job_id, %error, "job log not published");
        }
    }
}

pub fn rfc3339(at: OffsetDateTime) -> String {
    at.format(&Rfc3339).unwrap_or_default()
}
