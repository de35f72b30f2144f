//! One batch, driven from its check to its end by one gateway, or by several one after the other.

use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use connect::bucket::BODY_BYTES_MAX;
use connect::growing;
use futures::{StreamExt, TryStreamExt};
use schemas::result::NoResponseCode;
use schemas::subject::Token;
use tempfile::NamedTempFile;
use time::OffsetDateTime;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::lines::{Lines, Lost};
use super::record::{BatchRecord, Counts, Errors, LineError, Status};
use crate::batch::{self, Checked, InputError, Outputs, Plan, Progress, Rules, Run, Source, State};
use crate::gateway::Gateway;
use crate::gateway::files::FileRecord;
use crate::gateway::records::Kind;

/// Rows published and not answered.
const WINDOW: usize = 1024;
/// How often the driver says that it is there, and how far it is.
pub const BEAT: Duration = Duration::from_secs(2);

/// A batch in the hands of this gateway.
pub struct Drive {
    gateway: Arc<Gateway>,
    tenant: Token,
    id: String,
    progress: watch::Sender<Progress>,
    /// Cancelled when no more rows are to go out: the gateway stops, or the batch is to end.
    stop: CancellationToken,
    end: watch::Sender<Option<End>>,
}

/// Why the rows of a batch are not published any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Cancelled,
    Expired,
}

impl Drive {
    pub fn new(gateway: Arc<Gateway>, tenant: Token, id: String) -> Self {
        let (stop, progress) = (gateway.stopping.child_token(), watch::Sender::default());
        Self { gateway, tenant, id, progress, stop, end: watch::Sender::default() }
    }

    /// Drives the batch until it is over, or somebody else drives it, or the gateway stops.
    pub async fn run(self) -> anyhow::Result<()> {
        tokio::select! {
            driven = self.steps() => driven,
            lost = self.beat() => lost,
        }
    }

    async fn steps(&self) -> anyhow::Result<()> {
        let record = self.change(|_| {}).await?;
        if !record.batch.status.is_over() {
            // Rows are read from the disk of this machine.
            let input = self.download(&record).await?;
            if let Some(checked) = self.check(&record, &input).await?
                && !self.work(&input, checked).await?
            {
                return self.change(|record| record.driver = None).await.map(drop);
            }
        }
        self.tell().await
    }

    /// Says again and again that the batch is driven here and how far it is, and looks whether it is to end before its last
    /// row. Returns only when the batch is another's.
    async fn beat(&self) -> anyhow::Result<()> {
        loop {
            let counts = counts(*self.progress.borrow());
            let record =
                self.change(|record| record.batch.request_counts = counts.unwrap_or(record.batch.request_counts));
            let BatchRecord { batch, .. } = record.await?;
            let end = match batch.status {
                Status::Cancelling => Some(End::Cancelled),
                Status::InProgress if batch.expires_at.is_some_and(|at| at <= now()) => Some(End::Expired),
                _ => None,
            };
            if end.is_some() {
                self.end.send_replace(end);
                self.stop.cancel();
            }
            tokio::time::sleep(BEAT).await;
        }
    }

    async fn download(&self, record: &BatchRecord) -> anyhow::Result<NamedTempFile> {
        let key = Kind::Files.key(&self.tenant, &record.batch.input_file_id);
        let mut input = NamedTempFile::new()?;
        // A file that is gone is one without lines, which the check says.
        if let Some(file) = self.gateway.records.get::<FileRecord>(&key).await? {
            let mut chunks = growing::chunks(self.gateway.files.clone(), &file.record.nuid, 0).boxed();
            while let Some((_, chunk)) = chunks.try_next().await? {
                input.write_all(&chunk)?;
            }
            input.flush()?;
        }
        Ok(input)
    }

    /// Checks the input; none if it is no good, which the batch says then.
    async fn check(&self, record: &BatchRecord, input: &NamedTempFile) -> anyhow::Result<Option<Checked>> {
        let (path, rules) = (input.path().to_owned(), self.rules(record).await?);
        let checked = tokio::task::spawn_blocking(move || batch::check(&path, &rules)).await?;
        let errors = match checked {
            Ok(checked) => {
                if record.batch.status == Status::Validating {
                    let results_after = batch::last_result(&self.gateway.client, crate::reach::Reach::All).await?;
                    self.change(|record| begin(record, &checked, results_after)).await?;
                }
                return Ok(Some(checked));
            }
            Err(InputError::Invalid { problems, .. }) => problems.into_iter().map(LineError::from).collect(),
            Err(InputError::Empty { .. }) => vec![LineError::of_file("empty_file", "the input file has no lines")],
            Err(InputError::Io { error, .. }) => return Err(error).context("the input file"),
        };
        self.change(|record| {
            record.batch.status = Status::Failed;
            record.batch.failed_at = Some(now());
            record.batch.errors = Some(Errors { object: "list".to_owned(), data: errors.clone() });
        })
        .await?;
        Ok(None)
    }

