//! Metrics of the logger, for Prometheus.

use std::sync::Mutex;

use async_nats::connection::State;
use connect::Connection;
use prometheus::{GaugeVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Registry};
use schemas::header::DeadClass;

use super::Kind;
use super::queue::{Waiting, Workers};
use service::{Catalog, Row};

/// Every metric with its labels and meaning: the table of OBSERVABILITY.md, tested against it.
pub const TABLE: [Row; 14] = [
    ("inferq_logger_records_total", "kind", "lines written, by kind"),
    ("inferq_logger_bytes_total", "", "bytes of these lines"),
    ("inferq_logger_redelivered_total", "kind", "messages that came again, whose lines may stand twice"),
    ("inferq_logger_lag", "kind", "messages that waited in the stream after the last pull"),
    ("inferq_nats_connected", "", "1 while connected to NATS"),
    ("inferq_nats_connects_total", "", "connections made to NATS, the first included"),
    (
        "inferq_logger_dead_letters_total",
        "model, class",
        "dead letters, whoever wrote them; after a crash one may count twice",
    ),
    ("inferq_queue_jobs", "model, lane", "jobs that wait"),
    ("inferq_queue_in_flight", "model, lane", "jobs that workers hold, and those to be tried again"),
    ("inferq_queue_age_seconds", "model, lane", "age of the first of the jobs that wait"),
    ("inferq_backlog_seconds", "model, lane", "what the jobs that wait would take one worker"),
    ("inferq_backlog_empty_seconds", "model", "when the queue will be empty, by the workers that are there"),
    ("inferq_workers", "model", "workers that answer"),
    ("inferq_build_info", "version", "always 1"),
];

#[derive(Debug)]
pub struct Metrics {
    catalog: Catalog,
    records: IntCounterVec,
    bytes: IntCounter,
    redelivered: IntCounterVec,
    lag: IntGaugeVec,
    connected: IntGauge,
    connects: IntCounter,
    dead_letters: IntCounterVec,
    queued: GaugeVec,
    in_flight: GaugeVec,
    age: GaugeVec,
    backlog: GaugeVec,
    empty: GaugeVec,
    workers: GaugeVec,
    /// Held while the gauges of the queue are set or shown: what is shown comes from one look.
    look: Mutex<()>,
}

impl Default for Metrics {
    fn default() -> Self {
        let catalog = Catalog::new(&TABLE, Registry::new());
        let metrics = Self {
            records: catalog.add_labelled("inferq_logger_records_total", IntCounterVec::new),
            bytes: catalog.add("inferq_logger_bytes_total", IntCounter::with_opts),
            redelivered: catalog.add_labelled("inferq_logger_redelivered_total", IntCounterVec::new),
            lag: catalog.add_labelled("inferq_logger_lag", IntGaugeVec::new),
            connected: catalog.add("inferq_nats_connected", IntGauge::with_opts),
            connects: catalog.add("inferq_nats_connects_total", IntCounter::with_opts),
            dead_letters: catalog.add_labelled("inferq_logger_dead_letters_total", IntCounterVec::new),
            queued: catalog.add_labelled("inferq_queue_jobs", GaugeVec::new),
            in_flight: catalog.add_labelled("inferq_queue_in_flight", GaugeVec::new),
            age: catalog.add_labelled("inferq_queue_age_seconds", GaugeVec::new),
            backlog: catalog.add_labelled("inferq_backlog_seconds", GaugeVec::new),
            empty: catalog.add_labelled("inferq_backlog_empty_seconds", GaugeVec::new),
            workers: catalog.add_labelled("inferq_workers", GaugeVec::new),
            look: Mutex::new(()),
            catalog,
        };
        metrics.show_labels();
        metrics
    }
}

impl Metrics {
    pub fn count(&self, kind: Kind, lines: usize, bytes: usize) {
        self.records.with_label_values(&[kind.as_str()]).inc_by(lines as u64);
        self.bytes.inc_by(bytes as u64);
    }

    pub fn count_redelivered(&self, kind: Kind, messages: usize) {
        self.redelivered.with_label_values(&[kind.as_str()]).inc_by(messages as u64);
    }

    pub fn set_lag(&self, kind: Kind, waiting: u64) {
        self.lag.with_label_values(&[kind.as_str()]).set(i64::try_from(waiting).unwrap_or(i64::MAX));
    }

    /// Counts a dead letter. The class is one that this version knows, or `other`.
    pub fn count_dead_letter(&self, model: &str, class: Option<DeadClass>) {
        self.dead_letters.with_label_values(&[model, class.map_or("other", DeadClass::as_str)]).inc();
    }

    /// All that is known of the queue now. What stood there before is gone.
    pub fn set_queue(&self, waiting: &[Waiting], workers: &[Workers]) {
        let _look = self.look.lock().expect("setting gauges does not panic");
        for gauge in [&self.queued, &self.in_flight, &self.age, &self.backlog, &self.empty, &self.workers] {
            gauge.reset();
        }
        for lane in waiting {
            let labels = [lane.model.as_str(), lane.lane.as_str()];
            self.queued.with_label_values(&labels).set(lane.queued as f64);
            self.in_flight.with_label_values(&labels).set(lane.in_flight as f64);
            if let Some(age) = lane.age {
                self.age.with_label_values(&labels).set(age.as_secs_f64());
            }
            if let Some(seconds) = lane.worker_seconds {
                self.backlog.with_label_values(&labels).set(seconds);
            }
        }
        for Workers { model, count, empty_seconds } in workers {
            // So that the first dead letters are seen as an increase.
            for class in DeadClass::ALL {
                self.dead_letters.with_label_values(&[model.as_str(), class.as_str()]);
            }
            self.workers.with_label_values(&[model]).set(*count as f64);
            if let Some(seconds) = empty_seconds {
                self.empty.with_label_values(&[model]).set(*seconds);
            }
        }
    }

    /// The text exposition format.
    pub fn render(&self, connection: &Connection) -> String {
        let _look = self.look.lock().expect("setting gauges does not panic");
        self.connected.set((connection.client.connection_state() == State::Connected).into());
        self.connects.reset();
        self.connects.inc_by(*connection.connects.borrow());
        self.catalog.render()
    }

    /// What has not happened yet is shown as 0, so that its first time is seen as an increase.
    fn show_labels(&self) {
        for kind in Kind::ALL {
            self.count(kind, 0, 0);
            self.count_redelivered(kind, 0);
            self.set_lag(kind, 0);
        }
        let build_info: IntGaugeVec = self.catalog.add_labelled("inferq_build_info", IntGaugeVec::new);
        build_info.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
    }
}
