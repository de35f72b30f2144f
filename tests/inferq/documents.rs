//! What the documents say of the code is compared with the code.

use std::collections::BTreeSet;

use schemas::header;
use workers::{logger, metrics};

use crate::support::{program, root, run};

fn readme() -> String {
    std::fs::read_to_string(root().join("README.md")).unwrap()
}

/// What stands under a heading of the README, up to the next one.
fn section(heading: &str) -> String {
    section_of(&readme(), heading)
}

fn section_of(text: &str, heading: &str) -> String {
    let (_, rest) = text.split_once(&format!("\n## {heading}\n")).unwrap();
    rest.split_once("\n## ").map_or(rest, |(section, _)| section).to_owned()
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
fn every_metric_is_documented() {
    check_metrics("Metrics of a worker", &metrics::TABLE);
    check_metrics("Metrics of the logger", &logger::metrics::TABLE);
    check_metrics("Metrics of the gateway", &producer::gateway::metrics::TABLE);
}

fn check_metrics(heading: &str, table: &[(&str, &str, &str)]) {
    let text = std::fs::read_to_string(root().join("OBSERVABILITY.md")).unwrap();
    let rows = rows(&section_of(&text, heading));
    for (name, label, meaning) in table {
        assert!(
            rows.contains(&vec![format!("`{name}`"), (*label).to_owned(), (*meaning).to_owned()]),
            "| `{name}` | {label} | {meaning} |"
        );
    }
    let documented = rows.iter().filter(|row| row[0].starts_with('`')).count();
    assert_eq!(documented, table.len(), "{heading} has a metric that does not exist");
}

#[test]
fn the_readme_lists_every_option_of_a_worker() {
    assert_eq!(documented_options("The worker"), options(&help("inferq-worker")));
}

#[test]
fn the_readme_lists_every_option_of_the_gateway() {
    let output = run(&program("inferq"), &["gateway", "--help"], &[]);
    let help = String::from_utf8(output.stdout).unwrap();
    let (own, _) = help.split_once("NATS connection:").unwrap();
    assert_eq!(documented_options("The gateway"), options(own));
}

#[test]
fn the_readme_lists_every_option_of_the_logger() {
    // Those of the connection are the worker's.
    let help = help("inferq-logger");
    let (own, connection) = help.split_once("NATS connection:").unwrap();
    assert_eq!(documented_options("The logger"), options(own));
    assert!(options(connection).is_subset(&documented_options("The worker")));
}

fn help(name: &str) -> String {
    String::from_utf8(run(&program(name), &["--help"], &[]).stdout).unwrap()
}

fn documented_options(heading: &str) -> BTreeSet<String> {
    let section = section(heading);
    options(&section.lines().filter(|line| line.starts_with("| `-")).collect::<Vec<_>>().join("\n"))
}

/// The flags and variables that a text names.
fn options(text: &str) -> BTreeSet<String> {
    let is_option = |word: &str| word.starts_with("--") && word.len() > 2 && word != "--help" && word != "--version";
    let is_variable = |word: &str| word.starts_with("INFERQ_") || word.starts_with("NATS_");
    let split = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '-' && c != '_');
    split.filter(|word| is_option(word) || is_variable(word)).map(str::to_owned).collect()
}

#[test]
fn the_messages_of_the_readme_are_the_golden_ones() {
    let folder = root().join("schemas/examples/messages");
    let read = |entry: std::io::Result<std::fs::DirEntry>| std::fs::read_to_string(entry.unwrap().path()).unwrap();
    let golden: Vec<String> = std::fs::read_dir(folder).unwrap().map(read).collect();
    let readme = readme();
    let shown: Vec<&str> = readme.split("```json\n").skip(1).filter_map(|rest| rest.split("```").next()).collect();
    assert_eq!(shown.len(), 6);
    for block in shown {
        assert!(golden.iter().any(|message| message.trim() == block.trim()), "{block}");
    }
}