    async fn rules(&self, record: &BatchRecord) -> anyhow::Result<Rules> {
        let registered = self.gateway.client.registered().await?;
        let registered = registered.into_iter().filter(|(_, lane)| record.lanes.contains(lane)).collect();
        Ok(Rules { registered: Some(registered), lanes: record.lanes.clone(), payload_bytes_max: BODY_BYTES_MAX })
    }

    /// Publishes the rows and collects their lines. False if the gateway stops before.
    async fn work(&self, input: &NamedTempFile, checked: Checked) -> anyhow::Result<bool> {
        let record = self.files().await?;
        let [answers, errors] = self.nuids();
        let lines = Lines::open(&self.gateway.files, [&answers, &errors], &self.id, checked.rows).await?;
        let state = State {
            batch_id: self.id.clone(),
            rows: checked.rows,
            input_sha256: checked.sha256,
            tenant: record.tenant.clone(),
            results_after: record.results_after,
        };
        let deadline = record.batch.expires_at.and_then(|at| OffsetDateTime::from_unix_timestamp(at).ok());
        let rules = self.rules(&record).await?;
        let plan = Plan { input: Source::Lines(input.path().to_owned()), state, rules, window: WINDOW, deadline };
        let clients = vec![self.gateway.client.clone()];
        let (mut run, mut results) = Run::begin(clients, plan, lines, true, &self.progress).await?;
        let is_stopped = run.pump(&mut results, &self.progress, &self.stop).await?;
        let end = *self.end.borrow();
        match end {
            Some(end) => {
                let (code, message) = end.tells();
                run.close(code, message).await?;
            }
            None if is_stopped => {
                run.outputs.flush().await?;
                return Ok(false);
            }
            None => {}
        }
        run.outputs.flush().await?;
        run.tell(&self.progress, batch::Stage::Running);
        self.change(|record| {
            if end.is_none() && record.batch.status == Status::InProgress {
                record.batch.status = Status::Finalizing;
            }
            record.batch.finalizing_at = Some(now());
        })
        .await?;
        self.seal(&run.outputs).await?;
        let counts = counts(*self.progress.borrow());
        self.change(|record| {
            record.batch.usage = Some(run.outputs.usage);
            finish(record, end, counts);
        })
        .await?;
        Ok(true)
    }

    /// Changes the record, as long as it is this gateway's to drive.
    async fn change(&self, mut change: impl FnMut(&mut BatchRecord)) -> anyhow::Result<BatchRecord> {
        let mut is_lost = false;
        let changed = self
            .gateway
            .records
            .modify::<BatchRecord>(&Kind::Batches.key(&self.tenant, &self.id), |record| {
                let own = record.driver.as_mut().filter(|driver| driver.gateway == self.gateway.name);
                is_lost = own.is_none();
                if let Some(driver) = own {
                    driver.beat += 1;
                    change(record);
                }
                !is_lost
            })
            .await?;
        match changed {
            Some(changed) if !is_lost => Ok(changed.record),
            _ => Err(Lost.into()),
        }
    }

    /// Has both files be found. They have their names from the batch's, so that who goes on finds the same ones.
    async fn files(&self) -> anyhow::Result<BatchRecord> {
        let record = self.change(|_| {}).await?;
        let [output, errors] = self.nuids();
        for (nuid, name) in [(&output, "output"), (&errors, "errors")] {
            let id = format!("file-{nuid}");
            let mut file = FileRecord::new(
                nuid,
                &format!("{}_{name}.jsonl", self.id),
                "batch_output",
                record.output_expires_after,
            );
            file.file.id.clone_from(&id);
            self.gateway.records.create(&Kind::Files.key(&self.tenant, &id), &file).await?;
        }
        self.change(|record| {
            record.batch.output_file_id = Some(format!("file-{output}"));
            record.batch.error_file_id = Some(format!("file-{errors}"));
        })
        .await
    }

