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

use super::inputs::{check_inputs, prompt_param, tokens_of};
use super::sampling::{
    Budget, answers_each, logprobs_of_chat, logprobs_of_completion, refuse_best_of, refuse_in_chunks,
    refuse_unsupported, sampling_params,
};
use super::{Answer, Body, Part, Plan, Reject, Stamp, logprobs, misshapen};
use crate::engine::text::Text;
use crate::engine::{FinishReason, Goal, Logprobs, OTHER_OUTPUT, Output, SamplingParams, Sequence};

/// OpenAI's default for `/v1/completions`; chat goes on to the model's limit.
const COMPLETION_TOKENS_DEFAULT: u64 = 16;

pub fn prepare_chat(body: &Value, job_id: &str, model: &Model, text: &Text) -> Result<Plan, Reject> {
    let request: ChatCompletionRequest = decode_body(body).map_err(misshapen)?;
    let sampling: Sampling = decode_body(body).map_err(misshapen)?;
    refuse_unsupported(body)?;
    let logprobs = logprobs_of_chat(&request)?;
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
    let params = SamplingParams { logprobs, ..sampling_params(&sampling, job_id, text)? };
    let sequence = budget.sequence(tokens, "body.messages", params)?;
    plan(vec![sequence], Answer::Chat, &sampling, model)
}

pub fn prepare(body: &Value, job_id: &str, model: &Model, text: &Text) -> Result<Plan, Reject> {
    let request: CompletionRequest = decode_body(body).map_err(misshapen)?;
    let sampling: Sampling = decode_body(body).map_err(misshapen)?;
    refuse_unsupported(body)?;
    refuse_best_of(request.best_of, sampling.n)?;
    let logprobs = logprobs_of_completion(&request)?;
    let prompts = request.prompt.prompts();
    check_inputs(prompts.len(), "body.prompt", &model.limits)?;
    let max_tokens = sampling.max_tokens.or(Some(COMPLETION_TOKENS_DEFAULT));
    let budget = Budget { field: "max_tokens", max_tokens, model, text };
    let params = SamplingParams { logprobs, ..sampling_params(&sampling, job_id, text)? };
    let mut sequences = Vec::with_capacity(prompts.len());
    for (index, prompt) in prompts.into_iter().enumerate() {
        let param = prompt_param("prompt", request.prompt.is_list(), index);
        let tokens = tokens_of(prompt, &param, text, |content| text.encode_prompt(content))?;
        sequences.push(budget.sequence(tokens, &param, params.clone())?);
    }
    plan(sequences, Answer::Completions, &sampling, model)
}

pub fn chat_body(outputs: Vec<Output>, stamp: Stamp<'_>) -> (Body, Usage) {
    let usage = usage(&outputs, stamp);
    let choice = |(index, output)| {
        let (content, finish_reason, logprobs) = completion(output);
        let message = AnswerMessage { role: Role::Assistant, content, refusal: None };
        ChatChoice { index, message, finish_reason, logprobs: logprobs::of_chat(&logprobs, stamp.text) }
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
        let (text, finish_reason, logprobs) = completion(output);
        CompletionChoice { index, text, finish_reason, logprobs: logprobs::of_completion(&logprobs, stamp.text) }
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

/// Each sequence `n` times, every one with a seed of its own.
fn plan(prompts: Vec<Sequence>, answer: Answer, sampling: &Sampling, model: &Model) -> Result<Plan, Reject> {
    let answers_each = answers_each(sampling, prompts.len(), model)?;
    let mut sequences = Vec::with_capacity(prompts.len() * answers_each);
    for prompt in prompts {
        for _ in 0..answers_each {
            let mut sequence = prompt.clone();
            if let Goal::Generate(params) = &mut sequence.goal {
                params.seed = params.seed.wrapping_add(sequences.len() as u64);
            }
            sequences.push(sequence);
        }
    }
    let params = sequences.first().and_then(|sequence| match &sequence.goal {
        Goal::Generate(params) => Some(params),
        Goal::Embed | Goal::Score | Goal::Transcribe(_) => None,
    });
    let drawn = params.filter(|params| params.temperature > 0.0);
    let (seed, is_repeatable) = (drawn.map(|params| params.seed), drawn.is_none() || sampling.seed.is_some());
    let streams = sampling.stream == Some(true);
    if streams {
        refuse_in_chunks(sequences.len(), params.is_some_and(|params| params.logprobs.is_some()))?;
    }
    Ok(Plan { sequences, answers_each, answer, seed, is_repeatable, streams })
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

fn completion(output: Output) -> (String, String, Vec<Logprobs>) {
    match output {
        Output::Completion { text, finish_reason, logprobs, .. } => (text, name_of(finish_reason), logprobs),
        Output::Embedding(_) | Output::Scores(_) | Output::Transcript(_) => unreachable!("{OTHER_OUTPUT}"),
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
        Output::Embedding(_) | Output::Scores(_) | Output::Transcript(_) => 0,
    };
    let completion_tokens: u64 = outputs.iter().map(tokens).sum();
    Usage {
        prompt_tokens: stamp.prompt_tokens,
        completion_tokens: Some(completion_tokens),
        total_tokens: stamp.prompt_tokens + completion_tokens,
    }
}
