//! The middle of a run, wherever its rows come from and its lines go: publish within a window, collect, to the last row.

use std::time::{Duration, Instant};

use async_nats::HeaderMap;
use backon::{ExponentialBuilder, Retryable};
use bytes::Bytes;
use connect::bucket::BucketError;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use schemas::codec::Encoding;
use schemas::header;
use schemas::result::{ErrorBody, ErrorObject, JobResult, NoResponse, NoResponseCode, Response};
use schemas::subject::{Address, JobId, Token};
use time::OffsetDateTime;
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio_util::sync::CancellationToken;

use super::arrivals::{self, Arrival, Arrivals};
use super::bits::Bits;
use super::input::{Row, Rules};
use super::output::{Outputs, row_of};
use super::rows::{QueuedRow, read_rows};
use super::source::Source;
use super::state::State;
use crate::cancel::Cancellation;
use crate::client::Client;
use crate::reach::Reach;
use crate::submission::{Submission, SubmitOptions};
use crate::submit::{SubmitError, Submitted};

/// How often the files are flushed and progress is told.
const TICK: Duration = Duration::from_millis(250);
/// Rows that are in flight for so long without any result are asked for one by one.
const SILENCE: Duration = Duration::from_secs(15);
/// Rows that are asked for at a time.
const LOOK_UP_AT_A_TIME: usize = 64;
/// How long a resumed run waits for one more stored result before it takes them all as read.
const CATCH_UP_SILENCE: Duration = Duration::from_secs(10);
/// How often the reader of results may be lost without having read anything in between.
const LOSSES_MAX: u32 = 10;
/// Between two tries to open it again, at most, and how many there are: a server may be away for about a minute.
const REOPEN_PAUSE_MAX: Duration = Duration::from_secs(5);
const REOPEN_TRIES: usize = 16;

/// How far a run is.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Progress {
    pub stage: Stage,
    pub rows: u64,
    /// Rows in the output and error file, those of earlier runs included.
    pub done: u64,
    pub failed: u64,
    /// Rows of earlier runs.
    pub resumed: u64,
    pub in_flight: u64,
    /// Seconds of audio that came in with this run.
    pub audio_seconds: f64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Stage {
    #[default]
    Checking,
    CatchingUp,
    Running,
}

/// What a run works on.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The rows, which were checked.
    pub input: Source,
    pub state: State,
    /// The lanes of rows that name no service tier.
    pub rules: Rules,
    /// Rows published and not answered, at most.
    pub window: usize,
    /// Of all rows.
    pub deadline: Option<OffsetDateTime>,
}

/// The state of a run in progress.
pub struct Run<O> {
    /// Rows are published on these in turn.
    clients: Vec<Client>,
    plan: Plan,
    tenant: Token,
    pub outputs: O,
    pub resumed: u64,
    submitted: Bits,
    in_flight: u64,
    /// How far the credentials go, which decides how results are read.
    reach: Reach,
    /// The sequence of the last result that was read.
    seen: u64,
}

impl<O: Outputs> Run<O> {
    /// Begins a run, or goes on with one: then what was answered meanwhile is read first.
    pub async fn begin(
        clients: Vec<Client>,
        mut plan: Plan,
        outputs: O,
        is_resumed: bool,
        progress: &watch::Sender<Progress>,
    ) -> anyhow::Result<(Self, Arrivals)> {
        let client = clients[0].clone();
        let (resumed, reach) = (outputs.done().count(), client.reach().await?);
        let last_result = last_result(&client, reach).await?;
        // A server whose data was made anew counts from 1 again.
        plan.state.results_after = plan.state.results_after.min(last_result);
        let (tenant, rows, seen) = (Token::encode(&plan.state.tenant)?, plan.state.rows, plan.state.results_after);
        let (mut results, pending) = arrivals::open(&client, &tenant, reach, seen).await?;
        let submitted = Bits::new(rows);
        let mut run = Self { clients, plan, tenant, outputs, resumed, submitted, in_flight: 0, reach, seen };
        run.tell(progress, Stage::CatchingUp);
        if is_resumed && run.outputs.done().count() < rows {
            match reach {
                Reach::All if pending > 0 => run.catch_up(&client, last_result, &mut results).await?,
                Reach::All => {}
                Reach::Own => run.look_up(&client, |_| true).await?,
            }
        }
        Ok((run, results))
    }

