//! The state file beside the output: which run the output belongs to. Written once, before the first row is sent.

use std::path::{Path, PathBuf};
use std::{fs, io};

use serde::{Deserialize, Serialize};

use super::input::Checked;

#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
pub struct State {
    /// The first part of the job ids; the second is the row's number.
    pub batch_id: String,
    pub rows: u64,
    /// Of the input, without its line ends.
    pub input_sha256: String,
    pub tenant: String,
    /// Results of this run have higher sequences in the result stream.
    pub results_after: u64,
}

#[derive(Debug, thiserror::Error)]
pub enum StateError {
    #[error("{path}: {error}", path = path.display())]
    Io { path: PathBuf, error: io::Error },
    #[error("{path} is not a state file of this program ({reason}); give another output, or --restart", path = path.display())]
    Unreadable { path: PathBuf, reason: String },
    #[error("{path} holds rows of another input; give another output, or --restart to write it anew", path = output.display())]
    OtherInput { output: PathBuf },
    #[error("{path} exists and has no state file beside it, so it is not ours to go on with; give another output, or --restart to write it anew", path = output.display())]
    NotOurs { output: PathBuf },
}

/// `OUT.jsonl.state`.
pub fn path_of(output: &Path) -> PathBuf {
    let mut name = output.as_os_str().to_owned();
    name.push(".state");
    name.into()
}

/// The state of an earlier run of the same input, if there is one.
pub fn load(output: &Path, checked: &Checked) -> Result<Option<State>, StateError> {
    let path = path_of(output);
    let text = match fs::read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let exists = fs::metadata(output).is_ok_and(|file| file.len() > 0);
            return if exists { Err(StateError::NotOurs { output: output.to_owned() }) } else { Ok(None) };
        }
        Err(error) => return Err(StateError::Io { path, error }),
    };
    let state: State =
        serde_json::from_slice(&text).map_err(|error| StateError::Unreadable { path, reason: error.to_string() })?;
    match state.input_sha256 == checked.sha256 && state.rows == checked.rows {
        true => Ok(Some(state)),
        false => Err(StateError::OtherInput { output: output.to_owned() }),
    }
}

/// Writes the state so that it is there whole or not at all.
pub fn save(output: &Path, state: &State) -> Result<(), StateError> {
    let path = path_of(output);
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let write = || {
        let mut file = tempfile::NamedTempFile::new_in(folder)?;
        serde_json::to_writer_pretty(&mut file, state)?;
        file.as_file().sync_all()?;
        file.persist(&path).map_err(|error| error.error)
    };
    write().map(drop).map_err(|error| StateError::Io { path: path.clone(), error })
}
