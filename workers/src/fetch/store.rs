//! The cache folder: writing a download while it is hashed, and giving a finished folder its name.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sha2::{Digest, Sha256};
use tempfile::TempDir;
use tokio::io::AsyncWriteExt;

use super::error::FetchError;
use super::progress::{Meter, Progress};

const RETRIES: usize = 4;
const FIRST_WAIT: Duration = if cfg!(test) { Duration::from_millis(1) } else { Duration::from_millis(500) };
const LONGEST_WAIT: Duration = Duration::from_secs(10);

/// Tries a download again while its failure may pass, after waits that double and are shortened at random by up to half.
pub(super) async fn retry<T, F>(download: impl Fn() -> F) -> Result<T, FetchError>
where
    F: Future<Output = Result<T, FetchError>>,
{
    let mut longest = FIRST_WAIT;
    for _ in 0..RETRIES {
        match download().await {
            Err(error) if error.is_transient() => {
                let wait = longest.mul_f64(0.5 + fastrand::f64() / 2.0);
                tracing::warn!(%error, wait_seconds = wait.as_secs_f64(), "download failed, trying again");
                tokio::time::sleep(wait).await;
                longest = (longest * 2).min(LONGEST_WAIT);
            }
            done => return done,
        }
    }
    download().await
}

/// A download on its way to the disk.
pub(super) struct Incoming {
    file: tokio::fs::File,
    path: PathBuf,
    url: String,
    hash: Sha256,
    bytes: u64,
    expected: Option<u64>,
    meter: Meter,
}

/// A download that is complete.
pub(super) struct Received {
    pub file: File,
    /// 64 lower-case hexadecimal digits.
    pub sha256: String,
}

impl Incoming {
    /// `path` is where the file is, or the folder of a file without a name; `expected` is in bytes.
    pub fn new(file: File, path: &Path, url: &str, expected: Option<u64>, progress: Progress) -> Self {
        let name = url.rsplit('/').next().unwrap_or(url);
        Self {
            file: tokio::fs::File::from_std(file),
            path: path.to_owned(),
            url: url.to_owned(),
            hash: Sha256::new(),
            bytes: 0,
            expected,
            meter: Meter::start(progress, name, expected),
        }
    }

    pub async fn write(&mut self, chunk: &[u8]) -> Result<(), FetchError> {
        self.hash.update(chunk);
        self.bytes += chunk.len() as u64;
        self.meter.show(self.bytes);
        self.file.write_all(chunk).await.map_err(|error| FetchError::disk(&self.path, error))
    }

    pub async fn finish(mut self) -> Result<Received, FetchError> {
        if let Some(expected) = self.expected.filter(|expected| *expected != self.bytes) {
            return Err(FetchError::Truncated { url: self.url, got: self.bytes, expected });
        }
        self.file.flush().await.map_err(|error| FetchError::disk(&self.path, error))?;
        self.meter.finish(self.bytes);
        Ok(Received { file: self.file.into_std().await, sha256: hex(self.hash) })
    }
}

/// The SHA-256 of a file, as 64 lower-case hexadecimal digits.
pub(super) fn digest(path: &Path) -> io::Result<String> {
    let mut hash = Sha256::new();
    io::copy(&mut File::open(path)?, &mut hash)?;
    Ok(hex(hash))
}

/// A new folder beside the one it is to become. It is deleted when it is dropped.
pub(super) fn stage(target: &Path) -> Result<TempDir, FetchError> {
    let parent = target.parent().expect("entries of the cache have a parent");
    let make = || {
        fs::create_dir_all(parent)?;
        // Not the private 0700 of temporary folders: it is renamed, and a cache may have many readers.
        tempfile::Builder::new().prefix(".fetch-").permissions(Permissions::from_mode(0o755)).tempdir_in(parent)
    };
    make().map_err(|error| FetchError::disk(parent, error))
}

/// Writes a staged folder through to the disk and gives it its name. Blocks.
pub(super) fn publish(staged: TempDir, target: &Path) -> Result<(), FetchError> {
    let publish = || {
        sync_tree(staged.path())?;
        match fs::rename(staged.path(), target) {
            Ok(()) => sync(target.parent().expect("entries of the cache have a parent")),
            Err(_) if target.is_dir() => Ok(()),
            Err(error) => Err(error),
        }
    };
    publish().map_err(|error| FetchError::disk(target, error))
}

fn sync_tree(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        match entry.file_type()?.is_dir() {
            true => sync_tree(&entry.path())?,
            false => sync(&entry.path())?,
        }
    }
    sync(folder)
}

fn sync(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

fn hex(hash: Sha256) -> String {
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}
