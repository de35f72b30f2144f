//! Fields that OpenAI allows in several shapes. They are read by hand, since an untagged enum could only say that
//! nothing matched, and not which value was wrong.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Value, json};

/// `input` and `prompt`: a string, strings, token ids, or several lists of token ids.
#[derive(Clone, Debug, Serialize, JsonSchema, PartialEq)]
#[serde(untagged)]
pub enum TextOrTokens {
    Text(#[schemars(length(min = 1))] String),
    Texts(#[schemars(length(min = 1), inner(length(min = 1)))] Vec<String>),
    Tokens(#[schemars(length(min = 1))] Vec<u32>),
    TokenLists(#[schemars(length(min = 1), inner(length(min = 1)))] Vec<Vec<u32>>),
}

/// One prompt of the above.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Prompt<'a> {
    Text(&'a str),
    Tokens(&'a [u32]),
    /// A file in base64, or a `data:` URL.
    Image(&'a str),
}

impl TextOrTokens {
    /// The prompts, in order.
    pub fn prompts(&self) -> Vec<Prompt<'_>> {
        match self {
            Self::Text(text) => vec![Prompt::Text(text)],
            Self::Texts(texts) => texts.iter().map(|text| Prompt::Text(text)).collect(),
            Self::Tokens(tokens) => vec![Prompt::Tokens(tokens)],
            Self::TokenLists(lists) => lists.iter().map(|tokens| Prompt::Tokens(tokens)).collect(),
        }
    }

    /// Whether several prompts were given, so that errors can name the index.
    pub fn is_list(&self) -> bool {
        matches!(self, Self::Texts(_) | Self::TokenLists(_))
    }
}

impl<'de> Deserialize<'de> for TextOrTokens {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let wanted = "a string, an array of strings, an array of token ids or an array of arrays of token ids";
        match Value::deserialize(deserializer)? {
            Value::String(text) => Ok(Self::Text(text)),
            Value::Array(items) => match items.first() {
                None => Err(D::Error::custom(format!("is an empty array; give {wanted}"))),
                Some(Value::String(_)) => strings(items).map(Self::Texts).map_err(D::Error::custom),
                Some(Value::Array(_)) => token_lists(items).map(Self::TokenLists).map_err(D::Error::custom),
                Some(_) => tokens(items, "").map(Self::Tokens).map_err(D::Error::custom),
            },
            other => Err(D::Error::custom(format!("{} is not {wanted}", shorten(&other)))),
        }
    }
}

/// `input` where images may stand among texts: as above, or objects with a `text` or an `image`.
#[derive(Clone, Debug, Serialize, PartialEq)]
#[serde(untagged)]
pub enum MediaInput {
    Plain(TextOrTokens),
    Items(Vec<Item>),
}

/// One of them.
#[derive(Clone, Debug, Serialize, PartialEq)]
#[serde(rename_all = "snake_case")]
pub enum Item {
    Text(String),
    Image(String),
}

impl Item {
    fn prompt(&self) -> Prompt<'_> {
        match self {
            Self::Text(text) => Prompt::Text(text),
            Self::Image(image) => Prompt::Image(image),
        }
    }
}

impl MediaInput {
    /// The prompts, in order.
    pub fn prompts(&self) -> Vec<Prompt<'_>> {
        match self {
            Self::Plain(plain) => plain.prompts(),
            Self::Items(items) => items.iter().map(Item::prompt).collect(),
        }
    }

    /// Whether several prompts were given, so that errors can name the index.
    pub fn is_list(&self) -> bool {
        match self {
            Self::Plain(plain) => plain.is_list(),
            Self::Items(_) => true,
        }
    }
}

impl<'de> Deserialize<'de> for MediaInput {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Value::deserialize(deserializer)? {
            one @ Value::Object(_) => item(one).map(|item| Self::Items(vec![item])).map_err(D::Error::custom),
            Value::Array(items) if items.iter().any(Value::is_object) => {
                let read = |(index, one)| item(one).map_err(|error| format!("[{index}]: {error}"));
                let items = items.into_iter().enumerate().map(read).collect::<Result<_, _>>();
                items.map(Self::Items).map_err(D::Error::custom)
            }
            plain => TextOrTokens::deserialize(plain).map(Self::Plain).map_err(D::Error::custom),
        }
    }
}

/// A text, or an object with one or with an image, also as chats have them: `{"type": "image_url", "image_url": {"url": …}}`.
fn item(value: Value) -> Result<Item, String> {
    let wanted = "is not a string or an object with a `text` or an `image`";
    let text = |value: &Value| value.as_str().map(str::to_owned);
    match &value {
        Value::String(own) => Ok(Item::Text(own.clone())),
        Value::Object(fields) => {
            let url = fields.get("image_url").map(|url| url.get("url").unwrap_or(url));
            let image = fields.get("image").or(url).and_then(text);
            match (fields.get("text").and_then(text), image) {
                (Some(own), None) => Ok(Item::Text(own)),
                (None, Some(image)) => Ok(Item::Image(image)),
                _ => Err(format!("{} {wanted}", shorten(&value))),
            }
        }
        other => Err(format!("{} {wanted}", shorten(other))),
    }
}

impl JsonSchema for MediaInput {
    fn schema_name() -> Cow<'static, str> {
        "MediaInput".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let filled = json!({"type": "string", "minLength": 1});
        let text = json!({"type": "object", "properties": {"text": filled}, "required": ["text"]});
        let image = json!({"type": "object", "properties": {"image": filled}, "required": ["image"]});
        let url = json!({"type": "object", "properties": {"url": filled}, "required": ["url"]});
        let part = json!({"type": "object", "properties": {"image_url": url}, "required": ["image_url"]});
        let item = json!({"anyOf": [text, image, part]});
        let mixed = json!({"anyOf": [filled, text, image, part]});
        let plain = generator.subschema_for::<TextOrTokens>();
        json_schema!({
            "description": "Texts, tokens or images; an image is a file in base64, or a `data:` URL.",
            "anyOf": [plain, item, {"type": "array", "items": mixed, "minItems": 1}],
        })
    }
}

