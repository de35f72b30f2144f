//! How many workers there should be: KEDA's `RequestScale` between none and one, and the HorizontalPodAutoscaler above,
//! with an `AverageValue` for each trigger. Deciding alone; whoever calls it has the clock and the processes.
//!
//! Sources: `pkg/scaling/executor/scale_scaledobjects.go` of KEDA 2.20, `pkg/controller/podautoscaler` of Kubernetes.

use std::time::Duration;

use super::rule::{Policy, Rule, Trigger, Unit};

/// How often the HorizontalPodAutoscaler looks, and by how much the load may be off before it does anything: the defaults
/// of Kubernetes' controller.
pub const SYNC_PERIOD: Duration = Duration::from_secs(15);
const TOLERANCE: f64 = 0.1;

/// The lag of each trigger, in their order; `None` where it could not be read.
pub type Lags = [Option<u64>];

pub struct Autoscaler {
    pub rule: Rule,
    last_active: Option<Duration>,
    /// What was wanted, and how many were added or taken away, with when.
    wanted: Vec<(Duration, usize)>,
    changes: Vec<(Duration, isize)>,
}

impl Autoscaler {
    pub fn new(rule: Rule) -> Self {
        Self { rule, last_active: None, wanted: Vec::new(), changes: Vec::new() }
    }

    /// KEDA's part, at each poll.
    pub fn poll(&mut self, now: Duration, replicas: usize, lags: &Lags) -> usize {
        let mut triggers = self.rule.triggers.iter().zip(lags);
        let is_active = |trigger: &Trigger, lag: &Option<u64>| {
            lag.is_some_and(|lag| lag > trigger.metadata.activation_lag_threshold)
        };
        if triggers.any(|(trigger, lag)| is_active(trigger, lag)) {
            self.last_active = Some(now);
            return if replicas == 0 { self.rule.min_replica_count.max(1) } else { replicas };
        }
        let has_cooled = self.last_active.is_none_or(|at| now > at + self.rule.cooldown_period);
        if has_cooled && self.rule.min_replica_count == 0 && !lags.contains(&None) {
            return 0;
        }
        replicas.max(self.rule.min_replica_count)
    }

    /// The HorizontalPodAutoscaler's part, each [`SYNC_PERIOD`]. It does nothing while there are no workers.
    pub fn sync(&mut self, now: Duration, replicas: usize, lags: &Lags) -> usize {
        let read = self.rule.triggers.iter().zip(lags).filter_map(|(trigger, lag)| lag.map(|lag| (trigger, lag)));
        let largest = read.map(|(trigger, lag)| proposal(lag, trigger.metadata.lag_threshold, replicas)).max();
        let Some(wanted) = largest.filter(|_| replicas > 0) else { return replicas };
        // A trigger that could not be read may be the one that needs them.
        if wanted < replicas && lags.contains(&None) {
            return replicas;
        }
        let wanted = self.stabilized(now, replicas, wanted);
        let wanted = self.limited(now, replicas, wanted);
        if wanted != replicas {
            self.changes.push((now, wanted.cast_signed() - replicas.cast_signed()));
        }
        wanted
    }

    /// No fewer than were wanted at any time of the window, or no more.
    fn stabilized(&mut self, now: Duration, replicas: usize, wanted: usize) -> usize {
        let within = |window: Duration| {
            let recent = self.wanted.iter().filter(move |(at, _)| *at + window > now);
            recent.map(|(_, wanted)| *wanted).chain([wanted])
        };
        let behavior = self.rule.behavior();
        let least = within(behavior.scale_up.stabilization).min().unwrap_or(wanted);
        let most = within(behavior.scale_down.stabilization).max().unwrap_or(wanted);
        self.wanted.push((now, wanted));
        replicas.max(least).min(most)
    }

    /// No further than the policies allow, and between the bounds.
    fn limited(&self, now: Duration, replicas: usize, wanted: usize) -> usize {
        let behavior = self.rule.behavior();
        let start = |policy: &Policy| {
            let recent = self.changes.iter().filter(|(at, _)| *at + policy.period > now);
            replicas.saturating_add_signed(-recent.map(|(_, change)| change).sum::<isize>())
        };
        let most = behavior.scale_up.policies.iter().map(|policy| match policy.unit {
            Unit::Pods => start(policy) + policy.value,
            Unit::Percent => (start(policy) * (100 + policy.value)).div_ceil(100),
        });
        let least = behavior.scale_down.policies.iter().map(|policy| match policy.unit {
            Unit::Pods => start(policy).saturating_sub(policy.value),
            Unit::Percent => start(policy) * 100_usize.saturating_sub(policy.value) / 100,
        });
        let most = most.max().unwrap_or(replicas).max(replicas).min(self.rule.max_replica_count);
        let least = least.min().unwrap_or(replicas).min(replicas).max(self.rule.min_replica_count.max(1));
        wanted.min(most).max(least)
    }
}

/// As many as the threshold goes into the lag, or those that are there while it is about right for them.
fn proposal(lag: u64, threshold: u64, replicas: usize) -> usize {
    let load = lag as f64 / (threshold as f64 * replicas as f64);
    if (load - 1.0).abs() <= TOLERANCE { replicas } else { lag.div_ceil(threshold).try_into().unwrap() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scaling::MODEL;

    fn autoscaler() -> Autoscaler {
        Autoscaler::new(Rule::of(MODEL).0)
    }

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn one_job_starts_a_worker_and_an_empty_queue_ends_it_after_the_cooldown() {
        let mut autoscaler = autoscaler();
        assert_eq!(autoscaler.poll(at(0), 0, &[Some(0); 4]), 0);
        assert_eq!(autoscaler.sync(at(1), 0, &[Some(1_000); 4]), 0, "that is not its part");
        assert_eq!(autoscaler.poll(at(5), 0, &[Some(0), Some(1), Some(0), None]), 1);
        assert_eq!(autoscaler.poll(at(125), 1, &[Some(0); 4]), 1);
        assert_eq!(autoscaler.poll(at(130), 1, &[Some(0), Some(0), Some(0), None]), 1, "one may have jobs");
        assert_eq!(autoscaler.poll(at(135), 1, &[Some(0); 4]), 0);
    }

    #[test]
    fn the_largest_lag_counts_up_to_the_bound() {
        let lags = |lag| [Some(3), Some(lag), None, Some(0)];
        assert_eq!(autoscaler().sync(at(0), 1, &lags(70)), 1, "within the tolerance");
        assert_eq!(autoscaler().sync(at(0), 1, &lags(129)), 3);
        assert_eq!(autoscaler().sync(at(0), 1, &lags(64_000)), 5, "four more at a time");
        assert_eq!(autoscaler().sync(at(0), 8, &lags(64_000)), 10);
        assert_eq!(autoscaler().sync(at(0), 8, &lags(1)), 8, "what cannot be read may need them");
    }

    #[test]
    fn workers_go_one_a_minute_once_a_minute_has_not_needed_them() {
        let mut autoscaler = autoscaler();
        let (mut replicas, mut seen) = (4, Vec::new());
        for now in (0..300).step_by(15) {
            let lag = if now == 0 { 256 } else { 1 };
            replicas = autoscaler.sync(at(now), replicas, &[Some(lag); 4]);
            seen.push((now, replicas));
        }
        let changes: Vec<_> = seen.windows(2).filter(|pair| pair[0].1 != pair[1].1).map(|pair| pair[1]).collect();
        assert_eq!(changes, [(60, 3), (120, 2), (180, 1)]);
    }
}
