//! The stage: a server or a cluster, its workers, and what can be done to them.

use std::path::PathBuf;
use std::time::Duration;

use connect::{Connection, FirstConnect, NatsArgs};
use tempfile::TempDir;
use time::OffsetDateTime;

use crate::disk::Disk;
use crate::fault::{Fault, Planned};
use crate::fleet::{Equipment, Fleet};
use crate::job::MODEL;
use crate::support::{Cluster, Line, Proxy, Server, eventually, lasting, program, root, run};

/// JetStream's own bound is made large, so that it is the disk which is full.
const UNBOUNDED_STORE: &str = "jetstream { max_file_store: 64GB }\n";
/// How often the workers are looked after.
const TEND: Duration = Duration::from_millis(50);

/// What a deployment is like before anything is done to it.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    pub workers: usize,
    /// What a step of the engine takes.
    pub step_milliseconds: u64,
    /// Deliveries of a job.
    pub attempts: u32,
    /// How long a step may take before the worker gives up.
    pub step_seconds: Option<u64>,
    pub jobs_bytes: i64,
    pub results_bytes: i64,
    pub equipment: Equipment,
    /// Three servers with three copies of each stream.
    pub is_cluster: bool,
    pub has_small_disk: bool,
    /// Whether prompts may ask the engine for faults.
    pub has_poison: bool,
    /// Whether the model is the embedder of the demo.
    pub is_embedder: bool,
}

pub const ACK_WAIT: Duration = Duration::from_secs(2);

impl Default for Setting {
    fn default() -> Self {
        Self {
            workers: 2,
            step_milliseconds: 50,
            attempts: 20,
            step_seconds: None,
            jobs_bytes: 1 << 30,
            results_bytes: 1 << 30,
            equipment: Equipment::default(),
            is_cluster: false,
            has_small_disk: false,
            has_poison: false,
            is_embedder: false,
        }
    }
}

impl Setting {
    /// The model registry. A batch is smaller than what a worker holds, so that jobs wait inside it.
    pub fn registry(&self) -> String {
        let Self { step_milliseconds, attempts, jobs_bytes, results_bytes, .. } = self;
        let faults = if self.has_poison { ", faults = true" } else { "" };
        let step_seconds = self.step_seconds.map_or(String::new(), |seconds| format!("step_seconds = {seconds}\n"));
        let (replicas, ack_wait) = (if self.is_cluster { 3 } else { 1 }, ACK_WAIT.as_secs());
        let engine = match self.is_embedder {
            true => embedder(),
            false => format!("task = \"echo\"\necho = {{ step_milliseconds = {step_milliseconds}{faults} }}"),
        };
        format!(
            "[[models]]\nname = {MODEL:?}\n{engine}\n\
             [models.limits]\nin_flight = 64\nbatch = 32\nattempts = {attempts}\nack_wait_seconds = {ack_wait}\n{step_seconds}\
             [storage]\nreplicas = {replicas}\njobs_bytes = {jobs_bytes}\nresults_bytes = {results_bytes}\n"
        )
    }
}

/// The demo's embedder, as its registry has it but for its name.
fn embedder() -> String {
    let registry = std::fs::read_to_string(root().join("workers/models.toml")).unwrap();
    let model = registry.split("[[models]]").find(|model| model.contains("task = \"embed\"")).unwrap();
    model.lines().filter(|line| !line.starts_with("name")).collect::<Vec<_>>().join("\n")
}

/// When a fault began and ended, as it was and not as it was planned.
#[derive(Clone, Copy, Debug)]
pub struct Mark {
    pub fault: Fault,
    pub began: OffsetDateTime,
    /// When its end began, which takes a moment.
    pub ending: Option<OffsetDateTime>,
    pub ended: Option<OffsetDateTime>,
}

/// In the order in which it is taken down: the workers first. The disk is let go before the server that lies on it, so that
/// nothing is mounted any more when the server's folder is removed.
pub struct Stage {
    pub fleet: Fleet,
    pub connection: Connection,
    disk: Option<Disk>,
    nats: Nats,
    pub folder: TempDir,
    setting: Setting,
    pub marks: Vec<Mark>,
    /// Nodes that a fault has taken away.
    down: Vec<usize>,
}

enum Nats {
    One(Server),
    Three(Cluster),
}

impl Stage {
    /// Builds it up to workers that are ready, or says what is missing here for that.
    pub async fn build(setting: &Setting) -> Result<Self, String> {
        if let Some(missing) = setting.equipment.missing() {
            return Err(missing);
        }
        let (nats, disk) = match (setting.is_cluster, setting.has_small_disk) {
            (true, _) => (Nats::Three(Cluster::start().await), None),
            (false, false) => (Nats::One(Server::start()), None),
            (false, true) => {
                let server = Server::with(UNBOUNDED_STORE);
                server.kill();
                let disk = Disk::over(&server.folder().join("jetstream"))?;
                server.restart();
                (Nats::One(server), Some(disk))
            }
        };
        let folder = tempfile::tempdir().unwrap();
        let fleet = Fleet::new(folder.path(), setting.equipment);
        let connection = connect::connect(&NatsArgs::to(&nats.urls()), "chaos", FirstConnect::Fail).await.unwrap();
        let mut stage =
            Self { fleet, connection, nats, disk, folder, setting: *setting, marks: Vec::new(), down: Vec::new() };
        stage.set_up(setting);
        for _ in 0..setting.workers {
            let proxy = match &stage.nats {
                Nats::One(server) => Some(Proxy::before(&server.url).await),
                // The nodes tell their addresses to whoever connects, so nobody would stay behind a proxy.
                Nats::Three(_) => None,
            };
            stage.fleet.add(&stage.nats.urls(), proxy);
        }
        eventually("the workers are ready", async || {
            let Connection { client, jetstream, .. } = &stage.connection;
            let status = producer::status::status(client, jetstream).await.ok()?;
            (status.workers.get(MODEL) == Some(&setting.workers)).then_some(())
        })
        .await;
        Ok(stage)
    }

