//! Webhooks of single jobs. The gateway that took a job waits for its result and tells it. What it has to tell is kept in
//! the bucket of records, and every gateway says there again and again that it lives: where one is silent, others take
//! over what it had to tell. Something may be told twice then, under the same id.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_nats::jetstream::kv;
use futures::StreamExt;
use schemas::result::JobResult;
use schemas::subject::{JobId, Token};
use serde::{Deserialize, Serialize};
use tokio::task::JoinHandle;

use super::Gateway;
use super::batches::now;
use super::error::{ApiError, ApiResult};
use super::jobs::status;
use super::records::{Kind, is_record};
use crate::standing::Standing;

/// How often a gateway says that it lives.
const BEAT: Duration = Duration::from_secs(2);
/// One that is silent for so long does not.
const SILENT: Duration = Duration::from_secs(10);
const WATCH_AGAIN: Duration = Duration::from_secs(1);
/// Hooks that are taken over between two beats.
const TAKEN_OVER_MAX: usize = 500;
/// How often it is asked whether a job that is waited for is still known: one that was taken away is never answered.
const ASK_AGAIN: Duration = Duration::from_secs(600);

/// What is to be told, of the job in its key.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Hook {
    url: String,
    /// The gateway that tells it.
    gateway: String,
}

/// A gateway that tells hooks.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
struct Alive {
    /// Unix seconds.
    at: i64,
}

struct Heard {
    hook: Hook,
    revision: u64,
}

impl Gateway {
    /// Notes where the end of a job is to be told, before the job is sent. False if that is noted already, as it is where a
    /// request is made again.
    pub async fn hook(&self, tenant: &Token, job_id: &JobId, url: &str) -> ApiResult<bool> {
        self.webhooks.check(url)?;
        let hook = Hook { url: url.to_owned(), gateway: self.name.clone() };
        let noted = self.records.create(&Kind::Hooks.key(tenant, job_id.as_str()), &hook).await;
        noted.map_err(|error| ApiError::unavailable("queue_unavailable", format!("{error:#}")))
    }

    /// The job was not sent.
    pub async fn unhook(&self, tenant: &Token, job_id: &JobId) {
        if let Err(error) = self.records.remove(&Kind::Hooks.key(tenant, job_id.as_str())).await {
            // It goes when its job is found to be unknown.
            tracing::warn!(job.id = job_id.as_str(), error = format!("{error:#}"), "webhook of no job not removed");
        }
    }
}

/// Tells hooks for as long as the gateway lives.
pub async fn keep(gateway: Arc<Gateway>) {
    if gateway.options.webhooks.hosts.is_empty() {
        return;
    }
    let stopping = gateway.stopping.clone();
    let work = async {
        loop {
            let mut keeper = Keeper::new(gateway.clone());
            if let Err(error) = keeper.follow().await {
                tracing::warn!(error = format!("{error:#}"), "webhooks are not watched, trying again");
            }
            tokio::time::sleep(WATCH_AGAIN).await;
        }
    };
    stopping.run_until_cancelled(work).await;
    // Others need not wait.
    let _ = gateway.records.remove(&alive_key(&gateway.name)).await;
}

fn alive_key(gateway: &str) -> String {
    format!("{}.{gateway}", Kind::GATEWAYS)
}

/// What one gateway knows of all hooks.
struct Keeper {
    gateway: Arc<Gateway>,
    heard: HashMap<String, Heard>,
    /// When each gateway was last heard.
    alive: HashMap<String, Instant>,
    since: Instant,
    tasks: HashMap<String, Telling>,
}

/// Ends with the keeper: a new one begins anew.
struct Telling(JoinHandle<()>);

impl Drop for Telling {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Keeper {
    fn new(gateway: Arc<Gateway>) -> Self {
        let (heard, alive, tasks) = (HashMap::new(), HashMap::new(), HashMap::new());
        Self { gateway, heard, alive, since: Instant::now(), tasks }
    }

