//! Files of lines: `inferq.jsonl`, which grows, and `inferq.jsonl.1` (the newest) to `.N`, which are full.
//!
//! Written here because a line must be on the disk before it is acknowledged: the crates that rotate files neither sync
//! them nor report a file that could not be opened.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, BufWriter, ErrorKind, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

const NAME: &str = "inferq.jsonl";
/// Held by the logger that writes to the folder; the system lets it go when that one ends, however it does.
const LOCK: &str = ".inferq-logger.lock";
/// How much of a file is read at a time in search of its last line.
const CHUNK: usize = 8192;

#[derive(Debug)]
pub struct Files {
    folder: PathBuf,
    current: BufWriter<File>,
    /// Bytes of the current file.
    bytes: u64,
    rotate_bytes: u64,
    keep: u32,
    _lock: File,
}

impl Files {
    /// Goes on with the folder's current file, or begins one.
    pub fn open(folder: &Path, rotate_bytes: u64, keep: u32) -> io::Result<Self> {
        fs::create_dir_all(folder)?;
        let lock = File::create(folder.join(LOCK))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(io::Error::other("another inferq-logger writes there; give each a folder of its own"));
            }
            Err(TryLockError::Error(error)) => return Err(error),
        }
        let (file, bytes) = open_current(folder)?;
        let (folder, current) = (folder.to_owned(), BufWriter::new(file));
        Ok(Self { folder, current, bytes, rotate_bytes, keep, _lock: lock })
    }

    /// Appends whole lines, to a new file where the current one would become too large.
    pub fn append(&mut self, lines: &[u8]) -> io::Result<()> {
        let length = lines.len() as u64;
        if self.bytes > 0 && self.bytes + length > self.rotate_bytes {
            self.rotate()?;
        }
        self.current.write_all(lines)?;
        self.bytes += length;
        Ok(())
    }

    /// Waits until what was appended is on the disk.
    pub fn sync(&mut self) -> io::Result<()> {
        self.current.flush()?;
        self.current.get_ref().sync_data()
    }

    /// For messages.
    pub fn place(&self) -> String {
        self.folder.join(NAME).display().to_string()
    }

    fn rotate(&mut self) -> io::Result<()> {
        self.sync()?;
        for number in (1..self.keep).rev() {
            ignore_missing(fs::rename(self.full(number), self.full(number + 1)))?;
        }
        fs::rename(self.folder.join(NAME), self.full(1))?;
        // More were kept before.
        for path in (self.keep + 1..).map(|number| self.full(number)).take_while(|path| path.exists()) {
            fs::remove_file(path)?;
        }
        let (file, bytes) = open_current(&self.folder)?;
        (self.current, self.bytes) = (BufWriter::new(file), bytes);
        Ok(())
    }

    fn full(&self, number: u32) -> PathBuf {
        self.folder.join(format!("{NAME}.{number}"))
    }
}

/// The current file and its length. Its name is on the disk too, as far as the file system keeps to that.
fn open_current(folder: &Path) -> io::Result<(File, u64)> {
    let file = OpenOptions::new().create(true).read(true).append(true).open(folder.join(NAME))?;
    let bytes = cut(&file)?;
    File::open(folder)?.sync_all()?;
    Ok((file, bytes))
}

/// Cuts off a line that a crash left incomplete: its message was not acknowledged, so it comes again.
fn cut(file: &File) -> io::Result<u64> {
    let length = file.metadata()?.len();
    let (mut end, mut chunk) = (length, [0; CHUNK]);
    while end > 0 {
        let start = end.saturating_sub(CHUNK as u64);
        let part = &mut chunk[..(end - start) as usize];
        file.read_exact_at(part, start)?;
        if let Some(at) = part.iter().rposition(|&byte| byte == b'\n') {
            end = start + at as u64 + 1;
            break;
        }
        end = start;
    }
    if end < length {
        file.set_len(end)?;
    }
    Ok(end)
}

fn ignore_missing(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let name = |entry: io::Result<fs::DirEntry>| entry.unwrap().file_name().into_string().unwrap();
        let mut names: Vec<String> = fs::read_dir(folder).unwrap().map(name).filter(|name| name != LOCK).collect();
        names.sort();
        names
    }

    fn read(folder: &Path, name: &str) -> String {
        fs::read_to_string(folder.join(name)).unwrap()
    }

    #[test]
    fn full_files_are_numbered_from_the_newest_and_the_oldest_go() {
        let folder = tempfile::tempdir().unwrap();
        let mut files = Files::open(folder.path(), 10, 2).unwrap();
        for number in 0..9 {
            files.append(format!("line{number}\n").as_bytes()).unwrap();
        }
        files.append(b"longer than a file may be\n").unwrap();
        files.sync().unwrap();
        assert_eq!(names(folder.path()), ["inferq.jsonl", "inferq.jsonl.1", "inferq.jsonl.2"]);
        assert_eq!(read(folder.path(), "inferq.jsonl"), "longer than a file may be\n");
        assert_eq!(read(folder.path(), "inferq.jsonl.1"), "line8\n");
        assert_eq!(read(folder.path(), "inferq.jsonl.2"), "line7\n");
        drop(files);
        let mut fewer = Files::open(folder.path(), 10, 1).unwrap();
        fewer.append(b"next\n").unwrap();
        assert_eq!(names(folder.path()), ["inferq.jsonl", "inferq.jsonl.1"]);
    }

    #[test]
    fn a_line_that_a_crash_left_incomplete_is_cut_off() {
        let folder = tempfile::tempdir().unwrap();
        let long = "x".repeat(3 * CHUNK);
        for (left, kept) in [("a\nb", "a\n"), ("a\n", "a\n"), ("", ""), ("a", ""), (&format!("a\n{long}"), "a\n")] {
            fs::write(folder.path().join(NAME), left).unwrap();
            let mut files = Files::open(folder.path(), 1 << 20, 1).unwrap();
            files.append(b"next\n").unwrap();
            files.sync().unwrap();
            assert_eq!(read(folder.path(), NAME), format!("{kept}next\n"));
        }
    }

    #[test]
    fn two_loggers_do_not_write_to_one_folder() {
        let folder = tempfile::tempdir().unwrap();
        let first = Files::open(folder.path(), 10, 1).unwrap();
        assert!(Files::open(folder.path(), 10, 1).unwrap_err().to_string().contains("another inferq-logger"));
        drop(first);
        Files::open(folder.path(), 10, 1).unwrap();
    }
}
