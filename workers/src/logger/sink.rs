//! Where the lines go: standard output, or files that are begun anew when they are full.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::os::fd::AsFd;
use std::path::Path;

use anyhow::Context as _;

use super::files::Files;

/// Standard output or files. What was appended is safe only after [`Sink::sync`].
#[derive(Debug)]
pub enum Sink {
    /// Past the line buffer of the standard library, which would write each line by itself.
    Stdout(BufWriter<File>),
    Files(Files),
}

impl Sink {
    /// Opens standard output for `-`, else files in that folder.
    pub fn open(out: &Path, rotate_bytes: u64, keep: u32) -> anyhow::Result<Self> {
        if out == Path::new("-") {
            let stdout = std::io::stdout().as_fd().try_clone_to_owned().context("standard output")?;
            return Ok(Self::Stdout(BufWriter::new(File::from(stdout))));
        }
        let files = Files::open(out, rotate_bytes, keep).with_context(|| format!("--out {}", out.display()))?;
        Ok(Self::Files(files))
    }

    /// Appends whole lines. Those of one call stay in one file.
    pub fn append(&mut self, lines: &[u8]) -> anyhow::Result<()> {
        match self {
            Self::Stdout(stdout) => stdout.write_all(lines).context("standard output"),
            Self::Files(files) => files.append(lines).with_context(|| files.place()),
        }
    }

    /// Writes out what was appended: to the disk, or to whoever reads standard output.
    pub fn sync(&mut self) -> anyhow::Result<()> {
        match self {
            Self::Stdout(stdout) => stdout.flush().context("standard output"),
            Self::Files(files) => files.sync().with_context(|| files.place()),
        }
    }
}
