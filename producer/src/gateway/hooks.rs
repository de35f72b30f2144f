//! Webhooks of single jobs. The gateway that took a job waits for its result and tells it. What it has to tell is kept in
//! the bucket of records under its name, and it says there again and again that it lives: what one has to tell that is
//! silent, others take over. Something may be told twice then, under the same id.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_nats::jetstream::kv;
use futures::StreamExt;
use schemas::result::JobResult;
use schemas::subject::{JobId, Token};
use serde::{Deserialize, Serialize};

use super::Gateway;
use super::error::{ApiError, ApiResult, QUEUE_UNAVAILABLE};
use super::jobs::status;
use super::records::is_record;
use crate::standing::Standing;

/// The first part of the keys of what gateways have to tell, and of what they say of themselves.
const HOOKS: &str = "hooks";
const GATEWAYS: &str = "gateways";
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
struct Hook {
    url: String,
    /// The gateway that takes it over.
    #[serde(default)]
    claimed: Option<String>,
}

/// What a gateway says of itself.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
struct Alive {
    /// Whether it is the last time.
    is_leaving: bool,
}

/// A hook that is noted for a job which is yet to be sent.
#[derive(Debug)]
pub struct Noted {
    key: String,
    url: String,
}

impl Gateway {
    /// Notes where the end of a job is to be told; none if that is noted already, as it is where a request comes again.
    pub async fn note_hook(&self, tenant: &Token, job_id: &JobId, url: &str) -> ApiResult<Option<Noted>> {
        self.webhooks.check(url)?;
        let key = key(&self.name, tenant.as_str(), job_id.as_str());
        let hook = Hook { url: url.to_owned(), claimed: None };
        let noted = self.records.create(&key, &hook).await;
        let is_new = noted.map_err(|error| ApiError::unavailable(QUEUE_UNAVAILABLE, format!("{error:#}")))?;
        Ok(is_new.then(|| Noted { key, url: url.to_owned() }))
    }

    /// Waits for the job and tells its end.
    pub fn tell_hook(self: &Arc<Self>, noted: Noted) {
        let (gateway, stopping) = (self.clone(), self.stopping.clone());
        tokio::spawn(async move { stopping.run_until_cancelled(tell(gateway, noted)).await });
    }

    /// The job was not stored.
    pub async fn forget_hook(&self, noted: Noted) {
        if let Err(error) = self.records.remove(&noted.key).await {
            tracing::warn!(key = noted.key, error = format!("{error:#}"), "webhook of no job not removed");
        }
    }
}

fn key(gateway: &str, tenant: &str, job_id: &str) -> String {
    format!("{HOOKS}.{gateway}.{tenant}.{job_id}")
}

fn alive_key(gateway: &str) -> String {
    format!("{GATEWAYS}.{gateway}")
}

/// Says that this gateway lives, and looks after the hooks of those that do not, for as long as it does.
pub async fn keep(gateway: Arc<Gateway>) {
    if gateway.options.webhooks.hosts.is_empty() {
        return;
    }
    let stopping = gateway.stopping.clone();
    let work = async {
        loop {
            if let Err(error) = Keeper::new(gateway.clone()).follow().await {
                tracing::warn!(error = format!("{error:#}"), "webhooks are not watched, trying again");
            }
            tokio::time::sleep(WATCH_AGAIN).await;
        }
    };
    stopping.run_until_cancelled(work).await;
    // Others need not wait.
    if let Ok(bucket) = gateway.records.bucket().await {
        let _ = say(&gateway, &bucket, true).await;
    }
}

async fn say(gateway: &Gateway, bucket: &kv::Store, is_leaving: bool) -> anyhow::Result<()> {
    bucket.put(alive_key(&gateway.name), serde_json::to_vec(&Alive { is_leaving })?.into()).await?;
    Ok(())
}

struct Keeper {
    gateway: Arc<Gateway>,
    /// When each of the gateways was last heard; none where it has left.
    heard: HashMap<String, Option<Instant>>,
}

impl Keeper {
    fn new(gateway: Arc<Gateway>) -> Self {
        Self { gateway, heard: HashMap::new() }
    }

    async fn follow(&mut self) -> anyhow::Result<()> {
        let bucket = self.gateway.records.bucket().await?;
        let mut changes = bucket.watch_with_history(format!("{GATEWAYS}.*")).await?;
        let mut beats = tokio::time::interval(BEAT);
        loop {
            tokio::select! {
                entry = changes.next() => {
                    self.hear(&entry.ok_or_else(|| anyhow::anyhow!("the watch has ended"))??);
                }
                _ = beats.tick() => {
                    say(&self.gateway, &bucket, false).await?;
                    self.take_over().await?;
                }
            }
        }
    }

    fn hear(&mut self, entry: &kv::Entry) {
        let name = entry.key.rsplit('.').next().unwrap_or_default().to_owned();
        match is_record(entry).then(|| serde_json::from_slice::<Alive>(&entry.value).ok()).flatten() {
            Some(Alive { is_leaving }) => drop(self.heard.insert(name, (!is_leaving).then(Instant::now))),
            None => drop(self.heard.remove(&name)),
        }
    }

    fn is_alive(&self, name: &str) -> bool {
        name == self.gateway.name || self.heard.get(name).is_some_and(|at| at.is_some_and(|at| at.elapsed() < SILENT))
    }

    /// Takes over what gateways had to tell that are gone. A record of one stays for as long as there is any.
    async fn take_over(&mut self) -> anyhow::Result<()> {
        let gone: Vec<String> = self.heard.keys().filter(|name| !self.is_alive(name)).cloned().collect();
        for name in gone {
            let keys = self.gateway.records.keys_of(&key(&name, "*", "*")).await?;
            if keys.is_empty() {
                self.gateway.records.remove(&alive_key(&name)).await?;
                self.heard.remove(&name);
            }
            for key in keys.iter().take(TAKEN_OVER_MAX) {
                self.claim(key).await?;
            }
        }
        Ok(())
    }

    /// Makes a hook this gateway's, unless somebody is quicker.
    async fn claim(&self, from: &str) -> anyhow::Result<()> {
        let records = &self.gateway.records;
        let Some(found) = records.get::<Hook>(from).await? else { return Ok(()) };
        let is_free =
            found.record.claimed.as_ref().is_none_or(|name| *name == self.gateway.name || !self.is_alive(name));
        let claimed = Hook { claimed: Some(self.gateway.name.clone()), ..found.record };
        if !is_free || records.update(from, &claimed, found.revision).await?.is_none() {
            return Ok(());
        }
        let Some((tenant, job_id)) = job_of(from) else { return records.remove(from).await };
        let noted = Noted { key: key(&self.gateway.name, tenant.as_str(), job_id.as_str()), url: claimed.url.clone() };
        if records.create(&noted.key, &Hook { claimed: None, ..claimed }).await? {
            self.gateway.tell_hook(noted);
        }
        records.remove(from).await
    }
}

/// Waits for a job's end and tells it.
async fn tell(gateway: Arc<Gateway>, Noted { key, url }: Noted) {
    if let Some((tenant, job_id)) = job_of(&key)
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

/// The tenant and the job in the key of a hook.
fn job_of(key: &str) -> Option<(Token, JobId)> {
    let mut tokens = key.rsplit('.');
    let job_id = JobId::new(tokens.next()?).ok()?;
    let tenant = Token::encode(&Token::decode(tokens.next()?).ok()?).ok()?;
    Some((tenant, job_id))
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
