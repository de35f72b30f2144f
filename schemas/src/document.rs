//! The contract as documents: JSON Schema (draft 2020-12) for every payload, and AsyncAPI 3.0 for subjects, headers and
//! operations.
//!
//! They are generated from the types and never edited: `cargo run -p schemas --example generate` writes them to
//! `schemas/json`, and a test fails while the files differ. What producers write is described as it is read (fields
//! with a default are optional), what workers write as it is written (every field is there).

mod asyncapi;

use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde_json::{Value, json};

use crate::audio::{TranscriptionRequest, TranscriptionResponse};
use crate::chunk::Chunk;
use crate::classify::{ClassifyRequest, ClassifyResponse};
use crate::completions::{
    ChatCompletionRequest, ChatCompletionResponse, CompletionRequest, CompletionResponse, Sampling,
};
use crate::embeddings::{EmbeddingRequest, EmbeddingResponse};
use crate::job::{Endpoint, Job};
use crate::log::LogMessage;
use crate::provenance::Provenance;
use crate::rerank::{RerankRequest, RerankResponse};
use crate::result::{ErrorBody, JobResult};

/// The documents' names start with this. The domain is reserved (RFC 2606): it names and leads nowhere, and makes
/// references between the files resolve.
const ID_PREFIX: &str = "https://inferq.invalid/schemas/";

/// Every document with its file name.
pub fn documents() -> Vec<(&'static str, Value)> {
    vec![
        ("asyncapi.json", asyncapi::document()),
        ("chat.request.json", read::<ChatBody>("chat.request.json")),
        ("chat.response.json", written::<ChatCompletionResponse>("chat.response.json")),
        ("chunk.json", written::<Chunk>("chunk.json")),
        ("classify.request.json", read::<ClassifyRequest>("classify.request.json")),
        ("classify.response.json", written::<ClassifyResponse>("classify.response.json")),
        ("completions.request.json", read::<CompletionBody>("completions.request.json")),
        ("completions.response.json", written::<CompletionResponse>("completions.response.json")),
        ("embeddings.request.json", read::<EmbeddingRequest>("embeddings.request.json")),
        ("embeddings.response.json", written::<EmbeddingResponse>("embeddings.response.json")),
        ("error.json", written::<ErrorBody>("error.json")),
        ("job.json", job()),
        ("log.json", log()),
        ("provenance.json", written::<Provenance>("provenance.json")),
        ("rerank.request.json", read::<RerankRequest>("rerank.request.json")),
        ("rerank.response.json", written::<RerankResponse>("rerank.response.json")),
        ("result.json", written::<JobResult<AnswerBody>>("result.json")),
        ("transcription.request.json", read::<TranscriptionRequest>("transcription.request.json")),
        ("transcription.response.json", written::<TranscriptionResponse>("transcription.response.json")),
    ]
}

/// A document as it stands in its file: keys sorted, so that it does not depend on how serde_json was built.
pub fn file_text(document: &Value) -> String {
    let mut document = document.clone();
    document.sort_all_objects();
    format!("{document:#}\n")
}

/// What an endpoint is asked, and which files describe it.
fn bodies(endpoint: Endpoint) -> (&'static str, &'static str) {
    match endpoint {
        Endpoint::Embeddings => ("embeddings.request.json", "embeddings.response.json"),
        Endpoint::Rerank => ("rerank.request.json", "rerank.response.json"),
        Endpoint::Classify => ("classify.request.json", "classify.response.json"),
        Endpoint::ChatCompletions => ("chat.request.json", "chat.response.json"),
        Endpoint::Completions => ("completions.request.json", "completions.response.json"),
        Endpoint::Transcriptions | Endpoint::Translations => {
            ("transcription.request.json", "transcription.response.json")
        }
    }
}

/// The body of a job for `/v1/chat/completions`.
#[derive(JsonSchema)]
#[schemars(rename = "ChatCompletionRequest")]
#[expect(dead_code, reason = "only its schema is used: the two are read from one body")]
pub struct ChatBody {
    #[schemars(flatten)]
    request: ChatCompletionRequest,
    #[schemars(flatten)]
    sampling: Sampling,
}

