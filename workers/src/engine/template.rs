//! Chat templates: Jinja that comes with the model, rendered by `minijinja` with a limit on its work.

use std::io;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde, ValueKind};
use minijinja::{Environment, Error, ErrorKind, Value, context};
use serde::Serialize;
use serde_json::ser::{CompactFormatter, Formatter, PrettyFormatter};
use time::OffsetDateTime;
use time::format_description::parse_strftime_borrowed;

use super::calls::{self, CallStyle};

/// Instructions a template may execute: thousands of times more than any known one needs.
const FUEL: u64 = 2_000_000;
const NAME: &str = "chat";

/// A model's chat template.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    begin: String,
    end: String,
    knows_tools: bool,
    call_style: Option<CallStyle>,
}

/// What a template may ask for beside messages and tools.
#[derive(Clone, Copy, Debug)]
pub struct Setting<'a> {
    pub now: OffsetDateTime,
    /// Where it is said.
    pub reasoning_effort: Option<&'a str>,
}

impl Setting<'_> {
    pub fn at(now: OffsetDateTime) -> Self {
        Self { now, reasoning_effort: None }
    }
}

#[derive(Debug, thiserror::Error)]
#[error("the chat template refuses it: {0}")]
pub struct TemplateError(String);

impl ChatTemplate {
    /// Compiles a template. `begin` and `end` are the texts of the model's special tokens.
    pub fn new(source: &str, begin: &str, end: &str) -> Result<Self, TemplateError> {
        let mut environment = Environment::new();
        // As transformers renders them, which is what templates are written for.
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build().map_err(refused)?;
        environment.set_syntax(syntax);
        environment.set_fuel(Some(FUEL));
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", raise);
        // The one that comes with minijinja writes JSON for web pages.
        environment.add_filter("tojson", to_json);
        environment.add_test("iterable", is_iterable);
        environment.add_template_owned(NAME, without_marks(source)).map_err(refused)?;
        let (knows_tools, call_style) = (calls::speaks_of_tools(source), CallStyle::of(source));
        Ok(Self { environment, begin: begin.to_owned(), end: end.to_owned(), knows_tools, call_style })
    }

    /// How the model calls tools, where that is known.
    pub fn call_style(&self) -> Option<CallStyle> {
        self.call_style
    }

    /// The text of a chat, up to where the assistant's answer begins.
    pub fn render(
        &self,
        messages: &[serde_json::Value],
        tools: &[serde_json::Value],
        setting: Setting<'_>,
    ) -> Result<String, TemplateError> {
        let template = self.environment.get_template(NAME).map_err(refused)?;
        let (messages, tools) = match self.knows_tools {
            true => (messages.to_vec(), Some(tools).filter(|tools| !tools.is_empty())),
            false => (calls::in_plain_words(messages, tools), None),
        };
        let Setting { now, reasoning_effort } = setting;
        let values = context! {
            messages => Value::from(Serde(messages)),
            tools => tools.map(|tools| Value::from(Serde(tools))),
            documents => (),
            strftime_now => Value::from_function(move |format: &str| strftime(now, format)),
            add_generation_prompt => true,
            bos_token => self.begin.as_str(),
            eos_token => self.end.as_str(),
            // What is not said is not defined.
            ..reasoning_effort.map_or_else(|| context! {}, |effort| context! { reasoning_effort => effort })
        };
        template.render(values).map_err(refused)
    }
}

/// Of Python's `strftime`.
fn strftime(now: OffsetDateTime, format: &str) -> Result<String, Error> {
    let wrong = |error: &dyn std::fmt::Display| Error::new(ErrorKind::InvalidOperation, format!("{format:?}: {error}"));
    let items = parse_strftime_borrowed(format).map_err(|error| wrong(&error))?;
    now.format(&items).map_err(|error| wrong(&error))
}

/// As in Python: minijinja goes over nothing at all, too.
fn is_iterable(value: &Value) -> bool {
    matches!(value.kind(), ValueKind::String | ValueKind::Seq | ValueKind::Map | ValueKind::Iterable)
}

