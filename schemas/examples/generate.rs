//! Writes the documents of the contract to `schemas/json`, and removes files there that are none.

use std::collections::HashSet;
use std::path::Path;
use std::{fs, io};

use schemas::document::{documents, file_text};

fn main() -> io::Result<()> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("json");
    fs::create_dir_all(&folder)?;
    let documents = documents();
    let names: HashSet<&str> = documents.iter().map(|(name, _)| *name).collect();
    for entry in fs::read_dir(&folder)? {
        let entry = entry?;
        if !entry.file_name().to_str().is_some_and(|name| names.contains(name)) {
            fs::remove_file(entry.path())?;
        }
    }
    for (name, document) in documents {
        fs::write(folder.join(name), file_text(&document))?;
    }
    Ok(())
}
