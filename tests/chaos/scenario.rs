//! The scenarios: each fault alone, and all of them at random.

use std::time::Duration;

use crate::check::Check;
use crate::fault::{self, Fault, Planned, planned};
use crate::fleet::Equipment;
use crate::producers::Load;
use crate::stage::Setting;

const SECOND: Duration = Duration::from_secs(1);
/// Workers under random faults: often one of them is well.
const RANDOM_WORKERS: usize = 3;
/// Room for a few hundred jobs.
const LITTLE: i64 = 128 << 10;

/// A deployment, what is sent to it, and what is done to it meanwhile.
pub struct Scenario {
    pub name: &'static str,
    pub about: &'static str,
    /// It is left out of the short form.
    pub is_long: bool,
    pub setting: Setting,
    pub load: Load,
    pub plan: Vec<Planned>,
    pub checks: Vec<Check>,
    /// What is stored is spoiled before it is read, and the account must notice.
    pub is_sabotaged: bool,
}

/// All scenarios. The last has random faults for so long.
pub fn all(seed: u64, random: Duration) -> Vec<Scenario> {
    let mut scenarios = workers();
    scenarios.extend(networks());
    scenarios.extend(servers());
    scenarios.extend(limits());
    scenarios.extend(poisons());
    scenarios.extend(clusters());
    scenarios.push(clock());
    scenarios.push(Scenario {
        is_sabotaged: true,
        ..scenario("sabotage", "results taken, exchanged and added, which the account must notice")
    });
    scenarios.push(Scenario {
        setting: Setting { workers: RANDOM_WORKERS, ..Setting::default() },
        plan: fault::random(seed, random, RANDOM_WORKERS),
        ..scenario("random", "faults at random, together")
    });
    scenarios
}

fn scenario(name: &'static str, about: &'static str) -> Scenario {
    Scenario {
        name,
        about,
        is_long: false,
        setting: Setting::default(),
        load: Load::default(),
        plan: Vec::new(),
        checks: Vec::new(),
        is_sabotaged: false,
    }
}

fn workers() -> Vec<Scenario> {
    vec![
        Scenario {
            // One worker can carry it alone.
            load: Load { jobs_per_second: 400, ..Load::default() },
            plan: vec![planned(1.5, 5.0, Fault::Kill, 0)],
            checks: vec![Check::RecoversAfterAckWait(2 * SECOND)],
            ..scenario("kill", "SIGKILL of one of two workers in the middle of a batch")
        },
        Scenario {
            setting: Setting { is_embedder: true, ..Setting::default() },
            load: Load { jobs_per_second: 50, jobs_min: 300, are_embedded: true, ..Load::default() },
            plan: vec![planned(1.5, 2.0, Fault::Kill, 0), planned(4.0, 1.0, Fault::Terminate, 1)],
            ..scenario("embeddings", "SIGKILL of one and SIGTERM of the other of two workers with a real model")
        },
        Scenario {
            plan: vec![planned(1.0, 1.0, Fault::Terminate, 0), planned(3.0, 1.0, Fault::Terminate, 1)],
            checks: vec![Check::StartsOnce],
            ..scenario("terminate", "SIGTERM of each worker in turn, with time to finish")
        },
        Scenario {
            plan: vec![planned(1.0, 4.0, Fault::Freeze, 0)],
            checks: vec![Check::DeliversAgain],
            ..scenario("freeze", "a worker stopped for twice its ack_wait, which then goes on")
        },
    ]
}

fn networks() -> Vec<Scenario> {
    vec![
        Scenario {
            plan: vec![planned(1.0, 4.0, Fault::Cut, 0)],
            checks: vec![Check::DeliversAgain],
            ..scenario("cut", "a worker's connections closed and refused for longer than ack_wait")
        },
        Scenario {
            plan: vec![planned(1.0, 4.0, Fault::Silence, 0)],
            checks: vec![Check::DeliversAgain],
            ..scenario("silence", "a worker's connection that passes nothing for longer than ack_wait")
        },
    ]
}

