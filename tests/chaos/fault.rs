//! What can be done to a deployment, and plans of it: which fault, when, for how long, to whom.

use std::fmt;
use std::time::Duration;

/// A fault that begins and ends. A worker's faults concern one worker, the others the server or the whole cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// SIGKILL of a worker; another one is started at the end.
    Kill,
    /// SIGTERM of a worker, which drains; another one is started at the end.
    Terminate,
    /// SIGSTOP of a worker until the end: it notices nothing, but for the time.
    Freeze,
    /// The worker's connection goes silent until the end: neither side is told.
    Silence,
    /// The worker's connections are closed and refused until the end.
    Cut,
    /// SIGKILL of the server, which is started again on its store and its port at the end.
    KillServer,
    /// SIGTERM of the server, likewise.
    StopServer,
    /// SIGSTOP of the server until the end.
    FreezeServer,
    /// The server's disk is full. At the end there is room again and the server is started anew, as NATS wants it.
    FillDisk,
    /// The stream of results is too small from the start; at the end `inferq setup` gives it room.
    FillResults,
    /// SIGKILL of the node that leads the job stream, until the end.
    KillLeader,
    /// SIGKILL of a node of the cluster, until the end. The number is the node's.
    KillNode,
    /// SIGKILL of all nodes at once, until the end.
    KillCluster,
}

/// One fault in time.
#[derive(Clone, Copy, Debug)]
pub struct Planned {
    pub at: Duration,
    pub lasts: Duration,
    pub fault: Fault,
    /// Which worker or node; 0 where there is but one.
    pub whom: usize,
}

/// A fault with its times in seconds.
pub fn planned(at: f64, lasts: f64, fault: Fault, whom: usize) -> Planned {
    Planned { at: Duration::from_secs_f64(at), lasts: Duration::from_secs_f64(lasts), fault, whom }
}

impl Fault {
    fn concerns_worker(self) -> bool {
        matches!(self, Self::Kill | Self::Terminate | Self::Freeze | Self::Silence | Self::Cut)
    }
}

impl fmt::Display for Planned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (at, lasts) = (self.at.as_secs_f64(), self.lasts.as_secs_f64());
        write!(f, "{:?}", self.fault)?;
        if self.fault.concerns_worker() {
            write!(f, " of worker {}", self.whom)?;
        }
        write!(f, " at {at:.1} s for {lasts:.1} s")
    }
}

/// What is drawn from at random, with the seconds it lasts at least and at most.
const DRAWN: [(Fault, f64, f64); 8] = [
    (Fault::Kill, 0.2, 3.0),
    (Fault::Terminate, 0.2, 2.0),
    (Fault::Freeze, 0.5, 5.0),
    (Fault::Silence, 0.5, 6.0),
    (Fault::Cut, 0.2, 6.0),
    (Fault::KillServer, 0.2, 2.0),
    (Fault::StopServer, 0.2, 2.0),
    (Fault::FreezeServer, 0.2, 3.0),
];
/// Seconds from one fault to the next, at most: shorter than most last, so that they meet.
const GAP_MAX: f64 = 2.0;

/// Faults at random for so long, on so many workers. The same seed gives the same plan. No worker and no server has two
/// faults at a time, but all may have one.
pub fn random(seed: u64, length: Duration, workers: usize) -> Vec<Planned> {
    let mut dice = fastrand::Rng::with_seed(seed);
    let mut free_at = vec![0.0; workers + 1];
    let (mut plan, mut at) = (Vec::new(), 1.0);
    while at < length.as_secs_f64() {
        let (fault, shortest, longest) = DRAWN[dice.usize(..DRAWN.len())];
        let lasts = shortest + dice.f64() * (longest - shortest);
        let whom = if fault.concerns_worker() { dice.usize(..workers) } else { 0 };
        let place = if fault.concerns_worker() { whom } else { workers };
        if free_at[place] <= at {
            free_at[place] = at + lasts;
            plan.push(planned(at, lasts, fault, whom));
        }
        at += dice.f64() * GAP_MAX;
    }
    plan
}
