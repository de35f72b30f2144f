//! What the lines say: messages of four streams become JSON objects of one shape.
//!
//! Records and advisories are passed on as they are, not decoded into our types, so that a line has what a newer worker
//! or server says too.

use async_nats::{HeaderMap, Message};
use schemas::header::{self, DeadClass};
use schemas::subject::Token;
use serde::Serialize;
use serde_json::{Map, Number, Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// What a line tells of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A record of a job's log.
    Log,
    /// A result that was stored.
    Result,
    /// A job that was given up.
    Dead,
    /// Something the server says of a stream or consumer.
    Advisory,
}

impl Kind {
    /// In the order of `schemas::stream::logger_consumers`.
    pub const ALL: [Self; 4] = [Self::Log, Self::Result, Self::Dead, Self::Advisory];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Log => "log",
            Self::Result => "result",
            Self::Dead => "dead",
            Self::Advisory => "advisory",
        }
    }
}

/// One line. The first four fields are always there.
#[derive(Debug, Serialize)]
struct Line<'a> {
    /// RFC 3339, UTC.
    time: String,
    kind: &'static str,
    /// As a name, not as the token of the subject.
    tenant: Option<&'a str>,
    job_id: Option<&'a str>,
    #[serde(flatten)]
    fields: Map<String, Value>,
}

/// How a header is shown.
#[derive(Clone, Copy)]
enum Form {
    Text,
    Number,
}

const RESULT_FIELDS: [(&str, &str, Form); 2] =
    [(header::STATUS, "status_code", Form::Number), (PAYLOAD_SIZE, "bytes", Form::Number)];

const DEAD_FIELDS: [(&str, &str, Form); 5] = [
    (header::DEAD_CLASS, "class", Form::Text),
    (header::DEAD_REASON, "reason", Form::Text),
    (header::ATTEMPT, "attempt", Form::Number),
    (header::WORKER, "worker", Form::Text),
    (PAYLOAD_SIZE, "bytes", Form::Number),
];

/// The server says it where it leaves the payload out.
const PAYLOAD_SIZE: &str = "Nats-Msg-Size";

/// Appends the lines of a message and gives their number, which is at least 1: what cannot be read is said to be so.
pub fn append(kind: Kind, message: &Message, stored: OffsetDateTime, text: &mut Vec<u8>) -> usize {
    let tokens: Vec<&str> = message.subject.split('.').collect();
    let (place, tenant, job_id) = match (kind, tokens.as_slice()) {
        (Kind::Dead, ["inferq", "dead", model, lane, tenant, job_id]) => {
            let place = [("model".to_owned(), json!(decoded(model))), ("lane".to_owned(), json!(lane))];
            (Map::from_iter(place), Some(decoded(tenant)), Some(*job_id))
        }
        (Kind::Log | Kind::Result, ["inferq", _, tenant, job_id]) => (Map::new(), Some(decoded(tenant)), Some(*job_id)),
        _ => (Map::new(), None, None),
    };
    let records = match kind {
        Kind::Log => records(&message.payload),
        Kind::Result => vec![from_headers(&RESULT_FIELDS, message.headers.as_ref(), provenance(message))],
        Kind::Dead => vec![from_headers(&DEAD_FIELDS, message.headers.as_ref(), place)],
        Kind::Advisory => vec![advisory(&message.payload)],
    };
    let count = records.len();
    for mut fields in records {
        let time = match fields.remove("time") {
            Some(Value::String(time)) => time,
            _ => stored.format(&Rfc3339).unwrap_or_default(),
        };
        for name in ["kind", "tenant", "job_id"] {
            fields.remove(name);
        }
        let line = Line { time, kind: kind.as_str(), tenant: tenant.as_deref(), job_id, fields };
        serde_json::to_writer(&mut *text, &line).expect("a map with text as keys can be written to memory");
        text.push(b'\n');
    }
    count
}

/// The model of a dead letter and why it is one.
pub fn given_up(message: &Message) -> (String, Option<DeadClass>) {
    let model = message.subject.split('.').nth(2).map(decoded).unwrap_or_default();
    let class = message.headers.as_ref().and_then(|headers| headers.get(header::DEAD_CLASS));
    (model, class.and_then(|class| class.as_str().parse().ok()))
}

fn records(payload: &[u8]) -> Vec<Map<String, Value>> {
    match serde_json::from_slice::<Vec<Map<String, Value>>>(payload) {
        Ok(records) if !records.is_empty() => records,
        _ => vec![unreadable("the payload is not an array of records", payload)],
    }
}

/// How a result was made, as its worker says it.
fn provenance(message: &Message) -> Map<String, Value> {
    let provenance = message.headers.as_ref().and_then(|headers| headers.get(header::PROVENANCE));
    provenance.and_then(|provenance| serde_json::from_str(provenance.as_str()).ok()).unwrap_or_default()
}

fn advisory(payload: &[u8]) -> Map<String, Value> {
    let Ok(mut fields) = serde_json::from_slice::<Map<String, Value>>(payload) else {
        return unreadable("the payload is not an object", payload);
    };
    if let Some(time) = fields.remove("timestamp") {
        fields.insert("time".to_owned(), time);
    }
    fields
}

