//! `make chaos`: jobs are published while workers, networks and servers fail, and every job is accounted for.
//!
//! Each scenario has a server, workers and producers of its own. Afterwards every job that JetStream acknowledged must
//! have exactly one stored result with the right answer, or a dead letter and a result that says so; nothing else may be
//! stored, and nothing may be left in the queue. `make test` runs the short form.

#[path = "../inferq/support/mod.rs"]
#[allow(dead_code, unused_imports, reason = "the tests use more of it")]
mod support;

mod account;
mod check;
mod disk;
mod fault;
mod fleet;
mod job;
mod ledger;
mod producers;
mod run;
mod sabotage;
mod scenario;
mod stage;
mod table;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use run::Ending;
use scenario::Scenario;

/// Publishes jobs while workers, networks and servers fail, and accounts for every job.
///
/// Exits with 1 when an account does not balance or a bar is missed, and prints the seed that repeats the run.
/// Everything runs on free ports and in temporary folders, and is ended with the program. To see what is done to it, read
/// standard error; the table goes to standard output.
///
/// The columns: jobs sent, acknowledged by JetStream, stored results, dead letters; attempts over all jobs; jobs delivered
/// again, and jobs finished twice; jobs published again on purpose; publishes refused and tried again; workers that died
/// of themselves.
#[derive(Parser)]
#[command(name = "chaos")]
struct Cli {
    /// Run the scenarios whose name contains one of these; all when there are none
    scenario: Vec<String>,
    /// Run those too that take long or need more of the machine, and random faults for five minutes
    #[arg(long)]
    long: bool,
    /// Seconds of random faults; 20, or 300 with --long
    #[arg(long, value_name = "SECONDS")]
    random: Option<u64>,
    /// Draw jobs and random faults from this seed
    #[arg(long)]
    seed: Option<u64>,
    /// Run so many scenarios at a time
    #[arg(long, default_value_t = 4, value_name = "COUNT")]
    together: usize,
    /// Only print the scenarios and their faults
    #[arg(long)]
    list: bool,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let seed = cli.seed.unwrap_or_else(|| fastrand::u64(..));
    let random = Duration::from_secs(cli.random.unwrap_or(if cli.long { 300 } else { 20 }));
    let mut scenarios = scenario::all(seed, random);
    scenarios.retain(|scenario| match &cli.scenario[..] {
        [] => cli.long || !scenario.is_long,
        names => names.iter().any(|name| scenario.name.contains(name.as_str())),
    });
    if cli.list {
        list(&scenarios);
        return ExitCode::SUCCESS;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    // What is interrupted or panics is dropped, and with it all processes end.
    let run = async {
        tokio::select! {
            code = run_all(scenarios, seed, cli.together) => code,
            () = interrupted() => ExitCode::from(130),
        }
    };
    runtime.block_on(tokio::task::LocalSet::new().run_until(run))
}

async fn run_all(scenarios: Vec<Scenario>, seed: u64, together: usize) -> ExitCode {
    eprintln!("{} scenarios, seed {seed}", scenarios.len());
    let names: Vec<&str> = scenarios.iter().map(|scenario| scenario.name).collect();
    let (permits, mut running) = (Arc::new(Semaphore::new(together.max(1))), JoinSet::new());
    for (index, scenario) in scenarios.into_iter().enumerate() {
        let permits = Arc::clone(&permits);
        running.spawn_local(async move {
            let _permit = permits.acquire_owned().await.expect("it is never closed");
            (index, run::run(&scenario, seed).await)
        });
    }
    let (mut endings, mut passed) = (Vec::new(), true);
    while let Some(ended) = running.join_next().await {
        match ended {
            Ok(ending) => endings.push(ending),
            // The panic has been printed; the others go on.
            Err(_) => passed = false,
        }
    }
    endings.sort_by_key(|(index, _)| *index);
    let endings: Vec<_> = endings.into_iter().map(|(index, ending)| (names[index], ending)).collect();
    table::print(&endings);
    passed &= endings.iter().all(|(_, ending)| match ending {
        Ending::Ran(report) => report.passed(),
        Ending::NotRun(_) => true,
    });
    if passed {
        return ExitCode::SUCCESS;
    }
    println!("FAILED; to repeat it: --seed {seed}");
    ExitCode::FAILURE
}

fn list(scenarios: &[Scenario]) {
    for scenario in scenarios {
        println!("{:14} {}", scenario.name, scenario.about);
        scenario.plan.iter().for_each(|planned| println!("{:14}   {planned}", ""));
    }
}

async fn interrupted() {
    let [mut interrupt, mut terminate] =
        [SignalKind::interrupt(), SignalKind::terminate()].map(|kind| signal(kind).unwrap());
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
}
