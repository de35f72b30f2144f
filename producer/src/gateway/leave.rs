//! Callers that leave before they are answered: their jobs are cancelled, unless somebody else goes on reading.

use std::sync::Arc;
use std::time::Duration;

use async_nats::RequestErrorKind;
use futures::StreamExt;
use schemas::subject::{JobId, Token};
use tokio::runtime::Handle;

use super::Gateway;
use super::caller::Caller;
use crate::Client;

/// Cancels a job when it is dropped, unless it was told to let it be.
#[derive(Debug)]
pub struct Leave {
    gateway: Arc<Gateway>,
    tenant: Token,
    job_id: JobId,
    /// How long the caller has to come back.
    grace: Duration,
    armed: bool,
}

impl Leave {
    /// `is_own` is whether the job is this request's alone.
    pub fn new(gateway: &Arc<Gateway>, caller: &Caller, job_id: &JobId, is_own: bool, grace: Duration) -> Self {
        let gateway = gateway.clone();
        Self { gateway, tenant: caller.token.clone(), job_id: job_id.clone(), grace, armed: is_own }
    }

    /// The caller was answered, or the job is to go on without it.
    pub fn stay(mut self) {
        self.armed = false;
    }
}

impl Drop for Leave {
    fn drop(&mut self) {
        // Those who lose a gateway that stops find their job at another one.
        if !self.armed || self.gateway.stopping.is_cancelled() {
            return;
        }
        let Ok(runtime) = Handle::try_current() else { return };
        let (gateway, tenant, job_id, grace) =
            (self.gateway.clone(), self.tenant.clone(), self.job_id.clone(), self.grace);
        runtime.spawn(async move {
            if !grace.is_zero() {
                tokio::time::sleep(grace).await;
                if gateway.stopping.is_cancelled() || is_read(&gateway.client, &tenant, &job_id).await {
                    return;
                }
            }
            gateway.metrics.abandoned.inc();
            if let Err(error) = gateway.client.cancel(&tenant, &job_id).await {
                tracing::warn!(job.id = %job_id, error = format!("{error:#}"), "job of a caller that left not cancelled");
            }
        });
    }
}

fn readers_subject(tenant: &Token, job_id: &JobId) -> String {
    format!("inferq.readers.{tenant}.{job_id}")
}

/// Whether somebody reads a job's answer who came back for it, at whichever gateway.
async fn is_read(client: &Client, tenant: &Token, job_id: &JobId) -> bool {
    let asked = client.connection.client.request(readers_subject(tenant, job_id), "".into()).await;
    // A server that does not answer does not say that nobody does.
    asked.is_ok() || asked.is_err_and(|error| error.kind() != RequestErrorKind::NoResponders)
}

/// Tells others that the job's answer is read here, for as long as the value lives.
pub async fn stand_by(client: &Client, tenant: &Token, job_id: &JobId) -> Result<StandBy, async_nats::Error> {
    let mut asked = client.connection.client.subscribe(readers_subject(tenant, job_id)).await?;
    let nats = client.connection.client.clone();
    let task = tokio::spawn(async move {
        while let Some(message) = asked.next().await {
            if let Some(reply) = message.reply {
                let _ = nats.publish(reply, "".into()).await;
            }
        }
    });
    Ok(StandBy(task))
}

/// Ends when it is dropped.
#[derive(Debug)]
pub struct StandBy(tokio::task::JoinHandle<()>);

impl Drop for StandBy {
    fn drop(&mut self) {
        self.0.abort();
    }
}
