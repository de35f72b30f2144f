//! Spans of what runs together: one for each stretch of steps over the same jobs, with a link to each of them. It stands
//! below the first of them, so that it is there whenever its jobs are.

use std::time::SystemTime;

use opentelemetry::trace::{Link, SpanBuilder, SpanContext, TraceContextExt};
use opentelemetry::{Context, KeyValue};
use traces::Traces;

#[derive(Debug)]
pub(super) struct Batches {
    traces: Traces,
    open: Option<Batch>,
}

#[derive(Debug)]
struct Batch {
    jobs: Vec<SpanContext>,
    began: SystemTime,
    ended: SystemTime,
    steps: i64,
    sequences: i64,
}

impl Batches {
    pub fn new(traces: Traces) -> Self {
        Self { traces, open: None }
    }

    pub fn is_on(&self) -> bool {
        self.traces.is_on()
    }

    /// A step that is over, with those of its jobs that are traced.
    pub fn note(&mut self, jobs: Vec<SpanContext>, began: SystemTime, sequences: usize) {
        if self.open.as_ref().is_some_and(|batch| batch.jobs != jobs) {
            self.close();
        }
        if jobs.is_empty() {
            return;
        }
        let batch = self.open.get_or_insert(Batch { jobs, began, ended: began, steps: 0, sequences: 0 });
        batch.ended = SystemTime::now();
        batch.steps += 1;
        batch.sequences += sequences as i64;
    }

    /// Nothing runs any more.
    pub fn close(&mut self) {
        let Some(Batch { jobs, began, ended, steps, sequences }) = self.open.take() else { return };
        let first = Context::new().with_remote_span_context(jobs[0].clone());
        let links = jobs.into_iter().map(Link::with_context).collect();
        let attributes = vec![KeyValue::new("batch.steps", steps), KeyValue::new("batch.sequences", sequences)];
        let span = SpanBuilder::from_name("engine batch").with_links(links).with_attributes(attributes);
        self.traces.tell(&first, span, (began, ended));
    }
}
