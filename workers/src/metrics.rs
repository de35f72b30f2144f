//! Metrics of one worker, for Prometheus. Base units; labels from closed sets; never a job id.

use std::collections::HashMap;
use std::sync::{Mutex, OnceLock};
use std::time::Instant;

use prometheus::{Counter, Gauge, Histogram, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Registry};

use schemas::header::DeadClass;
use schemas::provenance::CacheUse;
use service::admin::Phase;
use service::{Catalog, Row};

use crate::outcome::Outcome;
use crate::pace::Pace;

/// Every metric with its labels and meaning: the table of OBSERVABILITY.md, tested against it.
pub const TABLE: [Row; 21] = [
    ("inferq_deliveries_total", "outcome", "deliveries that ended, by outcome"),
    ("inferq_deliveries_in_flight", "", "deliveries open now"),
    ("inferq_delivery_seconds", "", "from receipt to acknowledgement"),
    ("inferq_queue_seconds", "", "from the job's publication to its receipt by this worker"),
    ("inferq_prefill_seconds", "", "in the engine, to the first token, or to the end where there are no tokens"),
    ("inferq_decode_seconds", "", "in the engine, from the first token to the last"),
    ("inferq_redeliveries_total", "", "deliveries that were not the first of their job"),
    ("inferq_tokens_total", "kind", "tokens of completed jobs: prompt or completion"),
    ("inferq_audio_seconds_total", "", "seconds of audio that were transcribed"),
    ("inferq_engine_steps_total", "", "steps of the engine"),
    ("inferq_nats_connected", "", "1 while connected to NATS"),
    ("inferq_nats_connects_total", "", "connections made to NATS, the first included"),
    ("inferq_cache_total", "result", "jobs that may be cached: hit, miss or shared with one in flight"),
    ("inferq_unit_seconds", "", "what a unit of cost, a token, takes this worker"),
    ("inferq_lifted_total", "", "jobs moved in front of another tenant's"),
    ("inferq_worker_phase", "phase", "1 for the phase it is in: loading, running, draining or broken"),
    ("inferq_dead_letters_total", "class", "jobs that were given up, by class"),
    (
        "inferq_engine_sequences_total",
        "",
        "sequences that the steps have moved on: divided by the steps, the size of a batch",
    ),
    ("inferq_load_seconds", "", "what it took to load the model, without fetching it"),
    ("inferq_build_info", "version", "always 1"),
    ("inferq_drain_seconds", "", "time since the worker was told to stop, 0 before"),
];

#[derive(Debug)]
pub struct Metrics {
    catalog: Catalog,
    deliveries: IntCounterVec,
    pub in_flight: IntGauge,
    pub delivery_seconds: Histogram,
    pub queue_seconds: Histogram,
    pub prefill_seconds: Histogram,
    pub decode_seconds: Histogram,
    pub redeliveries: IntCounter,
    tokens: IntCounterVec,
    pub audio_seconds: Counter,
    engine_steps: IntCounter,
    engine_sequences: IntCounter,
    nats_connected: IntGauge,
    nats_connects: IntCounter,
    cache: IntCounterVec,
    unit_seconds: Gauge,
    pub lifted: IntCounter,
    dead_letters: IntCounterVec,
    pub load_seconds: Gauge,
    phase: IntGaugeVec,
    drain_seconds: Gauge,
    /// Since when the worker drains.
    draining: OnceLock<Instant>,
    /// Jobs that waited in each lane when it was last asked.
    waiting: Mutex<HashMap<String, u64>>,
}

