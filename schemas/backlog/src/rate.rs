//! How long the jobs that wait will take, from what they cost and from what workers say of their pace.

use schemas::pace::Pace;
use serde::Serialize;

/// What the workers of a model say together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Rate {
    /// Seconds that a worker takes for a unit, on average. None until one has done some work.
    pub unit_seconds: Option<f64>,
    /// Units of a job, on average.
    pub job_cost: Option<f64>,
    /// Of all workers. One that has not worked yet is left out: what it can do is not known.
    pub units_per_second: Option<f64>,
}

impl Rate {
    /// Of the workers of a model.
    pub fn of_model(paces: &[Pace], model: &str) -> Self {
        Self::of(paces.iter().filter(|pace| pace.model == model))
    }

    fn of<'a>(paces: impl IntoIterator<Item = &'a Pace>) -> Self {
        let (mut unit_seconds, mut job_costs) = (Vec::new(), Vec::new());
        for pace in paces {
            unit_seconds.extend(pace.unit_seconds.filter(|seconds| seconds.is_finite() && *seconds > 0.0));
            job_costs.extend(pace.job_cost.filter(|cost| cost.is_finite()));
        }
        let units_per_second = unit_seconds.iter().map(|seconds| 1.0 / seconds).sum();
        Self {
            unit_seconds: mean(&unit_seconds),
            job_cost: mean(&job_costs),
            units_per_second: (!unit_seconds.is_empty()).then_some(units_per_second),
        }
    }

    /// What so many jobs take all workers together, of which some have been looked at: none of those is one whose
    /// producer said no cost. None where nobody works, or what a job costs is not known at all.
    pub fn seconds(&self, jobs: u64, looked_at: &[Option<f64>]) -> Option<f64> {
        let units_per_second = self.units_per_second?;
        Some(self.units(jobs, looked_at)? / units_per_second)
    }

    /// What they would take one worker of average pace.
    pub fn worker_seconds(&self, jobs: u64, looked_at: &[Option<f64>]) -> Option<f64> {
        let unit_seconds = self.unit_seconds?;
        Some(self.units(jobs, looked_at)? * unit_seconds)
    }

    fn units(&self, jobs: u64, looked_at: &[Option<f64>]) -> Option<f64> {
        if jobs == 0 {
            return Some(0.0);
        }
        let costs: Vec<f64> = looked_at.iter().filter_map(|cost| cost.or(self.job_cost)).collect();
        Some(jobs as f64 * mean(&costs).or(self.job_cost)?)
    }
}

/// Where to look, from a sequence to another one, both included: at most `most` places, as far apart as can be.
pub fn places(from: u64, to: u64, most: u64) -> impl Iterator<Item = u64> {
    let span = (to + 1).saturating_sub(from);
    let count = span.min(most);
    (0..count).map(move |index| from + (u128::from(index) * u128::from(span) / u128::from(count)) as u64)
}

/// A job's place among those that wait in its lane, from 1. It is exact where no other lane's jobs stand between them,
/// and an estimate otherwise: the stream says only how many wait, and between which sequences.
pub fn position(waiting: u64, sequence: u64, delivered: u64, last: u64) -> u64 {
    let (before, all) = (sequence.saturating_sub(delivered), last.saturating_sub(delivered).max(1));
    let place = (waiting as f64 * before as f64 / all as f64).round() as u64;
    place.clamp(1, waiting.max(1))
}

fn mean(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pace(unit_seconds: Option<f64>, job_cost: Option<f64>) -> Pace {
        Pace { worker: "w".into(), model: "m".into(), unit_seconds, job_cost, ..Pace::default() }
    }

    #[test]
    fn workers_add_up() {
        let paces = [pace(Some(0.01), Some(100.0)), pace(Some(0.03), Some(300.0)), pace(None, None)];
        let rate = Rate::of(&paces);
        assert_eq!((rate.unit_seconds, rate.job_cost), (Some(0.02), Some(200.0)));
        assert!((rate.units_per_second.unwrap() - 133.333).abs() < 0.001);
        assert_eq!(Rate::of(&[pace(Some(0.0), None), pace(Some(f64::NAN), None)]), Rate::default());
    }

    #[test]
    fn a_backlog_is_what_jobs_cost_by_what_workers_do() {
        let rate = Rate::of(&[pace(Some(0.01), Some(50.0))]);
        assert_eq!(rate.seconds(10, &[Some(100.0), Some(300.0)]), Some(20.0));
        // Nobody said a cost: the workers know the average one.
        assert_eq!(rate.seconds(10, &[None, Some(150.0)]), Some(10.0));
        assert_eq!(rate.seconds(10, &[]), Some(5.0));
        assert_eq!(rate.seconds(0, &[]), Some(0.0));
        let two = Rate::of(&[pace(Some(0.01), Some(50.0)), pace(Some(0.01), Some(50.0))]);
        assert_eq!((two.seconds(10, &[]), two.worker_seconds(10, &[])), (Some(2.5), Some(5.0)));
    }

    #[test]
    fn a_backlog_without_workers_is_not_known() {
        assert_eq!(Rate::default().seconds(10, &[Some(100.0)]), None);
        assert_eq!(Rate::default().seconds(0, &[]), None);
        assert_eq!(Rate::of(&[pace(Some(0.01), None)]).seconds(10, &[None]), None);
    }

    #[test]
    fn places_lie_evenly_between_their_ends() {
        assert_eq!(places(5, 7, 32).collect::<Vec<_>>(), [5, 6, 7]);
        assert_eq!(places(1, 100, 4).collect::<Vec<_>>(), [1, 26, 51, 76]);
        assert_eq!(places(9, 8, 4).count() + places(9, 3, 4).count(), 0);
        let far: Vec<u64> = places(u64::MAX - 1000, u64::MAX - 1, 32).collect();
        assert!(far.len() == 32 && far.is_sorted());
    }

    #[test]
    fn a_position_is_exact_in_a_lane_that_is_alone() {
        assert_eq!([11, 13, 20].map(|sequence| position(10, sequence, 10, 20)), [1, 3, 10]);
        // Half of what stands there is of other lanes.
        assert_eq!(position(50, 60, 10, 110), 25);
        assert_eq!(position(0, 11, 10, 10), 1);
    }
}
