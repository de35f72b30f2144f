//! A folder of audio files or images as the rows of a run. A file is read when its turn comes.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use schemas::codec::Encoding;
use schemas::job::{Job, Method};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::input::{Checked, InputError, Problem, Row, Rules};
use crate::cost;

/// Endings of the files that are taken; others are passed over.
const AUDIO: [&str; 16] = [
    "aac", "aif", "aiff", "caf", "flac", "m4a", "mka", "mp2", "mp3", "mp4", "mpga", "oga", "ogg", "opus", "wav", "webm",
];
const IMAGES: [&str; 8] = ["bmp", "gif", "jpeg", "jpg", "png", "tif", "tiff", "webp"];

/// What the files of a folder are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Media {
    Audio,
    Images,
}

/// The files in a folder and in those inside of it, relative to it and sorted.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Found {
    pub audio: Vec<PathBuf>,
    pub images: Vec<PathBuf>,
}

impl Found {
    pub fn read(root: &Path) -> io::Result<Self> {
        let mut found = Self::default();
        let mut left = vec![root.to_owned()];
        while let Some(folder) = left.pop() {
            for entry in std::fs::read_dir(&folder)? {
                let path = entry?.path();
                let ending = path.extension().and_then(|ending| ending.to_str()).unwrap_or_default().to_lowercase();
                let relative = path.strip_prefix(root).map_err(io::Error::other)?.to_owned();
                if path.is_dir() {
                    // Links are not followed, since they may lead around in circles.
                    if !path.is_symlink() {
                        left.push(path);
                    }
                } else if AUDIO.contains(&ending.as_str()) {
                    found.audio.push(relative);
                } else if IMAGES.contains(&ending.as_str()) {
                    found.images.push(relative);
                }
            }
        }
        found.audio.sort();
        found.images.sort();
        Ok(found)
    }
}

#[derive(Debug)]
pub struct Folder {
    pub root: PathBuf,
    /// Relative to the root.
    pub files: Vec<PathBuf>,
    pub media: Media,
    pub url: &'static str,
    /// What all files are asked, `model` among it.
    pub body: Map<String, Value>,
}

impl Folder {
    pub fn check(&self, rules: &Rules) -> Result<Checked, InputError> {
        let mut digest = Sha256::new();
        digest.update(json!([self.url, self.body]).to_string());
        let mut problems = Vec::new();
        for (number, file) in (0..).zip(&self.files) {
            let path = self.root.join(file);
            let failed = |error| InputError::Io { path: path.clone(), error };
            let found = std::fs::metadata(&path).map_err(failed)?;
            let changed = found.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
            digest.update(json!([file, found.len(), changed.map(|time| time.as_nanos().to_string())]).to_string());
            // In base64, four bytes for three.
            let row = self.row(number, file, Bytes::new());
            let bytes = found.len().div_ceil(3) * 4;
            let refused = match rules.refuses(&row) {
                Some(reason) => Some(reason),
                None if bytes > rules.payload_bytes_max as u64 => {
                    Some(format!("{bytes} bytes in base64; a row has at most {}", rules.payload_bytes_max))
                }
                None => None,
            };
            if let Some(reason) = refused {
                problems.push(Problem { line: number + 1, message: format!("{}: {reason}", file.display()) });
            }
        }
        let path = self.root.clone();
        match problems.is_empty() {
            false => Err(InputError::Invalid { path, problems }),
            true if self.files.is_empty() => Err(InputError::Empty { path }),
            true => Ok(Checked { rows: self.files.len() as u64, sha256: format!("{:x}", digest.finalize()) }),
        }
    }

    pub fn rows(folder: Arc<Self>) -> impl Iterator<Item = io::Result<Row>> + Send {
        (0..folder.files.len()).map(move |number| {
            let file = &folder.files[number];
            let path = folder.root.join(file);
            let bytes = std::fs::read(&path)
                .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))?;
            let mut body = folder.body.clone();
            let encoded = STANDARD.encode(bytes);
            match folder.media {
                Media::Audio => {
                    body.insert("file".to_owned(), encoded.into());
                    body.insert("filename".to_owned(), file.to_string_lossy().into());
                }
                Media::Images => {
                    body.insert("input".to_owned(), json!({ "image": encoded }));
                }
            }
            let job = Job {
                custom_id: Some(file.to_string_lossy().into_owned()),
                method: Method::Post,
                url: folder.url.to_owned(),
                body: body.into(),
            };
            Ok(folder.row(number as u64, file, Encoding::Json.encode(&job).into()))
        })
    }

    fn row(&self, number: u64, file: &Path, payload: Bytes) -> Row {
        let model = self.body.get("model").and_then(Value::as_str).unwrap_or_default().to_owned();
        Row {
            number,
            custom_id: file.to_string_lossy().into_owned(),
            model,
            lane: None,
            cost: cost::estimate(payload.len(), &Value::Null),
            payload,
        }
    }
}

#[cfg(test)]
mod tests {
    use schemas::subject::Lane;

    use super::*;

    fn rules() -> Rules {
        let registered = Some([("m".to_owned(), Lane::Default)].into());
        Rules { registered, lanes: vec![Lane::Default], payload_bytes_max: 100 }
    }

    fn open(root: &Path, model: &str) -> Folder {
        let files = Found::read(root).unwrap().audio;
        let body = Map::from_iter([("model".to_owned(), json!(model))]);
        Folder { root: root.to_owned(), files, media: Media::Audio, url: "/v1/audio/transcriptions", body }
    }

    #[test]
    fn audio_files_are_rows_in_the_order_of_their_names() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("b")).unwrap();
        for name in ["c.wav", "b/x.MP3", "a.txt", "a.flac", "a.png"] {
            std::fs::write(folder.path().join(name), name).unwrap();
        }
        let folder = open(folder.path(), "m");
        let checked = folder.check(&rules()).unwrap();
        let folder = Arc::new(folder);
        let rows: Vec<Row> = Folder::rows(folder.clone()).collect::<Result<_, _>>().unwrap();
        let ids: Vec<&str> = rows.iter().map(|row| row.custom_id.as_str()).collect();
        assert_eq!((checked.rows, ids), (3, vec!["a.flac", "b/x.MP3", "c.wav"]));
        let job: Job = Encoding::Json.decode(&rows[2].payload).unwrap();
        assert_eq!(job.body["file"], STANDARD.encode("c.wav"));
        std::fs::write(folder.root.join("c.wav"), "other").unwrap();
        assert_ne!(folder.check(&rules()).unwrap().sha256, checked.sha256, "another file is another input");
    }

    #[test]
    fn what_cannot_be_sent_is_named_before_anything_is() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("long.wav"), [0; 200]).unwrap();
        let open = |model| open(folder.path(), model);
        assert!(open("m").check(&rules()).unwrap_err().to_string().contains("long.wav: 268 bytes in base64"));
        assert!(open("n").check(&rules()).unwrap_err().to_string().contains("\"n\" is not registered"));
        std::fs::remove_file(folder.path().join("long.wav")).unwrap();
        assert!(open("m").check(&rules()).unwrap_err().to_string().contains("has no rows"));
    }
}
