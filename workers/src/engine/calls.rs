//! Calls of tools, as models write them into their answers.
//!
//! A call is a fixed frame around a name and arguments in JSON. Grammars hold answers to it, so that it can be read back as
//! it comes, in parts too.

use std::fmt::Write;

use serde::de::IgnoredAny;
use serde_json::{Value, json};

use super::template::spaced_json;

/// How a model was trained to call tools.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallStyle {
    /// As Hermes and Qwen do: JSON with `name` and `arguments`, between tags, anywhere in an answer.
    Tagged,
    /// As Llama 3 does: the answer is JSON with `name` and `parameters`, or else a text.
    Bare,
}

/// What stands around names and arguments.
struct Frame {
    /// What begins a call anywhere in a text.
    trigger: &'static str,
    begin: &'static str,
    middle: &'static str,
    end: &'static str,
    /// Between two calls.
    between: &'static str,
}

const TAGGED: Frame = Frame {
    trigger: "<tool_call>",
    begin: "<tool_call>\n{\"name\": \"",
    middle: "\", \"arguments\": ",
    end: "}\n</tool_call>",
    between: "\n",
};
const BARE: Frame =
    Frame { trigger: "", begin: "{\"name\": \"", middle: "\", \"parameters\": ", end: "}", between: "; " };

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
pub struct Said<'a> {
    pub content: &'a str,
    pub calls: Vec<Call<'a>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call<'a> {
    pub name: &'a str,
    /// JSON, as far as it has come.
    pub arguments: &'a str,
}

impl CallStyle {
    /// Of a model with this chat template: none, where it speaks of tools in a way that is not known here. Models that
    /// were not trained with tools are told of them in the way of most others.
    pub fn of(template: &str) -> Option<Self> {
        let has = |text| template.contains(text);
        match () {
            () if !speaks_of_tools(template) => Some(Self::Tagged),
            // Qwen3-Coder writes arguments as XML.
            () if has("<tool_call>") && !has("<function=") => Some(Self::Tagged),
            () if has("{\"name\": function name, \"parameters\": ") => Some(Self::Bare),
            () => None,
        }
    }

    fn frame(self) -> Frame {
        match self {
            Self::Tagged => TAGGED,
            Self::Bare => BARE,
        }
    }

    /// Takes an answer apart. Of one that is not whole, what a later token may change the meaning of is held back: what it
    /// says of a beginning is a beginning of what it says of the whole.
    pub fn read(self, text: &str, is_whole: bool) -> Said<'_> {
        let frame = self.frame();
        let first = match self {
            Self::Tagged => text.find(frame.begin),
            Self::Bare => text.starts_with(frame.begin).then_some(0),
        };
        let Some(first) = first else {
            let is_open = |at: usize| !is_whole && frame.begin.starts_with(&text[at..]);
            let end = match self {
                Self::Tagged => text.char_indices().map(|(at, _)| at).find(|&at| is_open(at)).unwrap_or(text.len()),
                Self::Bare if is_open(0) => 0,
                Self::Bare => text.len(),
            };
            let content = if is_whole { text } else { text[..end].trim_end() };
            return Said { content, calls: Vec::new() };
        };
        let mut said = Said { content: text[..first].trim_end(), calls: Vec::new() };
        let mut rest = &text[first..];
        while let Some(at) = rest.find(frame.begin) {
            let Some((name, after)) = rest[at + frame.begin.len()..].split_once(frame.middle) else { break };
            let mut values = serde_json::Deserializer::from_str(after).into_iter::<IgnoredAny>();
            let is_read = matches!(values.next(), Some(Ok(_)));
            let end = if is_read { values.byte_offset() } else { after.len() };
            said.calls.push(Call { name, arguments: &after[..end] });
            rest = &after[end..];
        }
        said
    }

    /// A call as it stands in an answer.
    pub fn write(self, name: &str, arguments: &Value) -> String {
        let Frame { begin, middle, end, .. } = self.frame();
        format!("{begin}{name}{middle}{}{end}", spaced(arguments))
    }

    /// The grammar of answers, in Lark's words: calls, and where they need not be, a text or what follows the schema of
    /// `content`.
    pub fn grammar(self, functions: &[Function<'_>], choice: Choice, content: Option<&Value>) -> String {
        let Frame { trigger, begin, middle, end, between } = self.frame();
        let quoted = |text: &str| Value::from(text).to_string();
        let more = if choice.many { format!(" ({} call)*", quoted(between)) } else { String::new() };
        let calls = format!("call{more}");
        let mut grammar = match (choice.is_required, content, self) {
            (true, ..) => format!("start: {calls}\n"),
            (false, Some(schema), _) => format!("start: content | {calls}\ncontent: %json {schema}\n"),
            (false, None, Self::Bare) => format!("start: TEXT | {calls}\nTEXT: /([^{{](.|\\n)*)?/\n"),
            // A call may come at any place. What begins one ends the text before it.
            (false, None, Self::Tagged) => {
                let calls = if choice.many { "late_call* TEXT" } else { "TEXT | late_call" };
                let lead = format!("late_call: lead rest\nlead[lazy]: TEXT {}\n", quoted(trigger));
                format!("start: {calls}\nTEXT: /(.|\\n)*/\n{lead}")
            }
        };
        if choice.is_required || content.is_some() || self == Self::Bare {
            let trigger = if trigger.is_empty() { String::new() } else { quoted(trigger) };
            let _ = writeln!(grammar, "call: {trigger} rest");
        }
        let functions_all: Vec<String> = (0..functions.len()).map(|index| format!("function_{index}")).collect();
        let (begin, functions_all) = (quoted(&begin[trigger.len()..]), functions_all.join(" | "));
        let _ = writeln!(grammar, "rest: {begin} ({functions_all}) {}", quoted(end));
        for (index, Function { name, parameters }) in functions.iter().enumerate() {
            let head = quoted(&format!("{name}{middle}"));
            let _ =
                writeln!(grammar, "function_{index}: {head} arguments_{index}\narguments_{index}: %json {parameters}");
        }
        grammar
    }
}

