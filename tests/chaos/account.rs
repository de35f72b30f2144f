//! The account: what the producers know beside what the server has stored, and whether both agree.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::jetstream::consumer::{Info, pull};
use async_nats::jetstream::stream::Stream;
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use schemas::codec::Encoding;
use schemas::log::{LogEvent, LogMessage};
use schemas::provenance::Provenance;
use schemas::{header, stream};
use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::job::Oracle;
use crate::ledger::{Entry, Ledger};
use crate::stage::Stage;

/// How long a stream may be silent while it is read.
const SILENCE_MAX: Duration = Duration::from_secs(20);

/// What became of the jobs of one scenario.
#[derive(Default)]
pub struct Account {
    pub jobs: usize,
    pub acknowledged: usize,
    pub results: Vec<Answer>,
    pub dead: usize,
    /// Over all jobs, the deliveries that their results and logs tell of.
    pub deliveries: u64,
    /// Jobs that were delivered more than once.
    pub again: usize,
    /// Jobs that were started more than once, as far as their logs tell.
    pub restarted: usize,
    /// Jobs that were finished more than once: computed again, or found answered.
    pub twice: usize,
    /// Jobs that were answered and acknowledged, and are in the stream all the same, where no consumer will ever deliver
    /// them: what a server forgets to remove that is stopped in the middle of an acknowledgement.
    pub kept: usize,
    /// Jobs published again on purpose.
    pub repeats: usize,
    pub refusals: BTreeMap<&'static str, usize>,
    /// Workers that died of themselves.
    pub lost: usize,
    /// Seconds between a worker's clock and the server's, at most, as the logs tell.
    pub skew: f64,
    /// Why the account does not balance.
    pub wrongs: Vec<String>,
}

/// A stored result.
pub struct Answer {
    pub attempt: u64,
    pub worker: String,
    pub acknowledged_at: Option<OffsetDateTime>,
    pub stored_at: OffsetDateTime,
}

struct Stored {
    job_id: String,
    headers: HeaderMap,
    payload: Bytes,
    stored_at: OffsetDateTime,
}

/// What the logs of one job tell.
#[derive(Default)]
struct Told {
    attempt_max: u64,
    started: usize,
    finished: usize,
}

/// Reads all that is stored and draws up the account.
pub async fn draw_up(stage: &Stage, ledger: &Ledger) -> Account {
    let mut entries = ledger.close();
    let mut account = Account {
        jobs: entries.len(),
        acknowledged: entries.values().filter(|entry| entry.acknowledged_at.is_some()).count(),
        repeats: entries.values().map(|entry| entry.repeats).sum(),
        refusals: ledger.refusals(),
        lost: stage.fleet.lost,
        wrongs: stage.fleet.wrongs.clone(),
        ..Account::default()
    };
    account.check_results_are_first(stage).await;
    let (mut told, mut oracle) = (account.tell(read(stage, stream::LOGS).await), Oracle::new(&stage.registry()));
    account.check_dead(&entries, read(stage, stream::DEAD).await);
    let results = read(stage, stream::RESULTS).await;
    account.check_queue(stage, &results.iter().map(|stored| stored.job_id.clone()).collect()).await;
    for stored in results {
        match entries.remove(&stored.job_id) {
            Some(entry) => account.check_result(&entry, stored, &mut told, &mut oracle),
            None => account.wrong(format!("{}: a second result, or one of a job never sent", stored.job_id)),
        }
        // Other scenarios go on: to embed takes a while.
        tokio::task::yield_now().await;
    }
    for entry in entries.values().filter(|entry| entry.acknowledged_at.is_some()) {
        account.wrong(format!("{}: acknowledged, and no result is stored", entry.job.id));
    }
    account.deliveries = told.values().map(|told| told.attempt_max).sum();
    account.again = told.values().filter(|told| told.attempt_max > 1).count();
    account.restarted = told.values().filter(|told| told.started > 1).count();
    account.twice = told.values().filter(|told| told.finished > 1).count();
    account
}

impl Account {
    pub fn balances(&self) -> bool {
        self.wrongs.is_empty()
    }

    fn wrong(&mut self, what: String) {
        self.wrongs.push(what);
    }

    /// Reads the jobs' logs.
    fn tell(&mut self, logs: Vec<Stored>) -> HashMap<String, Told> {
        let mut told: HashMap<String, Told> = HashMap::new();
        for log in logs {
            let records: LogMessage = Encoding::Json.decode(&log.payload).unwrap();
            for record in records {
                let told = told.entry(record.job_id).or_default();
                told.attempt_max = told.attempt_max.max(record.attempt.into());
                told.finished += usize::from(matches!(record.event, LogEvent::Finished { .. }));
                if matches!(record.event, LogEvent::Started { .. }) {
                    told.started += 1;
                    let by_worker = OffsetDateTime::parse(&record.time, &Rfc3339).unwrap();
                    self.skew = self.skew.max((by_worker - log.stored_at).as_seconds_f64().abs());
                }
            }
        }
        told
    }

