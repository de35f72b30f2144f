//! The context of a trace in the headers of a message.

use async_nats::HeaderMap;
use opentelemetry::Context;
use opentelemetry::propagation::{Extractor, Injector, TextMapPropagator};
use opentelemetry_sdk::propagation::TraceContextPropagator;

struct Read<'a>(&'a HeaderMap);
struct Write<'a>(&'a mut HeaderMap);

/// The context that a message carries. One without any, or with a wrong one, carries none.
pub fn context_in(headers: Option<&HeaderMap>) -> Context {
    let none = Context::new();
    match headers {
        Some(headers) => TraceContextPropagator::new().extract_with_context(&none, &Read(headers)),
        None => none,
    }
}

/// Has the message carry it.
pub fn put_context(context: &Context, headers: &mut HeaderMap) {
    TraceContextPropagator::new().inject_context(context, &mut Write(headers));
}

impl Extractor for Read<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(|value| value.as_str())
    }

    fn keys(&self) -> Vec<&str> {
        self.0.iter().map(|(name, _)| name.as_ref()).collect()
    }
}

impl Injector for Write<'_> {
    fn set(&mut self, key: &str, value: String) {
        // An empty state is none.
        if !value.is_empty() {
            self.0.insert(key, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use opentelemetry::trace::TraceContextExt;

    use super::*;

    const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn a_context_goes_through_a_message() {
        let mut came = HeaderMap::new();
        came.insert("traceparent", PARENT);
        came.insert("tracestate", "vendor=1");
        let context = context_in(Some(&came));
        assert!(context.span().span_context().is_sampled());
        let mut goes = HeaderMap::new();
        put_context(&context, &mut goes);
        assert_eq!(goes.get("traceparent").map(|value| value.as_str()), Some(PARENT));
        assert_eq!(goes.get("tracestate").map(|value| value.as_str()), Some("vendor=1"));
    }

    #[test]
    fn what_is_no_context_carries_none() {
        for wrong in ["", "00", "00-0-0-01", "zz-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "\u{e9}"] {
            let mut headers = HeaderMap::new();
            headers.insert("traceparent", wrong);
            assert!(!context_in(Some(&headers)).span().span_context().is_valid(), "{wrong}");
        }
        assert!(!context_in(None).span().span_context().is_valid());
    }
}
