//! What Kubernetes does with the decisions: a process for each pod, started, and ended as the kubelet ends one.

use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::time::{Interval, MissedTickBehavior, interval};

use super::MODEL;
use super::autoscaler::{Autoscaler, SYNC_PERIOD};
use super::lag::LagReader;
use super::rule::{Rule, Trigger};
use crate::support::{Deployment, WorkerProcess, program, run};

/// The platform's clock runs so many times as fast as ours. Workers, jobs and thresholds are as they are.
pub const FACTOR: u32 = 10;

pub struct Platform<'a> {
    deployment: &'a Deployment,
    autoscaler: Autoscaler,
    readers: Vec<LagReader>,
    grace_seconds: String,
    began: Instant,
    pods: Vec<WorkerProcess>,
    ending: Vec<WorkerProcess>,
    replicas: watch::Sender<usize>,
    /// When the number of pods changed, to what, and the lag of all triggers then.
    pub history: Vec<(Instant, usize, u64)>,
}

impl<'a> Platform<'a> {
    /// For the model of the deployment, whose servers have these monitoring addresses.
    pub fn new(deployment: &'a Deployment, monitors: &[String]) -> Self {
        let (rule, grace_seconds) = Rule::of(MODEL);
        // As the pods' init container does, into a volume that they share.
        let registry = deployment.registry.to_str().unwrap();
        let fetched = run(&program("inferq-worker"), &["fetch", "--model", MODEL, "--registry", registry], &[]);
        assert!(fetched.status.success(), "{}", String::from_utf8_lossy(&fetched.stderr));
        let reader = |trigger: &Trigger| LagReader::new(monitors.to_vec(), trigger.metadata.clone());
        Self {
            deployment,
            readers: rule.triggers.iter().map(reader).collect(),
            autoscaler: Autoscaler::new(rule),
            grace_seconds,
            began: Instant::now(),
            pods: Vec::new(),
            ending: Vec::new(),
            replicas: watch::Sender::default(),
            history: Vec::new(),
        }
    }

    /// How many pods there should be, as it changes.
    pub fn replicas(&self) -> watch::Receiver<usize> {
        self.replicas.subscribe()
    }

    pub fn replicas_max(&self) -> usize {
        self.autoscaler.rule.max_replica_count
    }

    /// Scales until it is dropped.
    pub async fn run(&mut self) {
        let (mut polls, mut syncs) = (every(self.autoscaler.rule.polling_interval), every(SYNC_PERIOD));
        loop {
            let is_poll = tokio::select! {
                _ = polls.tick() => true,
                _ = syncs.tick() => false,
            };
            let mut lags = Vec::new();
            for reader in &mut self.readers {
                lags.push(reader.read().await);
            }
            let (now, replicas) = (self.began.elapsed() * FACTOR, self.pods.len());
            let wanted = match is_poll {
                true => self.autoscaler.poll(now, replicas, &lags),
                false => self.autoscaler.sync(now, replicas, &lags),
            };
            if wanted != replicas {
                self.history.push((Instant::now(), wanted, lags.iter().flatten().sum()));
                self.resize(wanted);
            }
        }
    }

    /// The pods that go are any: a ReplicaSet takes the younger ones first, but by the order of magnitude of their age.
    fn resize(&mut self, wanted: usize) {
        while self.pods.len() < wanted {
            let arguments = ["--offline", "--grace-seconds", &self.grace_seconds];
            self.pods.push(self.deployment.spawn_worker(MODEL, &arguments));
        }
        while self.pods.len() > wanted {
            let mut pod = self.pods.swap_remove(fastrand::usize(..self.pods.len()));
            assert!(!pod.has_ended(), "a worker has ended by itself");
            pod.signal("-TERM");
            self.ending.push(pod);
        }
        self.replicas.send_replace(wanted);
    }

    /// Waits until those that were told to end have ended well, and gives their number.
    pub async fn ended(&mut self) -> usize {
        for pod in &mut self.ending {
            assert_eq!(pod.exit_code().await, Some(0));
        }
        self.ending.len()
    }

    /// Seconds of the platform's clock.
    pub fn seconds(&self, at: Instant) -> f64 {
        ((at - self.began) * FACTOR).as_secs_f64()
    }
}

fn every(period: Duration) -> Interval {
    let mut interval = interval(period / FACTOR);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    interval
}