/// Whether a chat template was written with tools in mind.
pub fn speaks_of_tools(template: &str) -> bool {
    template.contains("tools")
}

/// A chat for a template that knows no tools: they are told by the system, calls stand in the assistant's words, and their
/// results in the user's.
pub fn in_plain_words(messages: &[Value], tools: &[Value]) -> Vec<Value> {
    let mut plain: Vec<Value> = messages.iter().map(plain_message).collect();
    if tools.is_empty() {
        return plain;
    }
    let told = instructions(tools);
    match plain.first_mut().filter(|first| first["role"] == "system") {
        Some(first) => first["content"] = format!("{}\n\n{told}", first["content"].as_str().unwrap_or_default()).into(),
        None => plain.insert(0, json!({ "role": "system", "content": told })),
    }
    plain
}

fn plain_message(message: &Value) -> Value {
    let content = message["content"].as_str().unwrap_or_default();
    if message["role"] == "tool" {
        return json!({ "role": "user", "content": format!("<tool_response>\n{content}\n</tool_response>") });
    }
    let Some(calls) = message["tool_calls"].as_array() else { return message.clone() };
    let calls = calls.iter().map(|call| &call["function"]);
    let calls =
        calls.map(|call| CallStyle::Tagged.write(call["name"].as_str().unwrap_or_default(), &call["arguments"]));
    let said = Some(content).filter(|content| !content.is_empty()).map(str::to_owned);
    let lines: Vec<String> = said.into_iter().chain(calls).collect();
    json!({ "role": message["role"], "content": lines.join("\n") })
}

fn instructions(tools: &[Value]) -> String {
    let functions: Vec<String> = tools.iter().map(|tool| spaced(&tool["function"])).collect();
    let example = CallStyle::Tagged.write("NAME", &json!({ "PARAMETER": "VALUE" }));
    format!(
        "You can call functions. They are, one JSON object in each line:\n<tools>\n{}\n</tools>\nTo call one, write nothing but\n{example}\nand the user will tell you its result.",
        functions.join("\n")
    )
}