    /// Reads the results that were stored since the run began, so that no finished row is sent again.
    async fn catch_up(&mut self, client: &Client, last: u64, results: &mut Arrivals) -> anyhow::Result<()> {
        loop {
            // The last stored result may be another tenant's, which this reader never sees.
            let Ok(Some(arrival)) = tokio::time::timeout(CATCH_UP_SILENCE, results.next()).await else { return Ok(()) };
            let arrival = arrival?;
            self.take(client, &arrival).await?;
            if arrival.place.is_none_or(|(sequence, pending)| sequence >= last || pending == 0) {
                return Ok(());
            }
        }
    }

    /// Publishes what is not done and collects results until all rows are done. True if stopped before.
    pub async fn pump(
        &mut self,
        results: &mut Arrivals,
        progress: &watch::Sender<Progress>,
        stop: &CancellationToken,
    ) -> anyhow::Result<bool> {
        let client = self.clients[0].clone();
        let mut rows = read_rows(&self.plan.input)?;
        let mut all_read = false;
        let mut publishing = FuturesUnordered::new();
        let mut ticks = tokio::time::interval(TICK);
        let mut last_result = Instant::now();
        let mut losses = 0;
        while self.outputs.done().count() < self.plan.state.rows {
            let has_room = self.in_flight < self.plan.window as u64;
            tokio::select! {
                () = stop.cancelled() => return Ok(true),
                Some(arrival) = results.next() => match arrival {
                    Ok(arrival) => {
                        (last_result, losses) = (Instant::now(), 0);
                        self.take(&client, &arrival).await?;
                    }
                    Err(error) if losses == LOSSES_MAX => return Err(error),
                    Err(error) => {
                        losses += 1;
                        tracing::warn!(error = format!("{error:#}"), "the reader of results is lost, opening it again");
                        tokio::select! {
                            () = stop.cancelled() => return Ok(true),
                            opened = self.reopen(&client) => *results = opened?,
                        }
                    }
                },
                Some((row, published)) = publishing.next(), if !publishing.is_empty() => {
                    self.published(row, published).await?;
                }
                row = rows.recv(), if has_room && !all_read => match row {
                    Some(row) => {
                        let QueuedRow { row, room } = row?;
                        if !self.outputs.done().contains(row.number) && self.submitted.insert(row.number) {
                            self.in_flight += 1;
                            let turn = row.number % self.clients.len() as u64;
                            let client = self.clients[turn as usize].clone();
                            publishing.push(publish(client, self.submission(&row)?, row, room));
                        }
                    }
                    None => all_read = true,
                },
                _ = ticks.tick() => {
                    self.outputs.flush().await?;
                    self.tell(progress, Stage::Running);
                    let is_over = all_read && self.in_flight == 0 && self.outputs.done().count() < self.plan.state.rows;
                    anyhow::ensure!(!is_over, "{}: has fewer rows than when it was checked", self.plan.input.path().display());
                    if self.in_flight > 0 && last_result.elapsed() >= SILENCE {
                        last_result = Instant::now();
                        let submitted = self.submitted.clone();
                        self.look_up(&client, |row| submitted.contains(row)).await?;
                    }
                }
            }
        }
        self.tell(progress, Stage::Running);
        Ok(false)
    }

    /// A reader that goes on where the lost one was. A server that was killed has forgotten the consumer, and a while
    /// after it is back it may still say so.
    async fn reopen(&self, client: &Client) -> anyhow::Result<Arrivals> {
        tokio::time::sleep(TICK).await;
        let open = || arrivals::open(client, &self.tenant, self.reach, self.seen);
        let tries = ExponentialBuilder::default().with_max_delay(REOPEN_PAUSE_MAX).with_max_times(REOPEN_TRIES);
        Ok(open.retry(tries.with_jitter()).await?.0)
    }