/// `documents`: strings, or objects with a `text`.
#[derive(Clone, Debug, Serialize, PartialEq)]
#[serde(transparent)]
pub struct Documents(pub Vec<String>);

impl<'de> Deserialize<'de> for Documents {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let wanted = "a string or an object with a text";
        let read = |(index, item): (usize, Value)| match item {
            Value::String(text) => Ok(text),
            Value::Object(mut fields) => match fields.remove("text") {
                Some(Value::String(text)) => Ok(text),
                _ => Err(format!("[{index}]: has no string `text`; a document is {wanted}")),
            },
            other => Err(format!("[{index}]: {} is not {wanted}", shorten(&other))),
        };
        let documents = match Value::deserialize(deserializer)? {
            Value::Array(items) if items.is_empty() => Err("is an empty array; give at least one document".to_owned()),
            Value::Array(items) => items.into_iter().enumerate().map(read).collect::<Result<_, _>>(),
            other => Err(format!("{} is not an array of documents", shorten(&other))),
        };
        documents.map(Self).map_err(D::Error::custom)
    }
}

impl JsonSchema for Documents {
    fn schema_name() -> Cow<'static, str> {
        "Documents".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let text = json!({"type": "string", "minLength": 1});
        let object = json!({"type": "object", "properties": {"text": text}, "required": ["text"]});
        json_schema!({"type": "array", "items": {"anyOf": [text, object]}, "minItems": 1})
    }
}

/// `stop`: null, a string or up to four.
#[derive(Clone, Debug, Default, Serialize, PartialEq)]
#[serde(transparent)]
pub struct Stop(pub Vec<String>);

/// As many stop strings as OpenAI allows.
pub const STOP_STRINGS_MAX: usize = 4;

impl<'de> Deserialize<'de> for Stop {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let stop = match Value::deserialize(deserializer)? {
            Value::Null => Vec::new(),
            Value::String(text) => vec![text],
            Value::Array(items) => strings(items).map_err(D::Error::custom)?,
            other => Err(D::Error::custom(format!("{} is not a string or an array of strings", shorten(&other))))?,
        };
        if stop.len() > STOP_STRINGS_MAX {
            return Err(D::Error::custom(format!(
                "{} stop strings; at most {STOP_STRINGS_MAX} are allowed",
                stop.len()
            )));
        }
        match stop.iter().any(String::is_empty) {
            true => Err(D::Error::custom("a stop string is empty")),
            false => Ok(Self(stop)),
        }
    }
}

impl JsonSchema for Stop {
    fn schema_name() -> Cow<'static, str> {
        "Stop".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "Null, a string or up to four: where a completion ends.",
            "anyOf": [
                {"type": "null"},
                {"type": "string", "minLength": 1},
                {"type": "array", "items": {"type": "string", "minLength": 1}, "maxItems": STOP_STRINGS_MAX},
            ],
        })
    }
}

fn strings(items: Vec<Value>) -> Result<Vec<String>, String> {
    let read = |(index, item)| match item {
        Value::String(text) => Ok(text),
        other => Err(format!("[{index}]: {} is not a string, as the items before it are", shorten(&other))),
    };
    items.into_iter().enumerate().map(read).collect()
}

fn tokens(items: Vec<Value>, place: &str) -> Result<Vec<u32>, String> {
    let read = |(index, item): (usize, Value)| match item.as_u64().and_then(|id| u32::try_from(id).ok()) {
        Some(id) => Ok(id),
        None => Err(format!("{place}[{index}]: {} is not a string or a token id", shorten(&item))),
    };
    items.into_iter().enumerate().map(read).collect()
}

fn token_lists(items: Vec<Value>) -> Result<Vec<Vec<u32>>, String> {
    let read = |(index, item)| match item {
        Value::Array(list) => tokens(list, &format!("[{index}]")),
        other => Err(format!("[{index}]: {} is not an array of token ids", shorten(&other))),
    };
    items.into_iter().enumerate().map(read).collect()
}

