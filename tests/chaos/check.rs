//! What a scenario must show beside a balanced account: that its fault was felt, and how soon work went on.

use std::time::Duration;

use time::OffsetDateTime;

use crate::account::Account;
use crate::fault::Fault;
use crate::stage::{ACK_WAIT, Mark};

/// A bar that is measured against.
#[derive(Clone, Copy, Debug)]
pub enum Check {
    /// The jobs of a killed worker are answered so long after `ack_wait`, at the latest.
    RecoversAfterAckWait(Duration),
    /// Every worker stores a result so soon after the server is back.
    Resumes(Duration),
    /// No job is started a second time.
    StartsOnce,
    /// No result is stored for so long before the end of a fault, since none can be.
    Stalls(Duration),
    /// Jobs are delivered a second time: the fault met jobs in flight.
    DeliversAgain,
    /// Publishers are told that the stream is full.
    RefusesFull,
    /// Publishers are not answered.
    LeavesUnconfirmed,
    /// Work never stands still for longer, from the first fault on.
    NeverStandsStill(Duration),
    /// The workers' clocks are wrong by so much, as the logs of the jobs show.
    ClocksAreOff(Duration),
    /// Workers die of themselves.
    LosesWorkers,
}

/// What was measured and whether it is enough.
pub struct Verdict {
    pub text: String,
    pub passed: bool,
}

impl Check {
    /// `workers` are the names of those that stand at the end.
    pub fn judge(self, account: &Account, marks: &[Mark], workers: &[String]) -> Verdict {
        match self {
            Self::RecoversAfterAckWait(slack) => recovery(account, marks, ACK_WAIT + slack),
            Self::Resumes(most) => resumption(account, marks, workers, most),
            Self::StartsOnce => {
                let Account { restarted, again, .. } = account;
                let text = format!("{restarted} jobs started twice, 0 wanted; {again} handed back, started or not");
                verdict(*restarted == 0, text)
            }
            Self::Stalls(least) => stall(account, marks, least),
            Self::DeliversAgain => verdict(account.again > 0, format!("{} jobs delivered again", account.again)),
            Self::NeverStandsStill(most) => standstill(account, marks, most),
            Self::ClocksAreOff(least) => {
                let text = format!("clocks are wrong by {:.0} s, at least {} s wanted", account.skew, least.as_secs());
                verdict(account.skew >= least.as_secs_f64(), text)
            }
            Self::RefusesFull => refusals(account, "stream full"),
            Self::LeavesUnconfirmed => refusals(account, "unconfirmed"),
            Self::LosesWorkers => {
                verdict(account.lost > 0, format!("{} workers died and were started again", account.lost))
            }
        }
    }
}

fn verdict(passed: bool, text: String) -> Verdict {
    Verdict { text, passed }
}

fn refusals(account: &Account, why: &str) -> Verdict {
    let count = account.refusals.get(why).copied().unwrap_or(0);
    verdict(count > 0, format!("{count} publishes answered with: {why}"))
}

fn recovery(account: &Account, marks: &[Mark], most: Duration) -> Verdict {
    let killed = marks.iter().find(|mark| mark.fault == Fault::Kill).expect("the scenario kills a worker").began;
    let again = account.results.iter().filter(|result| result.attempt > 1).map(|result| result.stored_at);
    match again.clone().max() {
        None => verdict(false, "no job of the killed worker was in flight".to_owned()),
        Some(last) => {
            let (took, count) = (seconds(killed, last), again.count());
            let text = format!(
                "{count} jobs of the killed worker answered within {took:.2} s, at most {:.2} s",
                most.as_secs_f64()
            );
            verdict(took <= most.as_secs_f64(), text)
        }
    }
}

fn stall(account: &Account, marks: &[Mark], least: Duration) -> Verdict {
    let end = marks.iter().find_map(|mark| mark.ending).expect("the scenario has a fault");
    let last = account.results.iter().map(|result| result.stored_at).filter(|stored_at| *stored_at < end).max();
    let lasted = last.map_or(0.0, |last| seconds(last, end));
    let text = format!("no result stored for {lasted:.2} s of the fault, at least {:.2} s wanted", least.as_secs_f64());
    verdict(lasted >= least.as_secs_f64(), text)
}

fn standstill(account: &Account, marks: &[Mark], most: Duration) -> Verdict {
    let began = marks.first().expect("the scenario has a fault").began;
    let mut times: Vec<OffsetDateTime> = account.results.iter().map(|result| result.stored_at).collect();
    times.retain(|stored_at| *stored_at > began);
    times.push(began);
    times.sort_unstable();
    let longest = times.windows(2).map(|pair| seconds(pair[0], pair[1])).fold(0.0, f64::max);
    let text = format!("no result for {longest:.2} s at the longest, at most {:.2} s", most.as_secs_f64());
    verdict(longest <= most.as_secs_f64(), text)
}

fn resumption(account: &Account, marks: &[Mark], workers: &[String], most: Duration) -> Verdict {
    let is_server = |mark: &&Mark| matches!(mark.fault, Fault::KillServer | Fault::StopServer);
    let ready = marks.iter().find(is_server).and_then(|mark| mark.ended).expect("the scenario takes the server away");
    let first = |worker: &String| {
        let mine = account.results.iter().filter(|result| &result.worker == worker && result.stored_at > ready);
        mine.map(|result| result.stored_at).min()
    };
    match workers.iter().map(first).collect::<Option<Vec<_>>>().and_then(|firsts| firsts.into_iter().max()) {
        None => verdict(false, "a worker stored nothing after the server was back".to_owned()),
        Some(last) => {
            let took = seconds(ready, last);
            let waiting = account.results.iter().filter(|result| result.acknowledged_at.is_some_and(|at| at < ready));
            let caught_up = waiting.map(|result| seconds(ready, result.stored_at)).fold(0.0, f64::max);
            let text = format!(
                "every worker stores results again within {took:.2} s of the server's return, at most {:.2} s; jobs from \
                 before are answered within {caught_up:.2} s",
                most.as_secs_f64()
            );
            verdict(took <= most.as_secs_f64(), text)
        }
    }
}

fn seconds(from: OffsetDateTime, to: OffsetDateTime) -> f64 {
    (to - from).as_seconds_f64()
}
