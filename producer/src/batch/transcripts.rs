//! A file for each answer of a run over a folder, beside the lines that the run goes on from.

use std::collections::HashMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::ValueEnum;
use schemas::audio::{VerboseTranscription, srt, vtt};
use schemas::codec::Encoding;
use schemas::result::JobResult;
use serde::Deserialize as _;
use serde_json::Value;

use super::bits::Bits;
use super::output::{Files, Outputs};

/// How a transcript is written. Other answers are JSON.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// The text alone
    #[default]
    Txt,
    /// SubRip subtitles
    Srt,
    /// WebVTT subtitles
    Vtt,
    /// All that is known: segments, words and their times
    Json,
}

/// Lines, and a file for each that succeeded.
#[derive(Debug)]
pub struct Transcripts {
    pub lines: Files,
    /// Of each row, where there are such.
    files: Vec<PathBuf>,
    format: Format,
    /// Seconds of audio that came in.
    seconds: f64,
}

impl Transcripts {
    /// Lines alone.
    pub fn lines(lines: Files) -> Self {
        Self { lines, files: Vec::new(), format: Format::default(), seconds: 0.0 }
    }

    /// Files in a folder, named as those of the input are.
    pub fn in_folder(lines: Files, folder: &Path, names: &[PathBuf], format: Format) -> Self {
        let ending = match format {
            Format::Txt => "txt",
            Format::Srt => "srt",
            Format::Vtt => "vtt",
            Format::Json => "json",
        };
        let mut counts: HashMap<PathBuf, usize> = HashMap::new();
        names.iter().for_each(|name| *counts.entry(name.with_extension("")).or_default() += 1);
        let file = |name: &PathBuf| match counts[&name.with_extension("")] {
            1 => folder.join(name.with_extension(ending)),
            // Names that differ in their ending alone keep it.
            _ => folder.join(format!("{}.{ending}", name.display())),
        };
        Self { lines, files: names.iter().map(file).collect(), format, seconds: 0.0 }
    }

    fn write_file(&mut self, path: &Path, line: &[u8]) -> anyhow::Result<()> {
        let result: JobResult = Encoding::Json.decode(line)?;
        let Some(body) = result.response.map(|response| response.body) else { return Ok(()) };
        let text = match (VerboseTranscription::deserialize(&body), body) {
            (Ok(transcript), _) => {
                self.seconds += transcript.duration;
                written(&transcript, self.format)?
            }
            // What was asked for in another form is left in it.
            (Err(_), Value::String(text)) => text,
            (Err(_), body) => format!("{}\n", serde_json::to_string_pretty(&body)?),
        };
        let folder = path.parent().unwrap_or(Path::new("."));
        let write = || {
            std::fs::create_dir_all(folder)?;
            let mut file = tempfile::NamedTempFile::new_in(folder)?;
            file.write_all(text.as_bytes())?;
            file.persist(path)?;
            anyhow::Ok(())
        };
        write().with_context(|| path.display().to_string())
    }
}

fn written(transcript: &VerboseTranscription, format: Format) -> anyhow::Result<String> {
    let segments = || transcript.segments.as_deref().unwrap_or_default();
    Ok(match format {
        Format::Txt => format!("{}\n", transcript.text),
        Format::Srt => srt(segments()),
        Format::Vtt => vtt(segments()),
        Format::Json => format!("{}\n", serde_json::to_string_pretty(transcript)?),
    })
}

impl Outputs for Transcripts {
    fn done(&self) -> &Bits {
        self.lines.done()
    }

    fn failed(&self) -> u64 {
        self.lines.failed()
    }

    fn audio_seconds(&self) -> f64 {
        self.seconds
    }

    async fn write(&mut self, row: u64, line: &[u8], is_success: bool) -> anyhow::Result<bool> {
        // Before the line, which says that it is done.
        let file = self.files.get(row as usize).filter(|_| is_success && !self.lines.done().contains(row)).cloned();
        if let Some(path) = file {
            self.write_file(&path, line)?;
        }
        self.lines.write(row, line, is_success).await
    }

    async fn flush(&mut self) -> anyhow::Result<()> {
        self.lines.flush().await
    }
}
