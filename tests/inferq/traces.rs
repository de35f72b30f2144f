//! Traces: what a collector gets of a job, from the command that sends it to the batch it was computed in.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::routing::post;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message;

use crate::support::{Deployment, chat, echo_registry, eventually, program, run};

/// A collector that keeps what it is sent.
#[derive(Clone, Default)]
struct Collector {
    /// With the names of their services.
    spans: Arc<Mutex<Vec<(String, Span)>>>,
}

impl Collector {
    /// Listens, and gives its address.
    async fn start(&self) -> String {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let router = Router::new().route("/v1/traces", post(keep)).with_state(self.clone());
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        url
    }

    fn named(&self, name: &str) -> Vec<Span> {
        let spans = self.spans.lock().unwrap();
        spans.iter().filter(|(_, span)| span.name == name).map(|(_, span)| span.clone()).collect()
    }

    fn services(&self) -> HashMap<String, usize> {
        let mut services = HashMap::new();
        for (service, _) in self.spans.lock().unwrap().iter() {
            *services.entry(service.clone()).or_default() += 1;
        }
        services
    }
}

async fn keep(State(collector): State<Collector>, body: Bytes) {
    let request = ExportTraceServiceRequest::decode(body).unwrap();
    for resource in request.resource_spans {
        let attributes = resource.resource.unwrap().attributes;
        let name = attributes.iter().find(|attribute| attribute.key == "service.name").unwrap();
        let service = format!("{:?}", name.value).split('"').nth(1).unwrap_or_default().to_owned();
        let spans = resource.scope_spans.into_iter().flat_map(|scope| scope.spans);
        collector.spans.lock().unwrap().extend(spans.map(|span| (service.clone(), span)));
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn has(span: &Span, key: &str, value: &str) -> bool {
    span.attributes.iter().any(|attribute| attribute.key == key && format!("{:?}", attribute.value).contains(value))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_is_traced_from_the_command_that_sends_it_to_the_batch_that_computes_it() {
    let (collector, deployment) =
        (Collector::default(), Deployment::new(&echo_registry(20, "in_flight = 8\nbatch = 8")).await);
    let url = collector.start().await;
    let _worker = deployment.worker_with("echo", &["--otlp-endpoint", &url]).await;
    let submit = ["submit", "--model", "echo", "--message", "hello", "--set", "temperature=0"];
    let sent = deployment.inferq(&[&submit[..], &["--id", "traced", "--wait", "--otlp-endpoint", &url]].concat());
    assert!(sent.status.success(), "{}", String::from_utf8_lossy(&sent.stderr));

    let send = &collector.named("send echo")[0];
    assert!(has(send, "messaging.message.id", "traced") && send.parent_span_id.is_empty(), "{send:?}");
    let batch = eventually("the worker's spans arrive", async || collector.named("engine batch").pop()).await;
    let process = &collector.named("process echo")[0];
    assert_eq!((&process.trace_id, &process.parent_span_id), (&send.trace_id, &send.span_id));
    // A byte is a token of the echo engine.
    let told =
        [("inferq.outcome", "completed"), ("inferq.attempt", "IntValue(1)"), ("gen_ai.usage.output_tokens", "(5)")];
    assert!(told.iter().all(|(key, value)| has(process, key, value)), "{process:?}");
    let queue = &collector.named("queue")[0];
    assert_eq!((&queue.trace_id, &queue.parent_span_id), (&send.trace_id, &send.span_id));
    for part in ["prefill", "store"] {
        let part = &collector.named(part)[0];
        assert_eq!((&part.trace_id, &part.parent_span_id), (&process.trace_id, &process.span_id), "{part:?}");
        let is_inside = process.start_time_unix_nano <= part.start_time_unix_nano
            && part.end_time_unix_nano <= process.end_time_unix_nano;
        assert!(is_inside, "{part:?} {process:?}");
    }
    // It is there when its jobs are, and tells of all of them.
    assert_eq!((&batch.trace_id, &batch.parent_span_id), (&process.trace_id, &process.span_id));
    assert!(has(&batch, "batch.sequences", "IntValue("), "{batch:?}");
    assert_eq!(batch.links.iter().map(|link| &link.span_id).collect::<Vec<_>>(), [&process.span_id]);
    // Whoever reads the result can go on from there.
    let (headers, _) = deployment.result("traced").await;
    let expected = format!("00-{}-{}-01", hex(&process.trace_id), hex(&process.span_id));
    assert_eq!(headers.get("traceparent").unwrap().as_str(), expected);
    assert_eq!(collector.services()["inferq"], 1);
    assert!(collector.services()["inferq-worker"] >= 5, "{:?}", collector.services());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_links_to_all_its_jobs_and_what_is_not_sampled_is_not_traced() {
    let (collector, deployment) =
        (Collector::default(), Deployment::new(&echo_registry(50, "in_flight = 8\nbatch = 8")).await);
    let url = collector.start().await;
    let parent = |number: usize, flags| format!("00-{:032x}-{:016x}-{flags}", number + 1, number + 1);
    let mut unsampled = Vec::new();
    for number in 0..8 {
        // Every other one comes with the wish not to be traced.
        let flags = if number % 2 == 0 { "01" } else { "00" };
        let (job, parent) = (chat("x y z").to_string(), parent(number, flags));
        let id = deployment.publish_raw(job.as_bytes(), &[("traceparent", &parent)]).await;
        if number % 2 == 1 {
            unsampled.push(id);
        }
    }
    let _worker = deployment.worker_with("echo", &["--otlp-endpoint", &url]).await;
    let links = eventually("a batch has all four jobs", async || {
        let batches = collector.named("engine batch");
        batches.into_iter().map(|batch| batch.links).find(|links| links.len() == 4)
    })
    .await;
    let mut traces: Vec<String> = links.iter().map(|link| hex(&link.trace_id)).collect();
    traces.sort();
    assert_eq!(traces, [1, 3, 5, 7].map(|number| format!("{number:032x}")));
    for id in &unsampled {
        let (headers, _) = deployment.result(id).await;
        assert!(headers.get("traceparent").unwrap().as_str().ends_with("-00"), "passed on, unsampled: {headers:?}");
    }
    assert_eq!(collector.named("process echo").len(), 4);
}

#[test]
fn a_wrong_collector_is_told_before_a_connection_is_made() {
    for name in ["inferq", "inferq-worker"] {
        let arguments: &[&str] = match name {
            "inferq" => &["submit", "--model", "m", "--input", "x"],
            _ => &["--model", "m", "--registry", "none.toml"],
        };
        let wrong = ["--server", "nats://127.0.0.1:1", "--otlp-endpoint", "localhost:4317"];
        let output = run(&program(name), &[arguments, &wrong].concat(), &[]);
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(64), "{errors}");
        assert!(errors.contains("--otlp-endpoint") && errors.contains("OTLP over HTTP"), "{errors}");
    }
}
