//! The thread that owns an engine, and the handle that hands it jobs.
//!
//! Dropping the future of a job takes its sequences out before the next step.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use opentelemetry::trace::SpanContext;
use schemas::registry::Weights;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use traces::Traces;

use super::batches::Batches;
use super::driver::Driver;
use super::queue::Place;
use super::relay;
pub use super::relay::Linger;
use super::{Engine, Logprobs, Output, Sequence};

/// Hands jobs to the engine's thread. The thread ends when the last handle is dropped.
#[derive(Clone, Debug)]
pub struct EngineHandle {
    requests: mpsc::Sender<Request>,
    steps: Arc<Steps>,
    stopped: CancellationToken,
}

/// A job for the engine.
#[derive(Debug)]
pub struct Work {
    pub sequences: Vec<Sequence>,
    pub place: Place,
    /// Is told of tokens as they are made.
    pub followed: watch::Sender<Followed>,
    /// The job's span, where it is traced.
    pub trace: Option<SpanContext>,
}

/// How far a generation is.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Followed {
    /// Whether any of it has been in a step: a job that has not was not tried.
    pub has_begun: bool,
    /// Of each sequence that has generated any, what it has since the job was handed over.
    pub answers: Vec<Generated>,
    /// Tokens of all sequences since then.
    pub total: u64,
    /// How far it has come in its audio, if it has any.
    pub audio_seconds: Option<f64>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Generated {
    pub tokens: Vec<u32>,
    /// Of the tokens, where they are wanted.
    pub logprobs: Vec<Logprobs>,
}

/// What became of a job.
#[derive(Clone, Debug, PartialEq)]
pub struct Done {
    /// In the order of the sequences.
    pub outputs: Vec<Output>,
    /// Until its first sequence went into a step.
    pub waited: Duration,
    /// From there to the first token, or to the end where no tokens are made one by one.
    pub prefill: Duration,
    pub decode: Duration,
}

/// Why a job got no outputs.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EngineError {
    /// The step that held it failed; another try may succeed.
    #[error("the engine failed: {reason}")]
    Failed {
        reason: String,
        /// Whether nothing else was in that step.
        is_alone: bool,
    },
    /// There is no engine any more.
    #[error("the engine has stopped")]
    Stopped,
}

#[derive(Debug)]
pub(super) struct Request {
    pub sequences: Vec<Arc<Sequence>>,
    pub place: Place,
    pub followed: watch::Sender<Followed>,
    pub trace: Option<SpanContext>,
    /// Of a job that runs alone.
    pub gate: Option<Gate>,
    pub answer: oneshot::Sender<Result<Done, EngineError>>,
}

/// Where the engine waits for a job that runs alone: its run is noted before it begins, in case it kills the worker.
#[derive(Debug)]
pub(super) struct Gate {
    ready: oneshot::Sender<()>,
    open: oneshot::Receiver<()>,
}

impl Gate {
    /// Whether the job still wants to run.
    pub fn pass(self) -> bool {
        self.ready.send(()).is_ok() && self.open.blocking_recv().is_ok()
    }
}

/// What the engine's thread tells of its steps to whoever watches from outside.
#[derive(Debug)]
pub struct Steps {
    origin: Instant,
    /// When the step that is on began, in milliseconds from the origin; 0 between steps.
    entered: AtomicU64,
    done: AtomicU64,
    sequences: AtomicU64,
    /// The bits of the average size of a batch.
    batch_size: AtomicU64,
}

/// What the newest step counts in the average size of a batch.
const NEWEST: f64 = 0.05;

impl Steps {
    fn new() -> Self {
        let zero = || AtomicU64::new(0);
        Self { origin: Instant::now(), entered: zero(), done: zero(), sequences: zero(), batch_size: zero() }
    }

    pub(super) fn start(&self) {
        self.entered.store(self.now().max(1), Ordering::Relaxed);
    }

    pub(super) fn stop(&self) {
        self.entered.store(0, Ordering::Relaxed);
    }

    /// Counts a step that did not fail, and the sequences it has moved on. Only the engine's thread does.
    pub(super) fn count(&self, sequences: usize) {
        let size = sequences as f64;
        let average = self.batch_size().map_or(size, |before| before + NEWEST * (size - before));
        self.batch_size.store(average.to_bits(), Ordering::Relaxed);
        self.done.fetch_add(1, Ordering::Relaxed);
        self.sequences.fetch_add(sequences as u64, Ordering::Relaxed);
    }

