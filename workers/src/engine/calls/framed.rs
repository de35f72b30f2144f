//! Calls in a fixed frame of text around a name and arguments in JSON.

use std::fmt::Write;

use serde::de::IgnoredAny;
use serde_json::Value;

use super::{Call, Choice, Function, Said, any_of, quoted, rules};
use crate::engine::template::spaced_json;

/// What stands around names and arguments.
pub struct Frame {
    /// What begins a call, and whether it may anywhere in a text or only at its beginning.
    trigger: &'static str,
    is_anywhere: bool,
    begin: &'static str,
    middle: &'static str,
    end: &'static str,
    /// Between two calls.
    between: &'static str,
}

pub const TAGGED: Frame = Frame {
    trigger: "<tool_call>",
    is_anywhere: true,
    begin: "<tool_call>\n{\"name\": \"",
    middle: "\", \"arguments\": ",
    end: "}\n</tool_call>",
    between: "\n",
};
pub const BARE: Frame = Frame {
    trigger: "",
    is_anywhere: false,
    begin: "{\"name\": \"",
    middle: "\", \"parameters\": ",
    end: "}",
    between: "; ",
};

impl Frame {
    pub fn read(&self, text: &str, is_whole: bool) -> Said {
        let first = match self.is_anywhere {
            true => text.find(self.begin),
            false => text.starts_with(self.begin).then_some(0),
        };
        let Some(first) = first else {
            let is_open = |at: usize| !is_whole && self.begin.starts_with(&text[at..]);
            let end = match self.is_anywhere {
                true => text.char_indices().map(|(at, _)| at).find(|&at| is_open(at)).unwrap_or(text.len()),
                false if is_open(0) => 0,
                false => text.len(),
            };
            let content = if is_whole { text } else { text[..end].trim_end() };
            return Said { content: content.to_owned(), ..Said::default() };
        };
        let mut said = Said { content: text[..first].trim_end().to_owned(), ..Said::default() };
        let mut rest = &text[first..];
        while let Some(at) = rest.find(self.begin) {
            let Some((name, after)) = rest[at + self.begin.len()..].split_once(self.middle) else { break };
            let mut values = serde_json::Deserializer::from_str(after).into_iter::<IgnoredAny>();
            let is_read = matches!(values.next(), Some(Ok(_)));
            let end = if is_read { values.byte_offset() } else { after.len() };
            said.calls.push(Call { name: name.to_owned(), arguments: after[..end].to_owned() });
            rest = &after[end..];
        }
        said
    }

    /// A call as it stands in an answer.
    pub fn write(&self, name: &str, arguments: &Value) -> String {
        let arguments = spaced_json(arguments).expect("its keys are strings");
        format!("{}{name}{}{arguments}{}", self.begin, self.middle, self.end)
    }

