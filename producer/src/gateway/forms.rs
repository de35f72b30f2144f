//! Requests that come as forms (`multipart/form-data`), as OpenAI's clients send audio: each becomes the body that a job has.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::{FromRequest, Multipart, Request};
use axum::http::header;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};

use super::Gateway;
use super::asked::{Body, read_json};
use super::error::{ApiError, ApiResult};
use super::files::{text, unreadable};

/// Fields that are numbers, and those that are true or false.
const NUMBERS: [&str; 2] = ["temperature", "seed"];
const FLAGS: [&str; 1] = ["stream"];

/// What is in a request.
#[derive(Debug)]
pub enum Given {
    Json(Bytes),
    Form(Value),
}

impl FromRequest<Arc<Gateway>> for Given {
    type Rejection = ApiError;

    async fn from_request(request: Request, gateway: &Arc<Gateway>) -> ApiResult<Self> {
        let kind = request.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
        if !kind.is_some_and(|kind| kind.starts_with("multipart/")) {
            return Ok(Self::Json(Body::from_request(request, gateway).await?.0));
        }
        let form = Multipart::from_request(request, gateway).await;
        read(form.map_err(|error| ApiError::invalid("invalid_multipart", "", error.body_text()))?).await.map(Self::Form)
    }
}

impl Given {
    pub fn body(self) -> ApiResult<Value> {
        match self {
            Self::Json(bytes) => read_json(&bytes),
            Self::Form(body) => Ok(body),
        }
    }
}

async fn read(mut form: Multipart) -> ApiResult<Value> {
    let mut body = Map::new();
    while let Some(mut field) = form.next_field().await.map_err(unreadable)? {
        let name = field.name().unwrap_or_default().to_owned();
        if name == "file" {
            if let Some(filename) = field.file_name() {
                body.insert("filename".to_owned(), json!(filename));
            }
            let file = field.bytes().await.map_err(unreadable)?;
            put(&mut body, "file", json!(STANDARD.encode(file)))?;
            continue;
        }
        let written = text(&mut field).await?;
        match name.strip_suffix("[]") {
            Some(list) => match body.entry(list.to_owned()).or_insert_with(|| json!([])) {
                Value::Array(items) => items.push(json!(written)),
                _ => return Err(twice(list)),
            },
            None => put(&mut body, &name, value(&name, written)?)?,
        }
    }
    // A list of one may have come under the bare name.
    if let Some(one @ Value::String(_)) = body.get_mut("timestamp_granularities") {
        *one = json!([one.take()]);
    }
    match body.contains_key("file") {
        true => Ok(body.into()),
        false => Err(ApiError::invalid("missing_required_parameter", "file", "you must give a file")),
    }
}

fn put(body: &mut Map<String, Value>, name: &str, value: Value) -> ApiResult<()> {
    match body.insert(name.to_owned(), value) {
        None => Ok(()),
        Some(_) => Err(twice(name)),
    }
}

fn twice(name: &str) -> ApiError {
    ApiError::invalid("invalid_value", name, format!("{name:?} is given twice"))
}

/// Forms have texts alone.
fn value(name: &str, written: String) -> ApiResult<Value> {
    let wrong = |wanted| ApiError::invalid("invalid_type", name, format!("{written:?} is not {wanted}"));
    match () {
        () if NUMBERS.contains(&name) => {
            let number = serde_json::from_str::<serde_json::Number>(&written);
            number.map(Value::from).map_err(|_| wrong("a number"))
        }
        () if FLAGS.contains(&name) => written.parse::<bool>().map(Value::from).map_err(|_| wrong("true or false")),
        () => Ok(written.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_flags_of_a_form_are_such() {
        assert_eq!(value("temperature", "0.2".to_owned()).unwrap(), json!(0.2));
        assert_eq!(value("stream", "false".to_owned()).unwrap(), json!(false));
        assert_eq!(value("prompt", "1".to_owned()).unwrap(), json!("1"));
        assert_eq!(value("seed", "x".to_owned()).unwrap_err().error.param.as_deref(), Some("seed"));
    }
}