    fn nuids(&self) -> [String; 2] {
        let own = self.id.strip_prefix("batch_").unwrap_or(&self.id);
        [format!("{own}o"), format!("{own}e")]
    }

    /// Makes ordinary files of both; one without lines goes.
    async fn seal(&self, lines: &Lines) -> anyhow::Result<()> {
        for (part, is_output) in [(&lines.answers, true), (&lines.errors, false)] {
            let (id, size) = (format!("file-{}", part.object.nuid()), part.object.size());
            let key = Kind::Files.key(&self.tenant, &id);
            if size.bytes > 0 {
                part.object.seal(&id).await?;
                self.gateway
                    .records
                    .modify::<FileRecord>(&key, |record| {
                        record.file.bytes = size.bytes as u64;
                        record.file.status = "processed".to_owned();
                        record.sealed = true;
                        true
                    })
                    .await?;
                continue;
            }
            self.change(|record| match is_output {
                true => record.batch.output_file_id = None,
                false => record.batch.error_file_id = None,
            })
            .await?;
            self.gateway.records.remove(&key).await?;
        }
        Ok(())
    }

    /// Tells whoever wanted to know that the batch is over, and lets go of it.
    async fn tell(&self) -> anyhow::Result<()> {
        let record = self.change(|_| {}).await?;
        if let Some(webhook) = record.webhook.as_ref().filter(|webhook| !webhook.is_done) {
            let kind = match record.batch.status {
                Status::Completed => "batch.completed",
                Status::Failed => "batch.failed",
                Status::Expired => "batch.expired",
                _ => "batch.cancelled",
            };
            let data = serde_json::json!({ "id": self.id });
            let told = self.gateway.webhooks.deliver(&webhook.url, kind, &self.id, data);
            if self.gateway.stopping.run_until_cancelled(told).await.is_none() {
                // Another gateway tells it.
                return self.change(|record| record.driver = None).await.map(drop);
            }
        }
        self.change(|record| {
            record.driver = None;
            if let Some(webhook) = &mut record.webhook {
                webhook.is_done = true;
            }
        })
        .await?;
        Ok(())
    }
}

impl End {
    fn tells(self) -> (NoResponseCode, &'static str) {
        match self {
            Self::Cancelled => {
                (NoResponseCode::BatchCancelled, "This request was not executed, since the batch was cancelled.")
            }
            Self::Expired => (
                NoResponseCode::BatchExpired,
                "This request could not be executed before the completion window expired.",
            ),
        }
    }
}

impl From<batch::Problem> for LineError {
    fn from(problem: batch::Problem) -> Self {
        let param = problem.message.split_once(": ").map(|(param, _)| param.to_owned());
        let param = param.filter(|param| !param.contains(' '));
        Self { code: "invalid_line".to_owned(), message: problem.message, param, line: Some(problem.line) }
    }
}

impl LineError {
    fn of_file(code: &str, message: &str) -> Self {
        Self { code: code.to_owned(), message: message.to_owned(), param: None, line: None }
    }
}

fn begin(record: &mut BatchRecord, checked: &Checked, results_after: u64) {
    record.batch.status = match record.batch.status {
        Status::Validating => Status::InProgress,
        other => other,
    };
    record.batch.in_progress_at.get_or_insert(now());
    record.batch.request_counts = Counts { total: checked.rows, completed: 0, failed: 0 };
    record.results_after = results_after;
}

fn finish(record: &mut BatchRecord, end: Option<End>, counts: Option<Counts>) {
    let at = now();
    record.batch.request_counts = counts.unwrap_or(record.batch.request_counts);
    // A batch whose last row was answered before it could be cancelled is complete in all but name.
    let end = end.or((record.batch.status == Status::Cancelling).then_some(End::Cancelled));
    match end {
        None => (record.batch.status, record.batch.completed_at) = (Status::Completed, Some(at)),
        Some(End::Cancelled) => (record.batch.status, record.batch.cancelled_at) = (Status::Cancelled, Some(at)),
        Some(End::Expired) => (record.batch.status, record.batch.expired_at) = (Status::Expired, Some(at)),
    }
}

/// None before the rows are known.
fn counts(progress: Progress) -> Option<Counts> {
    let Progress { rows, done, failed, .. } = progress;
    (rows > 0).then_some(Counts { total: rows, completed: done - failed, failed })
}

pub fn now() -> i64 {
    OffsetDateTime::now_utc().unix_timestamp()
}
