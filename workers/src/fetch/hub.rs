//! Repositories of the Hugging Face hub, through the `hf-hub` crate.
//!
//! The crate knows the hub's URLs, its tokens and its Xet storage. Its own cache is not used, because it can keep the
//! body of an error answer as a file: the bytes go through the same store as packages do.
//!
//! A revision is fetched once and then kept, also when it is a branch that moves on: pin a commit.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use futures::StreamExt;
use hf_hub::{HFClient, HFClientBuilder, HFError};
use serde::Deserialize;

use super::error::FetchError;
use super::{Fetcher, check_pin, store};

/// What loading a model needs beside its weights.
const FILES: [&str; 2] = ["config.json", "tokenizer.json"];
const WEIGHTS: &str = "model.safetensors";
/// Where weights are in several files, their names.
const INDEX: &str = "model.safetensors.index.json";
/// How sentence-transformers says what is done around an encoder, and what a decoder says of its texts.
const OPTIONAL_FILES: [&str; 10] = [
    "generation_config.json",
    "chat_template.jinja",
    "modules.json",
    "config_sentence_transformers.json",
    "1_Pooling/config.json",
    "2_Dense/config.json",
    "2_Dense/model.safetensors",
    "sentence_bert_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
];

/// One revision of a model repository.
pub(super) struct Repository<'a> {
    /// `ORG/REPO`.
    pub name: &'a str,
    pub revision: &'a str,
    pub client: HFClient,
}

/// A client that leaves trying again to the store. Endpoint and token are the environment's unless they are set.
pub(super) fn client(http: reqwest::Client) -> HFClientBuilder {
    HFClient::builder().client(http).retry_max_attempts(0)
}

impl Repository<'_> {
    /// The one file, or a folder with the files that a model needs.
    pub async fn fetch(
        &self,
        fetcher: &Fetcher,
        path: Option<&str>,
        pin: Option<String>,
    ) -> Result<PathBuf, FetchError> {
        let what = format!("{}@{}", self.name, self.revision);
        let selection = match (path, &pin) {
            (None, None) => "model".to_owned(),
            (None, Some(_)) => return Err(FetchError::PinOfFolder { what }),
            (Some(path), None) => flat(path),
            (Some(path), Some(sha256)) => format!("{}-{}", flat(path), &sha256[..12]),
        };
        let target = fetcher.cache.join("hub").join(flat(&what)).join(selection);
        let found = path.map_or_else(|| target.clone(), |path| target.join(path));
        if found.exists() {
            return Ok(found);
        }
        fetcher.may_download(what.clone())?;
        let staged = store::stage(&target)?;
        match path {
            Some(path) => {
                let sha256 = self.download(fetcher, path, staged.path()).await?;
                check_pin(&format!("{path} of {what}"), pin.as_ref().unwrap_or(&sha256), &sha256)?;
            }
            None => self.download_model(fetcher, staged.path()).await?,
        }
        let publishing = tokio::task::spawn_blocking(move || store::publish(staged, &target));
        publishing.await.expect("publishing does not panic")?;
        Ok(found)
    }

    async fn download_model(&self, fetcher: &Fetcher, folder: &Path) -> Result<(), FetchError> {
        for file in FILES {
            self.download(fetcher, file, folder).await?;
        }
        for file in OPTIONAL_FILES {
            self.download_if_there(fetcher, file, folder).await?;
        }
        if !self.download_if_there(fetcher, INDEX, folder).await? {
            return self.download(fetcher, WEIGHTS, folder).await.map(drop);
        }
        for file in weight_files(&folder.join(INDEX))? {
            self.download(fetcher, &file, folder).await?;
        }
        Ok(())
    }

    /// Whether there is such a file.
    async fn download_if_there(&self, fetcher: &Fetcher, file: &str, folder: &Path) -> Result<bool, FetchError> {
        match self.download(fetcher, file, folder).await {
            Err(FetchError::Hub { source, .. }) if matches!(*source, HFError::EntryNotFound { .. }) => Ok(false),
            downloaded => downloaded.map(|_| true),
        }
    }

    /// Returns the SHA-256 of the file.
    async fn download(&self, fetcher: &Fetcher, file: &str, folder: &Path) -> Result<String, FetchError> {
        let received = store::retry(|| self.download_once(fetcher, file, folder)).await?;
        Ok(received.sha256)
    }

    async fn download_once(&self, fetcher: &Fetcher, file: &str, folder: &Path) -> Result<store::Received, FetchError> {
        let failed = |error| FetchError::hub(self.name, self.revision, file, error);
        let (owner, name) = hf_hub::split_id(self.name);
        let repository = self.client.model(owner, name);
        let answer = repository.download_file_stream().filename(file).revision(self.revision).send().await;
        let (bytes, mut stream) = answer.map_err(failed)?;

        let path = folder.join(file);
        let created = path.parent().map_or(Ok(()), fs::create_dir_all).and_then(|()| File::create(&path));
        let url = format!("{}/{}/resolve/{}/{file}", self.client.endpoint(), self.name, self.revision);
        let created = created.map_err(|error| FetchError::disk(&path, error))?;
        let mut incoming = store::Incoming::new(created, &path, &url, bytes, fetcher.progress);
        while let Some(chunk) = stream.next().await {
            incoming.write(&chunk.map_err(failed)?).await?;
        }
        incoming.finish().await
    }
}

/// The files that an index of weights names. They stand beside it.
fn weight_files(index: &Path) -> Result<BTreeSet<String>, FetchError> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let text = fs::read(index).map_err(|error| FetchError::disk(index, error))?;
    let wrong = |reason: String| FetchError::Index { path: index.to_owned(), reason };
    let Index { weight_map } = serde_json::from_slice(&text).map_err(|error| wrong(error.to_string()))?;
    let files: BTreeSet<String> = weight_map.into_values().collect();
    match files.iter().find(|file| file.contains('/') || *file == "..") {
        Some(file) => Err(wrong(format!("{file:?} leaves the folder"))),
        None => Ok(files),
    }
}

/// A name as one part of a path, written as the hub's own cache does.
fn flat(name: &str) -> String {
    name.replace('/', "--")
}