/// The body of a job for `/v1/completions`.
#[derive(JsonSchema)]
#[schemars(rename = "CompletionRequest")]
#[expect(dead_code, reason = "only its schema is used: the two are read from one body")]
pub struct CompletionBody {
    #[schemars(flatten)]
    request: CompletionRequest,
    #[schemars(flatten)]
    sampling: Sampling,
}

/// The body of an answer: an endpoint's response or an error.
struct AnswerBody;

impl JsonSchema for AnswerBody {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "AnswerBody".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let responses = Endpoint::ALL.map(|endpoint| bodies(endpoint).1);
        let any: Vec<Value> = responses.into_iter().chain(["error.json"]).map(|file| json!({"$ref": file})).collect();
        json_schema!({ "anyOf": any })
    }
}

/// Jobs say with `url` what their `body` is.
fn job() -> Value {
    let mut document = read::<Job>("job.json");
    document["properties"]["url"]["enum"] = Endpoint::ALL.map(Endpoint::url).as_slice().into();
    let rule = |endpoint: Endpoint| {
        json!({
            "if": {"properties": {"url": {"const": endpoint.url()}}},
            "then": {"properties": {"body": {"$ref": bodies(endpoint).0}}},
        })
    };
    document["allOf"] = Endpoint::ALL.map(rule).as_slice().into();
    document
}

fn log() -> Value {
    let mut document = written::<LogMessage>("log.json");
    document["title"] = json!("LogMessage");
    document["description"] = json!("What happened to a job: one or more records in the order of their times.");
    document["minItems"] = json!(1);
    document
}

/// The schema of what producers write.
fn read<T: JsonSchema>(file: &str) -> Value {
    named(file, SchemaSettings::draft2020_12().for_deserialize().into_generator().into_root_schema_for::<T>())
}

/// The schema of what workers write.
fn written<T: JsonSchema>(file: &str) -> Value {
    named(file, SchemaSettings::draft2020_12().for_serialize().into_generator().into_root_schema_for::<T>())
}

fn named(file: &str, mut schema: Schema) -> Value {
    schema.insert("$id".to_owned(), format!("{ID_PREFIX}{file}").into());
    schema.into()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;
    use std::path::Path;

    use super::*;

    const COMMAND: &str = "run `cargo run -p schemas --example generate` and commit schemas/json";

    #[test]
    fn the_files_are_the_documents_of_the_code() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("json");
        for (name, document) in documents() {
            let text = fs::read_to_string(folder.join(name));
            let text = text.unwrap_or_else(|error| panic!("schemas/json/{name} cannot be read ({error}); {COMMAND}"));
            assert!(text == file_text(&document), "schemas/json/{name} is stale; {COMMAND}");
        }
        let names = documents().into_iter().map(|(name, _)| name.to_owned()).collect::<BTreeSet<_>>();
        let files = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let left_over: Vec<String> = files.filter(|file| !names.contains(file)).collect();
        assert!(left_over.is_empty(), "schemas/json has files that no type makes: {left_over:?}; {COMMAND}");
    }

    #[test]
    fn every_schema_says_what_it_is() {
        for (name, document) in documents().into_iter().filter(|(name, _)| *name != "asyncapi.json") {
            assert_eq!(document["$schema"], "https://json-schema.org/draft/2020-12/schema", "{name}");
            assert_eq!(document["$id"], format!("{ID_PREFIX}{name}"));
            for key in ["title", "description"] {
                assert!(document[key].as_str().is_some_and(|text| !text.is_empty()), "{name} has no {key}");
            }
        }
    }

    #[test]
    fn a_request_has_the_fields_of_both_types_it_is_read_into() {
        for document in [read::<ChatBody>("chat"), read::<CompletionBody>("completions")] {
            for field in ["model", "temperature", "stop", "logprobs"] {
                assert!(document["properties"].get(field).is_some(), "{field}");
            }
        }
        assert_eq!(read::<ChatBody>("chat")["required"], json!(["model", "messages"]));
        assert_eq!(read::<CompletionBody>("completions")["required"], json!(["model", "prompt"]));
    }

    #[test]
    fn a_job_needs_url_and_body_and_a_result_has_every_field() {
        assert_eq!(job()["required"], json!(["url", "body"]));
        let result = written::<JobResult<AnswerBody>>("result");
        assert_eq!(result["required"], json!(["id", "custom_id", "response", "error"]));
    }
}
