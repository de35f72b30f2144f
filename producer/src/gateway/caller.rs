//! Who asks: the key of a request, and what it may do.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use async_nats::jetstream::Context;
use async_nats::jetstream::kv::Operation;
use axum::extract::FromRequestParts;
use axum::http::header::AUTHORIZATION;
use axum::http::request::Parts;
use futures::StreamExt;
use governor::clock::{Clock as _, DefaultClock};
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use schemas::subject::{Lane, Token};
use time::OffsetDateTime;
use tokio::sync::watch;

use super::error::{ApiError, ApiResult};
use super::{Gateway, KeyMode};
use crate::keys::{self, Key};

/// Before the bucket of keys is watched again.
const WATCH_AGAIN: Duration = Duration::from_secs(1);

/// A key, and how much of its rate is used here.
#[derive(Debug)]
struct Known {
    key: Key,
    rate: Option<DefaultDirectRateLimiter>,
}

/// All keys by their digests, kept as the bucket has them.
#[derive(Debug, Default)]
pub struct Keys(RwLock<HashMap<String, Arc<Known>>>);

/// The caller of one request.
#[derive(Clone, Debug)]
pub struct Caller {
    pub tenant: String,
    pub token: Token,
    /// The first is that of jobs which ask for none.
    pub lanes: Vec<Lane>,
    pub operator: bool,
    pub jobs_max: Option<u64>,
}

impl Keys {
    /// Keeps up with the bucket for as long as the process lives; `loaded` says when all keys are known.
    pub async fn keep(self: Arc<Self>, jetstream: Context, loaded: watch::Sender<bool>) {
        loop {
            if let Err(error) = self.follow(&jetstream, &loaded).await {
                tracing::warn!(error = format!("{error:#}"), "keys are not watched, trying again");
            }
            tokio::time::sleep(WATCH_AGAIN).await;
        }
    }

    async fn follow(&self, jetstream: &Context, loaded: &watch::Sender<bool>) -> anyhow::Result<()> {
        let store = keys::bucket(jetstream).await?;
        // A key that was revoked while nobody watched must not stay.
        let known = keys::list(jetstream).await?;
        let known = known.into_iter().map(|(digest, key)| (digest, Arc::new(Known::new(key)))).collect();
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = known;
        let mut changes = store.watch_with_history(">").await?;
        loaded.send_replace(true);
        while let Some(entry) = changes.next().await {
            let entry = entry?;
            let key: Option<Key> = match entry.operation {
                Operation::Put => serde_json::from_slice(&entry.value).ok(),
                Operation::Delete | Operation::Purge => None,
            };
            let mut known = self.0.write().unwrap_or_else(PoisonError::into_inner);
            match key {
                // What is used of its rate stays.
                Some(key) if known.get(&entry.key).is_some_and(|known| known.key == key) => {}
                Some(key) => drop(known.insert(entry.key, Arc::new(Known::new(key)))),
                None => drop(known.remove(&entry.key)),
            }
        }
        anyhow::bail!("the watch has ended")
    }

    fn find(&self, secret: &str) -> Option<Arc<Known>> {
        let digest = keys::digest(secret);
        self.0.read().unwrap_or_else(PoisonError::into_inner).get(&digest).cloned()
    }
}

impl Known {
    fn new(key: Key) -> Self {
        let quota = key.requests_per_minute.and_then(std::num::NonZeroU32::new).map(Quota::per_minute);
        Self { key, rate: quota.map(RateLimiter::direct) }
    }

    fn admit(&self) -> ApiResult<()> {
        let expired = |at| at <= OffsetDateTime::now_utc().unix_timestamp();
        if self.key.expires_at.is_some_and(expired) {
            return Err(ApiError::unauthorized("this API key has expired"));
        }
        let Some(rate) = &self.rate else { return Ok(()) };
        rate.check().map_err(|until| {
            let wait = until.wait_time_from(DefaultClock::default().now());
            let limit = self.key.requests_per_minute.unwrap_or_default();
            ApiError::too_many("rate_limit_exceeded", format!("this API key may make {limit} requests a minute"), wait)
        })
    }
}

impl FromRequestParts<Arc<Gateway>> for Caller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, gateway: &Arc<Gateway>) -> ApiResult<Self> {
        if gateway.options.keys == KeyMode::Off {
            return Ok(gateway.anyone());
        }
        let given = parts.headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
        let secret = given.and_then(|value| value.strip_prefix("Bearer ")).map(str::trim);
        let Some(secret) = secret else {
            return Err(ApiError::unauthorized("give an API key: Authorization: Bearer sk-inferq-..."));
        };
        let known = gateway.keys.find(secret);
        let known = known.ok_or_else(|| ApiError::unauthorized("this API key is not known, or was revoked"))?;
        known.admit()?;
        Caller::of(&known.key)
    }
}

impl Caller {
    fn of(key: &Key) -> ApiResult<Self> {
        let token = Token::encode(&key.tenant)
            .map_err(|error| ApiError::unauthorized(&format!("this API key's tenant {error}")))?;
        Ok(Self {
            tenant: key.tenant.clone(),
            token,
            lanes: key.lanes.clone(),
            operator: key.operator,
            jobs_max: key.jobs_max,
        })
    }

    /// The lane of a job that asks for one, or for none.
    pub fn lane(&self, asked: Option<Lane>) -> ApiResult<Lane> {
        match asked {
            None => Ok(self.lanes.first().copied().unwrap_or_default()),
            Some(lane) if self.lanes.contains(&lane) => Ok(lane),
            Some(lane) => Err(ApiError::forbidden(format!("service_tier: this API key may not use {lane}"))),
        }
    }

    pub fn as_operator(&self) -> ApiResult<()> {
        match self.operator {
            true => Ok(()),
            false => Err(ApiError::forbidden("this needs an API key made with `inferq keys create --operator`")),
        }
    }
}
