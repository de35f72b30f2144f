//! The metrics of one program: a table of their names, labels and meanings, and the registry that shows them.

use prometheus::core::Collector;
use prometheus::{Encoder, HistogramOpts, Opts, Registry, TextEncoder};

/// Name, labels separated by commas, and meaning, as OBSERVABILITY.md has them.
pub type Row = (&'static str, &'static str, &'static str);

/// From half a millisecond to about nine minutes.
const LATENCY_BUCKETS: (f64, f64, usize) = (0.000_5, 2.0, 20);

#[derive(Debug)]
pub struct Catalog {
    table: &'static [Row],
    registry: Registry,
}

impl Catalog {
    pub fn new(table: &'static [Row], registry: Registry) -> Self {
        Self { table, registry }
    }

    /// A counter or gauge of the table.
    pub fn add<M: Collector + Clone + 'static>(&self, name: &str, make: impl Fn(Opts) -> prometheus::Result<M>) -> M {
        let (name, _, help) = self.row(name);
        self.register(make(Opts::new(*name, *help)))
    }

    /// One with labels: those of its row.
    pub fn add_labelled<M: Collector + Clone + 'static>(
        &self,
        name: &str,
        make: impl Fn(Opts, &[&str]) -> prometheus::Result<M>,
    ) -> M {
        let (_, labels, _) = self.row(name);
        let labels: Vec<&str> = labels.split(", ").collect();
        self.add(name, |opts| make(opts, &labels))
    }

    /// A histogram of seconds.
    pub fn add_latency(&self, name: &str) -> prometheus::Histogram {
        let (start, factor, count) = LATENCY_BUCKETS;
        let buckets = prometheus::exponential_buckets(start, factor, count).expect("legal");
        self.add(name, |opts| prometheus::Histogram::with_opts(HistogramOpts::from(opts).buckets(buckets.clone())))
    }

    /// Histograms of seconds by labels: those of its row.
    pub fn add_latencies(&self, name: &str) -> prometheus::HistogramVec {
        let (start, factor, count) = LATENCY_BUCKETS;
        let buckets = prometheus::exponential_buckets(start, factor, count).expect("legal");
        let make = |opts, labels: &[&str]| {
            prometheus::HistogramVec::new(HistogramOpts::from(opts).buckets(buckets.clone()), labels)
        };
        self.add_labelled(name, make)
    }

    /// The text exposition format.
    pub fn render(&self) -> String {
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text).expect("writing to memory cannot fail");
        String::from_utf8(text).expect("the exposition format is UTF-8")
    }

    fn row(&self, name: &str) -> &'static Row {
        self.table.iter().find(|(known, ..)| *known == name).expect("every metric stands in the table")
    }

    fn register<M: Collector + Clone + 'static>(&self, made: prometheus::Result<M>) -> M {
        let metric = made.expect("names and labels of the table are legal");
        self.registry.register(Box::new(metric.clone())).expect("each name stands once in the table");
        metric
    }
}
