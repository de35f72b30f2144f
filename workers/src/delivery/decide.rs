//! Deciding what becomes of a job: cheap refusals first, the engine last. Nothing is stored or acknowledged here.

use std::sync::Arc;

use schemas::codec::Encoding;
use schemas::header;
use schemas::job::Job;
use schemas::log::LogEvent;
use schemas::provenance::CacheUse;
use schemas::result::ErrorObject;
use time::OffsetDateTime;

use super::Delivery;
use crate::apart::apart;
use crate::attempts::{self, Next};
use crate::bodies::BodyError;
use crate::cache::Found;
use crate::chunks::Of;
use crate::endpoint::{self, Known, Plan, Reject, Stamp};
use crate::engine::queue::Place;
use crate::engine::thread::{Done, EngineError, Work};
use crate::engine::{Goal, Output, Sequence};
use crate::outcome::Outcome;
use crate::provenance::Made;

/// Bodies above this are prepared apart from the runtime, as are all that are to be tokenized: that can take milliseconds.
const INLINE_BYTES_MAX: usize = 8 << 10;

/// Why there is nothing to run.
enum Refusal {
    Rejected(Reject),
    Failed(String),
}

impl Delivery {
    /// What becomes of the job.
    pub(super) async fn decide(&self) -> Outcome {
        let is_redelivered = self.received.delivered > 1;
        // Where it cannot be seen whether there is a result, storing one will tell.
        if is_redelivered && let Some(outcome) = Box::pin(self.find_stored(None)).await {
            return outcome;
        }
        let limit = self.station.model.limits.attempts;
        let (max, wrong) = match self.received.attempts_max(limit) {
            Ok(max) => (max, None),
            Err(reject) => (limit, Some(reject)),
        };
        let mark = if is_redelivered { Box::pin(self.station.ledger.read(&self.received)).await } else { None };
        let next = attempts::next(self.received.delivered, mark, max);
        let (Next::Run { attempts, .. } | Next::GiveUp { attempts, .. }) = next;
        self.attempts.get_or_init(|| attempts);
        self.log_start();
        let alone = match next {
            Next::Run { alone, .. } => alone,
            Next::GiveUp { class, .. } => {
                return Outcome::Exhausted { reason: "no attempt answered it".to_owned(), class };
            }
        };
        if let Some(reject) = wrong.or_else(|| self.check().err()) {
            return Outcome::Rejected(reject);
        }
        match self.prepare().await {
            Ok(plan) => self.answer(plan, alone).await,
            Err(Refusal::Rejected(reject)) => Outcome::Rejected(reject),
            Err(Refusal::Failed(reason)) => Outcome::failed(reason, false, attempts),
        }
    }

    fn log_start(&self) {
        if self.received.delivered == 1 {
            let lane = self.received.lane().to_string();
            self.log.record(self.received.published, self.attempts().current, LogEvent::Queued { lane });
        }
        self.record(LogEvent::Started { queue_seconds: self.queued.as_secs_f64() });
    }

    /// Refuses what subject and headers say wrongly.
    fn check(&self) -> Result<(), Reject> {
        self.received.check_subject()?;
        self.received.deadline()?;
        self.received.may_cache()?;
        self.received.streams()?;
        Ok(())
    }

    /// Reads the job and turns it into sequences.
    async fn prepare(&self) -> Result<Plan, Refusal> {
        let encoding = self.received.encoding().map_err(|error| {
            let param = header::CONTENT_TYPE.to_owned();
            let error = ErrorObject::invalid("unsupported_content_type", param, error.to_string());
            Refusal::Rejected(Reject { status: 415, error })
        })?;
        let payload = match self.received.header(header::BODY) {
            None => Ok(self.received.message.payload.clone()),
            Some(name) => Box::pin(self.station.bodies.input(name, &self.received, &self.station.model.limits)).await,
        };
        let payload = payload.map_err(|error| match error {
            BodyError::Rejected(reject) => Refusal::Rejected(reject),
            BodyError::Failed(reason) => Refusal::Failed(reason),
        })?;
        let payload = self.payload.get_or_init(|| payload).clone();
        let station = Arc::clone(&self.station);
        let (job_id, published) = (self.job_id.clone(), self.received.published);
        let is_quick = payload.len() <= INLINE_BYTES_MAX && station.text.is_tokens();
        let prepare = move || {
            let mut job = read(&payload, encoding)?;
            let plan = endpoint::prepare(&job, Known { job_id: &job_id, published }, &station.model, &station.text);
            Ok((job.custom_id.take(), plan))
        };
        let prepared = match is_quick {
            true => prepare(),
            false => apart(prepare).await,
        };
        let (custom_id, plan) = prepared.map_err(Refusal::Rejected)?;
        self.custom_id.get_or_init(|| custom_id);
        plan.map_err(Refusal::Rejected)
    }

