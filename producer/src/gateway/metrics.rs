//! Metrics of the gateway, for Prometheus: those of generative AI by OpenTelemetry's names in Prometheus' spelling.

use std::time::Duration;

use async_nats::connection::State;
use connect::Connection;
use prometheus::{HistogramVec, IntCounter, IntGauge, IntGaugeVec, Registry};
use service::{Catalog, Row};

/// Every metric with its labels and meaning: the table of OBSERVABILITY.md, tested against it.
pub const TABLE: [Row; 8] = [
    (
        "http_server_request_duration_seconds",
        "http_route, http_response_status_code",
        "from a request to its response's head",
    ),
    (
        "gen_ai_server_request_duration_seconds",
        "gen_ai_operation_name",
        "from a request to its whole answer, where it waits for one",
    ),
    (
        "gen_ai_server_time_to_first_token_seconds",
        "gen_ai_operation_name",
        "from a request to the first token of its stream",
    ),
    ("inferq_gateway_streams", "", "streams of events open now"),
    ("inferq_gateway_abandoned_total", "", "jobs cancelled since their callers left"),
    ("inferq_nats_connected", "", "1 while connected to NATS"),
    ("inferq_nats_connects_total", "", "connections made to NATS, the first included"),
    ("inferq_build_info", "version", "always 1"),
];

#[derive(Debug)]
pub struct Metrics {
    catalog: Catalog,
    requests: HistogramVec,
    answers: HistogramVec,
    first_tokens: HistogramVec,
    streams: IntGauge,
    pub abandoned: IntCounter,
    connected: IntGauge,
    connects: IntCounter,
}

/// A stream that is open for as long as this lives.
#[derive(Debug)]
pub struct Open(IntGauge);

impl Default for Metrics {
    fn default() -> Self {
        let catalog = Catalog::new(&TABLE, Registry::new());
        let build_info: IntGaugeVec = catalog.add_labelled("inferq_build_info", IntGaugeVec::new);
        build_info.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        Self {
            requests: catalog.add_latencies("http_server_request_duration_seconds"),
            answers: catalog.add_latencies("gen_ai_server_request_duration_seconds"),
            first_tokens: catalog.add_latencies("gen_ai_server_time_to_first_token_seconds"),
            streams: catalog.add("inferq_gateway_streams", IntGauge::with_opts),
            abandoned: catalog.add("inferq_gateway_abandoned_total", IntCounter::with_opts),
            connected: catalog.add("inferq_nats_connected", IntGauge::with_opts),
            connects: catalog.add("inferq_nats_connects_total", IntCounter::with_opts),
            catalog,
        }
    }
}

impl Metrics {
    pub fn open_stream(&self) -> Open {
        self.streams.inc();
        Open(self.streams.clone())
    }

    pub fn request(&self, route: &str, status: u16, took: Duration) {
        self.requests.with_label_values(&[route, &status.to_string()]).observe(took.as_secs_f64());
    }

    pub fn answered(&self, operation: &str, took: Duration) {
        self.answers.with_label_values(&[operation]).observe(took.as_secs_f64());
    }

    pub fn first_token(&self, operation: &str, took: Duration) {
        self.first_tokens.with_label_values(&[operation]).observe(took.as_secs_f64());
    }

    /// The text exposition format.
    pub fn render(&self, connection: &Connection) -> String {
        let is_connected = connection.client.connection_state() == State::Connected;
        self.connected.set(is_connected.into());
        self.connects.reset();
        self.connects.inc_by(*connection.connects.borrow());
        self.catalog.render()
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.dec();
    }
}
