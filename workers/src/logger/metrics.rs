//! Metrics of the logger, for Prometheus.

use async_nats::connection::State;
use connect::Connection;
use prometheus::core::Collector;
use prometheus::{Encoder, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder};

use super::Kind;

/// Every metric with its labels and meaning: the table of the README, tested against it.
pub const TABLE: [(&str, &str, &str); 6] = [
    ("inferq_logger_records_total", "kind", "lines written, by kind"),
    ("inferq_logger_bytes_total", "", "bytes of these lines"),
    ("inferq_logger_redelivered_total", "kind", "messages that came again, whose lines may stand twice"),
    ("inferq_logger_lag", "kind", "messages that waited in the stream after the last pull"),
    ("inferq_nats_connected", "", "1 while connected to NATS"),
    ("inferq_nats_connects_total", "", "connections made to NATS, the first included"),
];

#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    records: IntCounterVec,
    bytes: IntCounter,
    redelivered: IntCounterVec,
    lag: IntGaugeVec,
    connected: IntGauge,
    connects: IntCounter,
}

impl Default for Metrics {
    fn default() -> Self {
        let metrics = Self {
            registry: Registry::new(),
            records: IntCounterVec::new(opts(0), &["kind"]).expect("legal"),
            bytes: IntCounter::with_opts(opts(1)).expect("legal"),
            redelivered: IntCounterVec::new(opts(2), &["kind"]).expect("legal"),
            lag: IntGaugeVec::new(opts(3), &["kind"]).expect("legal"),
            connected: IntGauge::with_opts(opts(4)).expect("legal"),
            connects: IntCounter::with_opts(opts(5)).expect("legal"),
        };
        metrics.register();
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

    /// The text exposition format.
    pub fn render(&self, connection: &Connection) -> String {
        self.connected.set((connection.client.connection_state() == State::Connected).into());
        self.connects.reset();
        self.connects.inc_by(*connection.connects.borrow());
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text).expect("writing to memory cannot fail");
        String::from_utf8(text).expect("the exposition format is UTF-8")
    }

    fn register(&self) {
        for kind in Kind::ALL {
            self.count(kind, 0, 0);
            self.count_redelivered(kind, 0);
            self.set_lag(kind, 0);
        }
        let collectors: [Box<dyn Collector>; 6] = [
            Box::new(self.records.clone()),
            Box::new(self.bytes.clone()),
            Box::new(self.redelivered.clone()),
            Box::new(self.lag.clone()),
            Box::new(self.connected.clone()),
            Box::new(self.connects.clone()),
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
