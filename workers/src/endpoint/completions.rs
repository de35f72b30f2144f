//! `/v1/chat/completions` and `/v1/completions`.

use schemas::chunk::{ChatChunkChoice, ChatCompletionChunk, Chunk, CompletionChunk, CompletionChunkChoice, Delta};
use schemas::codec::decode_body;
use schemas::completions::{
    AnswerMessage, ChatChoice, ChatCompletionRequest, ChatCompletionResponse, ChatMessage, CompletionChoice,
    CompletionRequest, CompletionResponse, Content, Role, Sampling,
};
use schemas::log::Usage;
use schemas::registry::Model;
use serde_json::{Value, json};

use super::inputs::{check_inputs, prompt_param, tokens_of, too_long};
use super::{Answer, Body, Part, Plan, Reject, Stamp, misshapen};
use crate::engine::text::Text;
use crate::engine::{FinishReason, Goal, OTHER_OUTPUT, Output, SamplingParams, Sequence};

/// OpenAI's default for `/v1/completions`; chat goes on to the model's limit.
const COMPLETION_TOKENS_DEFAULT: u64 = 16;

pub fn prepare_chat(body: &Value, job_id: &str, model: &Model, text: &Text) -> Result<Plan, Reject> {
    let request: ChatCompletionRequest = decode_body(body).map_err(misshapen)?;
    let sampling: Sampling = decode_body(body).map_err(misshapen)?;
    refuse_set("logprobs", request.logprobs.as_ref(), &[json!(false)])?;
    refuse_set("tools", request.tools.as_ref(), &[json!([])])?;
    refuse_set("response_format", request.response_format.as_ref(), &[json!({"type": "text"})])?;
    if request.messages.is_empty() {
        return Err(Reject::invalid(
            "empty_input",
            "body.messages".to_owned(),
            "body.messages: is empty; give at least one message",
        ));
    }
    let messages = request.messages.iter().enumerate().map(message).collect::<Result<Vec<_>, _>>()?;
    let tokens = text.encode_chat(&Value::Array(messages)).map_err(|error| Reject::value("body.messages", error))?;
    if tokens.is_empty() {
        return Err(Reject::invalid("empty_input", "body.messages".to_owned(), "body.messages: have no content"));
    }
    let (field, max_tokens) = match request.max_completion_tokens {
        Some(max) => ("max_completion_tokens", Some(max)),
        None => ("max_tokens", sampling.max_tokens),
    };
    let budget = Budget { field, max_tokens, model, text };
    let params = sampling_params(&sampling, job_id)?;
    let sequence = budget.sequence(tokens, "body.messages", params.clone())?;
    Ok(plan(vec![sequence], Answer::Chat, &sampling, &params))
}

pub fn prepare(body: &Value, job_id: &str, model: &Model, text: &Text) -> Result<Plan, Reject> {
    let request: CompletionRequest = decode_body(body).map_err(misshapen)?;
    let sampling: Sampling = decode_body(body).map_err(misshapen)?;
    refuse_set("logprobs", request.logprobs.as_ref(), &[])?;
    refuse_set("echo", request.echo.as_ref(), &[false])?;
    refuse_set("suffix", request.suffix.as_ref(), &[])?;
    refuse_set("best_of", request.best_of.as_ref(), &[1])?;
    let prompts = request.prompt.prompts();
    check_inputs(prompts.len(), "body.prompt", &model.limits)?;
    let max_tokens = sampling.max_tokens.or(Some(COMPLETION_TOKENS_DEFAULT));
    let budget = Budget { field: "max_tokens", max_tokens, model, text };
    let params = sampling_params(&sampling, job_id)?;
    let mut sequences = Vec::with_capacity(prompts.len());
    for (index, prompt) in prompts.into_iter().enumerate() {
        let param = prompt_param("prompt", request.prompt.is_list(), index);
        let tokens = tokens_of(prompt, &param, text, |content| text.encode_prompt(content))?;
        let params = SamplingParams { seed: params.seed.wrapping_add(index as u64), ..params.clone() };
        sequences.push(budget.sequence(tokens, &param, params)?);
    }
    if sampling.stream == Some(true) && sequences.len() > 1 {
        let message = format!("{} prompts cannot be streamed; give one", sequences.len());
        return Err(Reject::invalid("unsupported_value", "body.stream".to_owned(), format!("body.stream: {message}")));
    }
    Ok(plan(sequences, Answer::Completions, &sampling, &params))
}

