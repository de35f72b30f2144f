//! The worker processes: each behind a network of its own, started again when it ends by itself, as a platform does it.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::job::MODEL;
use crate::support::{Proxy, program, signal};

/// What every worker of a fleet is started with.
#[derive(Clone, Copy, Debug, Default)]
pub struct Equipment {
    /// The address space a worker may have: what is more, it is refused, and it dies of it.
    pub memory_mebibytes: Option<u64>,
    /// Hours by which the clocks of the workers are wrong, by turns ahead and behind.
    pub clock_hours: Option<u64>,
}

/// The workers; killed when they are dropped.
pub struct Fleet {
    equipment: Equipment,
    folder: PathBuf,
    places: Vec<Place>,
    /// Told to end, and ending.
    draining: Vec<Worker>,
    /// Workers that ended by themselves.
    pub lost: usize,
    /// What workers did that they should not.
    pub wrongs: Vec<String>,
}

/// Where one worker stands. Empty while a fault has taken it away.
struct Place {
    server: String,
    proxy: Option<Proxy>,
    worker: Option<Worker>,
    started: usize,
}

/// A process; killed when it is dropped.
struct Worker {
    name: String,
    log: PathBuf,
    process: Child,
}

impl Fleet {
    /// `folder` holds the registry and gets the workers' logs.
    pub fn new(folder: &Path, equipment: Equipment) -> Self {
        Self {
            equipment,
            folder: folder.to_owned(),
            places: Vec::new(),
            draining: Vec::new(),
            lost: 0,
            wrongs: Vec::new(),
        }
    }

    /// Starts one more worker. It reaches the server through the proxy where it has one.
    pub fn add(&mut self, server: &str, proxy: Option<Proxy>) {
        let server = proxy.as_ref().map_or(server, |proxy| &proxy.url).to_owned();
        self.places.push(Place { server, proxy, worker: None, started: 0 });
        self.start(self.places.len() - 1);
    }

    pub fn start(&mut self, whom: usize) {
        let place = &mut self.places[whom];
        place.started += 1;
        let name = format!("worker-{whom}-{}", place.started);
        let log = self.folder.join(format!("{name}.log"));
        let errors = File::create(&log).unwrap();
        let mut command = self.equipment.command(whom);
        command.args(["--model", MODEL, "--admin", "127.0.0.1:0", "--log", "info", "--name", &name]);
        command.args(["--server", &place.server, "--registry"]).arg(self.folder.join("models.toml"));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(errors);
        place.worker = Some(Worker { name, log, process: command.spawn().unwrap() });
    }

    /// With no warning.
    pub fn kill(&mut self, whom: usize) {
        self.places[whom].worker = None;
    }

    pub fn terminate(&mut self, whom: usize) {
        if let Some(worker) = self.places[whom].worker.take() {
            signal("-TERM", worker.process.id());
            self.draining.push(worker);
        }
    }

    pub fn signal(&self, whom: usize, name: &str) {
        if let Some(worker) = &self.places[whom].worker {
            signal(name, worker.process.id());
        }
    }

    pub fn proxy(&self, whom: usize) -> &Proxy {
        self.places[whom].proxy.as_ref().expect("networks fail only where there are proxies")
    }

    pub fn is_drained(&self) -> bool {
        self.draining.is_empty()
    }

    /// The names of those that stand now.
    pub fn names(&self) -> Vec<String> {
        self.places.iter().filter_map(|place| place.worker.as_ref()).map(|worker| worker.name.clone()).collect()
    }

    /// Starts those again that have ended by themselves, and looks how those ended that were told to.
    pub fn tend(&mut self) {
        for whom in 0..self.places.len() {
            let worker = self.places[whom].worker.as_mut();
            if worker.is_some_and(|worker| worker.process.try_wait().unwrap().is_some()) {
                self.lost += 1;
                self.start(whom);
            }
        }
        let wrongs = &mut self.wrongs;
        self.draining.retain_mut(|worker| match worker.process.try_wait().unwrap() {
            None => true,
            Some(status) => {
                // A process may be told to end before it has begun to listen for that.
                let has_begun = std::fs::metadata(&worker.log).is_ok_and(|log| log.len() > 0);
                if !status.success() && has_begun {
                    wrongs.push(format!("{} was told to end and ended with {status}", worker.name));
                }
                false
            }
        });
    }
}

impl Equipment {
    /// Why workers cannot be started with it here, if so.
    pub fn missing(&self) -> Option<String> {
        let faked = self.clock_hours.is_some();
        (faked && faketime().is_none()).then(|| "libfaketime is not there (Debian: apt-get install libfaketime)".into())
    }

    fn command(&self, whom: usize) -> Command {
        let worker = program("inferq-worker");
        let mut command = match self.memory_mebibytes {
            None => Command::new(worker),
            Some(mebibytes) => {
                let mut shell = Command::new("sh");
                let limited = format!("ulimit -c 0; ulimit -v {}; exec \"$0\" \"$@\"", mebibytes << 10);
                shell.args(["-c", &limited]).arg(worker);
                shell
            }
        };
        if let Some((hours, library)) = self.clock_hours.zip(faketime()) {
            let sign = if whom.is_multiple_of(2) { '+' } else { '-' };
            command.env("LD_PRELOAD", library).env("FAKETIME", format!("{sign}{hours}h"));
            command.env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
        }
        command
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The library that moves a program's clock, where Debian puts it.
fn faketime() -> Option<PathBuf> {
    let folders = std::fs::read_dir("/usr/lib").ok()?.flatten().map(|entry| entry.path());
    folders.map(|folder| folder.join("faketime/libfaketimeMT.so.1")).find(|path| path.is_file())
}
