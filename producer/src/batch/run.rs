//! One run of a batch file: check, take up, publish within a window, collect, finish.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use async_nats::HeaderMap;
use backon::{ExponentialBuilder, Retryable};
use bytes::Bytes;
use connect::bucket::{BODY_BYTES_MAX, BucketError};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use schemas::codec::Encoding;
use schemas::header;
use schemas::result::{ErrorBody, ErrorObject, JobResult, Response};
use schemas::subject::{Address, JobId, Lane, Token};
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio_util::sync::CancellationToken;
use traces::Traces;
use uuid::Uuid;

use super::arrivals::{self, Arrival, Arrivals};
use super::bits::Bits;
use super::input::{self, Checked, Row, Rules};
use super::output::{Outputs, errors_path, row_of};
use super::rows::{QueuedRow, read_rows};
use super::state::{self, State};
use crate::client::Client;
use crate::pool::Pool;
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

#[derive(Clone, Debug)]
pub struct Options {
    pub input: PathBuf,
    pub output: PathBuf,
    /// Where failed rows go; beside the output by default.
    pub errors: Option<PathBuf>,
    pub tenant: String,
    /// For rows that name no service tier.
    pub lane: Lane,
    /// Rows published and not answered, at most.
    pub window: usize,
    /// Forget an earlier run.
    pub restart: bool,
    pub traces: Traces,
}

/// How far a run is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    pub stage: Stage,
    pub rows: u64,
    /// Rows in the output and error file, those of earlier runs included.
    pub done: u64,
    pub failed: u64,
    /// Rows of earlier runs.
    pub resumed: u64,
    pub in_flight: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Stage {
    #[default]
    Checking,
    CatchingUp,
    Running,
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Summary {
    pub rows: u64,
    pub failed: u64,
    pub resumed: u64,
    /// Whether it was stopped before the end.
    pub stopped: bool,
}

/// Runs a batch file to its end, or until `stop`. It can be run again in either case.
pub async fn run(
    pool: &Pool,
    options: &Options,
    progress: &watch::Sender<Progress>,
    stop: &CancellationToken,
) -> anyhow::Result<Summary> {
    // Held for the whole run: a connection carries many publishes at a time, and one that is given back at once would be
    // lent again before a second is made.
    let connections = futures::future::try_join_all((0..pool.status().max_size).map(|_| pool.get())).await?;
    let clients: Vec<Client> = connections
        .iter()
        .map(|connection| Client::new((**connection).clone()).with_traces(options.traces.clone()))
        .collect();
    let client = clients[0].clone();
    let errors = options.errors.clone().unwrap_or_else(|| errors_path(&options.output));
    refuse_same_file([&options.input, &options.output, &errors, &state::path_of(&options.output)])?;
    let checked = check(&client, options).await?;
    if options.restart {
        for path in [&options.output, &errors, &state::path_of(&options.output)] {
            remove(path)?;
        }
    }
    let (mut state, is_resumed) = match state::load(&options.output, &checked)? {
        Some(state) if state.tenant != options.tenant => {
            anyhow::bail!(
                "this run belongs to tenant {:?}; give --tenant {:?}, or --restart",
                state.tenant,
                state.tenant
            )
        }
        Some(state) => (state, true),
        None => (begin(&client, options, &checked).await?, false),
    };
    let outputs = Outputs::open(&options.output, &errors, &state.batch_id, state.rows)?;
    let resumed = outputs.done.count();
    let reach = client.reach().await?;
    let last_result = last_result(&client, reach).await?;
    // A server whose data was made anew counts from 1 again.
    state.results_after = state.results_after.min(last_result);
    let tenant = Token::encode(&state.tenant)?;
    let (mut results, pending) = arrivals::open(&client, &tenant, reach, state.results_after).await?;
    let submitted = Bits::new(state.rows);
    let seen = state.results_after;
    let mut run = Run { clients, options, state, outputs, resumed, submitted, in_flight: 0, reach, seen };
    run.tell(progress, Stage::CatchingUp);
    if is_resumed && run.outputs.done.count() < run.state.rows {
        match reach {
            Reach::All if pending > 0 => run.catch_up(&client, last_result, &mut results).await?,
            Reach::All => {}
            Reach::Own => run.look_up(&client, |_| true).await?,
        }
    }
    let stopped = run.pump(&client, &mut results, progress, stop).await?;
    let summary = Summary { rows: run.state.rows, failed: run.outputs.failed, resumed, stopped };
    run.outputs.finish()?;
    Ok(summary)
}

/// The state of a run in progress.
struct Run<'a> {
    /// Rows are published on these in turn.
    clients: Vec<Client>,
    options: &'a Options,
    state: State,
    outputs: Outputs,
    resumed: u64,
    submitted: Bits,
    in_flight: u64,
    /// How far the credentials go, which decides how results are read.
    reach: Reach,
    /// The sequence of the last result that was read.
    seen: u64,
}