    /// Runs the engine and makes the answer of what it gives.
    async fn answer(&self, mut plan: Plan, alone: bool) -> Outcome {
        let streams = plan.streams || self.received.streams() == Ok(true);
        let created = match streams {
            // All chunks say the same, whichever worker makes them.
            true => self.received.published,
            false => OffsetDateTime::now_utc(),
        };
        let stamp = Stamp {
            model: &self.station.model.name,
            job_id: &self.job_id,
            created: created.unix_timestamp(),
            prompt_tokens: plan.prompt_tokens(),
            text: &self.station.text,
        };
        let sequences = std::mem::take(&mut plan.sequences);
        let outputs = match streams {
            true => Box::pin(self.stream(sequences, &plan, alone, stamp)).await,
            false => self.compute(sequences, &plan, alone).await,
        };
        match outputs {
            Ok(outputs) => {
                self.station.metrics.audio_seconds.inc_by(outputs.iter().map(Output::audio_seconds).sum());
                let (body, usage) = plan.answer.body(outputs, stamp);
                Outcome::Completed { body: Box::new(body), usage }
            }
            // It was waiting when the engine was given up: nothing was tried.
            Err(EngineError::Stopped) if !self.followed.borrow().has_begun => Outcome::Abandoned,
            Err(error) => {
                let suspect = match error {
                    EngineError::Failed { is_alone, .. } => is_alone,
                    EngineError::Stopped => alone,
                };
                Outcome::failed(error.to_string(), suspect, self.attempts())
            }
        }
    }

    /// The outputs, from the cache where they are there, or else from the engine.
    async fn compute(&self, sequences: Vec<Sequence>, plan: &Plan, alone: bool) -> Result<Vec<Output>, EngineError> {
        let cache = &self.station.cache;
        let may_cache = plan.is_repeatable && !alone && sequences.iter().all(|sequence| sequence.made.is_empty());
        if !may_cache || !cache.is_enabled() || self.received.may_cache() != Ok(true) {
            return Ok(self.compute_anew(sequences, plan, alone, None).await?.outputs);
        }
        match Box::pin(cache.find(cache.key(self.received.tokens().tenant, &sequences))).await {
            Found::Done(outputs, used) => {
                self.station.metrics.count_cache(used);
                self.made.get_or_init(|| Made { seed: plan.seed, cache: Some(used), ..Made::default() });
                Ok(outputs)
            }
            Found::ToDo(turn) => {
                self.station.metrics.count_cache(CacheUse::Miss);
                let done = self.compute_anew(sequences, plan, alone, Some(CacheUse::Miss)).await?;
                turn.done(&done.outputs, done.prefill + done.decode).await;
                Ok(done.outputs)
            }
        }
    }

    async fn compute_anew(
        &self,
        sequences: Vec<Sequence>,
        plan: &Plan,
        alone: bool,
        cache: Option<CacheUse>,
    ) -> Result<Done, EngineError> {
        let done = self.run_engine(sequences, alone).await?;
        self.station.metrics.prefill_seconds.observe(done.prefill.as_secs_f64());
        if !done.decode.is_zero() {
            self.station.metrics.decode_seconds.observe(done.decode.as_secs_f64());
        }
        if let Some(trace) = &self.trace {
            trace.tell_engine(&done);
        }
        let run = Some((done.prefill, done.decode));
        self.made.get_or_init(|| Made { seed: plan.seed, cache, run, ..Made::default() });
        Ok(done)
    }

    /// The same, with tokens published as they are made. What another delivery has published is gone on with.
    async fn stream(
        &self,
        mut sequences: Vec<Sequence>,
        plan: &Plan,
        alone: bool,
        stamp: Stamp<'_>,
    ) -> Result<Vec<Output>, EngineError> {
        let Some(Goal::Generate(params)) = sequences.first().map(|first| &first.goal) else {
            return self.compute(sequences, plan, alone).await;
        };
        let (subject, params) = (self.received.tokens().token_subject(), params.clone());
        let of = Of { subject: &subject, answer: &plan.answer, stamp, params: &params, count: sequences.len() };
        let mut telling = self.station.chunks.tell(of, self.received.delivered > 1).await;
        for (sequence, before) in sequences.iter_mut().zip(telling.before()) {
            sequence.made.clone_from(before);
        }
        let outputs = tokio::select! {
            biased;
            outputs = self.compute(sequences, plan, alone) => outputs?,
            () = telling.follow(self.followed.subscribe()) => unreachable!("follows for ever"),
        };
        let followed = self.followed.borrow().clone();
        telling.end(&followed, &outputs).await;
        Ok(outputs)
    }

    /// Hands the sequences to the engine, once the attempt is noted where it has to be.
    async fn run_engine(&self, sequences: Vec<Sequence>, alone: bool) -> Result<Done, EngineError> {
        let place = Place { lane: self.received.lane(), tenant: self.received.tokens().tenant.into() };
        let trace = self.trace.as_ref().and_then(|trace| trace.span_context());
        let work = Work { sequences, place, followed: self.followed.clone(), trace };
        let (engine, ledger) = (&self.station.engine, &self.station.ledger);
        let current = self.attempts().current;
        match (self.received.delivered, alone) {
            (1, _) => engine.run(work).await,
            (_, false) => {
                Box::pin(ledger.write(&self.received, current, false)).await;
                engine.run(work).await
            }
            (_, true) => {
                let noted = async { ledger.write(&self.received, current, true).await.then_some(()) };
                Box::pin(engine.run_alone(work, noted)).await
            }
        }
    }
}

/// The job of a payload.
fn read(payload: &[u8], encoding: Encoding) -> Result<Job, Reject> {
    encoding.decode(payload).map_err(|error| {
        let param = Some(error.path.clone()).filter(|path| !path.is_empty() && !error.is_syntax);
        let code = if error.is_syntax { "invalid_body" } else { "invalid_value" };
        Reject::invalid(code, param, format!("the job cannot be read: {error}"))
    })
}
