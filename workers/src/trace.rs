//! The trace of a delivery: one span for the whole of it, below the span of whoever published the job, and spans for its
//! parts. Names are those of OpenTelemetry's conventions for messaging and for generative AI, which know no NATS.

use std::sync::Mutex;
use std::time::{Duration, SystemTime};

use async_nats::HeaderMap;
use opentelemetry::trace::{Span as _, SpanBuilder, SpanContext, SpanKind, Status, TraceContextExt};
use opentelemetry::{Context, KeyValue};
use schemas::log::Usage;
use traces::{Span, Traces, context_in, put_context};

use crate::engine::thread::Done;
use crate::outcome::Outcome;
use crate::received::Received;

pub struct Trace {
    traces: Traces,
    /// What the parts stand below.
    context: Context,
    /// Whether the sampler has not left it out.
    is_kept: bool,
    span: Mutex<Span>,
}

impl Trace {
    /// None where traces are off.
    pub fn begin(traces: &Traces, received: &Received, model: &str) -> Option<Box<Self>> {
        if !traces.is_on() {
            return None;
        }
        let sent = context_in(received.message.headers.as_ref());
        let span = traces.begin(&sent, || {
            let job_id = received.tokens().job_id.to_owned();
            SpanBuilder::from_name(format!("process {model}")).with_kind(SpanKind::Consumer).with_attributes([
                KeyValue::new("messaging.system", "nats"),
                KeyValue::new("messaging.operation.type", "process"),
                KeyValue::new("messaging.operation.name", "process"),
                KeyValue::new("messaging.destination.name", format!("inferq.jobs.{model}.{}", received.lane())),
                KeyValue::new("messaging.message.id", job_id),
                KeyValue::new("messaging.message.body.size", received.message.payload.len() as i64),
                KeyValue::new("gen_ai.request.model", model.to_owned()),
                KeyValue::new("inferq.delivery", received.delivered as i64),
            ])
        })?;
        let own = Context::new().with_remote_span_context(span.span_context().clone());
        let is_kept = span.is_recording();
        let trace = Self { traces: traces.clone(), context: own, is_kept, span: Mutex::new(span) };
        // The wait came before the delivery: it stands beside it, below the span of the sender, where there is one. When a
        // job that was given back began to wait again, nobody knows.
        if received.delivered <= 1 {
            let above = if sent.span().span_context().is_valid() { &sent } else { &trace.context };
            trace.tell_below(above, "queue", (received.published.into(), SystemTime::now()));
        }
        Some(Box::new(trace))
    }

    /// For those that link to it.
    pub fn span_context(&self) -> Option<SpanContext> {
        self.is_kept.then(|| self.context.span().span_context().clone())
    }

    /// Has a message carry it on.
    pub fn put(&self, headers: &mut HeaderMap) {
        put_context(&self.context, headers);
    }

    /// A part that is over now.
    pub fn tell(&self, name: &'static str, since: SystemTime) {
        self.tell_below(&self.context, name, (since, SystemTime::now()));
    }

    /// What the engine has done, just now.
    pub fn tell_engine(&self, done: &Done) {
        let mut begin = SystemTime::now() - (done.waited + done.prefill + done.decode);
        for (name, took) in [("wait", done.waited), ("prefill", done.prefill), ("decode", done.decode)] {
            if took > Duration::ZERO {
                self.tell_below(&self.context, name, (begin, begin + took));
            }
            begin += took;
        }
    }

    /// How the delivery ended.
    pub fn end(&self, outcome: &Outcome, attempt: u32) {
        let mut span = self.span.lock().expect("no panic while held");
        span.set_attribute(KeyValue::new("inferq.outcome", outcome.label()));
        span.set_attribute(KeyValue::new("inferq.attempt", i64::from(attempt)));
        match outcome {
            Outcome::Completed { usage, .. } => tell_usage(&mut span, usage),
            // Without the reason, which may quote what an engine stumbled over.
            Outcome::Retry { .. } | Outcome::Exhausted { .. } => {
                span.set_attribute(KeyValue::new("error.type", outcome.label()));
                span.set_status(Status::error(outcome.label()));
            }
            // The job's own, not the worker's.
            _ => {}
        }
        span.end();
    }

    fn tell_below(&self, parent: &Context, name: &'static str, (begin, end): (SystemTime, SystemTime)) {
        if self.is_kept {
            self.traces.tell(parent, SpanBuilder::from_name(name), (begin, end));
        }
    }
}

fn tell_usage(span: &mut Span, usage: &Usage) {
    span.set_attribute(KeyValue::new("gen_ai.usage.input_tokens", usage.prompt_tokens as i64));
    if let Some(tokens) = usage.completion_tokens {
        span.set_attribute(KeyValue::new("gen_ai.usage.output_tokens", tokens as i64));
    }
}
