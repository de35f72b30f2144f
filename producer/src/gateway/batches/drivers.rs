//! Which batches this gateway drives: those that nobody does. A gateway that has been silent about one for a while has
//! lost it, by the clock of the one that listens.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt;
use schemas::subject::Token;

use super::drive::{BEAT, Drive};
use super::lines::Lost;
use super::record::{BatchRecord, Driver};
use crate::gateway::Gateway;
use crate::gateway::records::{Kind, is_record};

/// Batches that one gateway drives at a time.
const AT_A_TIME: usize = 8;
/// A driver that is silent for so long has lost its batch.
const SILENT: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_millis(500);
const WATCH_AGAIN: Duration = Duration::from_secs(1);

/// A batch as it was last heard of.
struct Heard {
    record: BatchRecord,
    revision: u64,
    at: Instant,
}

/// Takes up batches for as long as the gateway lives.
pub async fn keep(gateway: Arc<Gateway>) {
    let stopping = gateway.stopping.clone();
    let work = async {
        loop {
            if let Err(error) = follow(&gateway).await {
                tracing::warn!(error = format!("{error:#}"), "batches are not watched, trying again");
            }
            tokio::time::sleep(WATCH_AGAIN).await;
        }
    };
    stopping.run_until_cancelled(work).await;
}

async fn follow(gateway: &Arc<Gateway>) -> anyhow::Result<()> {
    let bucket = gateway.records.bucket().await?;
    let mut changes = bucket.watch_with_history(Kind::Batches.filter(None)).await?;
    let mut heard: HashMap<String, Heard> = HashMap::new();
    let mut driven: HashMap<String, tokio::task::JoinHandle<()>> = HashMap::new();
    let mut looks = tokio::time::interval(LOOK_EVERY);
    loop {
        tokio::select! {
            entry = changes.next() => {
                let entry = entry.ok_or_else(|| anyhow::anyhow!("the watch has ended"))??;
                let record = is_record(&entry).then(|| serde_json::from_slice::<BatchRecord>(&entry.value).ok()).flatten();
                match record.filter(BatchRecord::is_open) {
                    Some(record) => {
                        let now = Heard { record, revision: entry.revision, at: Instant::now() };
                        heard.insert(entry.key, now);
                    }
                    None => drop(heard.remove(&entry.key)),
                }
            }
            _ = looks.tick() => {
                driven.retain(|_, task| !task.is_finished());
                for (key, batch) in &heard {
                    let is_free = batch.record.driver.is_none() || batch.at.elapsed() >= SILENT;
                    if driven.len() < AT_A_TIME && is_free && !driven.contains_key(key)
                        && let Some(drive) = claim(gateway, key, batch).await? {
                        driven.insert(key.clone(), gateway.drives.spawn(drive));
                    }
                }
            }
        }
    }
}

/// Makes this gateway the driver of a batch, unless somebody is quicker.
async fn claim(
    gateway: &Arc<Gateway>,
    key: &str,
    batch: &Heard,
) -> anyhow::Result<Option<impl Future<Output = ()> + Send + use<>>> {
    let mut record = batch.record.clone();
    record.driver = Some(Driver { gateway: gateway.name.clone(), beat: 0 });
    if gateway.records.update(key, &record, batch.revision).await?.is_none() {
        return Ok(None);
    }
    let (tenant, id) = (Token::encode(&record.tenant)?, record.batch.id.clone());
    let drive = Drive::new(gateway.clone(), tenant, id.clone()).run();
    Ok(Some(async move {
        match drive.await {
            Ok(()) => {}
            Err(error) if error.is::<Lost>() => tracing::info!(batch = id, "another gateway goes on with this batch"),
            Err(error) => {
                tracing::error!(batch = id, error = format!("{error:#}"), "batch stopped, it is taken up again");
                // By whoever finds it silent.
                tokio::time::sleep(BEAT).await;
            }
        }
    }))
}