fn servers() -> Vec<Scenario> {
    vec![
        Scenario {
            plan: vec![planned(1.5, 0.5, Fault::KillServer, 0)],
            checks: vec![Check::Resumes(5 * SECOND)],
            ..scenario("server-kill", "SIGKILL of nats-server, and its return on the same store")
        },
        Scenario {
            plan: vec![planned(1.5, 0.5, Fault::StopServer, 0)],
            checks: vec![Check::Resumes(5 * SECOND)],
            ..scenario("server-stop", "SIGTERM of nats-server, and its return on the same store")
        },
        Scenario {
            plan: vec![planned(1.0, 6.0, Fault::FreezeServer, 0)],
            checks: vec![Check::LeavesUnconfirmed],
            ..scenario("server-freeze", "nats-server stopped for longer than clients wait for an answer")
        },
        Scenario {
            setting: Setting { has_small_disk: true, ..Setting::default() },
            plan: vec![planned(1.5, 3.0, Fault::FillDisk, 0)],
            checks: vec![Check::LeavesUnconfirmed, Check::Stalls(SECOND)],
            ..scenario("full-disk", "no room on the disk of nats-server, which is started anew when there is")
        },
    ]
}

fn limits() -> Vec<Scenario> {
    vec![
        Scenario {
            load: Load { asks_nobody: true, ..Load::default() },
            checks: vec![Check::StartsOnce],
            ..scenario("nobody", "no fault, and nobody who listens for results or copies of them")
        },
        Scenario {
            load: Load { repeated: 0.5, ..Load::default() },
            plan: vec![planned(1.5, 1.0, Fault::Kill, 0)],
            ..scenario("repeats", "half of the jobs published twice, with the same message id or none, and a kill")
        },
        Scenario {
            setting: Setting { jobs_bytes: LITTLE, step_milliseconds: 100, ..Setting::default() },
            plan: vec![planned(2.0, 1.0, Fault::Kill, 0)],
            checks: vec![Check::RefusesFull],
            ..scenario("full-queue", "a stream of jobs too small for its load, and a kill")
        },
        Scenario {
            setting: Setting { results_bytes: LITTLE, ..Setting::default() },
            plan: vec![planned(0.0, 5.0, Fault::FillResults, 0)],
            checks: vec![Check::Stalls(2 * SECOND)],
            ..scenario("full-results", "a stream of results too small, until it gets room")
        },
    ]
}

/// Prompts that the engine does not survive. All other jobs are answered as if there were none.
fn poisons() -> Vec<Scenario> {
    let poison = |name, about, prompt, times| Scenario {
        setting: Setting { attempts: 3, has_poison: true, step_seconds: Some(2), ..Setting::default() },
        load: Load { jobs_per_second: 400, poison: Some((prompt, times)), ..Load::default() },
        ..scenario(name, about)
    };
    let deadly = |scenario| Scenario { checks: vec![Check::LosesWorkers], ..scenario };
    let mut out_of_memory =
        deadly(poison("out-of-memory", "jobs that take all the memory a worker may have", "!oom!", 1));
    // Taking it may be slow, which must not be taken for hanging.
    out_of_memory.setting.step_seconds = None;
    out_of_memory.setting.equipment = Equipment { memory_mebibytes: Some(2048), ..Equipment::default() };
    vec![
        poison("error", "jobs that fail the step they are in", "!error!", 4),
        poison("panic", "jobs that panic the engine", "!panic!", 4),
        deadly(poison("abort", "jobs that kill every worker they meet", "!abort!", 1)),
        deadly(poison("hang", "jobs that block the engine", "!hang!", 1)),
        out_of_memory,
    ]
}

fn clusters() -> Vec<Scenario> {
    let cluster = |name, about, plan| Scenario {
        is_long: true,
        setting: Setting { is_cluster: true, ..Setting::default() },
        plan,
        checks: vec![Check::NeverStandsStill(15 * SECOND)],
        ..scenario(name, about)
    };
    vec![
        cluster("leader-loss", "SIGKILL of the leader of three nodes", vec![planned(2.0, 5.0, Fault::KillLeader, 0)]),
        cluster(
            "node-loss",
            "SIGKILL of each of three nodes in turn",
            (0..3).map(|node| planned(2.0 + 8.0 * node as f64, 3.0, Fault::KillNode, node)).collect(),
        ),
        cluster("cluster-loss", "SIGKILL of three nodes at once", vec![planned(2.0, 2.0, Fault::KillCluster, 0)]),
    ]
}

fn clock() -> Scenario {
    Scenario {
        is_long: true,
        setting: Setting {
            equipment: Equipment { clock_hours: Some(3), ..Equipment::default() },
            ..Setting::default()
        },
        plan: vec![planned(1.5, 3.0, Fault::Kill, 0)],
        checks: vec![Check::ClocksAreOff(2 * 3600 * SECOND)],
        ..scenario("clock", "one worker's clock three hours ahead, the other's three behind, and a kill")
    }
}
