//! The input file: checked whole before anything is sent, then read row by row.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use schemas::codec::Encoding;
use schemas::job::{Endpoint, Job};
use schemas::subject::Lane;
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::unique::Unique;
use crate::cost;

/// Problems that are reported before the check stops.
const PROBLEMS_MAX: usize = 10;

/// A row to publish.
#[derive(Clone, Debug)]
pub struct Row {
    /// From 0, counting non-empty lines.
    pub number: u64,
    pub custom_id: String,
    pub model: String,
    pub lane: Option<Lane>,
    pub cost: f64,
    /// The line as it stands in the file.
    pub payload: Bytes,
}

/// What the check learned.
#[derive(Clone, Debug)]
pub struct Checked {
    pub rows: u64,
    /// Of the non-empty lines, without their ends.
    pub sha256: String,
}

/// One thing wrong with the file. Lines count from 1.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {message}")]
pub struct Problem {
    pub line: u64,
    pub message: String,
}

#[derive(Debug, thiserror::Error)]
pub enum InputError {
    #[error("{path}: {error}", path = path.display())]
    Io { path: PathBuf, error: io::Error },
    #[error("{path}: nothing was submitted, since the file has problems:\n  {problems}", path = path.display(), problems = list(problems))]
    Invalid { path: PathBuf, problems: Vec<Problem> },
    #[error("{path}: has no rows", path = path.display())]
    Empty { path: PathBuf },
}

/// What rows must keep to.
#[derive(Clone, Debug)]
pub struct Rules {
    /// Models and lanes the deployment takes, where that can be known before.
    pub registered: Option<HashSet<(String, Lane)>>,
    /// For rows that name no service tier: the first that the row's model has.
    pub lanes: Vec<Lane>,
    pub payload_bytes_max: usize,
}

/// Reads the whole file once.
pub fn check(path: &Path, rules: &Rules) -> Result<Checked, InputError> {
    let failed = |error| InputError::Io { path: path.to_owned(), error };
    let mut lines = Lines::open(path).map_err(failed)?;
    let mut digest = Sha256::new();
    let mut unique = Unique::default();
    let mut problems = Vec::new();
    let (mut rows, mut line_of_row) = (0_u64, LineOfRow::default());
    while let Some((line, text)) = lines.next().map_err(failed)? {
        digest.update(text);
        match parse(rows, text).and_then(|row| rules.check(row)) {
            Ok(row) => unique.insert(&row.custom_id, rows).map_err(failed)?,
            Err(message) => problems.push(Problem { line, message }),
        }
        line_of_row.push(rows, line);
        rows += 1;
        if problems.len() >= PROBLEMS_MAX {
            break;
        }
    }
    if let Some((first, second)) = unique.duplicate().map_err(failed)? {
        let message = format!("custom_id stands in line {} already", line_of_row.get(first));
        problems.push(Problem { line: line_of_row.get(second), message });
    }
    match problems.is_empty() {
        false => Err(InputError::Invalid { path: path.to_owned(), problems }),
        true if rows == 0 => Err(InputError::Empty { path: path.to_owned() }),
        true => Ok(Checked { rows, sha256: format!("{:x}", digest.finalize()) }),
    }
}

/// Reads the rows of a checked file in order.
pub fn rows(path: &Path) -> io::Result<impl Iterator<Item = io::Result<Row>> + use<>> {
    let mut lines = Lines::open(path)?;
    let mut number = 0;
    Ok(std::iter::from_fn(move || {
        let (line, text) = match lines.next() {
            Ok(next) => next?,
            Err(error) => return Some(Err(error)),
        };
        let row =
            parse(number, text).map_err(|message| io::Error::other(format!("line {line} has changed: {message}")));
        number += 1;
        Some(row)
    }))
}

impl Rules {
    /// The lane of a row.
    pub fn lane(&self, row: &Row) -> Lane {
        let is_there = |lane: &&Lane| self.takes(&row.model, **lane);
        let first = || self.lanes.iter().find(is_there).or(self.lanes.first()).copied().unwrap_or_default();
        row.lane.unwrap_or_else(first)
    }

    fn takes(&self, model: &str, lane: Lane) -> bool {
        self.registered.as_ref().is_none_or(|registered| registered.contains(&(model.to_owned(), lane)))
    }

    /// Why a row's model and lane cannot be asked, where they cannot.
    pub fn refuses(&self, row: &Row) -> Option<String> {
        let lane = self.lane(row);
        let reason =
            || format!("body.model: {:?} is not registered with lane {lane}; `inferq status` lists what is", row.model);
        (!self.takes(&row.model, lane)).then(reason)
    }

