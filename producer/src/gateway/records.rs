//! Records of files and batches, in a bucket: what every gateway knows of them. A record changes from what it was, or
//! somebody else was quicker and the change is tried on what it is now.

use std::collections::VecDeque;

use anyhow::Context as _;
use async_nats::jetstream::Context;
use async_nats::jetstream::kv::{self, Operation, UpdateErrorKind};
use async_nats::jetstream::stream::LastRawMessageErrorKind;
use futures::TryStreamExt;
use schemas::stream::BATCHES_BUCKET;
use schemas::subject::Token;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// What a record is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Files,
    Batches,
}

/// A record and the revision that it has.
#[derive(Clone, Debug)]
pub struct Revised<T> {
    pub record: T,
    pub revision: u64,
}

#[derive(Clone, Debug)]
pub struct Records {
    jetstream: Context,
}

impl Kind {
    fn prefix(self) -> &'static str {
        match self {
            Self::Files => "files",
            Self::Batches => "batches",
        }
    }

    pub fn key(self, tenant: &Token, id: &str) -> String {
        format!("{}.{tenant}.{id}", self.prefix())
    }

    /// All of a tenant, or of all tenants.
    pub fn filter(self, tenant: Option<&Token>) -> String {
        format!("{}.{}.*", self.prefix(), tenant.map_or("*", Token::as_str))
    }
}

impl Records {
    pub fn new(jetstream: Context) -> Self {
        Self { jetstream }
    }

    pub async fn bucket(&self) -> anyhow::Result<kv::Store> {
        let bucket = self.jetstream.get_key_value(BATCHES_BUCKET).await;
        bucket.with_context(|| format!("bucket {BATCHES_BUCKET}; run `inferq setup`"))
    }

    /// From the leader: what was just written is there.
    pub async fn get<T: DeserializeOwned>(&self, key: &str) -> anyhow::Result<Option<Revised<T>>> {
        let stream = self.jetstream.get_stream_no_info(format!("KV_{BATCHES_BUCKET}")).await?;
        match stream.get_last_raw_message_by_subject(&subject(key)).await {
            Ok(message) if message.headers.get("KV-Operation").is_some() => Ok(None),
            Ok(message) => {
                let record = serde_json::from_slice(&message.payload).with_context(|| format!("record {key}"))?;
                Ok(Some(Revised { record, revision: message.sequence }))
            }
            Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("record {key}")),
        }
    }

    /// Stores a new record; false if there is one.
    pub async fn create<T: Serialize>(&self, key: &str, record: &T) -> anyhow::Result<bool> {
        match self.bucket().await?.create(key, serde_json::to_vec(record)?.into()).await {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == kv::CreateErrorKind::AlreadyExists => Ok(false),
            Err(error) => Err(error).with_context(|| format!("record {key}")),
        }
    }

    /// Changes a record from a revision; none if it has another one.
    pub async fn update<T: Serialize>(&self, key: &str, record: &T, revision: u64) -> anyhow::Result<Option<u64>> {
        match self.bucket().await?.update(key, serde_json::to_vec(record)?.into(), revision).await {
            Ok(revision) => Ok(Some(revision)),
            Err(error) if error.kind() == UpdateErrorKind::WrongLastRevision => Ok(None),
            Err(error) => Err(error).with_context(|| format!("record {key}")),
        }
    }

    /// Changes a record from whatever it is, unless `change` says that there is nothing to do; gives what it is then.
    pub async fn modify<T: Serialize + DeserializeOwned>(
        &self,
        key: &str,
        mut change: impl FnMut(&mut T) -> bool,
    ) -> anyhow::Result<Option<Revised<T>>> {
        loop {
            let Some(mut found) = self.get::<T>(key).await? else { return Ok(None) };
            if !change(&mut found.record) {
                return Ok(Some(found));
            }
            if let Some(revision) = self.update(key, &found.record, found.revision).await? {
                return Ok(Some(Revised { revision, ..found }));
            }
        }
    }

    /// Without a trace.
    pub async fn remove(&self, key: &str) -> anyhow::Result<()> {
        let stream = self.jetstream.get_stream_no_info(format!("KV_{BATCHES_BUCKET}")).await?;
        stream.purge().filter(subject(key)).await.with_context(|| format!("record {key}"))?;
        Ok(())
    }

    /// The ids of a tenant's records, the newest first.
    pub async fn ids(&self, kind: Kind, tenant: &Token) -> anyhow::Result<VecDeque<String>> {
        let keys = self.keys(kind, Some(tenant)).await?;
        Ok(keys.into_iter().map(|key| id_of(&key).to_owned()).collect())
    }

    /// The keys of records, the newest first: ids are in the order of their making.
    pub async fn keys(&self, kind: Kind, tenant: Option<&Token>) -> anyhow::Result<Vec<String>> {
        let mut keys = self.keys_of(&kind.filter(tenant)).await?;
        keys.sort_by(|a, b| id_of(b).cmp(id_of(a)));
        Ok(keys)
    }

    /// The keys that a filter lets through, in no order.
    pub async fn keys_of(&self, filter: &str) -> anyhow::Result<Vec<String>> {
        let stream = self.jetstream.get_stream_no_info(format!("KV_{BATCHES_BUCKET}")).await?;
        let found = stream.info_with_subjects(subject(filter)).await?;
        let prefix = subject("");
        let key = |(subject, _): (String, usize)| subject.strip_prefix(&prefix).unwrap_or_default().to_owned();
        Ok(found.map_ok(key).try_collect().await?)
    }
}

/// Whether an entry of the bucket is a record, and not the mark of one that is gone.
pub fn is_record(entry: &kv::Entry) -> bool {
    entry.operation == Operation::Put
}

fn id_of(key: &str) -> &str {
    key.rsplit('.').next().unwrap_or_default()
}

fn subject(key: &str) -> String {
    format!("$KV.{BATCHES_BUCKET}.{key}")
}