fn spaced(value: &Value) -> String {
    spaced_json(value).expect("its keys are strings")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call<'a>(name: &'a str, arguments: &'a str) -> Call<'a> {
        Call { name, arguments }
    }

    #[test]
    fn calls_are_read_from_among_the_text() {
        let text = "Let me see.\n<tool_call>\n{\"name\": \"a\", \"arguments\": {\"x\": \"</tool_call> {\\\"name\\\": \\\"\"}}\n</tool_call>\n<tool_call>\n{\"name\": \"b\", \"arguments\": {}}\n</tool_call>";
        let said = CallStyle::Tagged.read(text, true);
        assert_eq!(said.content, "Let me see.");
        assert_eq!(said.calls, [call("a", r#"{"x": "</tool_call> {\"name\": \""}"#), call("b", "{}")]);
        let bare = r#"{"name": "a", "parameters": {"x": 1}}; {"name": "b", "parameters": {}}"#;
        let said = CallStyle::Bare.read(bare, true);
        assert_eq!((said.content, said.calls), ("", vec![call("a", r#"{"x": 1}"#), call("b", "{}")]));
    }

    #[test]
    fn a_text_without_calls_is_left_as_it_is() {
        for text in ["plain \n", "a <tool_call", "{}", ""] {
            for style in [CallStyle::Tagged, CallStyle::Bare] {
                assert_eq!(style.read(text, true), Said { content: text, calls: Vec::new() });
            }
        }
    }

    #[test]
    fn what_is_said_of_a_beginning_is_a_beginning() {
        let tagged = "So: \n\n<tool_call>\n{\"name\": \"a\", \"arguments\": {\"x\": {\"y\": \"}\"}}}\n</tool_call>\n<tool_call>\n{\"name\": \"b\", \"arguments\": {}}\n</tool_call>";
        let bare = r#"{"name": "a", "parameters": {"x": 1}}; {"name": "b", "parameters": {}}"#;
        for (style, text) in [
            (CallStyle::Tagged, tagged),
            (CallStyle::Bare, bare),
            (CallStyle::Tagged, "a < b\n and  c"),
            (CallStyle::Bare, "{\"no\": 1}"),
        ] {
            let mut before = Said::default();
            for end in 0..=text.len() {
                let now = style.read(&text[..end], end == text.len());
                assert!(now.content.starts_with(before.content), "{now:?} after {before:?}");
                assert!(now.calls.len() >= before.calls.len());
                for (now, before) in now.calls.iter().zip(&before.calls) {
                    assert!(now.name == before.name && now.arguments.starts_with(before.arguments), "{now:?}");
                }
                before = now;
            }
        }
    }

    #[test]
    fn a_call_that_is_cut_off_is_told_as_far_as_it_came() {
        let said = CallStyle::Tagged.read("<tool_call>\n{\"name\": \"a\", \"arguments\": {\"x\": \"lo", true);
        assert_eq!(said.calls, [call("a", "{\"x\": \"lo")]);
        assert_eq!(CallStyle::Tagged.read("<tool_call>\n{\"name\": \"a", true), Said::default());
    }

    #[test]
    fn a_model_that_knows_no_tools_is_told_of_them() {
        let messages = [
            json!({ "role": "user", "content": "hi" }),
            json!({ "role": "assistant", "content": "", "tool_calls": [
                { "function": { "name": "look", "arguments": { "at": 1 } } },
            ] }),
            json!({ "role": "tool", "content": "7" }),
        ];
        let tools = [json!({ "type": "function", "function": { "name": "look" } })];
        let plain = in_plain_words(&messages, &tools);
        assert!(plain[0]["role"] == "system" && plain[0]["content"].as_str().unwrap().contains(r#"{"name": "look"}"#));
        assert_eq!(plain[2]["content"], "<tool_call>\n{\"name\": \"look\", \"arguments\": {\"at\": 1}}\n</tool_call>");
        assert_eq!(plain[3], json!({ "role": "user", "content": "<tool_response>\n7\n</tool_response>" }));
        assert_eq!(in_plain_words(&messages[..1], &[]), messages[..1]);
    }

    #[test]
    fn styles_are_known_by_the_template() {
        assert_eq!(CallStyle::of("{{ messages }}"), Some(CallStyle::Tagged));
        assert_eq!(CallStyle::of("{% if tools %}<tool_call>{% endif %}"), Some(CallStyle::Tagged));
        assert_eq!(
            CallStyle::of("{{ tools }}{\"name\": function name, \"parameters\": dictionary}"),
            Some(CallStyle::Bare)
        );
        assert_eq!(CallStyle::of("{{ tools }}[TOOL_CALLS]"), None);
        assert_eq!(CallStyle::of("{{ tools }}<tool_call><function=x>"), None);
    }
}