    /// Asks for the results of rows one by one: the reader may have lost its place with the server's data, or have missed
    /// some that came live.
    async fn look_up(&mut self, client: &Client, is_wanted: impl Fn(u64) -> bool) -> anyhow::Result<()> {
        let tenant = self.tenant.clone();
        let wanted = (0..self.plan.state.rows).filter(|row| is_wanted(*row) && !self.outputs.done().contains(*row));
        let (wanted, batch_id) = (wanted.collect::<Vec<u64>>(), self.plan.state.batch_id.clone());
        let ask = async |row: u64| {
            let job_id = JobId::new(format!("{batch_id}-{row}")).ok()?;
            Some((row, client.stored(&tenant, &job_id).await.ok()??))
        };
        let mut found = futures::stream::iter(wanted).map(ask).buffer_unordered(LOOK_UP_AT_A_TIME);
        while let Some(found) = found.next().await {
            let Some((row, stored)) = found else { continue };
            self.answered(client, row, Some(&stored.headers), &stored.payload).await?;
        }
        Ok(())
    }

    /// Ends a run before its time: what is not done is cancelled, and has a line that says why.
    pub async fn close(&mut self, code: NoResponseCode, message: &str) -> anyhow::Result<()> {
        let (client, tenant) = (self.clients[0].clone(), self.tenant.clone());
        // Rows go out in their order, so that no earlier driver has sent one that lies further on.
        let sent_before = self.resumed + self.plan.window as u64;
        let mut rows = read_rows(&self.plan.input)?;
        let mut cancelling = FuturesUnordered::new();
        loop {
            let row = match rows.recv().await {
                Some(row) => Some(row?.row),
                None if cancelling.is_empty() => return self.outputs.flush().await,
                None => None,
            };
            if let Some(row) = row.filter(|row| !self.outputs.done().contains(row.number)) {
                if self.submitted.contains(row.number) || row.number < sent_before {
                    cancelling.push(cancel(client.clone(), tenant.clone(), self.job_id(row.number)?, row));
                } else {
                    self.give_up(&row, code, message).await?;
                }
            }
            while cancelling.len() >= LOOK_UP_AT_A_TIME || (rows.is_closed() && rows.is_empty()) {
                let Some((row, cancelled)) = cancelling.next().await else { break };
                let stored = match cancelled? {
                    Cancellation::Answered => client.stored(&tenant, &self.job_id(row.number)?).await?,
                    Cancellation::Cancelled | Cancellation::Unknown => None,
                };
                match stored {
                    Some(stored) => {
                        self.answered(&client, row.number, Some(&stored.headers), &stored.payload).await?;
                    }
                    None => self.give_up(&row, code, message).await?,
                }
            }
        }
    }

    async fn give_up(&mut self, row: &Row, code: NoResponseCode, message: &str) -> anyhow::Result<()> {
        let error = Some(NoResponse { code, message: message.to_owned() });
        let id = self.job_id(row.number)?.to_string();
        let result: JobResult = JobResult { id, custom_id: row.custom_id.clone(), response: None, error };
        self.finish(row.number, &Encoding::Json.encode(&result), false).await
    }

    fn job_id(&self, row: u64) -> anyhow::Result<JobId> {
        Ok(JobId::new(format!("{}-{row}", self.plan.state.batch_id))?)
    }

    /// Takes a result that may be one of ours.
    async fn take(&mut self, client: &Client, arrival: &Arrival) -> anyhow::Result<()> {
        if let Some((sequence, _)) = arrival.place {
            self.seen = sequence;
        }
        let Some(row) = row_of(&arrival.job_id, &self.plan.state.batch_id) else { return Ok(()) };
        self.answered(client, row, arrival.headers.as_ref(), &arrival.payload).await
    }

