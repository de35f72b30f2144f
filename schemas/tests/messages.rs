//! The example messages: each is read into its type, written back as it was, and is the same in MessagePack.

use schemas::audio::{Granularity, TranscriptFormat, TranscriptionRequest, TranscriptionResponse};
use schemas::classify::{ClassifyRequest, ClassifyResponse};
use schemas::codec::{Encoding, decode_body};
use schemas::completions::{
    ChatCompletionRequest, ChatCompletionResponse, CompletionRequest, CompletionResponse, Sampling,
};
use schemas::embeddings::{EmbeddingRequest, EmbeddingResponse};
use schemas::input::{Prompt, Stop};
use schemas::job::{Endpoint, Job};
use schemas::log::LogMessage;
use schemas::provenance::{CacheUse, Provenance};
use schemas::rerank::{RerankRequest, RerankResponse};
use schemas::result::{ErrorBody, JobResult, NoResponseCode};
use schemas::tools::{ToolChoice, ToolMode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// Reads a message and checks that nothing is lost on the way: JSON, MessagePack and back.
fn read<T: DeserializeOwned + Serialize + PartialEq + std::fmt::Debug>(name: &str) -> T {
    let path = format!("{}/examples/messages/{name}.json", env!("CARGO_MANIFEST_DIR"));
    let json = &std::fs::read(path).unwrap();
    let message: T = Encoding::Json.decode(json).unwrap();
    let packed = Encoding::MessagePack.encode(&message);
    let unpacked: T = Encoding::MessagePack.decode(&packed).unwrap();
    assert_eq!(unpacked, message);
    let written: Value = Encoding::Json.decode(&Encoding::Json.encode(&unpacked)).unwrap();
    assert_eq!(written, Encoding::Json.decode::<Value>(json).unwrap());
    message
}

fn read_job(name: &str, endpoint: Endpoint) -> Job {
    let job: Job = read(name);
    assert_eq!(Endpoint::from_url(&job.url), Some(endpoint));
    job
}

/// Reads a result whose body is of that type, which must also be readable without knowing the type.
fn read_result<B: DeserializeOwned + Serialize + PartialEq + std::fmt::Debug>(name: &str, status_code: u16) -> B {
    let result: JobResult = read(name);
    assert_eq!(result.status_code(), status_code);
    assert_eq!(result.is_success(), status_code == 200);
    let typed: JobResult<B> = read(name);
    let body = typed.response.unwrap().body;
    assert_eq!(decode_body::<B>(&result.response.unwrap().body).unwrap(), body);
    body
}

#[test]
fn a_job_for_embeddings_is_read() {
    let job = read_job("job.embeddings", Endpoint::Embeddings);
    assert_eq!(job.model(), Some("all-MiniLM-L6-v2"));
    let request: EmbeddingRequest = decode_body(&job.body).unwrap();
    assert_eq!(request.input.prompts().len(), 2);
}

#[test]
fn jobs_for_rerank_and_classify_are_read() {
    let request: RerankRequest = decode_body(&read_job("job.rerank", Endpoint::Rerank).body).unwrap();
    assert_eq!(request.documents.0, ["A bear of China.", "A kind of plane."]);
    assert_eq!((request.top_n, request.return_documents), (Some(1), Some(true)));
    let request: ClassifyRequest = decode_body(&read_job("job.classify", Endpoint::Classify).body).unwrap();
    assert_eq!(request.input.prompts().len(), 2);
}

#[test]
fn jobs_with_images_and_audio_are_read() {
    let request: EmbeddingRequest = decode_body(&read_job("job.image", Endpoint::Embeddings).body).unwrap();
    let prompts = request.input.prompts();
    assert!(matches!(prompts[..], [Prompt::Text("a red panda"), Prompt::Image(_)]), "{prompts:?}");
    let request: TranscriptionRequest =
        decode_body(&read_job("job.transcription", Endpoint::Transcriptions).body).unwrap();
    assert_eq!(request.response_format, Some(TranscriptFormat::VerboseJson));
    assert_eq!(request.timestamp_granularities, Some(vec![Granularity::Segment, Granularity::Word]));
    let heard: TranscriptionResponse = read_result("result.transcription", 200);
    let TranscriptionResponse::Verbose(heard) = heard else { panic!("{heard:?}") };
    assert_eq!((heard.words.unwrap().len(), heard.segments.unwrap()[0].end), (2, 2.5));
}

#[test]
fn a_job_for_chat_is_read() {
    let job = read_job("job.chat", Endpoint::ChatCompletions);
    let request: ChatCompletionRequest = decode_body(&job.body).unwrap();
    assert_eq!((request.messages.len(), request.max_completion_tokens), (2, Some(32)));
    let sampling: Sampling = decode_body(&job.body).unwrap();
    assert_eq!((sampling.temperature, sampling.top_p, sampling.seed), (Some(0.7), Some(0.9), Some(7)));
    assert_eq!(sampling.stop, Stop(vec!["\n\n".to_owned()]));
}

#[test]
fn a_job_for_completions_is_read() {
    let tools: ChatCompletionRequest = decode_body(&read_job("job.tools", Endpoint::ChatCompletions).body).unwrap();
    assert_eq!(tools.tool_choice, Some(ToolChoice::Mode(ToolMode::Required)));
    let job = read_job("job.completions", Endpoint::Completions);
    let request: CompletionRequest = decode_body(&job.body).unwrap();
    assert_eq!(request.prompt.prompts().len(), 1);
    let sampling: Sampling = decode_body(&job.body).unwrap();
    assert_eq!((sampling.max_tokens, sampling.temperature), (Some(16), Some(0.0)));
    assert_eq!(sampling.stop, Stop(vec![".".to_owned()]));
}

#[test]
fn results_are_read() {
    let embeddings: EmbeddingResponse = read_result("result.embeddings", 200);
    assert_eq!(embeddings.data.len(), 2);
    let ranked: RerankResponse = read_result("result.rerank", 200);
    assert_eq!((ranked.results[0].index, ranked.results[0].relevance_score), (0, 0.75));
    let classified: ClassifyResponse = read_result("result.classify", 200);
    assert_eq!(classified.data[1].label, "bad");
    let chat: ChatCompletionResponse = read_result("result.chat", 200);
    assert_eq!(chat.choices[0].finish_reason, "stop");
    let called: ChatCompletionResponse = read_result("result.tools", 200);
    assert_eq!(called.choices[0].message.tool_calls[0].function.name, "forecast");
    let completion: CompletionResponse = read_result("result.completions", 200);
    assert_eq!(completion.usage.total_tokens, 10);
}

#[test]
fn a_rejected_job_has_an_error_as_its_answer() {
    let body: ErrorBody = read_result("result.rejected", 400);
    assert_eq!(body.error.param.as_deref(), Some("body.input"));
}

#[test]
fn an_expired_job_has_no_answer() {
    let result: JobResult = read("result.expired");
    assert_eq!(result.error.as_ref().map(|error| error.code), Some(NoResponseCode::BatchExpired));
    assert_eq!((result.status_code(), result.is_success()), (408, false));
}

#[test]
fn a_log_is_read() {
    let records: LogMessage = read("log");
    assert_eq!(records.len(), 3);
}

#[test]
fn how_a_result_was_made_is_read() {
    let provenance: Provenance = read("provenance");
    assert_eq!((provenance.attempt, provenance.seed, provenance.cache), (1, None, Some(CacheUse::Miss)));
}