/// What is wrong with a message, without what it says: anybody may have published it.
fn unreadable(error: &str, payload: &[u8]) -> Map<String, Value> {
    Map::from_iter([("error".to_owned(), json!(error)), ("bytes".to_owned(), json!(payload.len()))])
}

fn from_headers(
    table: &[(&str, &str, Form)],
    headers: Option<&HeaderMap>,
    mut fields: Map<String, Value>,
) -> Map<String, Value> {
    for (name, field, form) in table {
        let Some(value) = headers.and_then(|headers| headers.get(*name)) else { continue };
        fields.insert((*field).to_owned(), shown(value.as_str(), *form));
    }
    fields
}

fn shown(value: &str, form: Form) -> Value {
    match (form, value.parse::<Number>()) {
        (Form::Number, Ok(number)) => Value::Number(number),
        _ => Value::String(value.to_owned()),
    }
}

/// A name, or the token itself where it is none of ours.
fn decoded(token: &str) -> String {
    Token::decode(token).unwrap_or_else(|_| token.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(kind: Kind, subject: &str, headers: &[(&str, &str)], payload: &str) -> Vec<String> {
        let mut map = HeaderMap::new();
        headers.iter().for_each(|(name, value)| map.insert(*name, *value));
        let message = Message {
            subject: subject.into(),
            reply: None,
            payload: payload.to_owned().into(),
            headers: Some(map),
            status: None,
            description: None,
            length: 0,
        };
        let mut text = Vec::new();
        let count = append(kind, &message, OffsetDateTime::UNIX_EPOCH, &mut text);
        let text = String::from_utf8(text).unwrap();
        assert_eq!((text.lines().count(), text.ends_with('\n')), (count, true));
        text.lines().map(str::to_owned).collect()
    }

    #[test]
    fn the_kinds_stand_in_the_order_of_their_consumers() {
        for (kind, consumer) in Kind::ALL.into_iter().zip(schemas::stream::logger_consumers()) {
            assert!(consumer.name.starts_with(&format!("logger_{}", &kind.as_str()[..3])), "{kind:?} {consumer:?}");
        }
    }

    #[test]
    fn a_line_begins_with_what_all_have_and_tenants_are_names() {
        let payload = r#"[{"time":"2026-01-31T12:00:00Z","job_id":"j-1","model":"m","event":"started","queue_seconds":0.5},
            {"time":"2026-01-31T12:00:01Z","job_id":"j-1","model":"m","event":"melted","new":{"a":1}}]"#;
        let lines = lines(Kind::Log, "inferq.logs.a=40b.j-1", &[], payload);
        assert!(lines[0].starts_with(r#"{"time":"2026-01-31T12:00:00Z","kind":"log","tenant":"a@b","job_id":"j-1","#));
        let melted: Value = serde_json::from_str(&lines[1]).unwrap();
        assert_eq!((&melted["event"], &melted["new"]["a"]), (&json!("melted"), &json!(1)));
    }

    #[test]
    fn a_result_is_told_by_its_headers() {
        let provenance = r#"{"worker":"7","queue_seconds":0.25,"new":[1],"kind":"mine"}"#;
        let headers = [(header::STATUS, "200"), (header::PROVENANCE, provenance)];
        let line: Value =
            serde_json::from_str(&lines(Kind::Result, "inferq.results.t.j", &headers, "secret")[0]).unwrap();
        let expected = json!({
            "time": "1970-01-01T00:00:00Z", "kind": "result", "tenant": "t", "job_id": "j",
            "status_code": 200, "worker": "7", "queue_seconds": 0.25, "new": [1],
        });
        assert_eq!(line, expected);
    }

    #[test]
    fn a_dead_letter_says_where_it_stood_and_why() {
        let headers = [(header::DEAD_CLASS, "poison"), (header::DEAD_REASON, "it crashed"), (PAYLOAD_SIZE, "12")];
        let line = &lines(Kind::Dead, "inferq.dead.gpt-4=2E1.flex.t.j", &headers, "")[0];
        let line: Value = serde_json::from_str(line).unwrap();
        assert_eq!((&line["model"], &line["lane"], &line["job_id"]), (&json!("gpt-4.1"), &json!("flex"), &json!("j")));
        assert_eq!((&line["class"], &line["bytes"]), (&json!("poison"), &json!(12)));
    }

    #[test]
    fn an_advisory_keeps_its_own_time() {
        let payload = r#"{"type":"io.nats.x","timestamp":"2026-01-31T12:00:00Z","stream":"S","kind":"mine"}"#;
        let line = &lines(Kind::Advisory, "$JS.EVENT.ADVISORY.STREAM.CREATED.S", &[], payload)[0];
        let line: Value = serde_json::from_str(line).unwrap();
        let expected = json!({
            "time": "2026-01-31T12:00:00Z", "kind": "advisory", "tenant": null, "job_id": null,
            "type": "io.nats.x", "stream": "S",
        });
        assert_eq!(line, expected);
    }

    #[test]
    fn what_cannot_be_read_is_a_line_too_without_its_payload() {
        for (kind, payload) in [(Kind::Log, "secret"), (Kind::Log, "[]"), (Kind::Advisory, "[1]")] {
            let line = &lines(kind, "inferq.logs.t.j", &[], payload)[0];
            assert!(line.contains("\"error\":\"the payload is not") && !line.contains("secret"), "{line}");
        }
    }
}
