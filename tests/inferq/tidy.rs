//! The rules of the house that a program can check: the shape of files, names, and who may know whom.
//!
//! It reads the tree as text, with the standard library alone. Comments and the text of string literals are told from
//! code line by line, which is enough for formatted Rust; a rule that needs a parser belongs to clippy.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

const SKIPPED_FOLDERS: [&str; 4] = ["target", ".git", ".cache", "node_modules"];
const LINES_MAX: usize = 500;
const BANNED_NAMES: [&str; 11] =
    ["util", "helper", "common", "base", "misc", "manager", "handler", "processor", "context", "data", "info"];
const SCHEMAS_DEPENDENCIES: [&str; 9] =
    ["base64", "proptest", "rmp-serde", "schemars", "serde", "serde_json", "serde_path_to_error", "thiserror", "toml"];

/// A file of the repository, its path relative to the root.
struct File {
    path: String,
    text: String,
}

/// A line of Rust, sorted.
struct Line<'a> {
    number: usize,
    /// What is compiled: no comments, string literals with their text.
    code: &'a str,
    comment: &'a str,
    /// It is compiled for tests only.
    test: bool,
}

impl File {
    fn stem(&self) -> &str {
        Path::new(&self.path).file_stem().and_then(OsStr::to_str).unwrap_or_default()
    }

    fn is_test(&self) -> bool {
        self.path.starts_with("tests/")
            || ["/tests.rs", "/properties.rs"].iter().any(|name| self.path.ends_with(name))
            || self.path.contains("/tests/")
    }

    /// The rules are named in this file, which would break them.
    fn is_tidy(&self) -> bool {
        self.path == "tests/inferq/tidy.rs"
    }

    fn lines(&self) -> Vec<Line<'_>> {
        let mut test = self.is_test();
        let mut lines = Vec::new();
        for (index, text) in self.text.lines().enumerate() {
            // An attribute on `mod tests;` concerns another file, the rest of this one is still compiled.
            test |= text.trim() == "#[cfg(test)]"
                && !self.text.lines().nth(index + 1).is_some_and(|next| next.trim_end().ends_with(';'));
            let (code, comment) = text.split_at(comment_start(text));
            lines.push(Line { number: index + 1, code, comment, test });
        }
        lines
    }

    /// Where a line matches, as `path:line`.
    fn places(&self, matches: impl Fn(&Line) -> bool) -> Vec<String> {
        let lines = self.lines().into_iter().filter(|line| matches(line));
        lines.map(|line| format!("{}:{}", self.path, line.number)).collect()
    }
}

/// Where the `//` of a line is that is in no string literal, or the end.
fn comment_start(text: &str) -> usize {
    let bytes = text.as_bytes();
    let (mut quoted, mut at) = (false, 0);
    while at < bytes.len() {
        match bytes[at] {
            b'\\' if quoted => at += 1,
            b'"' if !bytes[..at].ends_with(b"'") || quoted => quoted = !quoted,
            b'/' if !quoted && bytes[at..].starts_with(b"//") => return at,
            _ => {}
        }
        at += 1;
    }
    bytes.len()
}

/// Whether the word stands in the code by itself, not as a part of a longer one.
fn has_word(code: &str, word: &str) -> bool {
    let is_part = |character: char| character.is_alphanumeric() || character == '_';
    code.match_indices(word)
        .any(|(at, _)| !code[..at].ends_with(is_part) && !code[at + word.len()..].starts_with(is_part))
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate is in the workspace").to_owned()
}

fn files(extension: &str) -> Vec<File> {
    let (root, mut found, mut folders) = (root(), Vec::new(), vec![root()]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().and_then(OsStr::to_str).unwrap_or_default();
            if path.is_dir() && !path.is_symlink() && !SKIPPED_FOLDERS.contains(&name) {
                folders.push(path);
            } else if path.extension() == Some(OsStr::new(extension)) && path.is_file() {
                let text = fs::read_to_string(&path).unwrap();
                let path = path.strip_prefix(&root).unwrap().to_str().unwrap().to_owned();
                found.push(File { path, text });
            }
        }
    }
    found
}

fn rust() -> Vec<File> {
    let files: Vec<File> = files("rs").into_iter().filter(|file| !file.is_tidy()).collect();
    assert!(files.iter().any(|file| file.path == "schemas/src/lib.rs"), "the tree is not where it is looked for");
    files
}

