//! Processor time of processes: on a machine whose speed drifts it says more than the clock on the wall.

use std::time::Duration;

/// Of Linux, on every machine it runs on.
const TICKS_PER_SECOND: u64 = 100;

/// Those that take part in a case.
#[derive(Clone, Copy, Debug)]
pub struct Processes {
    pub server: u32,
    pub worker: u32,
}

/// What each of them has used, and what this process has, the producer.
#[derive(Clone, Copy, Debug)]
pub struct Used {
    pub server: Duration,
    pub worker: Duration,
    pub producer: Duration,
}

impl Processes {
    pub fn used(self) -> Used {
        Used { server: used(self.server), worker: used(self.worker), producer: used(std::process::id()) }
    }
}

impl Used {
    /// Microseconds for each of so many jobs, since `before`: of the server, the worker and the producer.
    pub fn microseconds_since(self, before: Self, jobs: usize) -> [f64; 3] {
        let each = |now: Duration, before: Duration| (now - before).as_secs_f64() * 1e6 / jobs as f64;
        [each(self.server, before.server), each(self.worker, before.worker), each(self.producer, before.producer)]
    }
}

/// In user and kernel mode: the fields 14 and 15 of proc_pid_stat(5).
fn used(process: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap();
    // The second field, a name in parentheses, may hold anything.
    let fields = stat.rsplit_once(')').unwrap().1.split_whitespace();
    let ticks: u64 = fields.skip(11).take(2).map(|field| field.parse::<u64>().unwrap()).sum();
    Duration::from_millis(ticks * 1000 / TICKS_PER_SECOND)
}