    async fn follow(&mut self) -> anyhow::Result<()> {
        let bucket = self.gateway.records.bucket().await?;
        let mut hooks = bucket.watch_with_history(Kind::Hooks.filter(None)).await?;
        let mut gateways = bucket.watch_with_history(format!("{}.*", Kind::GATEWAYS)).await?;
        let mut beats = tokio::time::interval(BEAT);
        let ended = || anyhow::anyhow!("the watch has ended");
        loop {
            tokio::select! {
                entry = hooks.next() => self.hook(entry.ok_or_else(ended)??),
                entry = gateways.next() => {
                    let entry = entry.ok_or_else(ended)??;
                    let name = entry.key.rsplit('.').next().unwrap_or_default().to_owned();
                    match is_record(&entry) {
                        true => drop(self.alive.insert(name, Instant::now())),
                        false => drop(self.alive.remove(&name)),
                    }
                }
                _ = beats.tick() => {
                    bucket.put(alive_key(&self.gateway.name), serde_json::to_vec(&Alive { at: now() })?.into()).await?;
                    self.tasks.retain(|_, task| !task.0.is_finished());
                    self.take_over().await?;
                }
            }
        }
    }

    fn hook(&mut self, entry: kv::Entry) {
        let hook = is_record(&entry).then(|| serde_json::from_slice::<Hook>(&entry.value).ok()).flatten();
        let Some(hook) = hook else {
            self.heard.remove(&entry.key);
            return;
        };
        if hook.gateway != self.gateway.name {
            // Another one may have taken it over.
            self.tasks.remove(&entry.key);
        } else if !self.tasks.contains_key(&entry.key) {
            let task = tell(self.gateway.clone(), entry.key.clone(), hook.url.clone());
            self.tasks.insert(entry.key.clone(), Telling(tokio::spawn(task)));
        }
        self.heard.insert(entry.key, Heard { hook, revision: entry.revision });
    }

    /// Makes hooks of silent gateways this one's, unless somebody is quicker; the watch tells so.
    async fn take_over(&self) -> anyhow::Result<()> {
        if self.since.elapsed() < SILENT {
            return Ok(());
        }
        let is_alive = |name: &str| self.alive.get(name).is_some_and(|at| at.elapsed() < SILENT);
        let lost = self.heard.iter().filter(|(_, heard)| !is_alive(&heard.hook.gateway));
        for (key, Heard { hook, revision }) in lost.take(TAKEN_OVER_MAX) {
            let own = Hook { gateway: self.gateway.name.clone(), ..hook.clone() };
            self.gateway.records.update(key, &own, *revision).await?;
        }
        let used: HashSet<&str> = self.heard.values().map(|heard| heard.hook.gateway.as_str()).collect();
        for name in self.alive.keys().filter(|name| !is_alive(name) && !used.contains(name.as_str())) {
            self.gateway.records.remove(&alive_key(name)).await?;
        }
        Ok(())
    }
}

/// Waits for a job's end and tells it.
async fn tell(gateway: Arc<Gateway>, key: String, url: String) {
    let mut tokens = key.split('.').skip(1);
    let tenant = tokens.next().and_then(|token| Token::encode(&Token::decode(token).ok()?).ok());
    let names = (tenant, tokens.next().and_then(|id| JobId::new(id).ok()));
    if let (Some(tenant), Some(job_id)) = names
        && let Some(result) = result(&gateway, &tenant, &job_id).await
    {
        let kind = format!("job.{}", status(&result));
        let data = serde_json::json!({ "id": job_id.as_str(), "custom_id": result.custom_id });
        gateway.webhooks.deliver(&url, &kind, job_id.as_str(), data).await;
    }
    while let Err(error) = gateway.records.remove(&key).await {
        tracing::warn!(key, error = format!("{error:#}"), "webhook that was told not removed, trying again");
        tokio::time::sleep(WATCH_AGAIN).await;
    }
}

/// The result of a job; none if it is gone.
async fn result(gateway: &Gateway, tenant: &Token, job_id: &JobId) -> Option<JobResult> {
    loop {
        match tokio::time::timeout(ASK_AGAIN, gateway.client.wait(tenant, job_id)).await {
            Ok(Ok(result)) => return Some(result),
            Ok(Err(error)) => {
                tracing::warn!(job.id = job_id.as_str(), %error, "webhook waits for its job, trying again");
                tokio::time::sleep(WATCH_AGAIN).await;
            }
            Err(_) => {
                if let Ok(Standing::Unknown) = gateway.client.standing(tenant, job_id).await {
                    tracing::warn!(job.id = job_id.as_str(), "webhook of a job that is gone, dropped");
                    return None;
                }
            }
        }
    }
}
