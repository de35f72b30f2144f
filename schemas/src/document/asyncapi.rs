//! The AsyncAPI 3.0 document: which subject carries what, as a producer sees it. A worker does the opposite.

use serde_json::{Map, Value, json};

use crate::header;
use crate::subject::{Lane, NAME_BYTES_MAX};

/// A message: its key, summary, payload's file and headers. The first header set is always there.
struct Message {
    key: &'static str,
    summary: &'static str,
    payload: &'static str,
    always: &'static [&'static str],
    sometimes: &'static [&'static str],
}

const MESSAGES: [Message; 5] = [
    Message {
        key: "job",
        summary: "A line of an OpenAI batch input file.",
        payload: "job.json",
        always: &[],
        sometimes: &[
            header::CONTENT_TYPE,
            header::MESSAGE_ID,
            header::DEADLINE,
            header::TIMEOUT,
            header::MAX_ATTEMPTS,
            header::CACHE,
            header::STREAM,
            header::COST,
            header::BODY,
            header::REPLY_TO,
            header::LANE,
            header::PUBLISHED,
            header::TRACEPARENT,
            header::HISTORY,
        ],
    },
    Message {
        key: "result",
        summary: "A line of an OpenAI batch output or error file.",
        payload: "result.json",
        always: &[header::CONTENT_TYPE, header::STATUS],
        sometimes: &[header::PROVENANCE, header::BODY, header::TRACEPARENT],
    },
    Message {
        key: "chunk",
        summary: "OpenAI's chat.completion.chunk, or a text_completion of a part of the text. Always JSON.",
        payload: "chunk.json",
        always: &[header::CHUNK, header::TOKEN_IDS],
        sometimes: &[],
    },
    Message {
        key: "log",
        summary: "Log records of one job. Always JSON, and without headers.",
        payload: "log.json",
        always: &[],
        sometimes: &[],
    },
    Message {
        key: "dead",
        summary: "A job that was given up, as it came.",
        payload: "job.json",
        always: &[header::ATTEMPT, header::WORKER, header::DEAD_REASON, header::DEAD_CLASS],
        sometimes: &[header::CONTENT_TYPE, header::DEADLINE, header::REPLY_TO, header::DEAD_LOG, header::HISTORY],
    },
];

/// A channel: its key, address, message and description.
const CHANNELS: [(&str, &str, &str, &str); 7] = [
    (
        "jobs",
        "inferq.jobs.{model}.{lane}.{tenant}.{job_id}",
        "job",
        "Jobs, in the stream INFERQ_JOBS. It takes the registered models and their lanes only, refuses a job whose subject is \
         queued or in flight, and refuses jobs while it is full. Delivery is at least once.",
    ),
    (
        "results",
        "inferq.results.{tenant}.{job_id}",
        "result",
        "Results, in the stream INFERQ_RESULTS: at most one is stored per job id while it is retained.",
    ),
    (
        "live",
        "inferq.live.{tenant}.{job_id}",
        "result",
        "Results as they are stored, republished by the server without being kept.",
    ),
    (
        "tokens",
        "inferq.tokens.{tenant}.{job_id}",
        "chunk",
        "The answers of jobs that stream, in chunks, for minutes in the stream INFERQ_TOKENS. No chunk is there twice.",
    ),
    (
        "liveTokens",
        "inferq.live.tokens.{tenant}.{job_id}",
        "chunk",
        "Chunks as they are stored, republished by the server without being kept.",
    ),
    (
        "logs",
        "inferq.logs.{tenant}.{job_id}",
        "log",
        "What happened to jobs, in the stream INFERQ_LOGS. A record may be lost; a result is not lost with it.",
    ),
    (
        "dead",
        "inferq.dead.{model}.{lane}.{tenant}.{job_id}",
        "dead",
        "Jobs that were given up, in the stream INFERQ_DEAD. Each has a result that says so.",
    ),
];

/// An operation: its key, action, channel and description.
const OPERATIONS: [(&str, &str, &str, &str); 7] = [
    ("sendJob", "send", "jobs", "Queues a job; the server acknowledges when it is stored."),
    ("receiveResult", "receive", "results", "Reads stored results, by subject or with a consumer."),
    ("receiveLiveResult", "receive", "live", "Waits for results with a plain subscription."),
    ("receiveChunk", "receive", "tokens", "Reads an answer as it is made, from any chunk on."),
    ("receiveLiveChunk", "receive", "liveTokens", "Hears an answer as it is made, with a plain subscription."),
    ("receiveLog", "receive", "logs", "Follows what happens to jobs."),
    ("receiveDeadJob", "receive", "dead", "Reads jobs that were given up."),
];

pub fn document() -> Value {
    json!({
        "asyncapi": "3.0.0",
        "info": {
            "title": "inferq",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Asynchronous inference over NATS: OpenAI's batch lines as messages, as a producer sees them.",
        },
        "defaultContentType": "application/json",
        "servers": {"nats": {"host": "localhost:4222", "protocol": "nats", "description": "NATS with JetStream."}},
        "channels": CHANNELS.iter().map(channel).collect::<Map<_, _>>(),
        "operations": OPERATIONS.iter().map(operation).collect::<Map<_, _>>(),
        "components": {
            "messages": MESSAGES.iter().map(message).collect::<Map<_, _>>(),
            "parameters": parameters(),
        },
    })
}

fn channel(&(key, address, message, description): &(&str, &str, &str, &str)) -> (String, Value) {
    let names = address.split('.').filter_map(|token| token.strip_prefix('{')?.strip_suffix('}'));
    let parameter = |name: &str| (name.to_owned(), json!({"$ref": format!("#/components/parameters/{name}")}));
    let channel = json!({
        "address": address,
        "description": description,
        "messages": {message: {"$ref": format!("#/components/messages/{message}")}},
        "parameters": names.map(parameter).collect::<Map<_, _>>(),
    });
    (key.to_owned(), channel)
}