/// The marks that tell trainers what an assistant has said are a statement of their own, which does nothing.
fn without_marks(source: &str) -> String {
    let mut source = source.to_owned();
    for (mark, plain) in [("generation", "if true"), ("endgeneration", "endif")] {
        for (open, close) in [("{%", "%}"), ("{%-", "%}"), ("{%", "-%}"), ("{%-", "-%}")] {
            source = source.replace(&format!("{open} {mark} {close}"), &format!("{open} {plain} {close}"));
        }
    }
    source
}

/// JSON as Python's `json.dumps` writes it and models have read it.
pub fn spaced_json(value: &impl Serialize) -> serde_json::Result<String> {
    write_json(value, Spaced(CompactFormatter))
}

fn to_json(value: Value, options: Kwargs) -> Result<String, Error> {
    let indent: Option<usize> = options.get("indent")?;
    // Python's other options make no difference here.
    let _: (Option<Value>, Option<Value>, Option<Value>) =
        (options.get("ensure_ascii")?, options.get("separators")?, options.get("sort_keys")?);
    options.assert_all_used()?;
    let written = match indent {
        Some(indent) => write_json(&value, PrettyFormatter::with_indent(" ".repeat(indent).as_bytes())),
        None => spaced_json(&value),
    };
    written.map_err(|error| Error::new(ErrorKind::BadSerialization, error.to_string()))
}

fn write_json(value: &impl Serialize, formatter: impl Formatter) -> serde_json::Result<String> {
    let mut text = Vec::new();
    value.serialize(&mut serde_json::Serializer::with_formatter(&mut text, formatter))?;
    Ok(String::from_utf8(text).expect("serde_json writes UTF-8"))
}

/// With a space after each comma and colon.
struct Spaced(CompactFormatter);

impl Formatter for Spaced {
    fn begin_array_value<W: io::Write + ?Sized>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_key<W: io::Write + ?Sized>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_value<W: io::Write + ?Sized>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(b": ")
    }
}

fn raise(message: String) -> Result<String, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message))
}

fn refused(error: Error) -> TemplateError {
    TemplateError(error.detail().map_or_else(|| error.to_string(), str::to_owned))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const NOW: Setting<'_> = Setting { now: OffsetDateTime::UNIX_EPOCH, reasoning_effort: None };

    #[test]
    fn a_chat_ends_where_the_answer_begins() {
        let source = "{% for m in messages %}<{{ m['role'] }}>{{ m.content.strip() }}{{ eos_token }}\n{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}";
        let template = ChatTemplate::new(source, "", "</s>").unwrap();
        let text = template.render(&[json!({"role": "user", "content": " hi "})], &[], NOW).unwrap();
        assert_eq!(text, "<user>hi</s>\n<assistant>");
    }

    #[test]
    fn a_model_is_told_the_date_and_trainers_marks_do_nothing() {
        let source = "{%- generation -%} {{ strftime_now('%d %b %Y') }} {% endgeneration %}{% if tools is iterable %}x{% endif %}";
        let text = ChatTemplate::new(source, "", "").unwrap().render(&[], &[], NOW).unwrap();
        assert_eq!(text, "01 Jan 1970 ");
    }

    #[test]
    fn tools_are_written_as_python_does() {
        let template = ChatTemplate::new(
            "{% if tools is not none %}{{ tools | tojson }}{{ tools[0]['n'] | tojson(indent=1) }}{% endif %}",
            "",
            "",
        );
        let template = template.unwrap();
        assert_eq!(template.render(&[], &[], NOW).unwrap(), "");
        let text = template.render(&[], &[json!({"o": null, "n": ["<é>", 1.5, {}]})], NOW).unwrap();
        assert_eq!(text, "[{\"o\": null, \"n\": [\"<é>\", 1.5, {}]}][\n \"<é>\",\n 1.5,\n {}\n]");
    }

    #[test]
    fn a_template_can_refuse_and_cannot_run_for_ever() {
        let refusing = ChatTemplate::new("{{ raise_exception('no system role') }}", "", "").unwrap();
        assert!(refusing.render(&[], &[], NOW).unwrap_err().to_string().contains("no system role"));
        let endless =
            ChatTemplate::new("{% for a in range(9999) %}{% for b in range(9999) %}x{% endfor %}{% endfor %}", "", "");
        assert!(endless.unwrap().render(&[], &[], NOW).is_err());
    }
}
