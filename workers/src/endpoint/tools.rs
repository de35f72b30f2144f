//! Tools of a chat: what an answer may call and whether it has to, and the calls that it asks for.

use schemas::completions::ChatCompletionRequest;
use schemas::tools::{FUNCTION, FunctionCall, FunctionDefinition, Tool, ToolCall, ToolCallDelta, ToolChoice, ToolMode};
use serde_json::{Value, json};

use super::Reject;
use super::sampling::Format;
use crate::engine::calls::{Call, CallStyle, Choice, Function, Said};
use crate::engine::grammar::in_style;
use crate::engine::text::Text;
use crate::engine::{FinishReason, Grammar};

const TOOLS_MAX: usize = 128;
const NAME_BYTES_MAX: usize = 64;

/// What a chat may call.
pub struct Tools<'a> {
    definitions: Vec<&'a FunctionDefinition>,
    functions: Vec<Function<'a>>,
    choice: Choice,
    pub calling: Calling,
}

/// How an answer calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Calling {
    style: CallStyle,
    /// Whether it was told what to call.
    is_named: bool,
}

impl<'a> Tools<'a> {
    /// None where nothing is to be called.
    pub fn new(request: &'a ChatCompletionRequest, text: &Text) -> Result<Option<Self>, Reject> {
        let tools = request.tools.as_deref().unwrap_or_default();
        if tools.len() > TOOLS_MAX {
            return Err(Reject::value("body.tools", format!("{} tools; up to {TOOLS_MAX} are allowed", tools.len())));
        }
        let definitions = tools.iter().enumerate().map(definition).collect::<Result<Vec<_>, _>>()?;
        let mut functions = Vec::with_capacity(definitions.len());
        for (index, definition) in definitions.iter().enumerate() {
            if definitions[..index].iter().any(|earlier| earlier.name == definition.name) {
                let message = format!("{:?} is the name of another one, too", definition.name);
                return Err(Reject::value(&format!("body.tools[{index}].function.name"), message));
            }
            functions.push(Function { name: &definition.name, parameters: parameters(index, definition)? });
        }
        let many = request.parallel_tool_calls != Some(false);
        let (choice, named) = match &request.tool_choice {
            None | Some(ToolChoice::Mode(ToolMode::Auto)) => (Choice { is_required: false, many }, None),
            Some(ToolChoice::Mode(ToolMode::None)) => return Ok(None),
            Some(ToolChoice::Mode(ToolMode::Required)) => (Choice { is_required: true, many }, None),
            Some(ToolChoice::Named(named)) if named.kind != FUNCTION => {
                return Err(other_kind("tool_choice", &named.kind));
            }
            Some(ToolChoice::Named(named)) => (Choice { is_required: true, many: false }, Some(&named.function.name)),
        };
        if let Some(name) = named {
            functions.retain(|function| function.name == name);
            if functions.is_empty() {
                let message = format!("{name:?} is none of the tools");
                return Err(Reject::value("body.tool_choice.function.name", message));
            }
        }
        if functions.is_empty() {
            return match choice.is_required {
                true => Err(Reject::value("body.tool_choice", "there are no tools to call")),
                false => Ok(None),
            };
        }
        let style = text.call_style().map_err(|reason| Reject::unsupported("tools", reason))?;
        let calling = Calling { style, is_named: named.is_some() };
        Ok(Some(Self { definitions, functions, choice, calling }))
    }

    /// As chat templates know them.
    pub fn told(&self) -> Vec<Value> {
        self.definitions.iter().map(|function| json!({ "type": FUNCTION, "function": function })).collect()
    }

    /// What an answer may look like that otherwise follows the schema of `content`, or nothing.
    pub fn grammar(&self, text: &Text, content: Option<&Value>) -> Result<Option<Grammar>, Reject> {
        // The echo engine says what it was told.
        if text.is_tokens() && !self.choice.is_required && content.is_none() {
            return Ok(None);
        }
        // One by one, so that the one is named that cannot be followed.
        for Function { name, parameters } in &self.functions {
            text.lark(format!("start: %json {parameters}")).map_err(|error| {
                let index = self.definitions.iter().position(|definition| definition.name == *name).unwrap_or_default();
                Reject::value(&format!("body.tools[{index}].function.parameters"), error)
            })?;
        }
        let source = self.calling.style.grammar(&self.functions, self.choice, content);
        text.lark(source).map(Some).map_err(|error| Reject::value("body.tools", error))
    }
}