fn operation(&(key, action, channel, description): &(&str, &str, &str, &str)) -> (String, Value) {
    let mut operation = json!({
        "action": action,
        "channel": {"$ref": format!("#/channels/{channel}")},
        "description": description,
    });
    if action == "send" {
        operation["reply"] = json!({"channel": {"$ref": "#/channels/results"}});
    }
    (key.to_owned(), operation)
}

fn message(message: &Message) -> (String, Value) {
    let mut value = json!({
        "name": message.key,
        "summary": message.summary,
        "payload": {"$ref": message.payload},
    });
    let names: Vec<&str> = message.always.iter().chain(message.sometimes).copied().collect();
    if !names.is_empty() {
        let properties: Map<String, Value> = names.iter().map(|name| header_schema(name)).collect();
        value["headers"] = json!({"type": "object", "properties": properties, "required": message.always});
    }
    (message.key.to_owned(), value)
}

fn header_schema(name: &str) -> (String, Value) {
    let row = header::TABLE.iter().find(|(header, ..)| *header == name).expect("every header stands in the table");
    let mut schema = json!({"type": "string", "description": format!("Set by: {}. {}.", row.1, row.2)});
    match name {
        header::CONTENT_TYPE => schema["enum"] = json!(["application/json", "application/msgpack"]),
        header::DEADLINE => schema["format"] = json!("date-time"),
        header::STATUS => schema["pattern"] = json!("^[1-5][0-9]{2}$"),
        header::PROVENANCE => {
            schema["contentMediaType"] = json!("application/json");
            schema["contentSchema"] = json!({"$ref": "provenance.json"});
        }
        header::ATTEMPT => schema["pattern"] = json!("^[1-9][0-9]*$"),
        _ => {}
    }
    (name.to_owned(), schema)
}

fn parameters() -> Value {
    let escaping = format!(
        "escaped: ASCII letters, digits, `-` and `_` stand for themselves, every other byte of the UTF-8 name becomes `=` and \
         two upper-case hexadecimal digits. The name has 1 to {NAME_BYTES_MAX} bytes and no control characters."
    );
    json!({
        "model": {
            "description": format!("OpenAI's `model` string, {escaping}"),
            "examples": ["all-MiniLM-L6-v2", "gpt-4=2E1", "openai=2Fgpt-oss-20b"],
        },
        "lane": {
            "description": "The service tier, in order of precedence.",
            "enum": Lane::ALL.map(Lane::as_str),
            "default": Lane::default().as_str(),
        },
        "tenant": {
            "description": format!("Who asks, {escaping}"),
            "examples": ["default", "alice=40example=2Eorg"],
        },
        "job_id": {
            "description": format!(
                "The job's id, chosen by its producer: 1 to {NAME_BYTES_MAX} ASCII letters, digits, `-`, `_` and `=`. It is not \
                 escaped."
            ),
            "examples": ["0198c1f2-7a55-7d3c-9d0e-4a5b6c7d8e9f"],
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::subject::{Address, JobId, ReplyTokens, Token, dead_subject, live_subject, live_token_subject};

    #[test]
    fn every_header_of_the_table_is_on_a_message() {
        for (name, ..) in header::TABLE {
            let carries = |message: &Message| message.always.iter().chain(message.sometimes).any(|used| *used == name);
            assert!(MESSAGES.iter().any(carries), "{name} is on no message");
        }
    }

    #[test]
    fn the_addresses_are_the_subjects_that_the_code_makes() {
        let (model, tenant) = ("gpt-4.1", "alice@example.org");
        let address = Address {
            model: model.into(),
            lane: Lane::Flex,
            tenant: tenant.into(),
            job_id: JobId::new("j-1").unwrap(),
        };
        let subject = address.subject().unwrap();
        let result = ReplyTokens::parse(&subject).unwrap().result_subject();
        let tokens = ReplyTokens::parse(&subject).unwrap().token_subject();
        let made = [
            ("jobs", subject.clone()),
            ("results", result.clone()),
            ("live", live_subject(&result)),
            ("tokens", tokens.clone()),
            ("liveTokens", live_token_subject(&tokens)),
            ("logs", ReplyTokens::parse(&subject).unwrap().log_subject()),
            ("dead", dead_subject(&subject)),
        ];
        for ((key, template, ..), (made_key, subject)) in CHANNELS.iter().zip(made) {
            assert_eq!(*key, made_key);
            let filled = template
                .replace("{model}", Token::encode(model).unwrap().as_str())
                .replace("{lane}", "flex")
                .replace("{tenant}", Token::encode(tenant).unwrap().as_str())
                .replace("{job_id}", "j-1");
            assert_eq!(filled, subject);
        }
    }

    #[test]
    fn every_reference_leads_somewhere() {
        let document = document();
        let files: Vec<&str> = crate::document::documents().into_iter().map(|(file, _)| file).collect();
        let mut values = vec![&document];
        let mut references = 0;
        while let Some(value) = values.pop() {
            if let Some(reference) = value.get("$ref").and_then(Value::as_str) {
                references += 1;
                match reference.strip_prefix('#') {
                    Some(pointer) => assert!(document.pointer(pointer).is_some(), "{reference}"),
                    None => assert!(files.contains(&reference), "{reference}"),
                }
            }
            match value {
                Value::Array(items) => values.extend(items),
                Value::Object(fields) => values.extend(fields.values()),
                _ => {}
            }
        }
        assert!(references > 20, "{references}");
    }
}
