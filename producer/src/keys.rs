//! API keys of the gateway, in a bucket: who a caller is and what it may do. A key itself is stored nowhere, only its
//! digest; it has 256 random bits, so that there is nothing to guess and no salt to add.

use anyhow::Context as _;
use async_nats::jetstream::Context;
use async_nats::jetstream::kv::{Operation, Store};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use futures::TryStreamExt;
use schemas::stream::KEYS_BUCKET;
use schemas::subject::Lane;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// How every key begins, so that it is known where it should not be.
pub const PREFIX: &str = "sk-inferq-";
/// Characters of a digest by which a key is called.
const ID_CHARS: usize = 12;

/// What is known of a key.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
pub struct Key {
    /// The first characters of its digest.
    pub id: String,
    /// For people.
    pub name: String,
    pub tenant: String,
    /// The lanes its jobs may take; the first is that of jobs which ask for none.
    pub lanes: Vec<Lane>,
    #[serde(default)]
    pub requests_per_minute: Option<u32>,
    /// Jobs of its tenant that may wait or run.
    #[serde(default)]
    pub jobs_max: Option<u64>,
    /// Whether it sees and mends what is everybody's: queues, workers, dead letters.
    #[serde(default)]
    pub operator: bool,
    /// Unix seconds.
    pub created_at: i64,
    #[serde(default)]
    pub expires_at: Option<i64>,
}

/// A new secret: it is shown once.
pub fn make_secret() -> anyhow::Result<String> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).map_err(|error| anyhow::anyhow!("no random numbers: {error}"))?;
    Ok(format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes)))
}

/// What a key is looked up by.
pub fn digest(secret: &str) -> String {
    Sha256::digest(secret).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What a key is called.
pub fn id_of(digest: &str) -> String {
    digest.chars().take(ID_CHARS).collect()
}

pub async fn bucket(jetstream: &Context) -> anyhow::Result<Store> {
    let store = jetstream.get_key_value(KEYS_BUCKET).await;
    store.with_context(|| format!("bucket {KEYS_BUCKET}; run `inferq setup`"))
}

/// Stores a key under the digest of its secret.
pub async fn store(jetstream: &Context, secret: &str, key: &Key) -> anyhow::Result<()> {
    bucket(jetstream).await?.create(digest(secret), serde_json::to_vec(key)?.into()).await?;
    Ok(())
}

/// All keys with their digests, oldest first.
pub async fn list(jetstream: &Context) -> anyhow::Result<Vec<(String, Key)>> {
    let store = bucket(jetstream).await?;
    let digests: Vec<String> = store.keys().await?.try_collect().await?;
    let mut keys = Vec::new();
    for digest in digests {
        let Some(entry) = store.entry(digest.as_str()).await? else { continue };
        if entry.operation == Operation::Put {
            let key = serde_json::from_slice(&entry.value).with_context(|| format!("key {}", id_of(&digest)))?;
            keys.push((digest, key));
        }
    }
    keys.sort_by(|(_, a): &(String, Key), (_, b)| (a.created_at, &a.id).cmp(&(b.created_at, &b.id)));
    Ok(keys)
}

/// Takes a key away, by the first characters of its id; a gateway that runs refuses it from then on.
pub async fn revoke(jetstream: &Context, id: &str) -> anyhow::Result<Key> {
    let found = list(jetstream).await?.into_iter().filter(|(_, key)| key.id.starts_with(id)).collect::<Vec<_>>();
    match found.as_slice() {
        [] => anyhow::bail!("no key {id:?}; `inferq keys list` shows all"),
        [(digest, key)] => {
            bucket(jetstream).await?.purge(digest).await?;
            Ok(key.clone())
        }
        several => anyhow::bail!("{id:?} is the beginning of {} keys; give more of it", several.len()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_differ_and_are_called_by_their_digest() {
        let (one, other) = (make_secret().unwrap(), make_secret().unwrap());
        assert_ne!(one, other);
        assert!(one.starts_with(PREFIX) && one.len() == PREFIX.len() + 43, "{one}");
        assert_eq!(digest("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        assert_eq!(id_of(&digest("abc")), "ba7816bf8f01");
    }
}
