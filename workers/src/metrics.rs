//! Metrics of one worker, for Prometheus. Base units; labels from closed sets; never a job id.

use std::collections::HashMap;
use std::sync::Mutex;

use prometheus::core::Collector;
use prometheus::{
    Encoder, Gauge, GaugeVec, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, TextEncoder,
};

use schemas::header::DeadClass;
use schemas::provenance::CacheUse;
use schemas::subject::Lane;

use crate::outcome::Outcome;
use crate::pace::Pace;

/// Every metric with its labels and meaning: the table of the README, tested against it.
pub const TABLE: [(&str, &str, &str); 17] = [
    ("inferq_deliveries_total", "outcome", "deliveries that ended, by outcome"),
    ("inferq_deliveries_in_flight", "", "deliveries open now"),
    ("inferq_delivery_seconds", "", "from receipt to acknowledgement"),
    ("inferq_queue_seconds", "", "from the job's publication to its receipt by this worker"),
    ("inferq_redeliveries_total", "", "deliveries that were not the first of their job"),
    ("inferq_tokens_total", "kind", "tokens of completed jobs: prompt or completion"),
    ("inferq_engine_steps_total", "", "steps of the engine"),
    ("inferq_nats_connected", "", "1 while connected to NATS"),
    ("inferq_nats_connects_total", "", "connections made to NATS, the first included"),
    ("inferq_cache_total", "result", "jobs that may be cached: hit, miss or shared with one in flight"),
    ("inferq_unit_seconds", "", "what a unit of cost, a token, takes this worker"),
    ("inferq_lifted_total", "", "jobs moved in front of another tenant's"),
    ("inferq_backlog_seconds", "lane", "what this worker alone would need for the jobs that wait"),
    ("inferq_dead_letters_total", "class", "jobs that were given up, by class"),
    (
        "inferq_engine_sequences_total",
        "",
        "sequences that the steps have moved on: divided by the steps, the size of a batch",
    ),
    ("inferq_load_seconds", "", "what it took to load the model, without fetching it"),
    ("inferq_build_info", "version", "always 1"),
];

/// From half a millisecond to about nine minutes.
const LATENCY_BUCKETS: (f64, f64, usize) = (0.000_5, 2.0, 20);

#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    deliveries: IntCounterVec,
    pub in_flight: IntGauge,
    pub delivery_seconds: Histogram,
    pub queue_seconds: Histogram,
    pub redeliveries: IntCounter,
    tokens: IntCounterVec,
    engine_steps: IntCounter,
    nats_connected: IntGauge,
    nats_connects: IntCounter,
    cache: IntCounterVec,
    unit_seconds: Gauge,
    pub lifted: IntCounter,
    backlog: GaugeVec,
    dead_letters: IntCounterVec,
    engine_sequences: IntCounter,
    pub load_seconds: Gauge,
    build_info: IntGaugeVec,
    /// Jobs that waited in each lane when it was last asked.
    waiting: Mutex<HashMap<String, u64>>,
}

/// What is read when the metrics are asked for.
#[derive(Clone, Copy, Debug)]
pub struct Readings {
    pub engine_steps: u64,
    pub engine_sequences: u64,
    pub nats_connected: bool,
    pub nats_connects: u64,
}

impl Metrics {
    /// `model` labels every metric of this worker.
    pub fn new(model: &str) -> Self {
        let labels = [("model".to_owned(), model.to_owned())].into();
        let registry = Registry::new_custom(None, Some(labels)).expect("the label is legal");
        let metrics = Self {
            deliveries: IntCounterVec::new(opts(0), &["outcome"]).expect("legal"),
            in_flight: IntGauge::with_opts(opts(1)).expect("legal"),
            delivery_seconds: Histogram::with_opts(histogram(2)).expect("legal"),
            queue_seconds: Histogram::with_opts(histogram(3)).expect("legal"),
            redeliveries: IntCounter::with_opts(opts(4)).expect("legal"),
            tokens: IntCounterVec::new(opts(5), &["kind"]).expect("legal"),
            engine_steps: IntCounter::with_opts(opts(6)).expect("legal"),
            nats_connected: IntGauge::with_opts(opts(7)).expect("legal"),
            nats_connects: IntCounter::with_opts(opts(8)).expect("legal"),
            cache: IntCounterVec::new(opts(9), &["result"]).expect("legal"),
            unit_seconds: Gauge::with_opts(opts(10)).expect("legal"),
            lifted: IntCounter::with_opts(opts(11)).expect("legal"),
            backlog: GaugeVec::new(opts(12), &["lane"]).expect("legal"),
            dead_letters: IntCounterVec::new(opts(13), &["class"]).expect("legal"),
            engine_sequences: IntCounter::with_opts(opts(14)).expect("legal"),
            load_seconds: Gauge::with_opts(opts(15)).expect("legal"),
            build_info: IntGaugeVec::new(opts(16), &["version"]).expect("legal"),
            waiting: Mutex::default(),
            registry,
        };
        metrics.register();
        metrics
    }

