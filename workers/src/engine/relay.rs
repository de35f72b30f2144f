//! The relay between the runtime and the engine's thread: what is handed over at one time crosses together.
//!
//! To wake a thread costs more than all else that a small job needs. So jobs that are handed over in the same moment
//! wake the engine once, and answers of one step wake the runtime once. A group may be waited for on purpose, which
//! fills the batches of an engine that would otherwise run each job as it comes.

use std::time::Duration;

use schemas::registry::Limits;
use tokio::sync::{mpsc, oneshot};

use super::thread::{Done, EngineError, Request};

/// Jobs handed over and not taken in; more wait at the sender.
const HANDED_OVER_MAX: usize = 256;
/// Groups on their way, in each direction.
const GROUPS_MAX: usize = 2;

/// How long a group waits for more after its first job, and the cost at which it waits no longer.
#[derive(Clone, Copy, Debug, Default)]
pub struct Linger {
    pub time: Duration,
    pub enough: u64,
}

impl From<&Limits> for Linger {
    fn from(limits: &Limits) -> Self {
        Self { time: Duration::from_millis(limits.linger_milliseconds), enough: limits.batch_tokens as u64 }
    }
}

/// What became of a job, and who waits for it.
#[derive(Debug)]
pub(super) struct Answered {
    pub to: oneshot::Sender<Result<Done, EngineError>>,
    pub result: Result<Done, EngineError>,
}

/// The ends of the relay that the engine's thread holds.
#[derive(Debug)]
pub(super) struct Ends {
    pub requests: mpsc::Receiver<Vec<Request>>,
    pub answers: mpsc::Sender<Vec<Answered>>,
}

/// Starts the relay. It ends when the returned sender and all its clones are dropped, or the engine's thread has ended.
pub(super) fn start(linger: Linger) -> (mpsc::Sender<Request>, Ends) {
    let (requests, handed_over) = mpsc::channel(HANDED_OVER_MAX);
    let (to_engine, taken_in) = mpsc::channel(GROUPS_MAX);
    let (answers, answered) = mpsc::channel(GROUPS_MAX);
    tokio::spawn(gather(handed_over, to_engine, linger));
    tokio::spawn(hand_out(answered));
    (requests, Ends { requests: taken_in, answers })
}

async fn gather(mut requests: mpsc::Receiver<Request>, engine: mpsc::Sender<Vec<Request>>, linger: Linger) {
    loop {
        let mut group = Vec::new();
        if requests.recv_many(&mut group, HANDED_OVER_MAX).await == 0 {
            return;
        }
        if !linger.time.is_zero() {
            // Whatever has come by then goes on, and the end of all senders is met by the next round.
            let _ = tokio::time::timeout(linger.time, fill(&mut group, &mut requests, linger.enough)).await;
        }
        if engine.send(group).await.is_err() {
            return;
        }
    }
}

/// Adds to a group until it costs enough.
async fn fill(group: &mut Vec<Request>, requests: &mut mpsc::Receiver<Request>, enough: u64) {
    let cost = |requests: &[Request]| requests.iter().flat_map(|one| &one.sequences).map(|one| one.cost()).sum::<u64>();
    let mut filled = cost(group);
    while filled < enough {
        let from = group.len();
        if requests.recv_many(group, HANDED_OVER_MAX).await == 0 {
            return;
        }
        filled += cost(&group[from..]);
    }
}

async fn hand_out(mut answers: mpsc::Receiver<Vec<Answered>>) {
    while let Some(group) = answers.recv().await {
        for Answered { to, result } in group {
            // The receiver may be gone: the job was abandoned at the last moment.
            let _ = to.send(result);
        }
    }
}