    pub fn grammar(&self, functions: &[Function<'_>], choice: Choice, content: Option<&Value>) -> String {
        let more = if choice.many { format!(" ({} call)*", quoted(self.between)) } else { String::new() };
        let calls = format!("call{more}");
        let mut grammar = match (choice.is_required, content, self.is_anywhere) {
            (true, ..) => format!("start: {calls}\n"),
            (false, Some(schema), _) => format!("start: content | {calls}\ncontent: %json {schema}\n"),
            (false, None, false) => format!("start: TEXT | {calls}\nTEXT: /([^{{](.|\\n)*)?/\n"),
            // What begins a call ends the text before it.
            (false, None, true) => {
                let calls = if choice.many { "late_call* TEXT" } else { "TEXT | late_call" };
                let lead = format!("late_call: lead rest\nlead[lazy]: TEXT {}\n", quoted(self.trigger));
                format!("start: {calls}\nTEXT: /(.|\\n)*/\n{lead}")
            }
        };
        if choice.is_required || content.is_some() || !self.is_anywhere {
            let trigger = if self.trigger.is_empty() { String::new() } else { quoted(self.trigger) };
            let _ = writeln!(grammar, "call: {trigger} rest");
        }
        let begin = quoted(&self.begin[self.trigger.len()..]);
        let _ = writeln!(grammar, "rest: {begin} ({}) {}", any_of(functions), quoted(self.end));
        rules(&mut grammar, functions, &quoted(self.middle));
        grammar
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::engine::grammar::in_style;
    use crate::engine::grammar::tests::letters;

    fn call(name: &str, arguments: &str) -> Call {
        Call { name: name.to_owned(), arguments: arguments.to_owned() }
    }

    #[test]
    fn calls_are_read_from_among_the_text() {
        let text = "Let me see.\n<tool_call>\n{\"name\": \"a\", \"arguments\": {\"x\": \"</tool_call> {\\\"name\\\": \\\"\"}}\n</tool_call>\n<tool_call>\n{\"name\": \"b\", \"arguments\": {}}\n</tool_call>";
        let said = TAGGED.read(text, true);
        assert_eq!(said.content, "Let me see.");
        assert_eq!(said.calls, [call("a", r#"{"x": "</tool_call> {\"name\": \""}"#), call("b", "{}")]);
        let bare = r#"{"name": "a", "parameters": {"x": 1}}; {"name": "b", "parameters": {}}"#;
        let said = BARE.read(bare, true);
        assert_eq!((said.content.as_str(), said.calls), ("", vec![call("a", r#"{"x": 1}"#), call("b", "{}")]));
    }

    #[test]
    fn a_text_without_calls_is_left_as_it_is() {
        for text in ["plain \n", "a <tool_call", "{}", ""] {
            for frame in [TAGGED, BARE] {
                assert_eq!(frame.read(text, true), Said { content: text.to_owned(), ..Said::default() });
            }
        }
    }

    #[test]
    fn what_is_said_of_a_beginning_is_a_beginning() {
        let tagged = "So: \n\n<tool_call>\n{\"name\": \"a\", \"arguments\": {\"x\": {\"y\": \"}\"}}}\n</tool_call>\n<tool_call>\n{\"name\": \"b\", \"arguments\": {}}\n</tool_call>";
        let bare = r#"{"name": "a", "parameters": {"x": 1}}; {"name": "b", "parameters": {}}"#;
        for (frame, text) in [(&TAGGED, tagged), (&BARE, bare), (&TAGGED, "a < b\n and  c"), (&BARE, "{\"no\": 1}")] {
            let mut before = Said::default();
            for end in 0..=text.len() {
                let now = frame.read(&text[..end], end == text.len());
                assert!(now.content.starts_with(&before.content), "{now:?} after {before:?}");
                assert!(now.calls.len() >= before.calls.len());
                for (now, before) in now.calls.iter().zip(&before.calls) {
                    assert!(now.name == before.name && now.arguments.starts_with(&before.arguments), "{now:?}");
                }
                before = now;
            }
        }
    }

    #[test]
    fn a_call_that_is_cut_off_is_told_as_far_as_it_came() {
        let said = TAGGED.read("<tool_call>\n{\"name\": \"a\", \"arguments\": {\"x\": \"lo", true);
        assert_eq!(said.calls, [call("a", "{\"x\": \"lo")]);
        assert_eq!(TAGGED.read("<tool_call>\n{\"name\": \"a", true), Said::default());
    }

    #[test]
    fn whatever_is_drawn_can_be_read() {
        let text = letters(&["<end>"]);
        let parameters = in_style(
            &json!({
                "type": "object", "properties": { "to": { "enum": ["\u{7d}\n"] }, "at": { "type": "integer", "maximum": 9 } },
                "required": ["to", "at"], "additionalProperties": false,
            }),
            false,
        );
        let functions = ["look", "go"].map(|name| Function { name, parameters: parameters.clone() });
        let mut random = fastrand::Rng::with_seed(5);
        for (frame, is_required, many, content) in [TAGGED, BARE]
            .iter()
            .flat_map(|frame| {
                let choices = [(true, true), (true, false), (false, true), (false, false)];
                choices.map(|(is_required, many)| {
                    [None, Some(&parameters)].map(|content| (frame, is_required, many, content))
                })
            })
            .flatten()
        {
            let grammar = text.lark(frame.grammar(&functions, Choice { is_required, many }, content)).unwrap();
            for round in 0..10 {
                // A text seldom comes to a call by itself.
                let begun = if round % 2 == 0 { "" } else { frame.begin };
                let mut tokens: Vec<u32> = begun.chars().flat_map(|c| text.encode(&c.to_string()).unwrap()).collect();
                let mut progress = grammar.after(&tokens);
                while !progress.is_at_end() && tokens.len() < 400 {
                    let allowed: Vec<u32> = progress.allowed().unwrap().iter().collect();
                    let token = *random.choice(&allowed).unwrap();
                    progress.take(token);
                    if token == 0 {
                        break;
                    }
                    tokens.push(token);
                }
                let said = frame.read(&text.decode(&tokens), true);
                let is_cut = tokens.len() >= 400;
                for call in said.calls.iter().rev().skip(usize::from(is_cut)) {
                    let arguments: Value = serde_json::from_str(&call.arguments).unwrap();
                    assert!(["look", "go"].contains(&call.name.as_str()) && arguments["to"] == "}\n", "{call:?}");
                    // In the order of the schema.
                    assert!(call.arguments.starts_with("{\"to\": "), "{call:?}");
                }
                assert!(many || said.calls.len() <= 1, "{said:?}");
                assert!(begun.is_empty() && !is_required || !said.calls.is_empty(), "{said:?}");
            }
        }
    }
}
