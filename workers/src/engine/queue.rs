//! Which job is next: pure bookkeeping of who waits and who was given how much.
//!
//! Between lanes: `priority` before `default`, and `flex` in its share of the turns while others wait. Within a lane:
//! start-time fair queueing (Goyal et al., 1996), so that a tenant's place depends on what it was given in tokens and
//! not on how many jobs it has waiting.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use schemas::registry::{Lane, Weights};

/// Where a job waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    pub lane: Lane,
    pub tenant: Arc<str>,
}

#[derive(Debug)]
pub struct Queue {
    lanes: [Flows; Lane::ALL.len()],
    weights: Weights,
    /// The place in the cycle of turns, of which the last ones are `flex`'s.
    turn: u32,
}

/// The tenants of one lane that have jobs waiting.
#[derive(Debug, Default)]
struct Flows {
    by_tenant: HashMap<Arc<str>, Flow>,
    /// Virtual time: what the tenant served last had been given.
    now: u64,
}

#[derive(Debug)]
struct Flow {
    given: u64,
    waiting: VecDeque<u64>,
}

impl Queue {
    pub fn new(weights: Weights) -> Self {
        Self { lanes: Default::default(), weights, turn: 0 }
    }

    pub fn push(&mut self, place: &Place, job: u64) {
        let flows = &mut self.lanes[place.lane as usize];
        let start = Flow { given: flows.now, waiting: VecDeque::new() };
        flows.by_tenant.entry(Arc::clone(&place.tenant)).or_insert(start).waiting.push_back(job);
    }

    /// The job that is next. It stays the next of its tenant until it is taken off.
    pub fn front(&mut self) -> Option<(Place, u64)> {
        let lane = self.next_lane()?;
        let flows = &mut self.lanes[lane as usize];
        let (tenant, flow) =
            flows.by_tenant.iter().min_by_key(|(_, flow)| (flow.given, flow.waiting.front().copied()))?;
        flows.now = flow.given;
        Some((Place { lane, tenant: Arc::clone(tenant) }, *flow.waiting.front()?))
    }

    /// Counts what was given to the tenant; `done` takes its next job off.
    pub fn charge(&mut self, place: &Place, cost: u64, done: bool) {
        let flows = &mut self.lanes[place.lane as usize];
        let Some(flow) = flows.by_tenant.get_mut(&place.tenant) else { return };
        flow.given += cost;
        if done {
            flow.waiting.pop_front();
            if flow.waiting.is_empty() {
                flows.by_tenant.remove(&place.tenant);
            }
        }
    }

    /// Takes a job off, wherever it waits.
    pub fn remove(&mut self, place: &Place, job: u64) {
        let flows = &mut self.lanes[place.lane as usize];
        if let Some(flow) = flows.by_tenant.get_mut(&place.tenant) {
            flow.waiting.retain(|waiting| *waiting != job);
            if flow.waiting.is_empty() {
                flows.by_tenant.remove(&place.tenant);
            }
        }
    }

    fn next_lane(&mut self) -> Option<Lane> {
        let waits = |lane: Lane| !self.lanes[lane as usize].by_tenant.is_empty();
        let first = [Lane::Priority, Lane::Default].into_iter().find(|&lane| waits(lane));
        match (first, waits(Lane::Flex)) {
            (Some(first), true) => {
                let Weights { default, flex } = self.weights;
                let is_flex = self.turn >= default;
                self.turn = (self.turn + 1) % (default + flex).max(1);
                Some(if is_flex { Lane::Flex } else { first })
            }
            (first, is_flex) => first.or(is_flex.then_some(Lane::Flex)),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn place(lane: Lane, tenant: &str) -> Place {
        Place { lane, tenant: tenant.into() }
    }

    /// Takes all jobs in their order; each costs 1.
    fn order(queue: &mut Queue) -> Vec<u64> {
        let mut order = Vec::new();
        while let Some((place, job)) = queue.front() {
            queue.charge(&place, 1, true);
            order.push(job);
        }
        order
    }

    #[test]
    fn priority_goes_before_default_and_flex_gets_its_share() {
        let mut queue = Queue::new(Weights { default: 4, flex: 1 });
        (0..10).for_each(|job| queue.push(&place(Lane::Flex, "t"), job));
        (100..110).for_each(|job| queue.push(&place(Lane::Default, "t"), job));
        (200..204).for_each(|job| queue.push(&place(Lane::Priority, "t"), job));
        let order = order(&mut queue);
        assert_eq!(order[..10], [200, 201, 202, 203, 0, 100, 101, 102, 103, 1]);
        let last_default = order.iter().position(|&job| job == 109).unwrap();
        assert!(order[last_default..].iter().skip(1).all(|&job| job < 100), "{order:?}");
    }

    #[test]
    fn a_newcomer_is_served_next_to_a_tenant_with_many() {
        let mut queue = Queue::new(Weights::default());
        (0..1000).for_each(|job| queue.push(&place(Lane::Default, "many"), job));
        for _ in 0..500 {
            let (place, _) = queue.front().unwrap();
            queue.charge(&place, 7, true);
        }
        (2000..2010).for_each(|job| queue.push(&place(Lane::Default, "few"), job));
        let order = order(&mut queue);
        let last = order.iter().position(|&job| job == 2009).unwrap();
        assert!(last <= 27, "the tenth job of the newcomer came at place {last}");
    }

    #[test]
    fn a_job_that_is_taken_in_parts_stays_in_front_of_its_tenant_only() {
        let mut queue = Queue::new(Weights::default());
        queue.push(&place(Lane::Default, "large"), 1);
        queue.push(&place(Lane::Default, "small"), 2);
        let (first, job) = queue.front().unwrap();
        assert_eq!(job, 1);
        queue.charge(&first, 100, false);
        assert_eq!(queue.front().unwrap().1, 2);
        queue.remove(&place(Lane::Default, "small"), 2);
        assert_eq!(queue.front().unwrap().1, 1);
    }

    proptest! {
        #[test]
        fn tenants_that_wait_are_given_the_same(costs in prop::collection::vec(1u64..50, 3)) {
            let mut queue = Queue::new(Weights::default());
            for (tenant, _) in costs.iter().enumerate() {
                (0..2000).for_each(|job| queue.push(&place(Lane::Default, &tenant.to_string()), job));
            }
            let mut given = [0_u64; 3];
            for _ in 0..2000 {
                let (place, _) = queue.front().unwrap();
                let tenant: usize = place.tenant.parse().unwrap();
                queue.charge(&place, costs[tenant], true);
                given[tenant] += costs[tenant];
            }
            let (least, most) = (given.iter().min().unwrap(), given.iter().max().unwrap());
            prop_assert!(most - least <= 100, "{given:?}");
        }
    }
}
