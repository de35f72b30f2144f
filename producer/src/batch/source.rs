//! What the rows of a run are read from: a file of lines, or a folder of files that become one each.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::folder::Folder;
use super::input::{self, Checked, InputError, Row, Rules};

#[derive(Clone, Debug)]
pub enum Source {
    Lines(PathBuf),
    Folder(Arc<Folder>),
}

impl Source {
    pub fn path(&self) -> &Path {
        match self {
            Self::Lines(path) => path,
            Self::Folder(folder) => &folder.root,
        }
    }

    /// Goes through all rows once.
    pub fn check(&self, rules: &Rules) -> Result<Checked, InputError> {
        match self {
            Self::Lines(path) => input::check(path, rules),
            Self::Folder(folder) => folder.check(rules),
        }
    }

    /// The rows of a checked source in order.
    pub fn rows(&self) -> io::Result<Box<dyn Iterator<Item = io::Result<Row>> + Send>> {
        match self {
            Self::Lines(path) => Ok(Box::new(input::rows(path)?)),
            Self::Folder(folder) => Ok(Box::new(Folder::rows(folder.clone()))),
        }
    }
}