    pub fn count_outcome(&self, outcome: &Outcome) {
        self.deliveries.with_label_values(&[outcome.label()]).inc();
    }

    pub fn count_dead_letter(&self, class: DeadClass) {
        self.dead_letters.with_label_values(&[class.as_str()]).inc();
    }

    pub fn count_tokens(&self, prompt: u64, completion: u64) {
        self.tokens.with_label_values(&["prompt"]).inc_by(prompt);
        self.tokens.with_label_values(&["completion"]).inc_by(completion);
    }

    pub fn count_cache(&self, used: CacheUse) {
        self.cache.with_label_values(&[used.as_str()]).inc();
    }

    /// Notes how many jobs wait in a lane.
    pub fn note_waiting(&self, lane: &str, jobs: u64) {
        let mut waiting = self.waiting.lock().expect("no panic while held");
        match waiting.get_mut(lane) {
            Some(noted) => *noted = jobs,
            None => drop(waiting.insert(lane.to_owned(), jobs)),
        }
    }

    /// Jobs that waited in a lane when it was last asked.
    pub fn waiting(&self, lane: &str) -> u64 {
        self.waiting.lock().expect("no panic while held").get(lane).copied().unwrap_or(0)
    }

    /// Computes what depends on the worker's pace.
    pub fn read_pace(&self, pace: &Pace) {
        self.unit_seconds.set(pace.answer().unit_seconds.unwrap_or(0.0));
        for (lane, jobs) in self.waiting.lock().expect("no panic while held").iter() {
            self.backlog.with_label_values(&[lane.as_str()]).set(pace.seconds(*jobs));
        }
    }

    /// The text exposition format.
    pub fn render(&self, readings: Readings) -> String {
        self.engine_steps.reset();
        self.engine_steps.inc_by(readings.engine_steps);
        self.engine_sequences.reset();
        self.engine_sequences.inc_by(readings.engine_sequences);
        self.nats_connected.set(readings.nats_connected.into());
        self.nats_connects.reset();
        self.nats_connects.inc_by(readings.nats_connects);
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text).expect("writing to memory cannot fail");
        String::from_utf8(text).expect("the exposition format is UTF-8")
    }

    fn register(&self) {
        for label in Outcome::LABELS {
            self.deliveries.with_label_values(&[label]);
        }
        self.count_tokens(0, 0);
        for used in CacheUse::ALL {
            self.cache.with_label_values(&[used.as_str()]);
        }
        for lane in Lane::ALL {
            self.backlog.with_label_values(&[lane.as_str()]);
        }
        for class in DeadClass::ALL {
            self.dead_letters.with_label_values(&[class.as_str()]);
        }
        self.build_info.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        let collectors: [Box<dyn Collector>; 17] = [
            Box::new(self.deliveries.clone()),
            Box::new(self.in_flight.clone()),
            Box::new(self.delivery_seconds.clone()),
            Box::new(self.queue_seconds.clone()),
            Box::new(self.redeliveries.clone()),
            Box::new(self.tokens.clone()),
            Box::new(self.engine_steps.clone()),
            Box::new(self.nats_connected.clone()),
            Box::new(self.nats_connects.clone()),
            Box::new(self.cache.clone()),
            Box::new(self.unit_seconds.clone()),
            Box::new(self.lifted.clone()),
            Box::new(self.backlog.clone()),
            Box::new(self.dead_letters.clone()),
            Box::new(self.engine_sequences.clone()),
            Box::new(self.load_seconds.clone()),
            Box::new(self.build_info.clone()),
        ];
        for collector in collectors {
            self.registry.register(collector).expect("each name stands once in the table");
        }
    }
}

fn opts(row: usize) -> Opts {
    let (name, _, help) = TABLE[row];
    Opts::new(name, help)
}

fn histogram(row: usize) -> HistogramOpts {
    let (start, factor, count) = LATENCY_BUCKETS;
    let buckets = prometheus::exponential_buckets(start, factor, count).expect("legal");
    HistogramOpts::from(opts(row)).buckets(buckets)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_of_the_table_is_exposed() {
        let text = Metrics::new("m").render(Readings {
            engine_steps: 7,
            engine_sequences: 9,
            nats_connected: true,
            nats_connects: 1,
        });
        for (name, label, help) in TABLE {
            assert!(text.contains(&format!("# HELP {name} {help}")), "{name}");
            let has_label = |line: &str| line.starts_with(name) && line.contains(&format!("{label}="));
            assert!(label.is_empty() || text.lines().any(has_label), "{name} {label}\n{text}");
        }
        assert!(text.contains("inferq_engine_steps_total{model=\"m\"} 7"));
    }
}
