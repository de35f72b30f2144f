//! What the API is, as OpenAPI 3.1, whose schemas are JSON Schema: those of the contract's own types.

use axum::Json;
use schemars::generate::{SchemaGenerator, SchemaSettings};
use schemars::{JsonSchema, Schema};
use schemas::audio::{Granularity, TranscriptFormat, TranscriptionRequest, TranscriptionResponse};
use schemas::classify::{ClassifyRequest, ClassifyResponse};
use schemas::completions::{ChatCompletionResponse, CompletionResponse};
use schemas::document::{ChatBody, CompletionBody};
use schemas::embeddings::{EmbeddingRequest, EmbeddingResponse};
use schemas::rerank::{RerankRequest, RerankResponse};
use schemas::result::ErrorBody;
use serde_json::{Map, Value, json};

use super::batches::{BatchObject, Create};
use super::files::FileObject;
use super::jobs::{JobObject, JobRequest};
use super::models::{ModelList, ModelObject};
use super::pages::List;

/// How a response's body is written.
enum Answer {
    Json(Schema),
    Events,
    Bytes,
}

/// One operation.
struct Operation {
    method: &'static str,
    path: &'static str,
    tag: &'static str,
    summary: &'static str,
    body: Option<Value>,
    status: u16,
    answer: Answer,
}

pub async fn serve() -> Json<Value> {
    Json(document())
}

/// The whole document.
pub fn document() -> Value {
    let settings =
        SchemaSettings::draft2020_12().with(|settings| settings.definitions_path = "/components/schemas".into());
    let mut types = settings.into_generator();
    let operations = operations(&mut types);
    let mut paths = Map::new();
    for operation in &operations {
        let path = paths.entry(operation.path).or_insert_with(|| json!({}));
        path[operation.method] = described(operation);
    }
    let error = types.subschema_for::<ErrorBody>();
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "inferq",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "OpenAI's API on top of a queue. Fields that are not listed are ignored, unless they would change an answer.",
            "license": { "name": "Apache-2.0", "identifier": "Apache-2.0" },
        },
        "servers": [{ "url": "/" }],
        "security": [{ "key": [] }],
        "paths": paths,
        "components": {
            "schemas": types.take_definitions(true),
            "securitySchemes": { "key": { "type": "http", "scheme": "bearer", "description": "of `inferq keys create`" } },
            "responses": {
                "Error": { "description": "An error object.", "content": { "application/json": { "schema": error } } },
            },
        },
    })
}

fn described(operation: &Operation) -> Value {
    let Operation { method, path, tag, summary, body, status, answer } = operation;
    let content = match answer {
        Answer::Json(schema) => json!({ "application/json": { "schema": schema } }),
        Answer::Events => json!({ "text/event-stream": { "schema": { "type": "string" } } }),
        Answer::Bytes => json!({ "application/octet-stream": { "schema": { "type": "string", "format": "binary" } } }),
    };
    let names = path.split(['{', '}']).skip(1).step_by(2);
    let mut parameters: Vec<Value> = names
        .map(|name| json!({ "name": name, "in": "path", "required": true, "schema": { "type": "string", "minLength": 1 } }))
        .collect();
    if matches!(*path, "/v1/files" | "/v1/batches") && *method == "get" {
        let limit =
            json!({ "type": "integer", "minimum": 1, "maximum": if *path == "/v1/files" { 10_000 } else { 100 } });
        parameters.push(json!({ "name": "after", "in": "query", "schema": { "type": "string" } }));
        parameters.push(json!({ "name": "limit", "in": "query", "schema": limit }));
    }
    let id =
        summary.split_whitespace().take(6).collect::<Vec<_>>().join("_").to_lowercase().replace(['\'', ',', '.'], "");
    let mut described = json!({
        "operationId": id,
        "tags": [tag],
        "summary": summary,
        "parameters": parameters,
        "responses": {
            status.to_string(): { "description": "As asked.", "content": content },
            "4XX": { "$ref": "#/components/responses/Error" },
            "5XX": { "$ref": "#/components/responses/Error" },
        },
    });
    if let Some(body) = body {
        described["requestBody"] = json!({ "required": true, "content": body });
    }
    described
}

