//! The driver of an engine, on the engine's thread: it decides which sequences go in, moves the engine a step, and
//! hands out what was made.
//!
//! When a step fails, by an error or a panic, what was inside is divided in halves that run apart, and again, until one
//! job is left that fails alone. So a bad job costs its neighbours time and nothing else. A job that is suspected may be
//! run alone from the start.

use std::collections::{BTreeMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use opentelemetry::trace::SpanContext;
use schemas::registry::Weights;
use tokio::sync::mpsc::error::TryRecvError;
use tokio_util::sync::DropGuard;

use super::batches::Batches;
use super::queue::Queue;
use super::relay::{Answered, Ends};
use super::thread::{Done, EngineError, Request, Steps};
use super::{Engine, Made, Output, Sequence, SequenceId};

/// A job that was handed over and is not answered.
struct Job {
    request: Request,
    outputs: Vec<Option<Output>>,
    missing: usize,
    /// Sequences that went into the engine.
    admitted: usize,
    received: Instant,
    started: Option<Instant>,
    first_token: Option<Instant>,
}

/// Jobs that run by themselves, away from all others.
struct Trial {
    jobs: Vec<u64>,
    has_begun: bool,
}

pub(super) struct Driver {
    engine: Box<dyn Engine + Send>,
    /// By the id of their first sequence; the others have the ids that follow.
    jobs: BTreeMap<u64, Job>,
    queue: Queue,
    trials: VecDeque<Trial>,
    /// Jobs that are done, handed out together after the step.
    answered: Vec<Answered>,
    next: u64,
    steps: Arc<Steps>,
    batches: Batches,
}

impl Driver {
    pub(super) fn new(engine: Box<dyn Engine + Send>, weights: Weights, steps: Arc<Steps>, batches: Batches) -> Self {
        let queue = Queue::new(weights);
        let (jobs, trials, answered) = (BTreeMap::new(), VecDeque::new(), Vec::new());
        Self { engine, jobs, queue, trials, answered, next: 0, steps, batches }
    }

    /// Runs until nobody can hand over jobs any more.
    pub(super) fn run(mut self, mut ends: Ends, _stopped: DropGuard) {
        loop {
            if self.jobs.is_empty() {
                self.batches.close();
                match ends.requests.blocking_recv() {
                    Some(group) => group.into_iter().for_each(|request| self.take_in(request)),
                    None => return,
                }
            }
            loop {
                match ends.requests.try_recv() {
                    Ok(group) => group.into_iter().for_each(|request| self.take_in(request)),
                    Err(TryRecvError::Empty) => break,
                    // Nobody waits for an answer when all handles are gone.
                    Err(TryRecvError::Disconnected) => return,
                }
            }
            self.drop_cancelled();
            self.admit();
            let goes_on = match self.step() {
                Ok(()) => true,
                Err(reason) => self.divide(&reason),
            };
            if !self.answered.is_empty() {
                // Where the runtime has ended, nobody waits for answers.
                let _ = ends.answers.blocking_send(std::mem::take(&mut self.answered));
            }
            if !goes_on {
                return;
            }
        }
    }

    fn take_in(&mut self, request: Request) {
        let first = self.next;
        let count = request.sequences.len();
        self.next += count as u64;
        match request.gate {
            Some(_) => self.trials.push_back(Trial { jobs: vec![first], has_begun: false }),
            None => self.queue.push(&request.place, first),
        }
        let outputs = std::iter::repeat_with(|| None).take(count).collect();
        let job = Job {
            request,
            outputs,
            missing: count,
            admitted: 0,
            received: Instant::now(),
            started: None,
            first_token: None,
        };
        self.jobs.insert(first, job);
    }

    /// Takes out the sequences of jobs that nobody waits for any more.
    fn drop_cancelled(&mut self) {
        let is_cancelled = |job: &Job| job.request.answer.is_closed();
        let cancelled: Vec<u64> =
            self.jobs.iter().filter(|(_, job)| is_cancelled(job)).map(|(first, _)| *first).collect();
        for first in cancelled {
            if let Some(job) = self.jobs.remove(&first) {
                self.queue.remove(&job.request.place, first);
                (first..).take(job.admitted).for_each(|id| self.engine.remove(SequenceId(id)));
            }
        }
    }

    /// Fills the next step, from the trial that is on or else from the queue.
    fn admit(&mut self) {
        while let Some(trial) = self.trials.front_mut() {
            trial.jobs.retain(|first| self.jobs.contains_key(first));
            if trial.jobs.is_empty() {
                self.trials.pop_front();
                continue;
            }
            if !trial.has_begun && self.engine.is_idle() {
                trial.has_begun = true;
                let jobs = trial.jobs.clone();
                jobs.into_iter().for_each(|first| self.begin(first));
            }
            return;
        }
        while let Some((place, first)) = self.queue.front() {
            let (cost, done) = self.add(first, |engine, sequence| engine.takes(sequence));
            self.queue.charge(&place, cost, done);
            if !done {
                return;
            }
        }
    }

    /// Puts the whole of a job into the engine, once it is let through its gate.
    fn begin(&mut self, first: u64) {
        let Some(job) = self.jobs.get_mut(&first) else { return };
        if let Some(gate) = job.request.gate.take()
            && !gate.pass()
        {
            self.jobs.remove(&first);
            return;
        }
        self.add(first, |_, _| true);
    }

    /// Puts as many of a job's sequences into the engine as it takes: what they cost, and whether they were the last.
    fn add(&mut self, first: u64, takes: impl Fn(&dyn Engine, &Sequence) -> bool) -> (u64, bool) {
        let Some(job) = self.jobs.get_mut(&first) else { return (0, true) };
        let mut cost = 0;
        for (index, sequence) in job.request.sequences.iter().enumerate().skip(job.admitted) {
            if !takes(&*self.engine, sequence) {
                break;
            }
            job.admitted += 1;
            if job.outputs[index].is_none() {
                cost += sequence.cost();
                self.engine.add(SequenceId(first + index as u64), Arc::clone(sequence));
            }
        }
        if job.admitted > 0 && job.started.is_none() {
            job.started = Some(Instant::now());
            job.request.followed.send_modify(|followed| followed.has_begun = true);
        }
        (cost, job.admitted == job.request.sequences.len())
    }

    fn step(&mut self) -> Result<(), String> {
        let (traced, began) = (self.traced(), SystemTime::now());
        self.steps.start();
        let stepped = catch_unwind(AssertUnwindSafe(|| {
            self.engine.step().map_err(|error| error.to_string())?;
            Ok((self.engine.made(), self.engine.heard(), self.engine.finished()))
        }));
        self.steps.stop();
        let (made, heard, finished) =
            stepped.unwrap_or_else(|payload| Err(format!("panic: {}", panic_message(&*payload))))?;
        // A sequence makes a token or is finished, or both.
        let moved_on = made.len().max(finished.len());
        self.steps.count(moved_on);
        if let Some(traced) = traced {
            self.batches.note(traced, began, moved_on);
        }
        self.tell(made);
        for (id, seconds) in heard {
            if let Some((_, job)) = owner(&mut self.jobs, id) {
                job.request.followed.send_modify(|followed| followed.audio_seconds = Some(seconds));
            }
        }
        finished.into_iter().for_each(|(id, output)| self.deliver(id, output));
        Ok(())
    }

    /// Those of the jobs inside that are traced, where any may be.
    fn traced(&self) -> Option<Vec<SpanContext>> {
        let inside = || self.jobs.values().filter(|job| job.admitted > 0);
        self.batches.is_on().then(|| inside().filter_map(|job| job.request.trace.clone()).collect())
    }

    /// Notes tokens with their jobs and tells those who follow them.
    fn tell(&mut self, made: Vec<Made>) {
        let now = Instant::now();
        for Made { id, token, logprobs } in made {
            let Some((first, job)) = owner(&mut self.jobs, id) else { continue };
            job.first_token.get_or_insert(now);
            let index = usize::try_from(id.0 - first).expect("a job's sequences fit in memory");
            // The engine has let go of it, or copies it once.
            Arc::make_mut(&mut job.request.sequences[index]).made.push(token);
            job.request.followed.send_modify(|followed| followed.push(index, token, logprobs));
        }
    }

    fn deliver(&mut self, id: SequenceId, output: Output) {
        let Some((first, job)) = owner(&mut self.jobs, id) else { return };
        job.outputs[usize::try_from(id.0 - first).expect("a job's sequences fit in memory")] = Some(output);
        job.missing -= 1;
        if job.missing == 0
            && let Some(job) = self.jobs.remove(&first)
        {
            let (received, started, ended) = (job.received, job.started, Instant::now());
            let started = started.unwrap_or(received);
            let first_token = job.first_token.unwrap_or(ended);
            let done = Done {
                outputs: job.outputs.into_iter().flatten().collect(),
                waited: started - received,
                prefill: first_token - started,
                decode: ended - first_token,
            };
            self.answered.push(Answered { to: job.request.answer, result: Ok(done) });
        }
    }

    /// Empties the engine after a failed step. What was inside runs again in halves, or fails if it was one job. False if
    /// the engine cannot even be emptied.
    fn divide(&mut self, reason: &str) -> bool {
        let inside: Vec<u64> = self.jobs.iter().filter(|(_, job)| job.admitted > 0).map(|(first, _)| *first).collect();
        tracing::error!(reason, jobs = inside.len(), "engine step failed");
        let emptied = catch_unwind(AssertUnwindSafe(|| {
            for (first, job) in inside.iter().filter_map(|first| Some((*first, self.jobs.get(first)?))) {
                (first..).take(job.admitted).for_each(|id| self.engine.remove(SequenceId(id)));
            }
            self.engine.made();
            self.engine.heard();
            self.engine.finished();
        }));
        for first in &inside {
            if let Some(job) = self.jobs.get_mut(first) {
                job.admitted = 0;
                self.queue.remove(&job.request.place, *first);
            }
        }
        self.trials.pop_front_if(|trial| trial.has_begun);
        if emptied.is_err() || inside.len() == 1 {
            let is_alone = inside.len() == 1;
            for job in inside.iter().filter_map(|first| self.jobs.remove(first)) {
                let failure = EngineError::Failed { reason: reason.to_owned(), is_alone };
                self.answered.push(Answered { to: job.request.answer, result: Err(failure) });
            }
            return emptied.is_ok();
        }
        let (left, right) = inside.split_at(inside.len() / 2);
        for half in [right, left] {
            self.trials.push_front(Trial { jobs: half.to_vec(), has_begun: false });
        }
        true
    }
}

/// The job that a sequence belongs to, with the id of its first sequence.
fn owner(jobs: &mut BTreeMap<u64, Job>, id: SequenceId) -> Option<(u64, &mut Job)> {
    let (first, job) = jobs.range_mut(..=id.0).next_back()?;
    (id.0 - first < job.outputs.len() as u64).then_some((*first, job))
}

fn panic_message(payload: &(dyn std::any::Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| payload.downcast_ref::<String>().cloned()).unwrap_or_else(|| "unknown".to_owned())
}