/// A value for an error message: recognisable, but never a whole document.
fn shorten(value: &Value) -> String {
    const CHARS_MAX: usize = 40;
    let text = value.to_string();
    match text.char_indices().nth(CHARS_MAX) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(value: Value) -> Result<TextOrTokens, String> {
        serde_json::from_value(value).map_err(|error| error.to_string())
    }

    #[test]
    fn all_four_shapes_are_read() {
        assert_eq!(read(json!("a")), Ok(TextOrTokens::Text("a".into())));
        assert_eq!(read(json!(["a", "b"])), Ok(TextOrTokens::Texts(vec!["a".into(), "b".into()])));
        assert_eq!(read(json!([1, 2])), Ok(TextOrTokens::Tokens(vec![1, 2])));
        assert_eq!(read(json!([[1], [2]])), Ok(TextOrTokens::TokenLists(vec![vec![1], vec![2]])));
    }

    #[test]
    fn a_wrong_value_is_named_with_its_index() {
        assert!(read(json!(7)).unwrap_err().starts_with("7 is not a string"));
        assert!(read(json!(["a", 7])).unwrap_err().starts_with("[1]: 7 is not a string"));
        assert!(read(json!([1, -2])).unwrap_err().starts_with("[1]: -2 is not"));
        assert!(read(json!([[1], [1, "x"]])).unwrap_err().starts_with("[1][1]: \"x\" is not"));
        assert!(read(json!([])).unwrap_err().contains("empty array"));
        assert!(read(json!({"long": "x".repeat(100)})).unwrap_err().contains('…'));
    }

    #[test]
    fn images_stand_among_texts() {
        let read = |value: Value| serde_json::from_value::<MediaInput>(value).map_err(|error| error.to_string());
        let image = Item::Image("data:x".to_owned());
        assert_eq!(read(json!("a")), Ok(MediaInput::Plain(TextOrTokens::Text("a".into()))));
        assert_eq!(read(json!({ "image": "data:x" })), Ok(MediaInput::Items(vec![image.clone()])));
        let part = json!({ "type": "image_url", "image_url": { "url": "data:x" } });
        let mixed = read(json!(["a", part, { "text": "b" }])).unwrap();
        assert_eq!(mixed, MediaInput::Items(vec![Item::Text("a".into()), image, Item::Text("b".into())]));
        assert_eq!(read(serde_json::to_value(&mixed).unwrap()), Ok(mixed));
        assert!(read(json!([{ "image": "x" }, 7])).unwrap_err().starts_with("[1]: 7 is not"));
        assert!(read(json!({ "image": "x", "text": "y" })).is_err());
        assert!(read(json!(7)).unwrap_err().starts_with("7 is not a string"));
    }

    #[test]
    fn documents_are_texts_or_objects_with_one() {
        let read = |value| serde_json::from_value::<Documents>(value).map_err(|error| error.to_string());
        assert_eq!(read(json!(["a", {"text": "b", "title": 1}])), Ok(Documents(vec!["a".into(), "b".into()])));
        assert!(read(json!(["a", {"title": "b"}])).unwrap_err().starts_with("[1]: has no string `text`"));
        assert!(read(json!([7])).unwrap_err().starts_with("[0]: 7 is not a string or an object"));
        assert!(read(json!([])).unwrap_err().starts_with("is an empty array"));
        assert!(read(json!("a")).unwrap_err().starts_with("\"a\" is not an array"));
    }

    #[test]
    fn stop_takes_null_one_or_four() {
        assert_eq!(serde_json::from_value::<Stop>(json!(null)).unwrap(), Stop(vec![]));
        assert_eq!(serde_json::from_value::<Stop>(json!("a")).unwrap(), Stop(vec!["a".into()]));
        assert!(serde_json::from_value::<Stop>(json!(["a", "b", "c", "d", "e"])).is_err());
        assert!(serde_json::from_value::<Stop>(json!([""])).is_err());
    }

    #[test]
    fn the_schema_of_stop_is_what_is_read() {
        let schema = Value::from(schemars::schema_for!(Stop));
        let text = json!({"type": "string", "minLength": 1});
        let list = json!({"type": "array", "items": text, "maxItems": STOP_STRINGS_MAX});
        assert_eq!(schema["anyOf"], json!([{"type": "null"}, text, list]));
        assert!(schema.get("type").is_none(), "{schema}");
    }

    #[test]
    fn the_schema_of_an_input_has_four_shapes_and_none_is_empty() {
        let schema = Value::from(schemars::schema_for!(TextOrTokens));
        let list = |items: &Value| json!({"type": "array", "items": items, "minItems": 1});
        let text = json!({"type": "string", "minLength": 1});
        let token = json!({"type": "integer", "format": "uint32", "minimum": 0});
        let tokens = list(&token);
        assert_eq!(schema["anyOf"], json!([text, list(&text), tokens, list(&tokens)]));
    }
}
