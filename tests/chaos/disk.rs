//! A small disk of its own for the server, so that it can be filled: a tmpfs, which only root may mount.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const SIZE: &str = "size=64m";

/// Let go when it is dropped; it is gone when its server has ended too.
pub struct Disk(PathBuf);

impl Disk {
    /// Lies over a folder, or says why it cannot.
    pub fn over(folder: &Path) -> Result<Self, String> {
        let output = Command::new("mount").args(["-t", "tmpfs", "-o", SIZE, "tmpfs"]).arg(folder).output();
        match output {
            Ok(output) if output.status.success() => Ok(Self(folder.to_owned())),
            Ok(Output { stderr, .. }) => {
                Err(format!("a small tmpfs cannot be mounted: {}", String::from_utf8_lossy(&stderr).trim()))
            }
            Err(error) => Err(format!("mount: {error}")),
        }
    }

    /// Takes all the room there is.
    pub fn fill(&self) {
        let mut ballast = File::create(self.ballast()).unwrap();
        for size in [1 << 20, 1 << 12] {
            while ballast.write_all(&vec![0; size]).is_ok() {}
        }
    }

    pub fn empty(&self) {
        fs::remove_file(self.ballast()).unwrap();
    }

    fn ballast(&self) -> PathBuf {
        self.0.join("ballast")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily: the server still has files open there.
        if let Err(error) = Command::new("umount").arg("--lazy").arg(&self.0).status() {
            eprintln!("{} stays mounted: {error}", self.0.display());
        }
    }
}
