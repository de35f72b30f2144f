//! What the peers run in: a Python environment of their own and candle's program, made once below `target/bench`.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::{program, root};

pub struct Environment {
    folder: PathBuf,
    python: PathBuf,
    threads: String,
}

impl Environment {
    pub fn prepare() -> Self {
        let folder = program("inferq").parent().unwrap().with_file_name("bench").join("encoder");
        std::fs::create_dir_all(&folder).unwrap();
        let python = folder.join("python/bin/python");
        let (wanted, installed) = (source("requirements.txt"), folder.join("requirements.txt"));
        let text = std::fs::read_to_string(&wanted).unwrap();
        if std::fs::read_to_string(&installed).unwrap_or_default() != text {
            eprintln!("installing the peers: some 5 GB, once");
            run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(folder.join("python")));
            let install = ["-m", "pip", "install", "--quiet", "--no-deps", "--requirement"];
            run(Command::new(&python).args(install).arg(&wanted));
            std::fs::write(&installed, text).unwrap();
        }
        let cargo = ["build", "--locked", "--quiet", "--release", "--manifest-path"];
        let build = Command::new("cargo")
            .args(cargo)
            .arg(source("candle/Cargo.toml"))
            .arg("--target-dir")
            .arg(folder.join("candle"))
            .status();
        assert!(build.unwrap().success());
        let threads = std::thread::available_parallelism().unwrap().to_string();
        Self { folder, python, threads }
    }

    /// The command that drives a peer.
    pub fn peer(&self, name: &str, model: &Path) -> Command {
        let mut command = match name {
            "candle" => Command::new(self.folder.join("candle/release/stock")),
            _ => {
                let mut python = Command::new(&self.python);
                python.arg(source("peers.py")).arg(name);
                python
            }
        };
        command.arg(model);
        match name {
            "candle" => command.env("RAYON_NUM_THREADS", &self.threads),
            _ => command.arg(self.folder.join("models")).arg(&self.threads),
        };
        command
    }

    /// Texts of a package, each with its summary.
    pub fn texts(&self, count: usize) -> Vec<[String; 2]> {
        let output = Command::new(&self.python).arg(source("texts.py")).args(["sympy", &count.to_string()]).output();
        serde_json::from_slice(&output.unwrap().stdout).unwrap()
    }
}

fn source(name: &str) -> PathBuf {
    root().join("tests/bench/encoder").join(name)
}

fn run(command: &mut Command) {
    assert!(command.status().unwrap().success(), "{command:?}");
}