    /// Writes a row's result. One whose body is lost ends in the error file: no later run would find it either.
    async fn answered(
        &mut self,
        client: &Client,
        row: u64,
        headers: Option<&HeaderMap>,
        payload: &Bytes,
    ) -> anyhow::Result<()> {
        if self.outputs.done().contains(row) {
            return Ok(());
        }
        match client.payload(headers, payload).await {
            Ok(payload) => self.finish(row, &payload, is_success(headers)).await,
            Err(error @ (BucketError::Gone { .. } | BucketError::TooLarge { .. })) => {
                let lost = ErrorObject::server("result_lost", error.to_string());
                let custom_id = format!("{}-{row}", self.plan.state.batch_id);
                self.fail(row, custom_id, 500, lost).await
            }
            Err(error) => Err(error.into()),
        }
    }

    /// A row that could not be published ends in the error file; all others wait for their result.
    async fn published(&mut self, row: Row, published: Result<Submitted, SubmitError>) -> anyhow::Result<()> {
        let Err(error) = published else { return Ok(()) };
        let code = match error {
            SubmitError::UnknownModel { .. } => "model_not_found",
            SubmitError::TooLarge { .. } => "request_too_large",
            SubmitError::Address(_) | SubmitError::Failed(_) | SubmitError::Read(_) => "not_published",
        };
        let error = ErrorObject::invalid(code, None, error.to_string());
        self.fail(row.number, row.custom_id, 400, error).await
    }

    /// Writes an error of our own.
    async fn fail(&mut self, row: u64, custom_id: String, status_code: u16, error: ErrorObject) -> anyhow::Result<()> {
        let job_id = format!("{}-{row}", self.plan.state.batch_id);
        let response = Some(Response { status_code, request_id: job_id.clone(), body: ErrorBody { error } });
        let result = JobResult { id: job_id, custom_id, response, error: None };
        self.finish(row, &Encoding::Json.encode(&result), false).await
    }

    async fn finish(&mut self, row: u64, line: &[u8], is_success: bool) -> anyhow::Result<()> {
        if self.outputs.write(row, line, is_success).await? && self.submitted.contains(row) {
            self.in_flight -= 1;
        }
        Ok(())
    }

    fn submission(&self, row: &Row) -> anyhow::Result<Submission> {
        let address = Address {
            model: row.model.clone(),
            lane: self.plan.rules.lane(row),
            tenant: self.plan.state.tenant.clone(),
            job_id: self.job_id(row.number)?,
        };
        let (deadline, cost) = (self.plan.deadline, Some(row.cost));
        let options = SubmitOptions { deadline, cost, is_id_random: true, ..Default::default() };
        Ok(Submission { address, encoding: Encoding::Json, payload: row.payload.clone(), options })
    }

    pub fn tell(&self, progress: &watch::Sender<Progress>, stage: Stage) {
        progress.send_replace(Progress {
            stage,
            rows: self.plan.state.rows,
            done: self.outputs.done().count(),
            failed: self.outputs.failed(),
            resumed: self.resumed,
            in_flight: self.in_flight,
            audio_seconds: self.outputs.audio_seconds(),
        });
    }
}

/// Publishes one row for as long as it takes: a full stream or an absent server is waited for.
async fn publish(
    client: Client,
    submission: Submission,
    row: Row,
    _room: OwnedSemaphorePermit,
) -> (Row, Result<Submitted, SubmitError>) {
    loop {
        match client.submit(&submission).await {
            Err(error) if error.is_transient() => {
                tracing::warn!(%error, row = row.number, "row not published yet, trying again");
            }
            result => return (row, result),
        }
    }
}

async fn cancel(client: Client, tenant: Token, job_id: JobId, row: Row) -> (Row, anyhow::Result<Cancellation>) {
    let cancelled = client.cancel(&tenant, &job_id).await;
    (row, cancelled)
}

/// The sequence of the last result, where that can be known.
pub async fn last_result(client: &Client, reach: Reach) -> anyhow::Result<u64> {
    match reach {
        Reach::All => arrivals::last(client).await,
        Reach::Own => Ok(0),
    }
}

/// Whether a stored result belongs in the output file.
fn is_success(headers: Option<&HeaderMap>) -> bool {
    let status = headers.and_then(|headers| headers.get(header::STATUS)).map(|value| value.as_str());
    status.is_some_and(|status| status.starts_with('2'))
}
