//! The cache: identical work is done once.
//!
//! Outputs are kept by a hash of all that they depend on: the model's revision and weights, the engine, the tokens and
//! what is wanted of them. Two bodies that mean the same have the same tokens, so that nothing else needs to be made
//! equal, and one entry serves every form of answer. Jobs with the same hash that are in flight here are computed once.
//!
//! Lookups of many jobs travel in one request, and a store is not waited for: a lost entry costs a computation.

mod lookup;

use std::collections::HashMap;
use std::collections::hash_map::Entry as MapEntry;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_nats::Client;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use connect::Connection;
use schemas::provenance::CacheUse;
use schemas::registry::{self, CacheScope};
use schemas::stream::CACHE_BUCKET;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio::sync::watch;

use self::lookup::Lookups;
use crate::engine::{Goal, Grammar, Image, Output, Sequence};

/// Entries above this are not worth their place.
const ENTRY_BYTES_MAX: usize = 512 << 10;

/// A hash of the work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key([u8; 32]);

/// What is kept.
#[derive(Debug, Serialize, Deserialize)]
struct Entry<O> {
    outputs: O,
}

type Outputs = Arc<Vec<Output>>;

pub struct Cache {
    settings: registry::Cache,
    client: Client,
    lookups: Lookups,
    /// Model, weights and engine, hashed already.
    identity: Sha256,
    /// Work that is being done here, with the channel of those who wait for it, where there are any.
    doing: Mutex<HashMap<Key, Option<watch::Sender<Option<Outputs>>>>>,
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
            let (width, bytes) = compact(&sequence.tokens);
            hash.update([width]);
            hash.update(bytes);
            if let Some(Image(pixels)) = &sequence.image {
                hash.update([5]);
                pixels.iter().for_each(|value| hash.update(value.to_le_bytes()));
            }
            hash.update((sequence.pair_at.unwrap_or(0) as u64).to_le_bytes());
            match &sequence.goal {
                Goal::Embed => hash.update([1]),
                Goal::Score => hash.update([3]),
                Goal::Transcribe(hearing) => {
                    hash.update([4, u8::from(hearing.translate), u8::from(hearing.words)]);
                    hash.update(hearing.language.unwrap_or(0).to_le_bytes());
                    hash.update(hearing.temperature.to_le_bytes());
                    hash.update(hearing.seed.to_le_bytes());
                    hearing.mel.digest(|bytes| hash.update(bytes));
                }
                Goal::Generate(params) => {
                    hash.update([2, u8::from(params.skip_special_tokens)]);
                    hash.update(params.temperature.to_le_bytes());
                    if params.temperature > 0.0 {
                        hash.update(params.top_p.to_le_bytes());
                        hash.update((params.top_k.unwrap_or(0) as u64).to_le_bytes());
                        hash.update(params.min_p.to_le_bytes());
                        hash.update(params.seed.to_le_bytes());
                    }
                    hash.update(params.frequency_penalty.to_le_bytes());
                    hash.update(params.presence_penalty.to_le_bytes());
                    hash.update((params.logit_bias.len() as u64).to_le_bytes());
                    for (token, bias) in &params.logit_bias {
                        hash.update(token.to_le_bytes());
                        hash.update(bias.to_le_bytes());
                    }
                    let grammar = params.grammar.as_ref().map_or("", Grammar::source);
                    hash.update((grammar.len() as u64).to_le_bytes());
                    hash.update(grammar);
                    hash.update(params.logprobs.map_or(u64::MAX, |count| count as u64).to_le_bytes());
                    hash.update((params.max_tokens as u64).to_le_bytes());
                    for stop in &params.stop {
                        hash.update((stop.len() as u64).to_le_bytes());
                        hash.update(stop);
                    }
                }
            }
        }
        Key(hash.finalize().into())
    }

    /// Looks the work up, or waits for it where it is being done here.
    pub async fn find(&self, key: Key) -> Found<'_> {
        loop {
            let turn = match self.enter(key) {
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
            let entry = self.lookups.get(key.subject()).await;
            return match entry.and_then(|entry| rmp_serde::from_slice::<Entry<Vec<Output>>>(&entry).ok()) {
                Some(Entry { outputs }) => {
                    turn.share(&outputs);
                    Found::Done(outputs, CacheUse::Hit)
                }
                None => Found::ToDo(turn),
            };
        }
    }

    fn enter(&self, key: Key) -> Result<Turn<'_>, watch::Receiver<Option<Outputs>>> {
        match self.doing.lock().expect("no panic while held").entry(key) {
            MapEntry::Vacant(free) => {
                free.insert(None);
                Ok(Turn { cache: self, key })
            }
            MapEntry::Occupied(mut taken) => Err(taken.get_mut().get_or_insert_default().subscribe()),
        }
    }
}

impl Key {
    fn subject(&self) -> String {
        format!("$KV.{CACHE_BUCKET}.{}", URL_SAFE_NO_PAD.encode(self.0))
    }
}

/// The tokens in as few bytes as the largest of them needs, and how many that are: hashing them is most of what a lookup
/// costs here.
fn compact(tokens: &[u32]) -> (u8, Vec<u8>) {
    match tokens.iter().max() {
        Some(0x1_0000..) => (4, tokens.iter().flat_map(|token| token.to_le_bytes()).collect()),
        Some(0x100..) => (2, tokens.iter().flat_map(|&token| (token as u16).to_le_bytes()).collect()),
        _ => (1, tokens.iter().map(|&token| token as u8).collect()),
    }
}

impl Turn<'_> {
    /// Gives the outputs to those who wait, and keeps them where they took long enough to compute.
    pub async fn done(self, outputs: &[Output], took: Duration) {
        let is_worth_it = took >= Duration::from_millis(self.cache.settings.store_above_milliseconds);
        if is_worth_it
            && let Ok(payload) = rmp_serde::to_vec(&Entry { outputs })
            && payload.len() <= ENTRY_BYTES_MAX
            && let Err(error) = self.cache.client.publish(self.key.subject(), payload.into()).await
        {
            tracing::warn!(%error, "answer not kept in the cache");
        }
        self.share(outputs);
    }

    /// Nobody else runs between this and the drop that follows, so all that wait have their channel by now.
    fn share(self, outputs: &[Output]) {
        let waiting = self.cache.doing.lock().expect("no panic while held").get(&self.key).cloned().flatten();
        if let Some(waiting) = waiting {
            waiting.send_replace(Some(Arc::new(outputs.to_vec())));
        }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.cache.doing.lock().expect("no panic while held").remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::compact;

    proptest! {
        #[test]
        fn different_tokens_stay_different(one: Vec<u32>, other: Vec<u32>, shift in 0_u32..32) {
            let narrow = |tokens: &[u32]| tokens.iter().map(|token| token >> shift).collect::<Vec<_>>();
            let (one, other) = (narrow(&one), narrow(&other));
            prop_assert_eq!(compact(&one) == compact(&other), one == other);
            prop_assert_ne!(compact(&one), compact(&[one.as_slice(), &[0]].concat()));
        }
    }
}
