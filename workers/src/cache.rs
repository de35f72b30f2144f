//! The cache: identical work is done once.
//!
//! Outputs are kept by a hash of all that they depend on: the model's revision and weights, the engine, the tokens and
//! what is wanted of them. Two bodies that mean the same have the same tokens, so that nothing else needs to be made
//! equal, and one entry serves every form of answer. Jobs with the same hash that are in flight here are computed once.
//!
//! Lookups of many jobs travel in one request, and a store is not waited for: a lost entry costs a computation.

mod lookup;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_nats::Client;
use connect::Connection;
use schemas::provenance::CacheUse;
use schemas::registry::{self, CacheScope};
use schemas::stream::CACHE_BUCKET;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio::sync::watch;

use self::lookup::Lookups;
use crate::engine::{Goal, Output, Sequence};

/// Entries above this are not worth their place.
const ENTRY_BYTES_MAX: usize = 512 << 10;

/// A hash of the work.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Key(String);

/// What is kept.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Entry {
    outputs: Vec<Output>,
}

type Outputs = Arc<Vec<Output>>;

pub struct Cache {
    settings: registry::Cache,
    client: Client,
    lookups: Lookups,
    /// Model, weights and engine, hashed already.
    identity: Sha256,
    /// Work that is being done here.
    doing: Mutex<HashMap<Key, watch::Receiver<Option<Outputs>>>>,
}

/// What the cache has to say of some work.
pub enum Found<'a> {
    /// It was done before.
    Done(Vec<Output>, CacheUse),
    /// The caller shall do it.
    ToDo(Turn<'a>),
}

/// The right to do work that others may wait for. When it is dropped without an answer, one of them takes it up.
pub struct Turn<'a> {
    cache: &'a Cache,
    key: Key,
    answer: watch::Sender<Option<Outputs>>,
}

impl Cache {
    pub fn new(settings: registry::Cache, connection: &Connection, identity: &str) -> Self {
        let client = connection.client.clone();
        let lookups = Lookups::start(client.clone(), &connection.api_prefix);
        Self { settings, client, lookups, identity: Sha256::new_with_prefix(identity), doing: Mutex::default() }
    }

    pub fn is_enabled(&self) -> bool {
        self.settings.enabled
    }

    /// The key of the work. A tenant's entries are its own unless the registry shares them.
    pub fn key(&self, tenant: &str, sequences: &[Sequence]) -> Key {
        let mut hash = self.identity.clone();
        if self.settings.scope == CacheScope::Tenant {
            hash.update(tenant);
        }
        hash.update([0]);
        for sequence in sequences {
            hash.update((sequence.tokens.len() as u64).to_le_bytes());
            hash.update(sequence.tokens.iter().flat_map(|token| token.to_le_bytes()).collect::<Vec<u8>>());
            match &sequence.goal {
                Goal::Embed => hash.update([1]),
                Goal::Generate(params) => {
                    hash.update([2]);
                    hash.update(params.temperature.to_le_bytes());
                    if params.temperature > 0.0 {
                        hash.update(params.top_p.to_le_bytes());
                        hash.update(params.seed.to_le_bytes());
                    }
                    hash.update((params.max_tokens as u64).to_le_bytes());
                    for stop in &params.stop {
                        hash.update((stop.len() as u64).to_le_bytes());
                        hash.update(stop);
                    }
                }
            }
        }
        Key(format!("{:x}", hash.finalize()))
    }

    /// Looks the work up, or waits for it where it is being done here.
    pub async fn find(&self, key: Key) -> Found<'_> {
        loop {
            let turn = match self.enter(&key) {
                Ok(turn) => turn,
                Err(mut doing) => match doing.wait_for(Option::is_some).await {
                    Ok(outputs) => {
                        let outputs = outputs.as_deref().cloned().unwrap_or_default();
                        return Found::Done(outputs, CacheUse::Shared);
                    }
                    // Whoever did it has failed.
                    Err(_) => continue,
                },
            };
            let entry = self.lookups.get(format!("$KV.{CACHE_BUCKET}.{}", key.0)).await;
            return match entry.and_then(|entry| rmp_serde::from_slice::<Entry>(&entry).ok()) {
                Some(Entry { outputs }) => {
                    turn.share(outputs.clone());
                    Found::Done(outputs, CacheUse::Hit)
                }
                None => Found::ToDo(turn),
            };
        }
    }

    fn enter(&self, key: &Key) -> Result<Turn<'_>, watch::Receiver<Option<Outputs>>> {
        let mut doing = self.doing.lock().expect("no panic while held");
        if let Some(others) = doing.get(key) {
            return Err(others.clone());
        }
        let (answer, others) = watch::channel(None);
        doing.insert(key.clone(), others);
        Ok(Turn { cache: self, key: key.clone(), answer })
    }
}

impl Turn<'_> {
    /// Gives the outputs to those who wait, and keeps them where they took long enough to compute.
    pub async fn done(self, outputs: &[Output], took: Duration) {
        let is_worth_it = took >= Duration::from_millis(self.cache.settings.store_above_milliseconds);
        if is_worth_it
            && let Ok(payload) = rmp_serde::to_vec(&Entry { outputs: outputs.to_vec() })
            && payload.len() <= ENTRY_BYTES_MAX
            && let Err(error) =
                self.cache.client.publish(format!("$KV.{CACHE_BUCKET}.{}", self.key.0), payload.into()).await
        {
            tracing::warn!(%error, "answer not kept in the cache");
        }
        self.share(outputs.to_vec());
    }

    fn share(self, outputs: Vec<Output>) {
        // Nobody may be waiting.
        if self.answer.receiver_count() > 1 {
            self.answer.send_replace(Some(Arc::new(outputs)));
        }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.cache.doing.lock().expect("no panic while held").remove(&self.key);
    }
}
