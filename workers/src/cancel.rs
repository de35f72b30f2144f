//! Cancellation of running jobs: whoever cancels a job says so on its cancel subject, and the worker that runs it stops.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use async_nats::{Client, SubscribeError};
use futures::StreamExt;
use schemas::subject::{Token, cancel_filter};
use tokio_util::sync::{CancellationToken, DropGuard};

/// The jobs that run in this worker, by tenant and id.
#[derive(Clone, Debug, Default)]
pub struct Running {
    /// With a number, since a job that is delivered again may be here twice for a while.
    jobs: Arc<Mutex<HashMap<String, (u64, CancellationToken)>>>,
    entered: Arc<AtomicU64>,
}

/// A running job. It leaves the list when this is dropped.
pub struct Entry {
    running: Running,
    key: String,
    number: u64,
    pub cancelled: CancellationToken,
}

impl Running {
    /// Enters a job under its key.
    pub fn enter(&self, key: String) -> Entry {
        let cancelled = CancellationToken::new();
        let number = self.entered.fetch_add(1, Ordering::Relaxed);
        self.lock().insert(key.clone(), (number, cancelled.clone()));
        Entry { running: self.clone(), key, number, cancelled }
    }

    /// Listens for jobs to cancel, for as long as the guard lives.
    pub async fn listen(&self, client: &Client, model: &Token) -> Result<DropGuard, SubscribeError> {
        let mut asked = client.subscribe(cancel_filter(model)).await?;
        // On the server before the first job is pulled.
        let _ = client.flush().await;
        let stop = CancellationToken::new();
        let (running, stopped) = (self.clone(), stop.clone());
        tokio::spawn(async move {
            while let Some(Some(message)) = stopped.run_until_cancelled(asked.next()).await {
                running.cancel(&message.subject);
            }
        });
        Ok(stop.drop_guard())
    }

    fn cancel(&self, subject: &str) {
        // inferq.cancel.<model>.<tenant>.<job_id>
        let key: Vec<&str> = subject.splitn(4, '.').collect();
        if let Some((_, cancelled)) = key.get(3).and_then(|key| self.lock().get(*key).cloned()) {
            tracing::info!(job.key = key[3], "job cancelled");
            cancelled.cancel();
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, (u64, CancellationToken)>> {
        self.jobs.lock().expect("no panic while held")
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        let mut jobs = self.running.lock();
        if jobs.get(&self.key).is_some_and(|(number, _)| *number == self.number) {
            jobs.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_named_job_is_cancelled() {
        let running = Running::default();
        let (one, other) = (running.enter("t.1".into()), running.enter("t.2".into()));
        running.cancel("inferq.cancel.m.t.1");
        running.cancel("inferq.cancel.m.t.3");
        assert!(one.cancelled.is_cancelled() && !other.cancelled.is_cancelled());
        drop(one);
        drop(other);
        assert!(running.lock().is_empty());
    }
}
