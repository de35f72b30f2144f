//! Properties of the codecs: what is written is read, in both encodings alike, and nothing that comes in panics.

use proptest::collection::{btree_map, vec};
use proptest::num::f64::{NEGATIVE, NORMAL, POSITIVE, SUBNORMAL, ZERO};
use proptest::option;
use proptest::prelude::*;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use super::{Encoding, decode_body};
use crate::completions::{ChatCompletionRequest, CompletionRequest, Sampling};
use crate::embeddings::{Embedding, EmbeddingRequest, Vector};
use crate::job::{Job, Method};
use crate::log::{LogEvent, LogMessage, LogRecord, Usage};
use crate::result::{JobResult, NoResponse, NoResponseCode, Response};
use crate::subject::{Address, ReplyTokens, Token};

const BOTH: [Encoding; 2] = [Encoding::Json, Encoding::MessagePack];

fn finite() -> impl Strategy<Value = f64> {
    POSITIVE | NEGATIVE | NORMAL | SUBNORMAL | ZERO
}

fn number() -> impl Strategy<Value = Value> {
    let borders = [i64::MIN, i64::MIN + 1, -1, 0, 1, i64::MAX - 1, i64::MAX].map(Value::from);
    let above = [i64::MAX as u64 + 1, u64::MAX - 1, u64::MAX, 1 << 53, (1 << 53) + 1].map(Value::from);
    let borders = [borders.as_slice(), above.as_slice()].concat();
    prop_oneof![
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        finite().prop_map(Value::from),
        proptest::sample::select(borders),
    ]
}

fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        number(),
        any::<String>().prop_map(Value::from),
    ];
    leaf.prop_recursive(6, 48, 6, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..6).prop_map(Value::from),
            btree_map(any::<String>(), inner, 0..6).prop_map(|fields| Value::Object(Map::from_iter(fields))),
        ]
    })
}

fn job() -> impl Strategy<Value = Job> {
    (option::of(any::<String>()), any::<String>(), value()).prop_map(|(custom_id, url, body)| Job {
        custom_id,
        method: Method::Post,
        url,
        body,
    })
}

fn result() -> impl Strategy<Value = JobResult> {
    let codes = [NoResponseCode::BatchExpired, NoResponseCode::BatchCancelled, NoResponseCode::RequestTimeout];
    let response = (any::<u16>(), any::<String>(), value()).prop_map(|(status_code, request_id, body)| Response {
        status_code,
        request_id,
        body,
    });
    let error = (proptest::sample::select(codes.to_vec()), any::<String>())
        .prop_map(|(code, message)| NoResponse { code, message });
    (any::<String>(), any::<String>(), option::of(response), option::of(error))
        .prop_map(|(id, custom_id, response, error)| JobResult { id, custom_id, response, error })
}

fn usage() -> impl Strategy<Value = Usage> {
    (any::<u64>(), option::of(any::<u64>()), any::<u64>()).prop_map(
        |(prompt_tokens, completion_tokens, total_tokens)| Usage { prompt_tokens, completion_tokens, total_tokens },
    )
}

fn event() -> impl Strategy<Value = LogEvent> {
    prop_oneof![
        any::<String>().prop_map(|lane| LogEvent::Queued { lane }),
        finite().prop_map(|queue_seconds| LogEvent::Started { queue_seconds }),
        (any::<String>(), finite()).prop_map(|(reason, delay_seconds)| LogEvent::Retried { reason, delay_seconds }),
        (any::<u16>(), finite(), option::of(usage()))
            .prop_map(|(status_code, run_seconds, usage)| { LogEvent::Finished { status_code, run_seconds, usage } }),
    ]
}

fn log() -> impl Strategy<Value = LogMessage> {
    let record =
        (any::<[String; 4]>(), any::<u32>(), event()).prop_map(|([time, job_id, model, worker], attempt, event)| {
            LogRecord { time, job_id, model, worker, attempt, event }
        });
    vec(record, 0..4)
}

/// What both encodings give back is what was written.
fn survives<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(value: &T) -> Result<(), TestCaseError> {
    for encoding in BOTH {
        let read: T =
            encoding.decode(&encoding.encode(value)).map_err(|error| TestCaseError::fail(error.to_string()))?;
        prop_assert_eq!(&read, value, "{:?}", encoding);
    }
    Ok(())
}

/// A field of a later version does not keep this one from reading the rest.
fn survives_with<T>(value: &T, extra: &Value) -> Result<(), TestCaseError>
where
    T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug,
{
    let mut document: Value = Encoding::Json.decode(&Encoding::Json.encode(value)).unwrap();
    for object in document.as_array_mut().into_iter().flatten() {
        object["x-later"] = extra.clone();
    }
    if let Some(fields) = document.as_object_mut() {
        fields.insert("x-later".to_owned(), extra.clone());
    }
    for encoding in BOTH {
        let read: Result<T, _> = encoding.decode(&encoding.encode(&document));
        prop_assert_eq!(read.as_ref(), Ok(value), "{:?}", encoding);
    }
    Ok(())
}

