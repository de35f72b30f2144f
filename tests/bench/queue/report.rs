//! The table on the terminal and the JSON file beside the build.

use serde::Serialize;

use crate::support::program;

#[derive(Default)]
pub struct Report(Vec<Row>);

/// One figure. A ratio above 1 is better than the peer.
#[derive(Serialize)]
pub struct Row {
    case: String,
    metric: &'static str,
    ours: f64,
    peer: Option<String>,
    peer_value: Option<f64>,
    ratio: Option<f64>,
    #[serde(skip)]
    lower_is_better: bool,
}

impl Row {
    pub fn higher(case: impl Into<String>, metric: &'static str, ours: f64) -> Self {
        Self { case: case.into(), metric, ours, peer: None, peer_value: None, ratio: None, lower_is_better: false }
    }

    pub fn lower(case: impl Into<String>, metric: &'static str, ours: f64) -> Self {
        Self { lower_is_better: true, ..Self::higher(case, metric, ours) }
    }

    pub fn beside(mut self, peer: impl Into<String>, value: f64) -> Self {
        self.peer = Some(peer.into());
        self.peer_value = Some(value);
        self.ratio = Some(if self.lower_is_better { value / self.ours } else { self.ours / value });
        self
    }
}

impl Report {
    pub fn add(&mut self, row: Row) {
        self.0.push(row);
    }

    pub fn write(&self, name: &str) {
        println!("{:34} {:22} {:>12} {:>12} {:>7}", "case", "metric", "ours", "peer", "ratio");
        for row in &self.0 {
            // What is near 1 differs in later digits.
            let shown = |value: f64| if value < 2.0 { format!("{value:.4}") } else { format!("{value:.2}") };
            let (ours, peer_value) = (shown(row.ours), row.peer_value.map_or("-".to_owned(), shown));
            let ratio = row.ratio.map_or("-".to_owned(), |ratio| format!("{ratio:.2}"));
            let peer = row.peer.as_deref().unwrap_or_default();
            println!("{:34} {:22} {ours:>12} {peer_value:>12} {ratio:>7}  {peer}", row.case, row.metric);
        }
        let folder = program("inferq").parent().unwrap().with_file_name("bench");
        std::fs::create_dir_all(&folder).unwrap();
        let file = folder.join(format!("{name}.json"));
        std::fs::write(&file, serde_json::to_string_pretty(&self.0).unwrap() + "\n").unwrap();
        println!("written to {}", file.display());
    }
}

/// Of an odd number of rounds.
pub fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
