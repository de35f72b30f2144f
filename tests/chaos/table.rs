//! The account of all scenarios on the terminal.

use crate::run::{Ending, Report};

/// How many of the things that are wrong are shown for a scenario.
const WRONGS_SHOWN: usize = 10;

/// One line for each scenario, then what was measured, then what is wrong.
pub fn print(endings: &[(&'static str, Ending)]) {
    println!(
        "\n{:14} {:>7} {:>7} {:>7} {:>5} {:>9} {:>6} {:>6} {:>8} {:>8} {:>5} {:>7}",
        "scenario",
        "jobs",
        "acked",
        "results",
        "dead",
        "attempts",
        "again",
        "twice",
        "repeats",
        "refused",
        "died",
        "seconds"
    );
    for (name, ending) in endings {
        match ending {
            Ending::NotRun(reason) => println!("{name:14} NOT RUN: {reason}"),
            Ending::Ran(report) => println!("{}", line(name, report)),
        }
    }
    println!();
    for (name, report) in ran(endings) {
        for verdict in &report.verdicts {
            println!("{} {name:14} {}", if verdict.passed { "PASS" } else { "FAIL" }, verdict.text);
        }
    }
    for (name, report) in ran(endings).filter(|(_, report)| report.account.kept > 0) {
        println!("NOTE {name:14} {} answered jobs stay in the stream, where nobody gets them", report.account.kept);
    }
    for (name, report) in ran(endings) {
        let wrongs = &report.account.wrongs;
        wrongs.iter().take(WRONGS_SHOWN).for_each(|wrong| println!("FAIL {name:14} {wrong}"));
        if wrongs.len() > WRONGS_SHOWN {
            println!("FAIL {name:14} and {} more", wrongs.len() - WRONGS_SHOWN);
        }
    }
    let sum = |count: fn(&Report) -> usize| ran(endings).map(|(_, report)| count(report)).sum::<usize>();
    println!(
        "{} jobs acknowledged, {} results, {} dead letters",
        sum(|report| report.account.acknowledged),
        sum(|report| report.account.results.len()),
        sum(|report| report.account.dead)
    );
}

fn ran<'a>(endings: &'a [(&'static str, Ending)]) -> impl Iterator<Item = (&'static str, &'a Report)> {
    endings.iter().filter_map(|(name, ending)| match ending {
        Ending::Ran(report) => Some((*name, report)),
        Ending::NotRun(_) => None,
    })
}

fn line(name: &str, report: &Report) -> String {
    let account = &report.account;
    let refused: usize = account.refusals.values().sum();
    format!(
        "{name:14} {:>7} {:>7} {:>7} {:>5} {:>9} {:>6} {:>6} {:>8} {refused:>8} {:>5} {:>7.1}  {}",
        account.jobs,
        account.acknowledged,
        account.results.len(),
        account.dead,
        account.deliveries,
        account.again,
        account.twice,
        account.repeats,
        account.lost,
        report.took.as_secs_f64(),
        if account.balances() { "balances" } else { "DOES NOT BALANCE" }
    )
}
