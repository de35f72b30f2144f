//! Chat templates: Jinja that comes with the model, rendered by `minijinja` with a limit on its work.

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{Environment, Error, ErrorKind, Value, context};

/// Instructions a template may execute: thousands of times more than any known one needs.
const FUEL: u64 = 2_000_000;
const NAME: &str = "chat";

/// A model's chat template.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    begin: String,
    end: String,
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
        environment.add_template_owned(NAME, source.to_owned()).map_err(refused)?;
        Ok(Self { environment, begin: begin.to_owned(), end: end.to_owned() })
    }

    /// The text of a chat, up to where the assistant's answer begins.
    pub fn render(&self, messages: &serde_json::Value) -> Result<String, TemplateError> {
        let template = self.environment.get_template(NAME).map_err(refused)?;
        let values = context! {
            messages => Value::from(Serde(messages)),
            add_generation_prompt => true,
            bos_token => self.begin.as_str(),
            eos_token => self.end.as_str(),
        };
        template.render(values).map_err(refused)
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

    #[test]
    fn a_chat_ends_where_the_answer_begins() {
        let source = "{% for m in messages %}<{{ m['role'] }}>{{ m.content.strip() }}{{ eos_token }}\n{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}";
        let template = ChatTemplate::new(source, "", "</s>").unwrap();
        let text = template.render(&json!([{"role": "user", "content": " hi "}])).unwrap();
        assert_eq!(text, "<user>hi</s>\n<assistant>");
    }

    #[test]
    fn a_template_can_refuse_and_cannot_run_for_ever() {
        let refusing = ChatTemplate::new("{{ raise_exception('no system role') }}", "", "").unwrap();
        assert!(refusing.render(&json!([])).unwrap_err().to_string().contains("no system role"));
        let endless =
            ChatTemplate::new("{% for a in range(9999) %}{% for b in range(9999) %}x{% endfor %}{% endfor %}", "", "");
        assert!(endless.unwrap().render(&json!([])).is_err());
    }
}
