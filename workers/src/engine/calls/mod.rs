//! Calls of tools, and thoughts, as models write them into their answers.
//!
//! Each model has its way. Grammars hold answers to it, so that they can be taken apart again, in parts too, as they come.

mod framed;
mod harmony;
mod plain;

use serde_json::Value;

use framed::{BARE, TAGGED};
pub use plain::in_plain_words;

/// How a model was trained to answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallStyle {
    /// As Hermes and Qwen do: JSON with `name` and `arguments`, between tags, anywhere in an answer.
    Tagged,
    /// As Llama 3 does: the answer is JSON with `name` and `parameters`, or else a text.
    Bare,
    /// As gpt-oss does: an answer is several messages, each in a channel, between special tokens.
    Harmony,
}

/// A function that can be called.
#[derive(Clone, Debug, PartialEq)]
pub struct Function<'a> {
    /// Of ASCII letters, digits, `_` and `-`.
    pub name: &'a str,
    /// The JSON schema of its arguments.
    pub parameters: Value,
}

/// Whether an answer calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    pub is_required: bool,
    /// Whether it may call more than once.
    pub many: bool,
}

/// An answer, as far as it has come, taken apart.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Said {
    pub content: String,
    /// What the model told itself before.
    pub reasoning: String,
    pub calls: Vec<Call>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    pub name: String,
    /// JSON, as far as it has come.
    pub arguments: String,
}

impl CallStyle {
    /// Of a model with this chat template: none, where it speaks of tools in a way that is not known here. Models that
    /// were not trained with tools are told of them in the way of most others.
    pub fn of(template: &str) -> Option<Self> {
        let has = |text| template.contains(text);
        match () {
            () if has("<|channel|>") && has("<|message|>") => Some(Self::Harmony),
            () if !speaks_of_tools(template) => Some(Self::Tagged),
            // Qwen3-Coder writes arguments as XML.
            () if has("<tool_call>") && !has("<function=") => Some(Self::Tagged),
            () if has("{\"name\": function name, \"parameters\": ") => Some(Self::Bare),
            () => None,
        }
    }

    /// Whether all its answers are to be taken apart, not only those that may call.
    pub fn is_everywhere(self) -> bool {
        self == Self::Harmony
    }

    /// Takes an answer apart. Of one that is not whole, what a later token may change the meaning of is held back: what it
    /// says of a beginning is a beginning of what it says of the whole.
    pub fn read(self, text: &str, is_whole: bool) -> Said {
        match self {
            Self::Tagged => TAGGED.read(text, is_whole),
            Self::Bare => BARE.read(text, is_whole),
            Self::Harmony => harmony::read(text),
        }
    }

    /// The grammar of answers, in Lark's words: calls, and where they need not be, a text or what follows the schema of
    /// `content`.
    pub fn grammar(self, functions: &[Function<'_>], choice: Choice, content: Option<&Value>) -> String {
        match self {
            Self::Tagged => TAGGED.grammar(functions, choice, content),
            Self::Bare => BARE.grammar(functions, choice, content),
            Self::Harmony => harmony::grammar(functions, choice, content),
        }
    }
}

/// Whether a chat template was written with tools in mind.
pub fn speaks_of_tools(template: &str) -> bool {
    template.contains("tools")
}

/// In quotation marks, as Lark has them too.
fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}

/// The rules `function_0` and so on: a name, `middle`, in Lark's words, and arguments.
fn rules(grammar: &mut String, functions: &[Function<'_>], middle: &str) {
    for (index, Function { name, parameters }) in functions.iter().enumerate() {
        let name = quoted(name);
        grammar.push_str(&format!("function_{index}: {name} {middle} arguments_{index}\n"));
        grammar.push_str(&format!("arguments_{index}: %json {parameters}\n"));
    }
}

/// Any of the rules.
fn any_of(functions: &[Function<'_>]) -> String {
    let names: Vec<String> = (0..functions.len()).map(|index| format!("function_{index}")).collect();
    names.join(" | ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn styles_are_known_by_the_template() {
        assert_eq!(CallStyle::of("{{ messages }}"), Some(CallStyle::Tagged));
        assert_eq!(CallStyle::of("{% if tools %}<tool_call>{% endif %}"), Some(CallStyle::Tagged));
        let llama = "{{ tools }}{\"name\": function name, \"parameters\": dictionary}";
        assert_eq!(CallStyle::of(llama), Some(CallStyle::Bare));
        assert_eq!(CallStyle::of("{{ tools }}<|channel|>final<|message|>"), Some(CallStyle::Harmony));
        assert_eq!(CallStyle::of("{{ tools }}[TOOL_CALLS]"), None);
        assert_eq!(CallStyle::of("{{ tools }}<tool_call><function=x>"), None);
    }
}
