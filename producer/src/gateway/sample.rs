//! Looks at the queues while somebody wants to know, once a second for all of them together.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use super::dashboard::{Looks, Snapshot};
use super::records::Records;
use crate::Client;

const EVERY: Duration = Duration::from_secs(1);
/// What a full queue is given to have room again: a part of what it will take to be empty, within bounds.
const ROOM_PART: f64 = 0.1;
const ROOM_UNKNOWN: Duration = Duration::from_secs(5);
const ROOM_MAX: f64 = 60.0;

pub type Latest = watch::Receiver<Option<Arc<Snapshot>>>;

#[derive(Debug)]
pub struct Samples {
    latest: Latest,
    wanted: Arc<Notify>,
}

impl Samples {
    pub fn start(client: Client, records: Records, stopping: CancellationToken) -> Self {
        let (sender, latest) = watch::channel(None);
        let wanted = Arc::new(Notify::new());
        let asked = wanted.clone();
        tokio::spawn(async move {
            let look = async {
                let mut looks = Looks::default();
                loop {
                    // One receiver is the gateway's own.
                    if sender.receiver_count() <= 1 {
                        asked.notified().await;
                    }
                    match looks.look(&client, &records).await {
                        Ok(snapshot) => drop(sender.send_replace(Some(Arc::new(snapshot)))),
                        Err(error) => tracing::warn!(error = format!("{error:#}"), "queues not looked at"),
                    }
                    tokio::time::sleep(EVERY).await;
                }
            };
            stopping.run_until_cancelled(look).await;
        });
        Self { latest, wanted }
    }

    /// What there is to see, as it changes.
    pub fn follow(&self) -> Latest {
        let mut latest = self.latest.clone();
        latest.mark_unchanged();
        self.wanted.notify_one();
        latest
    }

    /// When a full queue may have room again.
    pub fn room_after(&self, model: Option<&str>) -> Duration {
        self.wanted.notify_one();
        let latest = self.latest.borrow().clone();
        let backlog = latest.and_then(|snapshot| match model {
            Some(model) => snapshot.status.models.get(model)?.backlog_seconds,
            None => snapshot.status.models.values().filter_map(|model| model.backlog_seconds).reduce(f64::max),
        });
        backlog.map_or(ROOM_UNKNOWN, |seconds| Duration::from_secs_f64((seconds * ROOM_PART).clamp(1.0, ROOM_MAX)))
    }
}
