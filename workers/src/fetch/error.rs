//! Why something could not be fetched: what, where, and what to do about it.

use std::path::{Path, PathBuf};

use hf_hub::HFError;
use reqwest::{StatusCode, Url};

/// The cause from underneath, where there is one, is the error's `source`.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    #[error("path {path:?} leaves its source; write a relative path without `..`")]
    Path { path: String },
    #[error("sha256 {sha256:?} is not 64 hexadecimal digits")]
    Pin { sha256: String },
    #[error("package {package} has no sha256; pin it to one of the digests that its index lists")]
    NoPin { package: String },
    #[error("{what} is a folder, a sha256 pins one file; leave sha256 out or name a file with path")]
    PinOfFolder { what: String },
    #[error("package name or version {text:?} has characters that no package has; check the source")]
    Name { text: String },
    #[error("{} does not exist; check the source", path.display())]
    NoLocal { path: PathBuf },
    #[error("path {path:?} is not in {}; it has {names}", folder.display())]
    NoPath { path: String, folder: PathBuf, names: String },
    #[error("{what} is not in the cache folder {}, and nothing is downloaded", cache.display())]
    Offline { what: String, cache: PathBuf },
    #[error("index {url} has no wheel of {package} with sha256 {sha256}; {known}")]
    NoWheel { url: Box<Url>, package: String, sha256: String, known: String },
    #[error("{what} has sha256 {got}, expected {expected}; nothing was kept; correct the pin, or distrust the source")]
    Digest { what: String, expected: String, got: String },
    /// The URL itself is left out: what cannot be parsed cannot be freed of its password.
    #[error("the index URL is no URL ({reason}); write it like {}", super::DEFAULT_INDEX_URL)]
    IndexUrl { reason: String },
    #[error("{url} is no page of a Python package index: {reason}; check the index URL")]
    IndexPage { url: Box<Url>, reason: String },
    #[error("no HTTP client can be made; check the proxy variables and SSL_CERT_FILE")]
    Client(#[source] reqwest::Error),
    #[error("cannot get {url}; check the network, HTTPS_PROXY and SSL_CERT_FILE")]
    Network { url: Box<Url>, source: reqwest::Error },
    #[error("{url} answers {status}; {}", status_advice(*status))]
    Status { url: Box<Url>, status: StatusCode },
    #[error("{url} ended after {got} of {expected} bytes; try again")]
    Truncated { url: String, got: u64, expected: u64 },
    #[error(
        "cannot get {file} of {repo}@{revision} from the Hugging Face hub; check the names, HF_TOKEN if it is private, \
         and HF_ENDPOINT if it is on a mirror"
    )]
    Hub { repo: String, revision: String, file: String, source: Box<HFError> },
    #[error("{} does not name the files with weights: {reason}; use another revision", path.display())]
    Index { path: PathBuf, reason: String },
    #[error("{file} cannot be unpacked; it matches its pin, so pin another file")]
    Archive { file: String, source: zip::result::ZipError },
    #[error("{file} has the entry {entry:?}, which would be written outside its folder; do not use this package")]
    Escape { file: String, entry: String },
    #[error("cannot write {}; check permissions and free space", path.display())]
    Disk { path: PathBuf, source: std::io::Error },
}

impl FetchError {
    pub(super) fn disk(path: &Path, source: std::io::Error) -> Self {
        Self::Disk { path: path.to_owned(), source }
    }

    pub(super) fn hub(repo: &str, revision: &str, file: &str, source: HFError) -> Self {
        let source = Box::new(source);
        Self::Hub { repo: repo.to_owned(), revision: revision.to_owned(), file: file.to_owned(), source }
    }

    pub(super) fn network(url: &Url, source: reqwest::Error) -> Self {
        Self::Network { url: without_credentials(url), source: source.without_url() }
    }

    /// Whether the same request may succeed a moment later.
    pub(super) fn is_transient(&self) -> bool {
        match self {
            Self::Network { source, .. } => !source.is_builder(),
            Self::Status { status, .. } => is_transient_status(*status),
            Self::Truncated { .. } => true,
            Self::Hub { source, .. } => match source.as_ref() {
                HFError::Request { .. } | HFError::RateLimited { .. } => true,
                HFError::Http { context } => is_transient_status(context.status),
                _ => false,
            },
            _ => false,
        }
    }
}

/// The URL as it may be shown.
pub(super) fn without_credentials(url: &Url) -> Box<Url> {
    let mut url = Box::new(url.clone());
    // Both fail only for URLs without a host, which hold no credentials either.
    let _ = url.set_username("");
    let _ = url.set_password(None);
    url
}

fn is_transient_status(status: StatusCode) -> bool {
    status.is_server_error() || status == StatusCode::REQUEST_TIMEOUT || status == StatusCode::TOO_MANY_REQUESTS
}

fn status_advice(status: StatusCode) -> &'static str {
    match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => "put a user and a password into the index URL",
        StatusCode::NOT_FOUND => "check the package's name and the index URL",
        _ => "try again later",
    }
}