fn operations(types: &mut SchemaGenerator) -> Vec<Operation> {
    fn json_body<T: JsonSchema>(types: &mut SchemaGenerator) -> Option<Value> {
        Some(json!({ "application/json": { "schema": types.subschema_for::<T>() } }))
    }
    fn answer<T: JsonSchema>(types: &mut SchemaGenerator) -> Answer {
        Answer::Json(types.subschema_for::<T>())
    }
    let upload = json!({
        "type": "object",
        "required": ["file", "purpose"],
        "properties": { "file": { "type": "string", "format": "binary" }, "purpose": { "type": "string", "enum": super::files::PURPOSES } },
    });
    // OpenAI's clients send a form; a job's body does as well.
    let recording = |types: &mut SchemaGenerator| {
        let form = json!({
            "type": "object",
            "required": ["file", "model"],
            "properties": {
                "file": { "type": "string", "format": "binary" },
                "model": { "type": "string" },
                "language": { "type": "string" },
                "prompt": { "type": "string" },
                "response_format": types.subschema_for::<TranscriptFormat>(),
                "temperature": { "type": "number", "minimum": 0, "maximum": 1 },
                "timestamp_granularities[]": { "type": "array", "items": types.subschema_for::<Granularity>() },
            },
        });
        let body = types.subschema_for::<TranscriptionRequest>();
        Some(json!({ "multipart/form-data": { "schema": form }, "application/json": { "schema": body } }))
    };
    let any = || Answer::Json(Schema::from(Map::from_iter([("type".to_owned(), json!("object"))])));
    let t = types;
    let of = |method, path, tag, summary, body, status, answer| Operation {
        method,
        path,
        tag,
        summary,
        body,
        status,
        answer,
    };
    vec![
        of(
            "post",
            "/v1/chat/completions",
            "models",
            "Answers a chat; with `stream`, as server-sent events",
            json_body::<ChatBody>(t),
            200,
            answer::<ChatCompletionResponse>(t),
        ),
        of(
            "post",
            "/v1/completions",
            "models",
            "Completes a prompt; with `stream`, as server-sent events",
            json_body::<CompletionBody>(t),
            200,
            answer::<CompletionResponse>(t),
        ),
        of(
            "post",
            "/v1/embeddings",
            "models",
            "Makes vectors of texts",
            json_body::<EmbeddingRequest>(t),
            200,
            answer::<EmbeddingResponse>(t),
        ),
        of(
            "post",
            "/v1/rerank",
            "models",
            "Ranks documents by a query",
            json_body::<RerankRequest>(t),
            200,
            answer::<RerankResponse>(t),
        ),
        of(
            "post",
            "/v1/classify",
            "models",
            "Classifies texts",
            json_body::<ClassifyRequest>(t),
            200,
            answer::<ClassifyResponse>(t),
        ),
        of(
            "post",
            "/v1/audio/transcriptions",
            "models",
            "Writes down what is said in a file",
            recording(t),
            200,
            answer::<TranscriptionResponse>(t),
        ),
        of(
            "post",
            "/v1/audio/translations",
            "models",
            "Writes down in English what is said in a file",
            recording(t),
            200,
            answer::<TranscriptionResponse>(t),
        ),
        of("get", "/v1/models", "models", "Lists the models", None, 200, answer::<ModelList>(t)),
        of("get", "/v1/models/{model}", "models", "Tells of one model", None, 200, answer::<ModelObject>(t)),
        of(
            "post",
            "/v1/jobs",
            "jobs",
            "Sends a job that nobody waits for",
            json_body::<JobRequest>(t),
            202,
            answer::<JobObject>(t),
        ),
        of(
            "get",
            "/v1/jobs/{id}",
            "jobs",
            "Tells where a job stands, and its result",
            None,
            200,
            answer::<JobObject>(t),
        ),
        of("delete", "/v1/jobs/{id}", "jobs", "Cancels a job, waiting or running", None, 200, answer::<JobObject>(t)),
        of("get", "/v1/jobs/{id}/events", "jobs", "Tells what happens to a job", None, 200, Answer::Events),
        of("get", "/v1/jobs/{id}/tokens", "jobs", "Gives a job's answer as it is made", None, 200, Answer::Events),
        of(
            "post",
            "/v1/files",
            "batches",
            "Stores a file",
            Some(json!({ "multipart/form-data": { "schema": upload } })),
            200,
            answer::<FileObject>(t),
        ),
        of("get", "/v1/files", "batches", "Lists files", None, 200, answer::<List<FileObject>>(t)),
        of("get", "/v1/files/{id}", "batches", "Tells of one file", None, 200, answer::<FileObject>(t)),
        of("delete", "/v1/files/{id}", "batches", "Deletes a file", None, 200, any()),
        of("get", "/v1/files/{id}/content", "batches", "Gives what is in a file", None, 200, Answer::Bytes),
        of(
            "post",
            "/v1/batches",
            "batches",
            "Runs the lines of a file as jobs",
            json_body::<Create>(t),
            200,
            answer::<BatchObject>(t),
        ),
        of("get", "/v1/batches", "batches", "Lists batches", None, 200, answer::<List<BatchObject>>(t)),
        of("get", "/v1/batches/{id}", "batches", "Tells of one batch", None, 200, answer::<BatchObject>(t)),
        of("post", "/v1/batches/{id}/cancel", "batches", "Cancels a batch", None, 200, answer::<BatchObject>(t)),
        of(
            "post",
            "/v1/batches/{id}/retry",
            "batches",
            "Runs the failed lines of a batch again",
            None,
            200,
            answer::<BatchObject>(t),
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reference_leads_somewhere_and_operations_have_names_of_their_own() {
        let document = document();
        let text = document.to_string();
        for reference in text.split("\"$ref\":\"#").skip(1).map(|rest| rest.split('"').next().unwrap()) {
            assert!(document.pointer(reference).is_some(), "{reference}");
        }
        let paths = document["paths"].as_object().unwrap().values();
        let ids: Vec<&str> = paths
            .flat_map(|path| path.as_object().unwrap().values())
            .map(|operation| operation["operationId"].as_str().unwrap())
            .collect();
        let unique: std::collections::HashSet<_> = ids.iter().collect();
        assert_eq!((ids.len(), unique.len()), (24, 24));
    }
}
