//! Traces of OpenTelemetry through the queue: where they are sent, and how a message carries its context.
//!
//! A job's context travels in the headers of W3C Trace Context. Spans are exported by OTLP over HTTP, in batches and from
//! a thread of the exporter's own. What is traced is for the sampler to say, by the variables that OpenTelemetry has for it.

mod carrier;
mod config;

use std::time::{Duration, SystemTime};

use opentelemetry::trace::{Span as _, SpanBuilder, SpanKind, Tracer, TracerProvider};
use opentelemetry::{Context, Key, KeyValue};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider};

pub use carrier::{context_in, put_context};
pub use config::TraceArgs;

/// One that is exported.
pub type Span = opentelemetry_sdk::trace::Span;

/// A batch has as many links as jobs; more than this are not told.
const LINKS_MAX: u32 = 1024;
/// How long the last spans may take to be sent at the end.
const FLUSH: Duration = Duration::from_secs(3);

#[derive(Debug, thiserror::Error)]
#[error("--otlp-endpoint: {0}")]
pub struct EndpointError(String);

/// Makes spans, or none where traces are off. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Traces {
    tracer: Option<SdkTracer>,
}

/// Sends the spans. To be ended before the program ends, or the last ones are lost.
#[derive(Debug, Default)]
pub struct Exporter {
    provider: Option<SdkTracerProvider>,
}

impl TraceArgs {
    /// `service` is the program's name in traces, unless OTEL_SERVICE_NAME has another one.
    pub fn start(&self, service: &'static str, version: &'static str) -> Result<(Traces, Exporter), EndpointError> {
        let Some(endpoint) = self.otlp_endpoint.as_deref().filter(|endpoint| !endpoint.is_empty()) else {
            return Ok(Default::default());
        };
        // The value is not repeated: it may have a secret in it.
        if !endpoint.starts_with("http://") && !endpoint.starts_with("https://") {
            return Err(EndpointError("give the URL of a collector that speaks OTLP over HTTP".to_owned()));
        }
        if endpoint.contains('@') {
            return Err(EndpointError("put secrets into OTEL_EXPORTER_OTLP_HEADERS, not into the URL".to_owned()));
        }
        let url = format!("{}/v1/traces", endpoint.trim_end_matches('/'));
        let exporter = SpanExporter::builder().with_http().with_protocol(Protocol::HttpBinary).with_endpoint(url);
        let exporter = exporter.build().map_err(|error| EndpointError(error.to_string()))?;
        let provider = SdkTracerProvider::builder()
            .with_batch_exporter(exporter)
            .with_resource(resource(service, version))
            .with_max_links_per_span(LINKS_MAX)
            .build();
        let tracer = provider.tracer("inferq");
        Ok((Traces { tracer: Some(tracer) }, Exporter { provider: Some(provider) }))
    }
}

fn resource(service: &'static str, version: &'static str) -> Resource {
    let own = || Resource::builder().with_attribute(KeyValue::new("service.version", version));
    // What the environment says is in it already.
    let named = own().build().get(&Key::from_static_str("service.name")).map(|name| name.to_string());
    match named {
        Some(name) if !name.starts_with("unknown_service") => own().build(),
        _ => own().with_service_name(service).build(),
    }
}

impl Traces {
    pub fn is_on(&self) -> bool {
        self.tracer.is_some()
    }

    /// Begins a span below a parent, or at the head of a trace where the context has none. None where traces are off. One
    /// that the sampler leaves out records nothing, and its context says so to those that go on from it.
    pub fn begin(&self, parent: &Context, make: impl FnOnce() -> SpanBuilder) -> Option<Span> {
        let tracer = self.tracer.as_ref()?;
        Some(tracer.build_with_context(make(), parent))
    }

    /// A span that is over.
    pub fn tell(&self, parent: &Context, span: SpanBuilder, (begun, ended): (SystemTime, SystemTime)) {
        if let Some(mut told) = self.begin(parent, || span.with_kind(SpanKind::Internal).with_start_time(begun)) {
            told.end_with_timestamp(ended);
        }
    }
}

impl Exporter {
    /// Sends what is left. Blocks for a few seconds at most.
    pub fn finish(self) {
        if let Some(provider) = self.provider
            && let Err(error) = provider.shutdown_with_timeout(FLUSH)
        {
            eprintln!("the last spans were not sent: {error}");
        }
    }
}
