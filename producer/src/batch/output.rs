//! The output and the error file: appended to, and taken up again after a crash.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::bits::Bits;

/// Where the lines of a run go.
pub trait Outputs {
    /// The rows that have their line.
    fn done(&self) -> &Bits;

    /// Of those, the ones that failed.
    fn failed(&self) -> u64;

    /// Seconds of audio in what was written, where it is told.
    fn audio_seconds(&self) -> f64 {
        0.0
    }

    /// Writes a row's line, once; false if it had one.
    fn write(&mut self, row: u64, line: &[u8], is_success: bool) -> impl Future<Output = anyhow::Result<bool>> + Send;

    /// Has readers see what was written.
    fn flush(&mut self) -> impl Future<Output = anyhow::Result<()>> + Send;
}

/// Both files of one run, and which rows stand in them.
#[derive(Debug)]
pub struct Files {
    answers: BufWriter<File>,
    errors: BufWriter<File>,
    pub done: Bits,
    pub failed: u64,
}

/// `OUT.jsonl` → `OUT.errors.jsonl`.
pub fn errors_path(output: &Path) -> PathBuf {
    let stem = output.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let extension = output.extension().map_or("jsonl".into(), |extension| extension.to_string_lossy().into_owned());
    output.with_file_name(format!("{stem}.errors.{extension}"))
}

impl Files {
    /// Opens both files and reads which rows they hold. A line that a crash cut short is dropped.
    pub fn open(output: &Path, errors: &Path, batch_id: &str, rows: u64) -> io::Result<Self> {
        let mut done = Bits::new(rows);
        let answers = recover(output, batch_id, &mut done)?;
        let answered = done.count();
        let errors = recover(errors, batch_id, &mut done)?;
        let failed = done.count() - answered;
        Ok(Self { answers: BufWriter::new(answers), errors: BufWriter::new(errors), done, failed })
    }

    /// Everything on disk.
    pub fn finish(mut self) -> io::Result<()> {
        self.answers.flush()?;
        self.errors.flush()?;
        self.answers.get_ref().sync_all()?;
        self.errors.get_ref().sync_all()
    }
}

impl Outputs for Files {
    fn done(&self) -> &Bits {
        &self.done
    }

    fn failed(&self) -> u64 {
        self.failed
    }

    async fn write(&mut self, row: u64, line: &[u8], is_success: bool) -> anyhow::Result<bool> {
        if !self.done.insert(row) {
            return Ok(false);
        }
        let file = if is_success { &mut self.answers } else { &mut self.errors };
        self.failed += u64::from(!is_success);
        file.write_all(line)?;
        file.write_all(b"\n")?;
        Ok(true)
    }

    async fn flush(&mut self) -> anyhow::Result<()> {
        self.answers.flush()?;
        Ok(self.errors.flush()?)
    }
}

/// The row that a job id of this run names.
pub fn row_of(job_id: &str, batch_id: &str) -> Option<u64> {
    job_id.strip_prefix(batch_id)?.strip_prefix('-')?.parse().ok()
}

fn recover(path: &Path, batch_id: &str, done: &mut Bits) -> io::Result<File> {
    #[derive(Deserialize)]
    struct Line {
        id: String,
    }
    let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
    let mut reader = BufReader::with_capacity(1 << 20, &mut file);
    let mut whole = 0;
    let mut line = Vec::new();
    while reader.read_until(b'\n', &mut line)? > 0 && line.ends_with(b"\n") {
        let parsed: Line = serde_json::from_slice(&line)
            .map_err(|error| io::Error::other(format!("{}: byte {whole}: {error}", path.display())))?;
        match row_of(&parsed.id, batch_id) {
            Some(row) => done.insert(row),
            None => return Err(io::Error::other(format!("{}: {:?} is no row of this run", path.display(), parsed.id))),
        };
        whole += line.len() as u64;
        line.clear();
    }
    file.set_len(whole)?;
    file.seek(SeekFrom::End(0))?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_cut_line_is_dropped_and_whole_ones_count() {
        let folder = tempfile::tempdir().unwrap();
        let (output, errors) = (folder.path().join("o.jsonl"), folder.path().join("o.errors.jsonl"));
        std::fs::write(&output, "{\"id\":\"b-0\"}\n{\"id\":\"b-2\"}\n{\"id\":\"b-").unwrap();
        std::fs::write(&errors, "{\"id\":\"b-1\"}\n").unwrap();
        let mut outputs = Files::open(&output, &errors, "b", 4).unwrap();
        assert_eq!((outputs.done.count(), outputs.failed), (3, 1));
        assert!(!outputs.write(2, b"{}", true).await.unwrap());
        assert!(outputs.write(3, b"{\"id\":\"b-3\"}", true).await.unwrap());
        outputs.finish().unwrap();
        assert_eq!(std::fs::read_to_string(&output).unwrap(), "{\"id\":\"b-0\"}\n{\"id\":\"b-2\"}\n{\"id\":\"b-3\"}\n");
    }

    #[test]
    fn a_file_of_another_run_is_not_touched() {
        let folder = tempfile::tempdir().unwrap();
        let output = folder.path().join("o.jsonl");
        std::fs::write(&output, "{\"id\":\"other-0\"}\n").unwrap();
        assert!(Files::open(&output, &errors_path(&output), "b", 1).is_err());
        assert_eq!(std::fs::read_to_string(&output).unwrap(), "{\"id\":\"other-0\"}\n");
    }

    #[test]
    fn errors_stand_beside_the_output() {
        assert_eq!(errors_path(Path::new("a/out.jsonl")), Path::new("a/out.errors.jsonl"));
        assert_eq!(errors_path(Path::new("out")), Path::new("out.errors.jsonl"));
    }
}