/// Reads bytes as everything that comes from outside.
fn read_as_everything(bytes: &[u8]) {
    for encoding in BOTH {
        if let Ok(job) = encoding.decode::<Job>(bytes) {
            read_as_every_body(&job.body);
        }
        let _ = encoding.decode::<JobResult>(bytes);
        let _ = encoding.decode::<LogMessage>(bytes);
        let _ = encoding.decode::<Value>(bytes);
    }
}

fn read_as_every_body(body: &Value) {
    let _ = decode_body::<EmbeddingRequest>(body);
    let _ = decode_body::<ChatCompletionRequest>(body);
    let _ = decode_body::<CompletionRequest>(body);
    let _ = decode_body::<Sampling>(body);
}

proptest! {
    #[test]
    fn a_job_is_read_as_it_was_written(job in job(), extra in value()) {
        survives(&job)?;
        survives_with(&job, &extra)?;
    }

    #[test]
    fn a_result_is_read_as_it_was_written(result in result(), extra in value()) {
        survives(&result)?;
        survives_with(&result, &extra)?;
    }

    #[test]
    fn a_log_is_read_as_it_was_written(log in log(), extra in value()) {
        survives(&log)?;
        survives_with(&log, &extra)?;
    }

    #[test]
    fn a_vector_keeps_every_bit(vector in vec(proptest::num::f32::NORMAL | proptest::num::f32::SUBNORMAL | proptest::num::f32::ZERO, 0..16)) {
        let embedding = Embedding { object: "embedding".into(), index: 0, embedding: Vector::Float(vector) };
        survives(&embedding)?;
    }

    #[test]
    fn any_bytes_are_read_or_refused(bytes in vec(any::<u8>(), 0..256)) {
        read_as_everything(&bytes);
    }

    #[test]
    fn damaged_messages_are_read_or_refused(job in job(), place in any::<proptest::sample::Index>(), byte: u8, cut: bool) {
        for encoding in BOTH {
            let mut bytes = encoding.encode(&job);
            let place = place.index(bytes.len());
            bytes[place] = byte;
            bytes.truncate(if cut { place } else { bytes.len() });
            read_as_everything(&bytes);
        }
    }

    #[test]
    fn any_body_is_read_or_refused(values in vec(value(), 3), field in "model|input|prompt|messages|stop|seed|temperature") {
        let body = json!({"model": "m", "input": values[0], "prompt": values[0], "messages": values[1], "stop": values[2]});
        read_as_every_body(&body);
        read_as_every_body(&json!({"model": "m", "prompt": "a", "input": "a", "messages": [], field: values[0]}));
    }

    #[test]
    fn any_text_is_a_name_or_refused(text in any::<String>(), tokens in "inferq\\.jobs(\\.[A-Za-z0-9=é*>-]{0,6}){3,5}") {
        for text in [text.as_str(), tokens.as_str()] {
            let _ = Token::decode(text);
            let _ = Token::encode(text);
            let _ = ReplyTokens::parse(text);
            if let Ok(address) = Address::parse(text) {
                let subject = address.subject();
                prop_assert_eq!(subject.as_deref(), Ok(text));
            }
        }
    }
}

#[test]
fn numbers_at_the_borders_stay_exact() {
    for body in
        [json!(i64::MIN), json!(u64::MAX), json!(f64::MAX), json!(f64::MIN_POSITIVE), json!(5e-324), json!(0.1f32)]
    {
        let job = Job { custom_id: None, method: Method::Post, url: String::new(), body };
        survives(&job).unwrap();
    }
}

#[test]
fn both_encodings_read_arrays_and_maps_as_deep_and_no_deeper() {
    for opening in ["[", "{\"a\":"] {
        let (packed_opening, closing) = if opening == "[" { (&b"\x91"[..], "]") } else { (&b"\x81\xa1a"[..], "}") };
        let read = |depth: usize| {
            let json = [opening.repeat(depth), "0".to_owned(), closing.repeat(depth)].concat();
            let packed = [packed_opening.repeat(depth), b"\0".to_vec()].concat();
            (Encoding::Json.decode::<Value>(json.as_bytes()), Encoding::MessagePack.decode::<Value>(&packed))
        };
        for depth in 100..150 {
            let (json, packed) = read(depth);
            assert_eq!(json.is_ok(), packed.is_ok(), "depth {depth}: {:?} {:?}", json.err(), packed.err());
        }
        assert!(read(100).0.is_ok());
        let (json, packed) = read(1_000_000);
        assert!(json.unwrap_err().message.contains("limit"));
        assert!(packed.unwrap_err().message.contains("limit"));
    }
}
