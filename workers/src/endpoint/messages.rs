//! Messages of a chat as chat templates know them.

use schemas::completions::{ChatMessage, Content, Part, Role};
use schemas::tools::ToolCall;
use serde_json::{Value, json};

use super::Reject;

pub fn messages(messages: &[ChatMessage]) -> Result<Vec<Value>, Reject> {
    if messages.is_empty() {
        return Err(Reject::invalid(
            "empty_input",
            "body.messages".to_owned(),
            "body.messages: is empty; give at least one message",
        ));
    }
    messages.iter().enumerate().map(message).collect()
}

/// A role and a string, and what belongs to calls of tools.
fn message((index, message): (usize, &ChatMessage)) -> Result<Value, Reject> {
    let param = |field: &str| format!("body.messages[{index}].{field}");
    let calls = message.tool_calls.as_deref().filter(|calls| !calls.is_empty());
    let content = match &message.content {
        Some(Content::Text(text)) => text.clone(),
        Some(Content::Parts(parts)) => {
            let texts =
                parts.iter().enumerate().map(|(place, part)| text_of(&param(&format!("content[{place}]")), part));
            texts.collect::<Result<Vec<_>, _>>()?.concat()
        }
        None if calls.is_some() => String::new(),
        None => return Err(Reject::value(&param("content"), "is missing")),
    };
    match (message.role, calls) {
        (Role::Assistant, Some(calls)) => {
            let calls =
                calls.iter().enumerate().map(|(place, call)| tool_call(&param(&format!("tool_calls[{place}]")), call));
            let calls = calls.collect::<Result<Vec<_>, _>>()?;
            let mut told = json!({ "role": "assistant", "content": content, "tool_calls": calls });
            if let Some(reasoning) = message.reasoning_content.as_ref().filter(|_| content.is_empty()) {
                // By the names that gpt-oss and Qwen have for it.
                (told["thinking"], told["reasoning_content"]) = (json!(reasoning), json!(reasoning));
            }
            Ok(told)
        }
        (_, Some(_)) => Err(Reject::value(&param("tool_calls"), "only an assistant calls tools")),
        (Role::Tool, None) => {
            let Some(id) = &message.tool_call_id else {
                return Err(Reject::value(
                    &param("tool_call_id"),
                    "is missing; it is the id of the call that this answers",
                ));
            };
            Ok(json!({ "role": "tool", "content": content, "tool_call_id": id }))
        }
        (Role::Developer | Role::System, None) => Ok(json!({ "role": "system", "content": content })),
        (Role::User, None) => Ok(json!({ "role": "user", "content": content })),
        (Role::Assistant, None) => Ok(json!({ "role": "assistant", "content": content })),
    }
}

fn text_of(param: &str, part: &Part) -> Result<String, Reject> {
    match &part.text {
        Some(text) if part.kind == "text" => Ok(text.clone()),
        _ => Err(Reject::value(param, format!("a part of type {:?}; this model reads text only", part.kind))),
    }
}

/// Templates write the arguments as JSON themselves.
fn tool_call(param: &str, call: &ToolCall) -> Result<Value, Reject> {
    let arguments: Value = serde_json::from_str(&call.function.arguments)
        .map_err(|error| Reject::value(&format!("{param}.function.arguments"), format!("is not JSON: {error}")))?;
    let function = json!({ "name": call.function.name, "arguments": arguments });
    Ok(json!({ "id": call.id, "type": call.kind, "function": function }))
}
