//! The thread that owns an engine: it takes jobs over a channel and drives `add`, `step`, `finished`.
//!
//! A step that fails or panics fails what is inside, not the worker. Dropping the future of a job takes its sequences
//! out before the next step.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::mpsc::{self, error::TryRecvError};
use tokio::sync::oneshot;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{Engine, Output, Sequence, SequenceId};

/// Jobs handed over and not yet taken in; more wait at the sender.
const HANDED_OVER_MAX: usize = 256;

/// Hands jobs to the engine's thread. The thread ends when the last handle is dropped.
#[derive(Clone, Debug)]
pub struct EngineHandle {
    requests: mpsc::Sender<Request>,
    steps: Arc<AtomicU64>,
    stopped: CancellationToken,
}

/// Why a job got no outputs.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EngineError {
    /// The step that held it failed; another try may succeed.
    #[error("the engine failed: {0}")]
    Failed(String),
    /// There is no engine any more.
    #[error("the engine has stopped")]
    Stopped,
}

type Answer = oneshot::Sender<Result<Vec<Output>, EngineError>>;

struct Request {
    sequences: Vec<Sequence>,
    answer: Answer,
}

/// Starts the thread.
pub fn spawn(engine: Box<dyn Engine + Send>) -> EngineHandle {
    let (requests, receiver) = mpsc::channel(HANDED_OVER_MAX);
    let handle = EngineHandle { requests, steps: Arc::default(), stopped: CancellationToken::new() };
    let (steps, stopped) = (Arc::clone(&handle.steps), handle.stopped.clone().drop_guard());
    let drive =
        move || Driver { engine, jobs: HashMap::new(), owners: HashMap::new(), next: 0, steps }.run(receiver, stopped);
    // Named for debuggers and `top -H`.
    let thread = std::thread::Builder::new().name("engine".to_owned()).spawn(drive);
    thread.expect("the process may start one more thread");
    handle
}

impl EngineHandle {
    /// The outputs of the sequences, in their order.
    pub async fn run(&self, sequences: Vec<Sequence>) -> Result<Vec<Output>, EngineError> {
        if sequences.is_empty() {
            return Ok(Vec::new());
        }
        let (answer, outputs) = oneshot::channel();
        self.requests.send(Request { sequences, answer }).await.map_err(|_| EngineError::Stopped)?;
        outputs.await.unwrap_or(Err(EngineError::Stopped))
    }

    /// Steps done so far: a watchdog sees by it that the engine moves.
    pub fn steps(&self) -> u64 {
        self.steps.load(Ordering::Relaxed)
    }

    /// Cancelled when the thread has ended.
    pub fn stopped(&self) -> CancellationToken {
        self.stopped.clone()
    }
}

/// A job inside the engine.
struct Job {
    outputs: Vec<Option<Output>>,
    missing: usize,
    first: u64,
    answer: Answer,
}

/// The engine and who waits for what.
struct Driver {
    engine: Box<dyn Engine + Send>,
    /// By the id of their first sequence.
    jobs: HashMap<u64, Job>,
    /// From a sequence to its job.
    owners: HashMap<SequenceId, u64>,
    next: u64,
    steps: Arc<AtomicU64>,
}

impl Driver {
    fn run(mut self, mut receiver: mpsc::Receiver<Request>, _stopped: DropGuard) {
        loop {
            if self.engine.is_idle() {
                match receiver.blocking_recv() {
                    Some(request) => self.admit(request),
                    None => return,
                }
            }
            loop {
                match receiver.try_recv() {
                    Ok(request) => self.admit(request),
                    Err(TryRecvError::Empty) => break,
                    // Nobody waits for an answer when all handles are gone.
                    Err(TryRecvError::Disconnected) => return,
                }
            }
            self.drop_cancelled();
            if let Err(reason) = self.step()
                && !self.fail_all(&reason)
            {
                return;
            }
        }
    }

    fn admit(&mut self, request: Request) {
        let first = self.next;
        let count = request.sequences.len();
        for sequence in request.sequences {
            let id = SequenceId(self.next);
            self.next += 1;
            self.owners.insert(id, first);
            self.engine.add(id, sequence);
        }
        let outputs = std::iter::repeat_with(|| None).take(count).collect();
        self.jobs.insert(first, Job { outputs, missing: count, first, answer: request.answer });
    }

    /// Takes out the sequences of jobs that nobody waits for any more.
    fn drop_cancelled(&mut self) {
        let cancelled: Vec<u64> =
            self.jobs.values().filter(|job| job.answer.is_closed()).map(|job| job.first).collect();
        for first in cancelled {
            if let Some(job) = self.jobs.remove(&first) {
                for id in (first..).take(job.outputs.len()).map(SequenceId) {
                    self.owners.remove(&id);
                    self.engine.remove(id);
                }
            }
        }
    }

    fn step(&mut self) -> Result<(), String> {
        let stepped = catch_unwind(AssertUnwindSafe(|| {
            self.engine.step().map_err(|error| error.to_string())?;
            Ok(self.engine.finished())
        }));
        let finished = stepped.unwrap_or_else(|payload| Err(format!("panic: {}", panic_message(&*payload))))?;
        self.steps.fetch_add(1, Ordering::Relaxed);
        finished.into_iter().for_each(|(id, output)| self.deliver(id, output));
        Ok(())
    }