pub fn chat_body(outputs: Vec<Output>, stamp: Stamp<'_>) -> (Body, Usage) {
    let usage = usage(&outputs, stamp);
    let choice = |(index, output)| {
        let (text, finish_reason) = completion(output);
        let message = AnswerMessage { role: Role::Assistant, content: text, refusal: None };
        ChatChoice { index, message, finish_reason, logprobs: None }
    };
    let response = ChatCompletionResponse {
        id: format!("chatcmpl-{}", stamp.job_id),
        object: "chat.completion".to_owned(),
        created: stamp.created,
        model: stamp.model.to_owned(),
        choices: outputs.into_iter().enumerate().map(choice).collect(),
        usage,
    };
    (Body::Chat(response), usage)
}

pub fn body(outputs: Vec<Output>, stamp: Stamp<'_>) -> (Body, Usage) {
    let usage = usage(&outputs, stamp);
    let choice = |(index, output)| {
        let (text, finish_reason) = completion(output);
        CompletionChoice { index, text, finish_reason, logprobs: None }
    };
    let response = CompletionResponse {
        id: format!("cmpl-{}", stamp.job_id),
        object: "text_completion".to_owned(),
        created: stamp.created,
        model: stamp.model.to_owned(),
        choices: outputs.into_iter().enumerate().map(choice).collect(),
        usage,
    };
    (Body::Completions(response), usage)
}

pub fn chat_chunk(part: Part<'_>, stamp: Stamp<'_>) -> Chunk {
    let delta = Delta {
        role: part.is_first.then_some(Role::Assistant),
        content: Some(part.text.to_owned()).filter(|text| part.is_first || !text.is_empty()),
    };
    let finish_reason = part.end.map(|(reason, _)| name_of(reason));
    Chunk::Chat(ChatCompletionChunk {
        id: format!("chatcmpl-{}", stamp.job_id),
        object: "chat.completion.chunk".to_owned(),
        created: stamp.created,
        model: stamp.model.to_owned(),
        choices: vec![ChatChunkChoice { index: 0, delta, finish_reason }],
        usage: part.end.map(|(_, usage)| usage),
    })
}

pub fn chunk(part: Part<'_>, stamp: Stamp<'_>) -> Chunk {
    let finish_reason = part.end.map(|(reason, _)| name_of(reason));
    Chunk::Completion(CompletionChunk {
        id: format!("cmpl-{}", stamp.job_id),
        object: "text_completion".to_owned(),
        created: stamp.created,
        model: stamp.model.to_owned(),
        choices: vec![CompletionChunkChoice { index: 0, text: part.text.to_owned(), finish_reason }],
        usage: part.end.map(|(_, usage)| usage),
    })
}

fn plan(sequences: Vec<Sequence>, answer: Answer, sampling: &Sampling, params: &SamplingParams) -> Plan {
    let is_greedy = params.temperature <= 0.0;
    Plan {
        sequences,
        answer,
        seed: (!is_greedy).then_some(params.seed),
        is_repeatable: is_greedy || sampling.seed.is_some(),
        streams: sampling.stream == Some(true),
    }
}

/// How many tokens a prompt may take and leave.
struct Budget<'a> {
    field: &'static str,
    max_tokens: Option<u64>,
    model: &'a Model,
    text: &'a Text,
}

impl Budget<'_> {
    /// A sequence that fits the model: prompt and answer share its context.
    fn sequence(&self, tokens: Vec<u32>, param: &str, params: SamplingParams) -> Result<Sequence, Reject> {
        let context = self.text.prompt_tokens_max();
        // One token of room, so that something can be answered.
        if tokens.len() >= context {
            return Err(too_long(param, tokens.len(), context - 1, "Shorten it."));
        }
        let room = (context - tokens.len()) as u64;
        let cap = self.model.limits.completion_tokens as u64;
        let max_tokens = match self.max_tokens {
            None => room.min(cap),
            Some(0) => {
                return Err(Reject::value(&format!("body.{}", self.field), "0 is not a number of tokens to generate"));
            }
            Some(asked) if asked > cap => {
                return Err(Reject::value(
                    &format!("body.{}", self.field),
                    format!("{asked} is above the model's limit of {cap}"),
                ));
            }
            Some(asked) => asked.min(room),
        };
        let max_tokens = usize::try_from(max_tokens).unwrap_or(usize::MAX);
        Ok(Sequence::new(tokens, Goal::Generate(SamplingParams { max_tokens, ..params })))
    }
}

