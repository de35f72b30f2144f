//! The relay between the runtime and the engine's thread: what is handed over at one time crosses together.
//!
//! To wake a thread costs more than all else that a small job needs. So jobs that are handed over in the same moment
//! wake the engine once, and answers of one step wake the runtime once.

use tokio::sync::{mpsc, oneshot};

use super::thread::{Done, EngineError, Request};

/// Jobs handed over and not taken in; more wait at the sender.
const HANDED_OVER_MAX: usize = 256;
/// Groups on their way, in each direction.
const GROUPS_MAX: usize = 2;

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
pub(super) fn start() -> (mpsc::Sender<Request>, Ends) {
    let (requests, handed_over) = mpsc::channel(HANDED_OVER_MAX);
    let (to_engine, taken_in) = mpsc::channel(GROUPS_MAX);
    let (answers, answered) = mpsc::channel(GROUPS_MAX);
    tokio::spawn(gather(handed_over, to_engine));
    tokio::spawn(hand_out(answered));
    (requests, Ends { requests: taken_in, answers })
}

async fn gather(mut requests: mpsc::Receiver<Request>, engine: mpsc::Sender<Vec<Request>>) {
    loop {
        let mut group = Vec::new();
        if requests.recv_many(&mut group, HANDED_OVER_MAX).await == 0 || engine.send(group).await.is_err() {
            return;
        }
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