    fn check(&self, row: Row) -> Result<Row, String> {
        if let Some(reason) = self.refuses(&row) {
            return Err(reason);
        }
        match row.payload.len() {
            bytes if bytes > self.payload_bytes_max => {
                Err(format!("{bytes} bytes; a row has at most {}", self.payload_bytes_max))
            }
            _ => Ok(row),
        }
    }
}

fn parse(number: u64, text: &[u8]) -> Result<Row, String> {
    let job: Job = Encoding::Json.decode(text).map_err(|error| error.to_string())?;
    let custom_id = match &job.custom_id {
        Some(id) if !id.is_empty() => id.clone(),
        _ => return Err("custom_id: is missing; every row needs one of its own".to_owned()),
    };
    if Endpoint::from_url(&job.url).is_none() {
        return Err(format!("url: {:?} is no endpoint", job.url));
    }
    let model = job.model().ok_or("body.model: is missing or not a string")?.to_owned();
    if job.body.get("stream").is_some_and(|stream| *stream == Value::Bool(true)) {
        return Err("body.stream: true; a row of a batch file cannot stream".to_owned());
    }
    let lane = job.lane()?;
    let cost = cost::estimate(text.len(), &job.body);
    Ok(Row { number, custom_id, model, lane, cost, payload: Bytes::copy_from_slice(text) })
}

/// Non-empty lines with their numbers, without their ends.
struct Lines {
    reader: BufReader<File>,
    line: u64,
    buffer: Vec<u8>,
}

impl Lines {
    fn open(path: &Path) -> io::Result<Self> {
        let reader = BufReader::with_capacity(1 << 20, File::open(path)?);
        Ok(Self { reader, line: 0, buffer: Vec::new() })
    }

    fn next(&mut self) -> io::Result<Option<(u64, &[u8])>> {
        loop {
            self.buffer.clear();
            let read = self.reader.read_until(b'\n', &mut self.buffer)?;
            if read == 0 {
                return Ok(None);
            }
            self.line += 1;
            if !self.buffer.trim_ascii().is_empty() {
                return Ok(Some((self.line, self.buffer.trim_ascii())));
            }
        }
    }
}

/// The line of a row, where empty lines shift them: only the shifts are kept.
#[derive(Default)]
struct LineOfRow {
    shifts: Vec<(u64, u64)>,
}

impl LineOfRow {
    fn push(&mut self, row: u64, line: u64) {
        let shift = line - row;
        if self.shifts.last().is_none_or(|&(_, last)| last != shift) {
            self.shifts.push((row, shift));
        }
    }

    fn get(&self, row: u64) -> u64 {
        let after = self.shifts.partition_point(|&(from, _)| from <= row);
        row + self.shifts[after.saturating_sub(1)].1
    }
}

fn list(problems: &[Problem]) -> String {
    problems.iter().map(Problem::to_string).collect::<Vec<_>>().join("\n  ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_text(text: &str) -> Result<Checked, String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        let registered = Some([("m".to_owned(), Lane::Default)].into());
        let rules = Rules { registered, lanes: vec![Lane::Default], payload_bytes_max: 200 };
        check(file.path(), &rules).map_err(|error| error.to_string())
    }

    fn row(id: &str) -> String {
        format!(r#"{{"custom_id":"{id}","method":"POST","url":"/v1/embeddings","body":{{"model":"m","input":"x"}}}}"#)
    }

    #[test]
    fn empty_lines_are_passed_over() {
        assert_eq!(check_text(&format!("{}\n\n{}\r\n", row("a"), row("b"))).unwrap().rows, 2);
    }

    #[test]
    fn each_problem_is_named_with_its_line() {
        let long = row(&"x".repeat(200));
        let text = [
            row("a").as_str(),
            "",
            "{",
            &row("b").replace("\"m\"", "\"n\""),
            &row("b").replace("embeddings", "x"),
            &long,
        ]
        .join("\n");
        let message = check_text(&text).unwrap_err();
        for part in [
            "line 3: EOF",
            "line 4: body.model: \"n\" is not registered",
            "line 5: url: \"/v1/x\"",
            "line 6: 288 bytes",
        ] {
            assert!(message.contains(part), "{part} in {message}");
        }
    }

    #[test]
    fn a_custom_id_that_stands_twice_is_refused_with_both_lines() {
        let message = check_text(&format!("{}\n\n{}\n{}", row("a"), row("b"), row("a"))).unwrap_err();
        assert!(message.contains("line 4: custom_id stands in line 1 already"), "{message}");
    }

    #[test]
    fn a_file_without_rows_is_an_error() {
        assert!(check_text("\n\n").unwrap_err().contains("has no rows"));
    }
}