    /// Nothing may wait any more, and what is left in the stream must be a job that was answered and acknowledged.
    async fn check_queue(&mut self, stage: &Stage, answered: &HashSet<String>) {
        let jobs = stage.connection.jetstream.get_stream(stream::JOBS).await.unwrap();
        self.wrongs.extend(waiting(&jobs).await);
        let mut left = jobs.info_with_subjects("inferq.jobs.>").await.unwrap();
        while let Some((subject, _)) = left.try_next().await.unwrap() {
            match subject.rsplit('.').next().is_some_and(|id| answered.contains(id)) {
                true => self.kept += 1,
                false => self.wrong(format!("{subject}: still in the queue, and not answered")),
            }
        }
    }

    async fn check_results_are_first(&mut self, stage: &Stage) {
        // A result that was overwritten or removed would leave a gap.
        let results = stage.connection.jetstream.get_stream(stream::RESULTS).await.unwrap();
        let state = &results.cached_info().state;
        if state.messages != state.last_sequence {
            self.wrong(format!("{} results are stored, but {} were once", state.messages, state.last_sequence));
        }
    }

    fn check_dead(&mut self, entries: &HashMap<String, Entry>, letters: Vec<Stored>) {
        self.dead = letters.len();
        let mut poisons: Vec<&str> =
            entries.values().filter(|entry| entry.job.is_poison()).map(|entry| entry.job.id.as_str()).collect();
        for letter in letters {
            let id = letter.job_id.as_str();
            match entries.get(id) {
                Some(entry) if entry.job.is_poison() && entry.job.payload == letter.payload => {
                    poisons.retain(|poison| *poison != id);
                }
                Some(entry) if entry.job.is_poison() => {
                    self.wrong(format!("{id}: its dead letter is not the job as it came"))
                }
                Some(_) => {
                    let why = letter.headers.get(header::DEAD_REASON).map_or("", |reason| reason.as_str());
                    self.wrong(format!("{id}: a sound job became a dead letter: {why}"));
                }
                None => self.wrong(format!("{id}: a dead letter of a job never sent")),
            }
        }
        let missing: Vec<String> = poisons.iter().map(|id| format!("{id}: poison without a dead letter")).collect();
        self.wrongs.extend(missing);
    }

    fn check_result(&mut self, entry: &Entry, stored: Stored, told: &mut HashMap<String, Told>, oracle: &mut Oracle) {
        let number = |name| stored.headers.get(name).and_then(|value| value.as_str().parse::<u64>().ok());
        let content_type = stored.headers.get(header::CONTENT_TYPE).map(|value| value.as_str());
        let result: Value = match Encoding::from_content_type(content_type).unwrap_or_default().decode(&stored.payload)
        {
            Ok(result) => result,
            Err(error) => return self.wrong(format!("{}: the result cannot be read: {error}", stored.job_id)),
        };
        let status = number(header::STATUS).and_then(|status| u16::try_from(status).ok()).unwrap_or_default();
        if let Some(fault) = entry.job.asks.fault_of(status, &result, oracle) {
            self.wrong(format!("{}: {fault}", stored.job_id));
        }
        let provenance = stored.headers.get(header::PROVENANCE).map_or("", |provenance| provenance.as_str());
        let Ok(Provenance { attempt, worker, .. }) = serde_json::from_str::<Provenance>(provenance) else {
            return self.wrong(format!("{}: the result says of how it was made {provenance:?}", stored.job_id));
        };
        let told = told.entry(stored.job_id).or_default();
        told.attempt_max = told.attempt_max.max(attempt.into());
        self.results.push(Answer {
            attempt: attempt.into(),
            worker,
            acknowledged_at: entry.acknowledged_at,
            stored_at: stored.stored_at,
        });
    }
}

/// The consumers that have jobs to deliver or wait for acknowledgements, each as a line.
pub async fn waiting(jobs: &Stream) -> Vec<String> {
    let (mut found, mut consumers) = (Vec::new(), jobs.consumers());
    while let Some(consumer) = consumers.next().await {
        match consumer {
            Ok(Info { num_pending: 0, num_ack_pending: 0, .. }) => {}
            Ok(Info { name, num_pending, num_ack_pending, .. }) => {
                found.push(format!("consumer {name}: {num_pending} jobs waiting, {num_ack_pending} unacknowledged"));
            }
            Err(error) => found.push(format!("consumers not read: {error}")),
        }
    }
    found
}

/// All messages of a stream whose subjects end with a job's id.
async fn read(stage: &Stage, name: &str) -> Vec<Stored> {
    let stream = stage.connection.jetstream.get_stream(name).await.unwrap();
    let count = usize::try_from(stream.cached_info().state.messages).unwrap();
    if count == 0 {
        return Vec::new();
    }
    let consumer = stream.create_consumer(pull::OrderedConfig::default()).await.unwrap();
    let mut messages = consumer.messages().await.unwrap().take(count);
    let mut all = Vec::with_capacity(count);
    while let Some(message) = tokio::time::timeout(SILENCE_MAX, messages.next()).await.expect("the stream is read") {
        let message = message.unwrap();
        let job_id = message.subject.rsplit('.').next().unwrap_or_default().to_owned();
        let stored_at = message.info().unwrap().published;
        let headers = message.headers.clone().unwrap_or_default();
        all.push(Stored { job_id, headers, payload: message.payload.clone(), stored_at });
    }
    all
}
