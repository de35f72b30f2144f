//! The table on the terminal and the JSON file beside the build.

use serde::Serialize;

use crate::support::program;

#[derive(Default)]
pub struct Report(Vec<Row>);

/// One figure. A ratio above 1 is better than the peer.
#[derive(Serialize)]
pub struct Row {
    case: &'static str,
    metric: &'static str,
    ours: f64,
    peer: Option<&'static str>,
    peer_value: Option<f64>,
    ratio: Option<f64>,
    #[serde(skip)]
    lower_is_better: bool,
}

impl Row {
    pub fn higher(case: &'static str, metric: &'static str, ours: f64) -> Self {
        Self { case, metric, ours, peer: None, peer_value: None, ratio: None, lower_is_better: false }
    }

    pub fn lower(case: &'static str, metric: &'static str, ours: f64) -> Self {
        Self { lower_is_better: true, ..Self::higher(case, metric, ours) }
    }

    pub fn beside(mut self, peer: &'static str, value: f64) -> Self {
        self.peer = Some(peer);
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
        println!("{:24} {:18} {:>12} {:>12} {:>7}", "case", "metric", "ours", "peer", "ratio");
        for row in &self.0 {
            let optional = |value: Option<f64>| value.map_or("-".to_owned(), |value| format!("{value:.2}"));
            let (peer_value, ratio) = (optional(row.peer_value), optional(row.ratio));
            let peer = row.peer.unwrap_or_default();
            println!("{:24} {:18} {:>12.2} {peer_value:>12} {ratio:>7}  {peer}", row.case, row.metric, row.ours);
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
