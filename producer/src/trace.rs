//! The span of a job that is sent. The job carries its context, or that of the caller where no span is made.

use async_nats::HeaderMap;
use opentelemetry::trace::{Span as _, SpanBuilder, SpanKind, Status, TraceContextExt};
use opentelemetry::{Context, KeyValue};
use traces::{Span, Traces, put_context};

use crate::submission::Submission;
use crate::submit::{SubmitError, Submitted};

pub(crate) struct Sending {
    span: Option<Span>,
    context: Context,
}

impl Sending {
    /// Below the span that the caller is in, if it is in one.
    pub fn begin(traces: &Traces, submission: &Submission) -> Self {
        let caller = Context::current();
        let span = traces.begin(&caller, || {
            let address = &submission.address;
            SpanBuilder::from_name(format!("send {}", address.model)).with_kind(SpanKind::Producer).with_attributes([
                KeyValue::new("messaging.system", "nats"),
                KeyValue::new("messaging.operation.type", "send"),
                KeyValue::new("messaging.operation.name", "publish"),
                KeyValue::new("messaging.destination.name", format!("inferq.jobs.{}.{}", address.model, address.lane)),
                KeyValue::new("messaging.message.id", address.job_id.as_str().to_owned()),
                KeyValue::new("messaging.message.body.size", submission.payload.len() as i64),
            ])
        });
        let context = match &span {
            Some(span) => Context::new().with_remote_span_context(span.span_context().clone()),
            None => caller,
        };
        Self { span, context }
    }

    pub fn put(&self, headers: &mut HeaderMap) {
        put_context(&self.context, headers);
    }

    pub fn end(self, submitted: &Result<Submitted, SubmitError>) {
        let Some(mut span) = self.span else { return };
        match submitted {
            Ok(Submitted::Queued) => {}
            Ok(Submitted::Duplicate) => span.set_attribute(KeyValue::new("inferq.submitted", "duplicate")),
            Ok(Submitted::Answered) => span.set_attribute(KeyValue::new("inferq.submitted", "answered")),
            Err(error) => span.set_status(Status::error(error.to_string())),
        }
        span.end();
    }
}