    fn deliver(&mut self, id: SequenceId, output: Output) {
        let Some(first) = self.owners.remove(&id) else { return };
        let Some(job) = self.jobs.get_mut(&first) else { return };
        job.outputs[usize::try_from(id.0 - first).expect("a job's sequences fit in memory")] = Some(output);
        job.missing -= 1;
        if job.missing == 0
            && let Some(job) = self.jobs.remove(&first)
        {
            // The receiver may be gone: the job was abandoned at the last moment.
            let _ = job.answer.send(Ok(job.outputs.into_iter().flatten().collect()));
        }
    }

    /// Answers all that is inside with the failure and empties the engine. False if it cannot even be emptied.
    fn fail_all(&mut self, reason: &str) -> bool {
        tracing::error!(reason, jobs = self.jobs.len(), "engine step failed");
        for (_, job) in self.jobs.drain() {
            let _ = job.answer.send(Err(EngineError::Failed(reason.to_owned())));
        }
        let owners = std::mem::take(&mut self.owners);
        let emptied = catch_unwind(AssertUnwindSafe(|| {
            owners.into_keys().for_each(|id| self.engine.remove(id));
            self.engine.finished();
        }));
        emptied.is_ok()
    }
}

fn panic_message(payload: &(dyn std::any::Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| payload.downcast_ref::<String>().cloned()).unwrap_or_else(|| "unknown".to_owned())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::echo::Echo;
    use super::super::{Goal, StepError};
    use super::*;

    /// Panics or fails on a sequence that begins with 13 or 14; everything else is echoed.
    struct Moody(Echo, Vec<(SequenceId, u32)>);

    impl Engine for Moody {
        fn add(&mut self, id: SequenceId, sequence: Sequence) {
            self.1.push((id, sequence.tokens[0]));
            self.0.add(id, sequence);
        }

        fn step(&mut self) -> Result<(), StepError> {
            assert!(self.1.iter().all(|&(_, token)| token != 13), "thirteen");
            if self.1.iter().any(|&(_, token)| token == 14) {
                return Err(StepError("fourteen".to_owned()));
            }
            self.0.step()
        }

        fn finished(&mut self) -> Vec<(SequenceId, Output)> {
            self.0.finished()
        }

        fn remove(&mut self, id: SequenceId) {
            self.1.retain(|&(inside, _)| inside != id);
            self.0.remove(id);
        }

        fn is_idle(&self) -> bool {
            self.0.is_idle()
        }
    }

    fn moody() -> EngineHandle {
        spawn(Box::new(Moody(Echo::new(2, Duration::ZERO), Vec::new())))
    }

    fn sequences(tokens: &[u32]) -> Vec<Sequence> {
        tokens.iter().map(|&token| Sequence { tokens: vec![token], goal: Goal::Embed }).collect()
    }

    #[tokio::test]
    async fn outputs_come_in_the_order_of_their_sequences() {
        let handle = moody();
        let together = handle.run(sequences(&[1, 2, 3, 4, 5])).await.unwrap();
        for (index, token) in (1..=5).enumerate() {
            assert_eq!(handle.run(sequences(&[token])).await.unwrap()[0], together[index]);
        }
        assert_eq!(handle.run(Vec::new()).await, Ok(Vec::new()));
    }

    #[tokio::test]
    async fn a_panic_or_an_error_fails_what_is_inside_and_the_engine_goes_on() {
        let handle = moody();
        assert_eq!(handle.run(sequences(&[13])).await, Err(EngineError::Failed("panic: thirteen".to_owned())));
        let failed = handle.run(sequences(&[14])).await.unwrap_err();
        assert!(failed.to_string().contains("fourteen"));
        assert!(handle.run(sequences(&[1])).await.is_ok());
    }

    #[tokio::test]
    async fn a_dropped_future_takes_its_sequences_out() {
        let handle = spawn(Box::new(Echo::new(1, Duration::from_millis(20))));
        let long = handle.run(sequences(&[1; 1000]));
        assert!(tokio::time::timeout(Duration::from_millis(50), long).await.is_err());
        let before = handle.steps();
        handle.run(sequences(&[2])).await.unwrap();
        assert!(handle.steps() - before < 100, "the 1000 sequences were still computed");
    }

    #[tokio::test]
    async fn many_jobs_share_the_engine() {
        let handle = spawn(Box::new(Echo::new(7, Duration::ZERO)));
        let jobs = (0..500_u32).map(|token| handle.run(sequences(&[token, token + 1])));
        let outputs = futures::future::join_all(jobs).await;
        assert!(outputs.iter().all(|output| output.as_ref().is_ok_and(|outputs| outputs.len() == 2)));
    }

    #[tokio::test]
    async fn the_thread_ends_with_its_last_handle() {
        let handle = moody();
        let stopped = handle.stopped();
        drop(handle);
        tokio::time::timeout(Duration::from_secs(5), stopped.cancelled()).await.unwrap();
    }
}
