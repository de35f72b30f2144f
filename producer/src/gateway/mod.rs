//! The gateway: OpenAI's HTTP API on top of the queue.
//!
//! It keeps nothing itself. A request becomes a job, and what is known of jobs, batches and files is in JetStream, so that
//! any other gateway can go on where one has ended.

mod answer;
mod asked;
mod batches;
mod caller;
mod control;
mod dashboard;
mod error;
mod events;
mod files;
mod forms;
mod hooks;
mod jobs;
mod leave;
pub mod metrics;
mod models;
mod openapi;
mod pages;
mod records;
mod routes;
mod sample;
mod serve;
mod webhooks;

use std::sync::Arc;
use std::time::Duration;

use connect::bucket::Bucket;
use schemas::stream::FILES_BUCKET;
use schemas::subject::{Lane, Token};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

pub use self::dashboard::{Looks, Queue, Snapshot, TenantBatch};
pub use self::records::Records;
pub use self::serve::{Listening, Tls, serve};
pub use self::webhooks::{WebhookOptions, WebhookSecret};

use self::caller::{Caller, Keys};
use self::error::ApiResult;
use self::metrics::Metrics;
use self::sample::Samples;
use self::webhooks::Webhooks;
use crate::Client;

/// Whether callers need a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyMode {
    Required,
    /// Everybody is the one tenant, and may see and mend all.
    Off,
}

#[derive(Clone, Debug)]
pub struct Options {
    pub keys: KeyMode,
    /// Whose jobs all are where no keys are asked for.
    pub tenant: Token,
    pub tenant_name: String,
    /// How long a request waits for its answer.
    pub timeout: Duration,
    /// How long a stream that was cut off may be taken up again before its job is cancelled.
    pub resume: Duration,
    /// Of a request's body.
    pub body_bytes: usize,
    /// Of a file.
    pub file_bytes: usize,
    pub webhooks: WebhookOptions,
    /// Whether operators are shown what dead letters asked.
    pub show_payloads: bool,
    /// Web pages that may ask, by their origins; `*` for all.
    pub origins: Vec<String>,
}

/// What all requests share.
#[derive(Debug)]
pub struct Gateway {
    client: Client,
    options: Options,
    keys: Arc<Keys>,
    metrics: Arc<Metrics>,
    samples: Samples,
    files: Arc<Bucket>,
    records: Records,
    webhooks: Webhooks,
    /// The batches that are driven here.
    drives: TaskTracker,
    /// By which other gateways know it.
    name: String,
    /// Set when the gateway ends: what its callers leave behind goes on then.
    stopping: CancellationToken,
}

impl Gateway {
    pub fn new(
        client: Client,
        options: Options,
        metrics: Arc<Metrics>,
        stopping: CancellationToken,
    ) -> anyhow::Result<Self> {
        let jetstream = client.connection.jetstream.clone();
        let records = Records::new(jetstream.clone());
        Ok(Self {
            samples: Samples::start(client.clone(), records.clone(), stopping.clone()),
            files: Arc::new(Bucket::new(jetstream, FILES_BUCKET)),
            records,
            webhooks: Webhooks::new(options.webhooks.clone())?,
            name: Uuid::now_v7().simple().to_string(),
            drives: TaskTracker::new(),
            keys: Arc::default(),
            client,
            options,
            metrics,
            stopping,
        })
    }

    /// Returns when all that was driven here is given back, so that others need not wait for it.
    pub async fn settled(&self) {
        self.drives.close();
        self.drives.wait().await;
    }

    /// Everybody, where no keys are asked for.
    fn anyone(&self) -> Caller {
        Caller {
            tenant: self.options.tenant_name.clone(),
            token: self.options.tenant.clone(),
            lanes: vec![Lane::Default, Lane::Priority, Lane::Flex],
            operator: true,
            jobs_max: None,
        }
    }

    /// Jobs of a caller's tenant that wait or run.
    async fn jobs_of(&self, caller: &Caller) -> ApiResult<u64> {
        Ok(self.client.jobs_of(&caller.token).await?)
    }

    /// When a full queue may have room again, as far as its workers' pace tells.
    async fn room_after(&self, model: Option<&str>) -> Duration {
        self.samples.room_after(model)
    }
}
