//! Tools for models that were not trained with them.

use serde_json::{Value, json};

use super::framed::TAGGED;
use crate::engine::template::spaced_json;

/// A chat for a template that knows no tools: they are told by the system, calls stand in the assistant's words, and their
/// results in the user's.
pub fn in_plain_words(messages: &[Value], tools: &[Value]) -> Vec<Value> {
    // What several tools say is one message: templates may want roles to take turns.
    let mut plain: Vec<Value> = Vec::with_capacity(messages.len() + 1);
    for (index, message) in messages.iter().enumerate() {
        let now = plain_message(message);
        match plain.last_mut().filter(|_| message["role"] == "tool" && messages[index - 1]["role"] == "tool") {
            Some(before) => before["content"] = format!("{}\n{}", text(before), text(&now)).into(),
            None => plain.push(now),
        }
    }
    if tools.is_empty() {
        return plain;
    }
    let told = instructions(tools);
    match plain.first_mut().filter(|first| first["role"] == "system") {
        Some(first) => first["content"] = format!("{}\n\n{told}", text(first)).into(),
        None => plain.insert(0, json!({ "role": "system", "content": told })),
    }
    plain
}

fn plain_message(message: &Value) -> Value {
    let content = text(message);
    if message["role"] == "tool" {
        return json!({ "role": "user", "content": format!("<tool_response>\n{content}\n</tool_response>") });
    }
    let Some(calls) = message["tool_calls"].as_array() else { return message.clone() };
    let calls = calls.iter().map(|call| &call["function"]);
    let calls = calls.map(|call| TAGGED.write(call["name"].as_str().unwrap_or_default(), &call["arguments"]));
    let said = Some(content).filter(|content| !content.is_empty()).map(str::to_owned);
    let lines: Vec<String> = said.into_iter().chain(calls).collect();
    json!({ "role": message["role"], "content": lines.join("\n") })
}

fn text(message: &Value) -> &str {
    message["content"].as_str().unwrap_or_default()
}

fn instructions(tools: &[Value]) -> String {
    let functions: Vec<String> =
        tools.iter().map(|tool| spaced_json(&tool["function"]).expect("its keys are strings")).collect();
    let example = TAGGED.write("NAME", &json!({ "PARAMETER": "VALUE" }));
    format!(
        "You can call functions. They are, one JSON object in each line:\n<tools>\n{}\n</tools>\nTo call one, write nothing but\n{example}\nand the user will tell you its result.",
        functions.join("\n")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_that_knows_no_tools_is_told_of_them() {
        let messages = [
            json!({ "role": "user", "content": "hi" }),
            json!({ "role": "assistant", "content": "", "tool_calls": [
                { "function": { "name": "look", "arguments": { "at": 1 } } },
            ] }),
            json!({ "role": "tool", "content": "7" }),
            json!({ "role": "tool", "content": "8" }),
            json!({ "role": "user", "content": "So?" }),
        ];
        let tools = [json!({ "type": "function", "function": { "name": "look" } })];
        let plain = in_plain_words(&messages, &tools);
        assert!(plain[0]["role"] == "system" && plain[0]["content"].as_str().unwrap().contains(r#"{"name": "look"}"#));
        assert_eq!(plain[2]["content"], "<tool_call>\n{\"name\": \"look\", \"arguments\": {\"at\": 1}}\n</tool_call>");
        assert_eq!(
            plain[3],
            json!({ "role": "user", "content": "<tool_response>\n7\n</tool_response>\n<tool_response>\n8\n</tool_response>" })
        );
        assert_eq!((plain.len(), &plain[4]), (5, &messages[4]));
        assert_eq!(in_plain_words(&messages[..1], &[]), messages[..1]);
    }
}
