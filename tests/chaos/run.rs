//! One scenario, from an empty server to a verdict.

use std::sync::Arc;
use std::time::{Duration, Instant};

use schemas::registry::Registry;
use schemas::stream;
use tokio::task::JoinSet;

use crate::account::{Account, draw_up, waiting};
use crate::check::Verdict;
use crate::job::Oracle;
use crate::ledger::Ledger;
use crate::producers::produce;
use crate::sabotage;
use crate::scenario::Scenario;
use crate::stage::Stage;

/// How long the queue may take to empty after the last fault.
const SETTLE_MAX: Duration = Duration::from_secs(90);
const POLL: Duration = Duration::from_millis(100);
/// How long no consumer may have anything to do before it is settled, though the stream is not empty.
const QUIET: Duration = Duration::from_secs(5);
/// How long jobs are sent after the last fault, so that what was harmed is used again.
const AFTERMATH: Duration = Duration::from_secs(2);

/// What a scenario ended with.
pub enum Ending {
    /// Why it cannot be run here.
    NotRun(String),
    Ran(Report),
}

pub struct Report {
    pub account: Account,
    pub verdicts: Vec<Verdict>,
    pub took: Duration,
}

impl Report {
    pub fn passed(&self) -> bool {
        self.account.balances() && self.verdicts.iter().all(|verdict| verdict.passed)
    }
}

/// Says on standard error what happens.
struct Progress {
    name: &'static str,
    started: Instant,
}

impl Progress {
    fn say(&self, what: impl std::fmt::Display) {
        eprintln!("{:>6.1} s  {:14} {what}", self.started.elapsed().as_secs_f64(), self.name);
    }
}

pub async fn run(scenario: &Scenario, seed: u64) -> Ending {
    let progress = Progress { name: scenario.name, started: Instant::now() };
    if let Some(reason) = missing(scenario) {
        return Ending::NotRun(reason);
    }
    let mut stage = match Stage::build(&scenario.setting).await {
        Ok(stage) => stage,
        Err(reason) => return Ending::NotRun(reason),
    };
    progress.say("begins");
    let ledger = Arc::new(Ledger::default());
    let mut producers = JoinSet::new();
    producers.spawn(produce(stage.urls(), scenario.load, seed, Arc::clone(&ledger)));
    play(scenario, &mut stage, &progress).await;
    ledger.end();
    progress.say("settles");
    let unsettled = settle(&mut stage, &mut producers).await;
    if scenario.is_sabotaged {
        sabotage::spoil(&stage).await;
    }
    let mut account = draw_up(&stage, &ledger).await;
    account.wrongs.extend(unsettled);
    let noticed = scenario.is_sabotaged.then(|| sabotage::judge(&mut account));
    let workers = stage.fleet.names();
    let checked = scenario.checks.iter().map(|check| check.judge(&account, &stage.marks, &workers));
    let verdicts = checked.chain(noticed).collect();
    let report = Report { account, verdicts, took: progress.started.elapsed() };
    match report.passed() {
        true => progress.say("passes"),
        false => progress.say(format!("FAILS; the workers' logs stay in {}", stage.keep_logs().display())),
    }
    Ending::Ran(report)
}

/// Whether the engine has the faults that the scenario asks of it.
fn missing(scenario: &Scenario) -> Option<String> {
    let knows_faults = || Registry::parse(&scenario.setting.registry()).is_ok() && Oracle::fails_when_told();
    let poisoned = scenario.setting.has_poison && !knows_faults();
    poisoned.then(|| "the echo engine of this version has no faults".to_owned())
}

/// Begins and ends each fault at its time.
async fn play(scenario: &Scenario, stage: &mut Stage, progress: &Progress) {
    let begins = scenario.plan.iter().map(|planned| (planned.at, true, planned));
    let ends = scenario.plan.iter().map(|planned| (planned.at + planned.lasts, false, planned));
    let mut moments: Vec<_> = begins.chain(ends).collect();
    moments.sort_by_key(|(at, ..)| *at);
    let mut started = Instant::now();
    for (at, is_begin, planned) in moments {
        stage.tend(at.saturating_sub(started.elapsed())).await;
        // What comes late makes all that follows late: a fault lasts as long as it is meant to.
        started += started.elapsed().saturating_sub(at);
        if is_begin {
            progress.say(planned);
            stage.begin(planned).await;
        } else {
            stage.end(planned).await;
            progress.say(format_args!("{:?} ended", planned.fault));
        }
    }
    stage.tend(AFTERMATH).await;
}

/// Waits until everything is acknowledged and answered. Gives what is wrong when that does not happen.
async fn settle(stage: &mut Stage, producers: &mut JoinSet<()>) -> Option<String> {
    let started = Instant::now();
    let mut busy = started;
    loop {
        stage.tend(POLL).await;
        if let Some(Err(error)) = producers.try_join_next() {
            return Some(format!("a producer gave up: {error}"));
        }
        let is_done = match stage.connection.jetstream.get_stream(stream::JOBS).await {
            Ok(jobs) if jobs.cached_info().state.messages == 0 => true,
            Ok(jobs) if waiting(&jobs).await.is_empty() => busy.elapsed() > QUIET,
            Ok(_) | Err(_) => {
                busy = Instant::now();
                false
            }
        };
        if producers.is_empty() && is_done && stage.fleet.is_drained() {
            return None;
        }
        if started.elapsed() > SETTLE_MAX {
            return Some(format!("not settled within {SETTLE_MAX:?}"));
        }
    }
}
