//! What the documents say of the code is compared with the code.

use std::collections::BTreeSet;

use schemas::header;
use workers::metrics;

use crate::support::{program, root, run};

fn readme() -> String {
    std::fs::read_to_string(root().join("README.md")).unwrap()
}

/// The cells of every table row of the text.
fn rows(text: &str) -> Vec<Vec<String>> {
    let cells = |line: &str| line.trim().trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect();
    text.lines().filter(|line| line.starts_with('|')).map(cells).collect()
}

#[test]
fn the_readme_lists_every_header() {
    let rows = rows(&readme());
    for (name, sets, meaning) in header::TABLE {
        assert!(
            rows.contains(&vec![format!("`{name}`"), sets.to_owned(), meaning.to_owned()]),
            "| `{name}` | {sets} | {meaning} |"
        );
    }
}

#[test]
fn the_readme_lists_every_metric() {
    let rows = rows(&readme());
    for (name, label, meaning) in metrics::TABLE {
        let label = if label.is_empty() { String::new() } else { format!("`{label}`") };
        assert!(
            rows.contains(&vec![format!("`{name}`"), label.clone(), meaning.to_owned()]),
            "| `{name}` | {label} | {meaning} |"
        );
    }
    let documented = rows.iter().filter(|row| row[0].starts_with("`inferq_")).count();
    assert_eq!(documented, metrics::TABLE.len(), "the README has a metric that does not exist");
}

#[test]
fn the_readme_lists_every_option_of_a_worker() {
    let help = run(&program("inferq-worker"), &["--help"], &[]);
    let help = String::from_utf8(help.stdout).unwrap();
    let words = |text: &str| -> BTreeSet<String> {
        let is_option = |word: &str| word.starts_with("--") && word.len() > 2;
        let is_variable = |word: &str| word.starts_with("INFERQ_") || word.starts_with("NATS_");
        let split = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '-' && c != '_');
        split.filter(|word| is_option(word) || is_variable(word)).map(str::to_owned).collect()
    };
    let table: String = readme().lines().filter(|line| line.starts_with("| `-")).collect::<Vec<_>>().join("\n");
    let documented = words(&table);
    let mut offered = words(&help);
    offered.retain(|word| word != "--help" && word != "--version");
    assert_eq!(documented, offered);
}

#[test]
fn the_messages_of_the_readme_are_the_golden_ones() {
    let folder = root().join("schemas/examples/messages");
    let read = |entry: std::io::Result<std::fs::DirEntry>| std::fs::read_to_string(entry.unwrap().path()).unwrap();
    let golden: Vec<String> = std::fs::read_dir(folder).unwrap().map(read).collect();
    let readme = readme();
    let shown: Vec<&str> = readme.split("```json\n").skip(1).filter_map(|rest| rest.split("```").next()).collect();
    assert_eq!(shown.len(), 3);
    for block in shown {
        assert!(golden.iter().any(|message| message.trim() == block.trim()), "{block}");
    }
}