/// The dependencies of a member, by their name in its manifest; those for builds and tests too.
fn dependencies(member: &str) -> Vec<String> {
    let manifest = fs::read_to_string(root().join(member).join("Cargo.toml")).unwrap();
    let (mut names, mut inside) = (Vec::new(), false);
    for line in manifest.lines().map(str::trim) {
        if let Some(table) = line.strip_prefix('[') {
            let table = table.trim_end_matches(']');
            inside = table.ends_with("dependencies");
            names.extend(table.split_once("dependencies.").map(|(_, name)| name.to_owned()));
        } else if inside && line.contains('=') && !line.starts_with('#') {
            names.extend(line.split(['.', '=', ' ']).next().map(str::to_owned));
        }
    }
    names
}

fn members() -> Vec<String> {
    let manifest = fs::read_to_string(root().join("Cargo.toml")).unwrap();
    let list = manifest.split_once("members = [").and_then(|(_, rest)| rest.split_once(']')).unwrap().0;
    list.split('"').skip(1).step_by(2).map(str::to_owned).collect()
}

#[track_caller]
fn expect_none(places: Vec<String>, advice: &str) {
    assert!(places.is_empty(), "{advice}\n  {}\n", places.join("\n  "));
}

fn in_rust(matches: impl Fn(&File, &Line) -> bool) -> Vec<String> {
    rust().iter().flat_map(|file| file.places(|line| matches(file, line))).collect()
}

#[test]
fn no_file_of_rust_is_longer_than_five_hundred_lines() {
    let long = files("rs").into_iter().filter(|file| file.text.lines().count() > LINES_MAX);
    expect_none(
        long.map(|file| format!("{}:{}", file.path, LINES_MAX + 1)).collect(),
        "split the file by what it is about",
    );
}

#[test]
fn every_file_of_rust_begins_with_what_it_is_for() {
    let silent = files("rs").into_iter().filter(|file| !file.text.starts_with("//! "));
    expect_none(silent.map(|file| format!("{}:1", file.path)).collect(), "begin the file with a `//!` comment");
}

#[test]
fn no_file_or_module_has_a_name_that_says_nothing() {
    let banned = |name: &str| {
        let mut words = name.split('_').map(|part| part.strip_suffix('s').unwrap_or(part));
        words.any(|word| BANNED_NAMES.contains(&word))
    };
    let mut places = in_rust(|_, line| {
        let declared = line.code.trim().trim_start_matches("pub ").strip_prefix("mod ");
        declared.is_some_and(|name| banned(name.trim_end_matches([';', '{', ' '])))
    });
    for file in rust() {
        let folders = Path::new(&file.path).parent().into_iter().flat_map(Path::iter).filter_map(OsStr::to_str);
        if folders.chain([file.stem()]).any(banned) {
            places.push(format!("{}:1", file.path));
        }
    }
    expect_none(places, "name the module after the one thing in it");
}

#[test]
fn candle_is_known_to_the_engines_alone() {
    // The benchmark measures candle's own encoder beside ours; kernels for GPUs run between candle's operations.
    let may_know =
        ["workers/src/engine/", "workers/kernels/src/cuda", "workers/kernels/tests/emulated/", "tests/bench/encoder"];
    let places = in_rust(|file, line| {
        !may_know.iter().any(|place| file.path.starts_with(place))
            && ["candle", "candle_core", "candle_nn"].iter().any(|name| has_word(line.code, name))
    });
    expect_none(places, "go through the traits of workers/src/engine; tensors stay behind them");
}

#[test]
fn engines_know_nothing_of_nats() {
    let places = in_rust(|file, line| {
        let words = ["async_nats", "nats", "jetstream", "subject", "subjects"];
        file.path.starts_with("workers/src/engine/")
            && (words.iter().any(|word| has_word(line.code, word)) || line.code.contains("\"inferq."))
    });
    expect_none(places, "hand the engine sequences; deliveries and subjects stay with the worker");
}

#[test]
fn schemas_depend_on_serde_and_friends_only() {
    let strangers = dependencies("schemas").into_iter().filter(|name| !SCHEMAS_DEPENDENCIES.contains(&name.as_str()));
    expect_none(
        strangers.map(|name| format!("schemas/Cargo.toml: {name}")).collect(),
        "every client compiles schemas; keep it to types and do the work elsewhere",
    );
}

#[test]
fn producer_and_workers_meet_only_in_schemas() {
    let forbidden = |member: &str, name: &str| match name {
        "workers" | "producer" => member != "tests",
        name => name == "tests",
    };
    let mut places = Vec::new();
    for member in members() {
        let names = dependencies(&member).into_iter().filter(|name| forbidden(&member, name));
        places.extend(names.map(|name| format!("{member}/Cargo.toml: {name}")));
    }
    expect_none(places, "move what both need into schemas");
}

