//! How well the model foretells a text, in the types it is computed in.

use crate::ours::Ours;
use crate::report::{Report, Row};
use crate::support::root;

const TOKENS: usize = 2000;

pub fn run(report: &mut Report) {
    // A text that stays as it is.
    let text = std::fs::read_to_string(root().join("LICENSE")).unwrap();
    let [exact, int8, int4] = ["f32", "int8", "int4"].map(|dtype| {
        let mut ours = Ours::load(dtype);
        let tokens = ours.text.encode(&text).unwrap();
        let scores = ours.decoder.score(&tokens[..TOKENS.min(tokens.len())]).unwrap();
        (-scores.iter().map(|score| f64::from(*score)).sum::<f64>() / scores.len() as f64).exp()
    });
    for (name, near) in [("int8", int8), ("int4", int4)] {
        report.add(Row::lower(name, "perplexity", near).beside("f32", exact));
    }
}