impl Run<'_> {
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
    async fn pump(
        &mut self,
        client: &Client,
        results: &mut Arrivals,
        progress: &watch::Sender<Progress>,
        stop: &CancellationToken,
    ) -> anyhow::Result<bool> {
        let mut rows = read_rows(&self.options.input)?;
        let mut all_read = false;
        let mut publishing = FuturesUnordered::new();
        let mut ticks = tokio::time::interval(TICK);
        let mut last_result = Instant::now();
        let mut losses = 0;
        while self.outputs.done.count() < self.state.rows {
            let has_room = self.in_flight < self.options.window as u64;
            tokio::select! {
                () = stop.cancelled() => return Ok(true),
                Some(arrival) = results.next() => match arrival {
                    Ok(arrival) => {
                        (last_result, losses) = (Instant::now(), 0);
                        self.take(client, &arrival).await?;
                    }
                    Err(error) if losses == LOSSES_MAX => return Err(error),
                    Err(error) => {
                        losses += 1;
                        tracing::warn!(error = format!("{error:#}"), "the reader of results is lost, opening it again");
                        tokio::select! {
                            () = stop.cancelled() => return Ok(true),
                            opened = self.reopen(client) => *results = opened?,
                        }
                    }
                },
                Some((row, published)) = publishing.next(), if !publishing.is_empty() => self.published(row, published)?,
                row = rows.recv(), if has_room && !all_read => match row {
                    Some(row) => {
                        let QueuedRow { row, room } = row?;
                        if !self.outputs.done.contains(row.number) && self.submitted.insert(row.number) {
                            self.in_flight += 1;
                            let turn = row.number % self.clients.len() as u64;
                            let client = self.clients[turn as usize].clone();
                            publishing.push(publish(client, self.submission(&row)?, row, room));
                        }
                    }
                    None => all_read = true,
                },
                _ = ticks.tick() => {
                    self.outputs.flush()?;
                    self.tell(progress, Stage::Running);
                    let is_over = all_read && self.in_flight == 0 && self.outputs.done.count() < self.state.rows;
                    anyhow::ensure!(!is_over, "{}: has fewer rows than when it was checked", self.options.input.display());
                    if self.in_flight > 0 && last_result.elapsed() >= SILENCE {
                        last_result = Instant::now();
                        let submitted = self.submitted.clone();
                        self.look_up(client, |row| submitted.contains(row)).await?;
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
        let tenant = Token::encode(&self.state.tenant)?;
        let open = || arrivals::open(client, &tenant, self.reach, self.seen);
        let tries = ExponentialBuilder::default().with_max_delay(REOPEN_PAUSE_MAX).with_max_times(REOPEN_TRIES);
        Ok(open.retry(tries.with_jitter()).await?.0)
    }

    /// Asks for the results of rows one by one: the reader may have lost its place with the server's data, or have missed
    /// some that came live.
    async fn look_up(&mut self, client: &Client, is_wanted: impl Fn(u64) -> bool) -> anyhow::Result<()> {
        let tenant = Token::encode(&self.state.tenant)?;
        let wanted = (0..self.state.rows).filter(|row| is_wanted(*row) && !self.outputs.done.contains(*row));
        let (wanted, batch_id) = (wanted.collect::<Vec<u64>>(), self.state.batch_id.clone());
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

    /// Takes a result that may be one of ours.
    async fn take(&mut self, client: &Client, arrival: &Arrival) -> anyhow::Result<()> {
        if let Some((sequence, _)) = arrival.place {
            self.seen = sequence;
        }
        let Some(row) = row_of(&arrival.job_id, &self.state.batch_id) else { return Ok(()) };
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
        if self.outputs.done.contains(row) {
            return Ok(());
        }
        match client.payload(headers, payload).await {
            Ok(payload) => self.finish(row, &payload, is_success(headers)),
            Err(error @ (BucketError::Gone { .. } | BucketError::TooLarge { .. })) => {
                let lost = ErrorObject::server("result_lost", error.to_string());
                let custom_id = format!("{}-{row}", self.state.batch_id);
                self.fail(row, custom_id, 500, lost)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// A row that could not be published ends in the error file; all others wait for their result.
    fn published(&mut self, row: Row, published: Result<Submitted, SubmitError>) -> anyhow::Result<()> {
        let Err(error) = published else { return Ok(()) };
        let code = match error {
            SubmitError::UnknownModel { .. } => "model_not_found",
            SubmitError::TooLarge { .. } => "request_too_large",
            SubmitError::Address(_) | SubmitError::Failed(_) | SubmitError::Read(_) => "not_published",
        };
        self.fail(row.number, row.custom_id, 400, ErrorObject::invalid(code, None, error.to_string()))
    }

    /// Writes an error of our own.
    fn fail(&mut self, row: u64, custom_id: String, status_code: u16, error: ErrorObject) -> anyhow::Result<()> {
        let job_id = format!("{}-{row}", self.state.batch_id);
        let response = Some(Response { status_code, request_id: job_id.clone(), body: ErrorBody { error } });
        let result = JobResult { id: job_id, custom_id, response, error: None };
        self.finish(row, &Encoding::Json.encode(&result), false)
    }

    fn finish(&mut self, row: u64, line: &[u8], is_success: bool) -> anyhow::Result<()> {
        if self.outputs.write(row, line, is_success)? && self.submitted.contains(row) {
            self.in_flight -= 1;
        }
        Ok(())
    }

    fn submission(&self, row: &Row) -> anyhow::Result<Submission> {
        let address = Address {
            model: row.model.clone(),
            lane: row.lane.unwrap_or(self.options.lane),
            tenant: self.state.tenant.clone(),
            job_id: JobId::new(format!("{}-{}", self.state.batch_id, row.number))?,
        };
        let options = SubmitOptions { cost: Some(row.cost), is_id_random: true, ..Default::default() };
        Ok(Submission { address, encoding: Encoding::Json, payload: row.payload.clone(), options })
    }

    fn tell(&self, progress: &watch::Sender<Progress>, stage: Stage) {
        progress.send_replace(Progress {
            stage,
            rows: self.state.rows,
            done: self.outputs.done.count(),
            failed: self.outputs.failed,
            resumed: self.resumed,
            in_flight: self.in_flight,
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

async fn check(client: &Client, options: &Options) -> anyhow::Result<Checked> {
    let registered = match client.reach().await? {
        Reach::All => Some(client.registered().await?.into_iter().collect()),
        // Rows of an unknown model are refused when they are published.
        Reach::Own => None,
    };
    let rules = Rules { registered, lane: options.lane, payload_bytes_max: BODY_BYTES_MAX };
    let path = options.input.clone();
    Ok(tokio::task::spawn_blocking(move || input::check(&path, &rules)).await??)
}

async fn begin(client: &Client, options: &Options, checked: &Checked) -> anyhow::Result<State> {
    let state = State {
        batch_id: format!("batch_{}", Uuid::now_v7().simple()),
        rows: checked.rows,
        input_sha256: checked.sha256.clone(),
        tenant: options.tenant.clone(),
        results_after: last_result(client, client.reach().await?).await?,
    };
    state::save(&options.output, &state)?;
    Ok(state)
}

/// The sequence of the last result, where that can be known.
async fn last_result(client: &Client, reach: Reach) -> anyhow::Result<u64> {
    match reach {
        Reach::All => arrivals::last(client).await,
        Reach::Own => Ok(0),
    }
}

/// A file that is read and written, or written twice, would be lost.
fn refuse_same_file(paths: [&PathBuf; 4]) -> anyhow::Result<()> {
    let real =
        |path: &PathBuf| path.canonicalize().or_else(|_| std::path::absolute(path)).unwrap_or_else(|_| path.clone());
    let real = paths.map(real);
    for (place, path) in real.iter().enumerate() {
        anyhow::ensure!(
            !real[..place].contains(path),
            "{}: is named twice; input, output and error file must differ",
            path.display()
        );
    }
    Ok(())
}

/// Whether a stored result belongs in the output file.
fn is_success(headers: Option<&HeaderMap>) -> bool {
    let status = headers.and_then(|headers| headers.get(header::STATUS)).map(|value| value.as_str());
    status.is_some_and(|status| status.starts_with('2'))
}

fn remove(path: &Path) -> anyhow::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| path.display().to_string())
        }
        _ => Ok(()),
    }
}