#[test]
fn the_environment_is_read_by_configuration_modules_only() {
    let places = in_rust(|file, line| {
        // Cargo tells a build script by the environment where to write.
        let is_configuration = ["config", "build"].contains(&file.stem()) || file.path.contains("/config/");
        // clap's `#[arg(env = "NAME")]` and `#[arg(env)]`.
        let is_argument = line.code.contains("env = \"")
            || line.code.trim_start().starts_with("#[arg(") && has_word(line.code, "env");
        let reads = ["env::var", "env::vars", "env::var_os"].iter().any(|name| has_word(line.code, name));
        !file.is_test() && !is_configuration && (reads || is_argument)
    });
    expect_none(places, "read it in config.rs and pass the value as an argument");
}

#[test]
fn command_lines_are_read_by_main_only() {
    let places = in_rust(|file, line| {
        let reads = ["env::args", "env::args_os"].iter().any(|name| has_word(line.code, name));
        reads && file.stem() != "main" && !file.is_test()
    });
    expect_none(places, "read it in main.rs and pass the value as an argument");
}

#[test]
fn nothing_is_unwrapped_outside_of_tests() {
    let places =
        in_rust(|_, line| !line.test && (line.code.contains(".unwrap()") || line.code.contains(".unwrap_err()")));
    expect_none(places, "return an error, or say why it holds with expect()");
}

#[test]
fn nothing_is_left_unfinished() {
    let places = in_rust(|_, line| {
        let macros = ["todo!", "unimplemented!", "dbg!"].iter().any(|name| line.code.contains(name));
        let marks = ["TODO", "FIXME", "XXX"].iter().any(|mark| has_word(line.comment, mark));
        macros || marks || line.code.contains("#[ignore")
    });
    expect_none(places, "finish it, or open an issue and delete it here");
}

#[test]
fn unsafe_code_is_in_kernels_only() {
    let places = in_rust(|file, line| has_word(line.code, "unsafe") && !file.path.contains("/kernels/"));
    expect_none(places, "write it safely; a measured kernel goes into a kernels folder with a SAFETY comment");
}

#[test]
fn no_test_orders_two_things_by_sleeping() {
    let places = in_rust(|file, line| {
        let sleeps = has_word(line.code, "sleep") || has_word(line.code, "sleep_until");
        sleeps && file.path.starts_with("tests/") && !file.path.starts_with("tests/inferq/support/")
    });
    expect_none(places, "wait for what you are waiting for, with a deadline, as tests/inferq/support does");
}

#[test]
fn links_between_documents_lead_somewhere() {
    let mut places = Vec::new();
    for file in files("md") {
        let folder = root().join(Path::new(&file.path).parent().expect("a file is in a folder"));
        for (index, line) in outside_fences(&file.text) {
            let broken = link_targets(line).into_iter().filter(|target| !folder.join(target).exists());
            places.extend(broken.map(|target| format!("{}:{}: {target}", file.path, index + 1)));
        }
    }
    expect_none(places, "correct the link or write the file");
}

/// The lines of a document that are not in a block of code, counted from 0.
fn outside_fences(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut fenced = false;
    text.lines().enumerate().filter(move |(_, line)| {
        let is_fence = line.trim_start().starts_with("```");
        fenced ^= is_fence;
        !fenced && !is_fence
    })
}

/// The relative paths that `[text](path#heading)` links of a line name, outside of code spans.
fn link_targets(line: &str) -> Vec<&str> {
    let mut targets = Vec::new();
    for prose in line.split('`').step_by(2) {
        for link in prose.split("](").skip(1) {
            let target = link.split([')', '#', ' ']).next().unwrap_or_default();
            if !target.is_empty() && !target.contains("://") && !target.starts_with("mailto:") {
                targets.push(target);
            }
        }
    }
    targets
}

#[test]
fn comments_and_words_are_told_from_code() {
    let split = |text: &'static str| text.split_at(comment_start(text));
    assert_eq!(split("let url = \"http://a\"; // why"), ("let url = \"http://a\"; ", "// why"));
    assert_eq!(split("let quote = '\"'; // why"), ("let quote = '\"'; ", "// why"));
    assert_eq!(split("let text = \"a \\\" // b\";"), ("let text = \"a \\\" // b\";", ""));
    assert!(has_word("use candle_core::Tensor;", "candle_core") && !has_word("candle_core", "candle"));
    assert_eq!(link_targets("[a](b.md#c) [d](https://e) `[f](g)` [h](#i)"), ["b.md"]);
}
