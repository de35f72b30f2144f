//! JSON and MessagePack, chosen by `Content-Type`: the same structure in both.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;
use serde::de::{DeserializeOwned, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

/// How a payload is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Encoding {
    #[default]
    Json,
    MessagePack,
}

/// How deep arrays and maps may nest in MessagePack: as deep as serde_json reads them, so that a payload which can be
/// read in one encoding can be written in the other, and no stack is exhausted.
const DEPTH_MAX: usize = 128;

/// A payload that cannot be read. `path` is where in it (`body.input[2]`), empty for the whole.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}{message}", prefix(path))]
pub struct DecodeError {
    pub path: String,
    pub message: String,
    /// Whether the bytes are none of this encoding at all, rather than a value of another shape.
    pub is_syntax: bool,
}

/// A `Content-Type` we do not speak.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("content type {0:?} is not supported; use application/json or application/msgpack")]
pub struct UnknownContentType(pub String);

impl Encoding {
    /// From a header's value; parameters such as `charset` are ignored, a missing header is JSON.
    pub fn from_content_type(value: Option<&str>) -> Result<Self, UnknownContentType> {
        let Some(value) = value else { return Ok(Self::Json) };
        let media = value.split(';').next().unwrap_or_default().trim();
        match media.to_ascii_lowercase().as_str() {
            "application/json" => Ok(Self::Json),
            "application/msgpack" | "application/x-msgpack" | "application/vnd.msgpack" => Ok(Self::MessagePack),
            _ => Err(UnknownContentType(value.to_owned())),
        }
    }

    pub fn content_type(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::MessagePack => "application/msgpack",
        }
    }

    /// Reads a payload. Unknown fields are ignored; an error names the path and the value.
    pub fn decode<T: DeserializeOwned>(self, payload: &[u8]) -> Result<T, DecodeError> {
        match self {
            Self::Json => decode_json(payload),
            Self::MessagePack => {
                let mut deserializer = rmp_serde::Deserializer::new(std::io::Cursor::new(payload));
                deserializer.set_max_depth(DEPTH_MAX);
                let value = serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
                    use rmp_serde::decode::Error::{InvalidDataRead, InvalidMarkerRead};
                    let is_syntax = matches!(error.inner(), InvalidDataRead(_) | InvalidMarkerRead(_));
                    located(error, is_syntax)
                })?;
                // A second value after the first would be dropped silently.
                match deserializer.position() as usize {
                    end if end < payload.len() => Err(DecodeError {
                        path: String::new(),
                        message: format!("{} bytes follow the MessagePack value", payload.len() - end),
                        is_syntax: true,
                    }),
                    _ => Ok(value),
                }
            }
        }
    }

    /// Writes a payload. MessagePack has maps with field names, as JSON has.
    pub fn encode<T: Serialize>(self, value: &T) -> Vec<u8> {
        match self {
            Self::Json => serde_json::to_vec(value).expect("the contract's types have string keys only"),
            Self::MessagePack => rmp_serde::to_vec_named(value).expect("writing to memory cannot fail"),
        }
    }
}

fn decode_json<T: DeserializeOwned>(payload: &[u8]) -> Result<T, DecodeError> {
    let mut deserializer = serde_json::Deserializer::from_slice(payload);
    let value = serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
        let is_syntax = !error.inner().is_data();
        located(error, is_syntax)
    })?;
    deserializer.end().map_err(|error| DecodeError {
        path: String::new(),
        message: error.to_string(),
        is_syntax: true,
    })?;
    Ok(value)
}

/// Reads a value of any shape. Binary, which MessagePack has and JSON has not, becomes its base64.
pub fn value<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Value, D::Error> {
    deserializer.deserialize_any(AnyValue)
}

#[derive(Clone, Copy)]
struct AnyValue;

impl<'de> DeserializeSeed<'de> for AnyValue {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for AnyValue {
    type Value = Value;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("any value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_bytes<E>(self, value: &[u8]) -> Result<Value, E> {
        Ok(STANDARD.encode(value).into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element_seed(self)? {
            list.push(item);
        }
        Ok(list.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut fields = Map::new();
        while let Some(name) = entries.next_key::<String>()? {
            fields.insert(name, entries.next_value_seed(self)?);
        }
        Ok(fields.into())
    }
}

/// Reads a typed body out of a job's body.
pub fn decode_body<T: DeserializeOwned>(body: &serde_json::Value) -> Result<T, DecodeError> {
    serde_path_to_error::deserialize(body).map_err(|error| located(error, false))
}

fn located<E: std::fmt::Display>(error: serde_path_to_error::Error<E>, is_syntax: bool) -> DecodeError {
    let path = match error.path().to_string() {
        path if path == "." || path == "?" => String::new(),
        path => path,
    };
    DecodeError { path, message: error.into_inner().to_string(), is_syntax }
}

fn prefix(path: &str) -> String {
    if path.is_empty() { String::new() } else { format!("{path}: ") }
}

#[cfg(test)]
mod properties;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::Job;

    #[test]
    fn content_types_are_read_as_http_does() {
        assert_eq!(Encoding::from_content_type(None), Ok(Encoding::Json));
        assert_eq!(Encoding::from_content_type(Some("Application/JSON; charset=utf-8")), Ok(Encoding::Json));
        assert_eq!(Encoding::from_content_type(Some("application/msgpack")), Ok(Encoding::MessagePack));
        assert!(Encoding::from_content_type(Some("text/plain")).is_err());
    }

    #[test]
    fn binary_of_messagepack_is_base64() {
        let packed = b"\x82\xa3url\xa1u\xa4body\x81\xa4file\xc4\x03abc";
        let job: Job = Encoding::MessagePack.decode(packed).unwrap();
        assert_eq!(job.body, serde_json::json!({ "file": "YWJj" }));
    }

    #[test]
    fn an_error_names_path_and_value() {
        let error = Encoding::Json.decode::<Job>(br#"{"url":7,"body":{}}"#).unwrap_err();
        assert_eq!(error.path, "url");
        assert!(error.to_string().contains("integer `7`"), "{error}");
    }

    #[test]
    fn bytes_after_the_value_are_an_error() {
        assert!(Encoding::Json.decode::<u8>(b"1 2").is_err());
        assert!(Encoding::MessagePack.decode::<u8>(&[1, 2]).is_err());
    }

    #[test]
    fn invalid_utf8_is_an_error() {
        assert!(Encoding::Json.decode::<Job>(b"{\"url\":\"\xff\",\"body\":{}}").is_err());
        assert!(Encoding::MessagePack.decode::<Job>(b"\x82\xa3url\xa1\xff\xa4body\x80").is_err());
    }
}