    /// The file of its model registry.
    pub fn registry(&self) -> PathBuf {
        self.folder.path().join("models.toml")
    }

    /// Where producers connect.
    pub fn urls(&self) -> String {
        self.nats.urls()
    }

    pub async fn begin(&mut self, planned: &Planned) {
        let began = OffsetDateTime::now_utc();
        let whom = planned.whom;
        match planned.fault {
            Fault::Kill => self.fleet.kill(whom),
            Fault::Terminate => self.fleet.terminate(whom),
            Fault::Freeze => self.fleet.signal(whom, "-STOP"),
            Fault::Silence => self.fleet.proxy(whom).set(Line::Silent),
            Fault::Cut => self.fleet.proxy(whom).set(Line::Cut),
            Fault::KillServer => self.server().kill(),
            Fault::StopServer => self.server().end("-TERM"),
            Fault::FreezeServer => self.server().signal("-STOP"),
            Fault::FillDisk => self.disk().fill(),
            Fault::FillResults => {}
            Fault::KillLeader => {
                let leader = self.cluster().leader(&self.connection.jetstream, schemas::stream::JOBS).await;
                self.take_down(leader);
            }
            Fault::KillNode => self.take_down(whom),
            Fault::KillCluster => (0..3).for_each(|node| self.take_down(node)),
        }
        self.marks.push(Mark { fault: planned.fault, began, ending: None, ended: None });
    }

    pub async fn end(&mut self, planned: &Planned) {
        let (whom, ending) = (planned.whom, OffsetDateTime::now_utc());
        match planned.fault {
            Fault::Kill | Fault::Terminate => self.fleet.start(whom),
            Fault::Freeze => self.fleet.signal(whom, "-CONT"),
            Fault::Silence | Fault::Cut => self.fleet.proxy(whom).set(Line::Open),
            Fault::KillServer | Fault::StopServer => self.server().restart(),
            Fault::FreezeServer => self.server().signal("-CONT"),
            Fault::FillDisk => {
                self.disk().empty();
                self.server().kill();
                self.server().restart();
            }
            Fault::FillResults => self.set_up(&Setting { results_bytes: 1 << 30, ..self.setting }),
            Fault::KillLeader | Fault::KillNode | Fault::KillCluster => self.bring_up().await,
        }
        let mark = self.marks.iter_mut().find(|mark| mark.fault == planned.fault && mark.ended.is_none());
        let mark = mark.expect("what ends has begun");
        (mark.ending, mark.ended) = (Some(ending), Some(OffsetDateTime::now_utc()));
    }

    /// Looks after the workers for so long.
    pub async fn tend(&mut self, duration: Duration) {
        let end = tokio::time::Instant::now() + duration;
        loop {
            self.fleet.tend();
            let left = end - tokio::time::Instant::now();
            if left.is_zero() {
                return;
            }
            lasting(left.min(TEND)).await;
        }
    }

    /// Keeps the logs of the workers, and says where they are.
    pub fn keep_logs(&mut self) -> PathBuf {
        self.folder.disable_cleanup(true);
        self.folder.path().to_owned()
    }

    fn set_up(&self, setting: &Setting) {
        let registry = self.registry();
        std::fs::write(&registry, setting.registry()).unwrap();
        let arguments = ["--server", &self.urls(), "setup", "--registry", registry.to_str().unwrap()];
        let output = run(&program("inferq"), &arguments, &[]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    fn take_down(&mut self, node: usize) {
        self.cluster().kill(node);
        self.down.push(node);
    }

    async fn bring_up(&mut self) {
        let down = std::mem::take(&mut self.down);
        self.cluster().restart_all(&down).await;
    }

    fn server(&self) -> &Server {
        match &self.nats {
            Nats::One(server) => server,
            Nats::Three(_) => panic!("the fault is one of a single server"),
        }
    }

    fn cluster(&self) -> &Cluster {
        match &self.nats {
            Nats::One(_) => panic!("the fault is one of a cluster"),
            Nats::Three(cluster) => cluster,
        }
    }

    fn disk(&self) -> &Disk {
        self.disk.as_ref().expect("the disk is filled only where there is a small one")
    }
}

impl Nats {
    fn urls(&self) -> String {
        match self {
            Self::One(server) => server.url.clone(),
            Self::Three(cluster) => cluster.urls(),
        }
    }
}