fn sampling_params(sampling: &Sampling, job_id: &str) -> Result<SamplingParams, Reject> {
    let temperature =
        in_range("temperature", sampling.temperature, 1.0, |value| (0.0..=2.0).contains(&value), "0 to 2")?;
    let top_p = in_range("top_p", sampling.top_p, 1.0, |value| value > 0.0 && value <= 1.0, "above 0 and up to 1")?;
    refuse_set("n", sampling.n.as_ref(), &[1])?;
    refuse_set("frequency_penalty", sampling.frequency_penalty.as_ref(), &[0.0])?;
    refuse_set("presence_penalty", sampling.presence_penalty.as_ref(), &[0.0])?;
    refuse_set("logit_bias", sampling.logit_bias.as_ref(), &[json!({}), Value::Null])?;
    Ok(SamplingParams {
        temperature,
        top_p,
        seed: sampling.seed.map_or_else(|| seed_of(job_id), |seed| seed as u64),
        max_tokens: 0,
        stop: sampling.stop.0.clone(),
    })
}

fn in_range(
    field: &str,
    value: Option<f32>,
    default: f32,
    holds: impl Fn(f32) -> bool,
    range: &str,
) -> Result<f32, Reject> {
    match value.unwrap_or(default) {
        value if holds(value) => Ok(value),
        value => Err(Reject::value(&format!("body.{field}"), format!("{value} is not {range}"))),
    }
}

/// A known field that this engine cannot honour changes the answer: better refused than ignored.
fn refuse_set<T: PartialEq + serde::Serialize>(field: &str, value: Option<&T>, harmless: &[T]) -> Result<(), Reject> {
    match value {
        Some(value) if !harmless.contains(value) => {
            let shown = serde_json::to_string(value).unwrap_or_default();
            let param = format!("body.{field}");
            Err(Reject::invalid(
                "unsupported_value",
                param.clone(),
                format!("{param}: {shown} is not supported; leave it out"),
            ))
        }
        _ => Ok(()),
    }
}

/// A message as chat templates know it: a role and a string.
fn message((index, message): (usize, &ChatMessage)) -> Result<Value, Reject> {
    let role = match message.role {
        Role::Developer | Role::System => "system",
        Role::User => "user",
        Role::Assistant => "assistant",
    };
    let content = match &message.content {
        Some(Content::Text(text)) => text.clone(),
        Some(Content::Parts(parts)) => {
            let text = |(place, part): (usize, &schemas::completions::Part)| match &part.text {
                Some(text) if part.kind == "text" => Ok(text.clone()),
                _ => {
                    let param = format!("body.messages[{index}].content[{place}]");
                    Err(Reject::value(&param, format!("a part of type {:?}; this model reads text only", part.kind)))
                }
            };
            parts.iter().enumerate().map(text).collect::<Result<Vec<_>, _>>()?.concat()
        }
        None => return Err(Reject::value(&format!("body.messages[{index}].content"), "is missing")),
    };
    Ok(json!({ "role": role, "content": content }))
}

/// FNV-1a: stable over versions and machines, which the standard library's hasher does not promise.
fn seed_of(job_id: &str) -> u64 {
    job_id.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

fn completion(output: Output) -> (String, String) {
    match output {
        Output::Completion { text, finish_reason, .. } => (text, name_of(finish_reason)),
        Output::Embedding(_) | Output::Scores(_) => unreachable!("{OTHER_OUTPUT}"),
    }
}

fn name_of(reason: FinishReason) -> String {
    match reason {
        FinishReason::Stop => "stop".to_owned(),
        FinishReason::Length => "length".to_owned(),
    }
}

fn usage(outputs: &[Output], stamp: Stamp<'_>) -> Usage {
    let tokens = |output: &Output| match output {
        Output::Completion { completion_tokens, .. } => *completion_tokens as u64,
        Output::Embedding(_) | Output::Scores(_) => 0,
    };
    let completion_tokens: u64 = outputs.iter().map(tokens).sum();
    Usage {
        prompt_tokens: stamp.prompt_tokens,
        completion_tokens: Some(completion_tokens),
        total_tokens: stamp.prompt_tokens + completion_tokens,
    }
}