/// What is read when the metrics are asked for.
#[derive(Clone, Copy, Debug)]
pub struct Readings {
    pub phase: Phase,
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
        let catalog = Catalog::new(&TABLE, registry);
        let metrics = Self {
            deliveries: catalog.add_labelled("inferq_deliveries_total", IntCounterVec::new),
            in_flight: catalog.add("inferq_deliveries_in_flight", IntGauge::with_opts),
            delivery_seconds: catalog.add_latency("inferq_delivery_seconds"),
            queue_seconds: catalog.add_latency("inferq_queue_seconds"),
            prefill_seconds: catalog.add_latency("inferq_prefill_seconds"),
            decode_seconds: catalog.add_latency("inferq_decode_seconds"),
            redeliveries: catalog.add("inferq_redeliveries_total", IntCounter::with_opts),
            tokens: catalog.add_labelled("inferq_tokens_total", IntCounterVec::new),
            audio_seconds: catalog.add("inferq_audio_seconds_total", Counter::with_opts),
            engine_steps: catalog.add("inferq_engine_steps_total", IntCounter::with_opts),
            engine_sequences: catalog.add("inferq_engine_sequences_total", IntCounter::with_opts),
            nats_connected: catalog.add("inferq_nats_connected", IntGauge::with_opts),
            nats_connects: catalog.add("inferq_nats_connects_total", IntCounter::with_opts),
            cache: catalog.add_labelled("inferq_cache_total", IntCounterVec::new),
            unit_seconds: catalog.add("inferq_unit_seconds", Gauge::with_opts),
            lifted: catalog.add("inferq_lifted_total", IntCounter::with_opts),
            dead_letters: catalog.add_labelled("inferq_dead_letters_total", IntCounterVec::new),
            load_seconds: catalog.add("inferq_load_seconds", Gauge::with_opts),
            phase: catalog.add_labelled("inferq_worker_phase", IntGaugeVec::new),
            drain_seconds: catalog.add("inferq_drain_seconds", Gauge::with_opts),
            draining: OnceLock::new(),
            waiting: Mutex::default(),
            catalog,
        };
        metrics.show_labels();
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

    pub fn note_pace(&self, pace: &Pace) {
        self.unit_seconds.set(pace.answer().unit_seconds.unwrap_or(0.0));
    }

    /// Notes that the worker was told to stop.
    pub fn begin_drain(&self) {
        self.draining.get_or_init(Instant::now);
    }

    /// The text exposition format.
    pub fn render(&self, readings: Readings) -> String {
        for (counter, value) in [
            (&self.engine_steps, readings.engine_steps),
            (&self.engine_sequences, readings.engine_sequences),
            (&self.nats_connects, readings.nats_connects),
        ] {
            counter.reset();
            counter.inc_by(value);
        }
        self.nats_connected.set(readings.nats_connected.into());
        self.drain_seconds.set(self.draining.get().map_or(0.0, |since| since.elapsed().as_secs_f64()));
        for phase in Phase::ALL {
            self.phase.with_label_values(&[phase.as_str()]).set((phase == readings.phase).into());
        }
        self.catalog.render()
    }

    /// What has not happened yet is shown as 0, so that its first time is seen as an increase.
    fn show_labels(&self) {
        for label in Outcome::LABELS {
            self.deliveries.with_label_values(&[label]);
        }
        self.count_tokens(0, 0);
        for used in CacheUse::ALL {
            self.cache.with_label_values(&[used.as_str()]);
        }
        for class in DeadClass::ALL {
            self.dead_letters.with_label_values(&[class.as_str()]);
        }
        let build_info: IntGaugeVec = self.catalog.add_labelled("inferq_build_info", IntGaugeVec::new);
        build_info.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_of_the_table_is_exposed() {
        let readings = Readings {
            phase: Phase::Draining,
            engine_steps: 7,
            engine_sequences: 9,
            nats_connected: true,
            nats_connects: 1,
        };
        let metrics = Metrics::new("m");
        metrics.begin_drain();
        let text = metrics.render(readings);
        for (name, label, help) in TABLE {
            assert!(text.contains(&format!("# HELP {name} {help}")), "{name}");
            let has_label = |line: &str| line.starts_with(name) && line.contains(&format!("{label}="));
            assert!(label.is_empty() || text.lines().any(has_label), "{name} {label}\n{text}");
        }
        assert!(text.contains("inferq_engine_steps_total{model=\"m\"} 7"));
        assert!(text.contains("inferq_worker_phase{phase=\"draining\",model=\"m\"} 1"), "{text}");
        assert!(text.contains("inferq_worker_phase{phase=\"running\",model=\"m\"} 0"), "{text}");
        assert!(!text.contains("inferq_drain_seconds{model=\"m\"} 0\n"), "{text}");
    }
}
