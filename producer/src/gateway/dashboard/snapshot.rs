//! What the dashboard and `inferq top` show at a moment.

use std::collections::HashMap;
use std::time::Instant;

use schemas::pace::Pace;
use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::Client;
use crate::gateway::batches::{BatchObject, recent};
use crate::gateway::records::Records;
use crate::status::{LaneStatus, Status, StreamStatus, status};

/// Batches that are shown.
const BATCHES: usize = 20;

#[derive(Clone, Debug, Serialize)]
pub struct Snapshot {
    /// RFC 3339.
    pub time: String,
    pub queues: Vec<Queue>,
    pub workers: Vec<Pace>,
    pub batches: Vec<TenantBatch>,
    pub jobs: StreamStatus,
    pub results: StreamStatus,
    pub dead: StreamStatus,
    /// For whoever asks when a queue has room again.
    #[serde(skip)]
    pub status: Status,
}

#[derive(Clone, Debug, Serialize)]
pub struct Queue {
    #[serde(flatten)]
    pub lane: LaneStatus,
    /// Jobs a second that leave it. None at first.
    pub rate: Option<f64>,
}

#[derive(Clone, Debug, Serialize)]
pub struct TenantBatch {
    pub tenant: String,
    #[serde(flatten)]
    pub batch: BatchObject,
}

/// Looks again and again, and knows what it saw before.
#[derive(Debug, Default)]
pub struct Looks {
    acknowledged: HashMap<(String, String), u64>,
    at: Option<Instant>,
}

impl Looks {
    pub async fn look(&mut self, client: &Client, records: &Records) -> anyhow::Result<Snapshot> {
        let connection = &client.connection;
        let (status, batches) =
            tokio::try_join!(status(&connection.client, &connection.jetstream), recent(records, BATCHES))?;
        let now = Instant::now();
        let elapsed = self.at.replace(now).map(|before| now.duration_since(before).as_secs_f64());
        let mut queue = |lane: &LaneStatus| {
            let before = self.acknowledged.insert((lane.model.clone(), lane.lane.clone()), lane.acknowledged);
            let rate = before.zip(elapsed).map(|(before, elapsed)| {
                lane.acknowledged.saturating_sub(before) as f64 / elapsed.max(f64::MIN_POSITIVE)
            });
            Queue { lane: lane.clone(), rate }
        };
        Ok(Snapshot {
            time: OffsetDateTime::now_utc().truncate_to_second().format(&Rfc3339)?,
            queues: status.lanes.iter().map(&mut queue).collect(),
            workers: status.paces.clone(),
            batches: batches.into_iter().map(|(tenant, batch)| TenantBatch { tenant, batch }).collect(),
            jobs: status.jobs.clone(),
            results: status.results.clone(),
            dead: status.dead.clone(),
            status,
        })
    }
}