impl Calling {
    /// Of a model whose answers are to be taken apart in any case.
    pub fn without_tools(text: &Text) -> Option<Self> {
        let style = text.call_style().ok().filter(|style| style.is_everywhere())?;
        Some(Self { style, is_named: false })
    }

    /// What answers of such a model may look like.
    pub fn grammar(self, text: &Text, format: Option<&Format>) -> Result<Grammar, Reject> {
        let nothing = Choice { is_required: false, many: false };
        let source = self.style.grammar(&[], nothing, format.map(Format::schema));
        let param = format.map_or("body.messages", Format::param);
        text.lark(source).map_err(|error| Reject::value(param, error))
    }

    /// Whether it is read without them.
    pub fn skip_special_tokens(self) -> bool {
        !self.style.is_everywhere()
    }

    pub fn read(self, text: &str, is_whole: bool) -> Said {
        self.style.read(text, is_whole)
    }

    /// OpenAI says of the answer that had no choice that it stopped.
    pub fn finish_reason(self, said: &Said, reason: FinishReason) -> Option<&'static str> {
        (reason == FinishReason::Stop && !said.calls.is_empty() && !self.is_named).then_some("tool_calls")
    }
}

/// The calls of the answer at a place in a job.
pub fn calls(said: &Said, job_id: &str, answer: usize) -> Vec<ToolCall> {
    said.calls.iter().enumerate().map(|(index, call)| written(call, job_id, answer, index)).collect()
}

/// What calls have become more by.
pub fn more_calls(before: &Said, now: &Said, job_id: &str, answer: usize) -> Vec<ToolCallDelta> {
    let delta = |(index, call): (usize, &Call)| match before.calls.get(index) {
        None => Some(ToolCallDelta::begin(index, written(call, job_id, answer, index))),
        Some(begun) => {
            let arguments = call.arguments.get(begun.arguments.len()..).filter(|more| !more.is_empty())?;
            Some(ToolCallDelta::more(index, arguments.to_owned()))
        }
    };
    now.calls.iter().enumerate().filter_map(delta).collect()
}

/// Its id is the same in every chunk and in the result, whichever worker writes them.
fn written(call: &Call, job_id: &str, answer: usize, index: usize) -> ToolCall {
    let function = FunctionCall { name: call.name.clone(), arguments: call.arguments.clone() };
    ToolCall { id: format!("call_{job_id}_{answer}_{index}"), kind: FUNCTION.to_owned(), function }
}

fn definition((index, tool): (usize, &Tool)) -> Result<&FunctionDefinition, Reject> {
    let param = |field: &str| format!("body.tools[{index}].{field}");
    match &tool.function {
        _ if tool.kind != FUNCTION => Err(other_kind(&format!("tools[{index}]"), &tool.kind)),
        None => Err(Reject::value(&param("function"), "is missing")),
        Some(function) if !is_name(&function.name) => {
            let message = format!(
                "{:?} is not 1 to {NAME_BYTES_MAX} ASCII letters, digits, underscores and hyphens",
                function.name
            );
            Err(Reject::value(&param("function.name"), message))
        }
        Some(function) => Ok(function),
    }
}

fn is_name(name: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
    (1..=NAME_BYTES_MAX).contains(&name.len()) && name.bytes().all(is_plain)
}

/// The schema of a function's arguments: an object, and an empty one where nothing is said.
fn parameters(index: usize, definition: &FunctionDefinition) -> Result<Value, Reject> {
    let wrong = || {
        let param = format!("body.tools[{index}].function.parameters");
        Reject::value(&param, "is not the JSON schema of an object")
    };
    let none = || json!({ "type": "object", "properties": {}, "additionalProperties": false });
    let mut schema = definition.parameters.clone().unwrap_or_else(none);
    let kind = schema.as_object_mut().ok_or_else(wrong)?.entry("type").or_insert_with(|| "object".into());
    match kind == "object" {
        true => Ok(in_style(&schema, definition.strict != Some(true))),
        false => Err(wrong()),
    }
}

fn other_kind(field: &str, kind: &str) -> Reject {
    Reject::unsupported(&format!("{field}.type"), format!("{kind:?} is not supported; {FUNCTION:?} is"))
}
