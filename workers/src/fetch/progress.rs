//! Shows how far a download is, on stderr.

use std::time::{Duration, Instant};

use indicatif::{HumanBytes, ProgressBar, ProgressStyle};

/// Between two lines of one download.
const LINE_EVERY: Duration = Duration::from_secs(10);
const BAR: &str = "{msg} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec}";

/// How downloads are shown on stderr.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// One bar, redrawn. It hides itself when stderr is no terminal.
    Bar,
    /// A line at the start, at the end and every ten seconds: for logs.
    Lines,
    Silent,
}

/// The progress of one download.
pub(super) enum Meter {
    Bar(ProgressBar),
    Lines { name: String, total: Option<u64>, last_line: Instant },
    Silent,
}

impl Meter {
    /// `total` is in bytes.
    pub fn start(progress: Progress, name: &str, total: Option<u64>) -> Self {
        match progress {
            Progress::Bar => {
                let style = ProgressStyle::with_template(BAR).expect("the template is a constant");
                let bar = total.map_or_else(ProgressBar::no_length, ProgressBar::new);
                Self::Bar(bar.with_style(style).with_message(name.to_owned()))
            }
            Progress::Lines => {
                let size = total.map_or(String::new(), |bytes| format!(" ({})", HumanBytes(bytes)));
                eprintln!("fetching {name}{size}");
                Self::Lines { name: name.to_owned(), total, last_line: Instant::now() }
            }
            Progress::Silent => Self::Silent,
        }
    }

    /// `bytes` counts from the start of the download.
    pub fn show(&mut self, bytes: u64) {
        match self {
            Self::Bar(bar) => bar.set_position(bytes),
            Self::Lines { name, total, last_line } if last_line.elapsed() >= LINE_EVERY => {
                let of = total.map_or(String::new(), |total| format!(" of {}", HumanBytes(total)));
                eprintln!("fetching {name}: {}{of}", HumanBytes(bytes));
                *last_line = Instant::now();
            }
            Self::Lines { .. } | Self::Silent => {}
        }
    }

    pub fn finish(self, bytes: u64) {
        match self {
            Self::Bar(bar) => bar.finish_and_clear(),
            Self::Lines { name, .. } => eprintln!("fetched {name} ({})", HumanBytes(bytes)),
            Self::Silent => {}
        }
    }
}