    /// Sequences that a step moves on, on average of the last ones; none before the first.
    pub fn batch_size(&self) -> Option<f64> {
        (self.done.load(Ordering::Relaxed) > 0).then(|| f64::from_bits(self.batch_size.load(Ordering::Relaxed)))
    }

    fn now(&self) -> u64 {
        u64::try_from(self.origin.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

/// Starts the thread, and its relay on the runtime that this is called in.
pub fn spawn(engine: Box<dyn Engine + Send>, weights: Weights, linger: Linger, traces: Traces) -> EngineHandle {
    let (requests, ends) = relay::start(linger);
    let steps = Arc::new(Steps::new());
    let handle = EngineHandle { requests, steps: Arc::clone(&steps), stopped: CancellationToken::new() };
    let guard = handle.stopped.clone().drop_guard();
    let drive = move || Driver::new(engine, weights, steps, Batches::new(traces)).run(ends, guard);
    // Named for debuggers and `top -H`.
    let thread = std::thread::Builder::new().name("engine".to_owned()).spawn(drive);
    thread.expect("the process may start one more thread");
    handle
}

impl EngineHandle {
    /// Runs a job together with others.
    pub async fn run(&self, work: Work) -> Result<Done, EngineError> {
        self.hand_over(work, None).await
    }

    /// Runs a job with nothing else in the engine. `noted` is awaited when its turn has come, before it begins; if that
    /// gives no value the job is not run.
    pub async fn run_alone(&self, work: Work, noted: impl Future<Output = Option<()>>) -> Result<Done, EngineError> {
        let (ready, is_ready) = oneshot::channel();
        let (opener, open) = oneshot::channel();
        let let_through = async {
            let is_noted = is_ready.await.is_ok() && noted.await.is_some();
            match is_noted {
                // The driver may have gone meanwhile, which the job's own answer tells.
                true => drop(opener.send(())),
                false => drop(opener),
            }
            std::future::pending::<()>().await
        };
        tokio::select! {
            done = self.hand_over(work, Some(Gate { ready, open })) => done,
            () = let_through => unreachable!("waits for ever once it is done"),
        }
    }

    async fn hand_over(&self, work: Work, gate: Option<Gate>) -> Result<Done, EngineError> {
        let Work { sequences, place, followed, trace } = work;
        let sequences: Vec<_> = sequences.into_iter().map(Arc::new).collect();
        if sequences.is_empty() {
            let zero = Duration::ZERO;
            return Ok(Done { outputs: Vec::new(), waited: zero, prefill: zero, decode: zero });
        }
        let (answer, outputs) = oneshot::channel();
        let request = Request { sequences, place, followed, trace, gate, answer };
        let done = async {
            self.requests.send(request).await.map_err(|_| EngineError::Stopped)?;
            outputs.await.unwrap_or(Err(EngineError::Stopped))
        };
        tokio::select! {
            biased;
            done = done => done,
            // The thread may hang in its step: it takes and answers nothing then.
            () = self.stopped.cancelled() => Err(EngineError::Stopped),
        }
    }

    /// What is told of the steps, for somebody who has no say in when the thread ends.
    pub fn watch(&self) -> Arc<Steps> {
        Arc::clone(&self.steps)
    }

    /// Steps done so far.
    pub fn steps(&self) -> u64 {
        self.steps.done.load(Ordering::Relaxed)
    }

    /// Sequences that these have moved on: one that takes several steps counts in each.
    pub fn sequences(&self) -> u64 {
        self.steps.sequences.load(Ordering::Relaxed)
    }

    /// How long the step that is on has taken.
    pub fn stepping(&self) -> Option<Duration> {
        match self.steps.entered.load(Ordering::Relaxed) {
            0 => None,
            entered => Some(Duration::from_millis(self.steps.now().saturating_sub(entered))),
        }
    }

    /// Cancelled when the thread has ended, or is given up by whoever cancels it.
    pub fn stopped(&self) -> CancellationToken {
        self.stopped.clone()
    }
}

impl Followed {
    pub(super) fn push(&mut self, index: usize, token: u32, logprobs: Option<Logprobs>) {
        self.total += 1;
        if index >= self.answers.len() {
            self.answers.resize_with(index + 1, Generated::default);
        }
        let answer = &mut self.answers[index];
        answer.tokens.push(token);
        answer.logprobs.extend(logprobs);
    }
}

#[cfg(test)]
mod tests;
