//! `/v1/chat/completions` and `/v1/completions`.

use schemas::chunk::{ChatChunkChoice, ChatCompletionChunk, Chunk, CompletionChunk, CompletionChunkChoice, Delta};
use schemas::codec::decode_body;
use schemas::completions::{
    AnswerMessage, ChatChoice, ChatCompletionRequest, ChatCompletionResponse, CompletionChoice, CompletionRequest,
    CompletionResponse, Role, Sampling,
};
use schemas::log::Usage;
use schemas::registry::Model;
use serde_json::Value;

use super::inputs::{check_inputs, prompt_param, tokens_of};
use super::messages::messages;
use super::sampling::{
    Budget, Format, answers_each, logprobs_of_chat, logprobs_of_completion, reasoning_effort, refuse_best_of,
    refuse_unsupported, sampling_params,
};
use super::tools::{self, Calling, Tools};
use super::{Answer, Body, Known, Part, Plan, Reject, Stamp, logprobs, misshapen};
use crate::engine::calls::Said;
use crate::engine::template::Setting;
use crate::engine::text::Text;
use crate::engine::{FinishReason, Goal, Logprobs, OTHER_OUTPUT, Output, SamplingParams, Sequence};

/// OpenAI's default for `/v1/completions`; chat goes on to the model's limit.
const COMPLETION_TOKENS_DEFAULT: u64 = 16;

pub fn prepare_chat(body: &Value, known: Known<'_>, model: &Model, text: &Text) -> Result<Plan, Reject> {
    let request: ChatCompletionRequest = decode_body(body).map_err(misshapen)?;
    let sampling: Sampling = decode_body(body).map_err(misshapen)?;
    refuse_unsupported(body)?;
    let logprobs = logprobs_of_chat(&request)?;
    let messages = messages(&request.messages)?;
    let tools = Tools::new(&request, text)?;
    let told = tools.as_ref().map_or_else(Vec::new, Tools::told);
    let reasoning_effort = reasoning_effort(&request)?;
    let setting = Setting { now: known.published, reasoning_effort };
    let tokens = text.encode_chat(&messages, &told, setting).map_err(|error| Reject::value("body.messages", error))?;
    if tokens.is_empty() {
        return Err(Reject::invalid("empty_input", "body.messages".to_owned(), "body.messages: have no content"));
    }
    let (field, max_tokens) = match request.max_completion_tokens {
        Some(max) => ("max_completion_tokens", Some(max)),
        None => ("max_tokens", sampling.max_tokens),
    };
    let budget = Budget { field, max_tokens, model, text };
    let format = Format::new(&sampling)?;
    let calling = tools.as_ref().map(|tools| tools.calling).or_else(|| Calling::without_tools(text));
    let grammar = match (&tools, &calling, format) {
        (Some(tools), _, format) => tools.grammar(text, format.as_ref().map(Format::schema))?,
        (None, Some(calling), format) => Some(calling.grammar(text, format.as_ref())?),
        (None, None, format) => format.map(|format| format.grammar(text)).transpose()?,
    };
    let skip_special_tokens = calling.is_none_or(Calling::skip_special_tokens);
    let sampled = sampling_params(&sampling, known.job_id, text)?;
    let params = SamplingParams { logprobs, grammar, skip_special_tokens, ..sampled };
    let sequence = budget.sequence(tokens, "body.messages", params)?;
    plan(vec![sequence], Answer::Chat(calling), &sampling, model)
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
    let grammar = Format::new(&sampling)?.map(|format| format.grammar(text)).transpose()?;
    let params = SamplingParams { logprobs, grammar, ..sampling_params(&sampling, job_id, text)? };
    let mut sequences = Vec::with_capacity(prompts.len());
    for (index, prompt) in prompts.into_iter().enumerate() {
        let param = prompt_param("prompt", request.prompt.is_list(), index);
        let tokens = tokens_of(prompt, &param, text, |content| text.encode_prompt(content))?;
        sequences.push(budget.sequence(tokens, &param, params.clone())?);
    }
    plan(sequences, Answer::Completions, &sampling, model)
}

pub fn chat_body(calling: Option<Calling>, outputs: Vec<Output>, stamp: Stamp<'_>) -> (Body, Usage) {
    let usage = stamp.generated(&outputs);
    let choice = |(index, output)| {
        let (text, reason, logprobs) = completion(output);
        let said = said(calling, &text, true);
        let tool_calls = tools::calls(&said, stamp.job_id, index);
        // Null where there is nothing but calls.
        let finish_reason = finish_reason(calling, &said, reason);
        let content = Some(said.content).filter(|content| !content.is_empty() || tool_calls.is_empty());
        let reasoning_content = Some(said.reasoning).filter(|reasoning| !reasoning.is_empty());
        let message = AnswerMessage { role: Role::Assistant, content, reasoning_content, refusal: None, tool_calls };
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
    let usage = stamp.generated(&outputs);
    let choice = |(index, output)| {
        let (text, reason, logprobs) = completion(output);
        let logprobs = logprobs::of_completion(&[], &logprobs, stamp.text);
        CompletionChoice { index, text, finish_reason: name_of(reason).to_owned(), logprobs }
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

pub fn chat_chunk(calling: Option<Calling>, part: &Part<'_>, stamp: Stamp<'_>) -> Chunk {
    let is_first = part.tokens_before.is_empty();
    let (before, now) = (said(calling, part.before(), false), said(calling, part.text, part.end.is_some()));
    let more = |before: &str, now: &str| now.get(before.len()..).unwrap_or_default().to_owned();
    let (content, reasoning) = (more(&before.content, &now.content), more(&before.reasoning, &now.reasoning));
    let tool_calls = tools::more_calls(&before, &now, stamp.job_id, part.index);
    let delta = Delta {
        role: is_first.then_some(Role::Assistant),
        content: Some(content)
            .filter(|text| !text.is_empty() || (is_first && tool_calls.is_empty() && reasoning.is_empty())),
        reasoning_content: Some(reasoning).filter(|text| !text.is_empty()),
        tool_calls,
    };
    let finish_reason = part.end.map(|reason| finish_reason(calling, &now, reason));
    let logprobs = logprobs::of_chat(part.logprobs, stamp.text);
    Chunk::Chat(ChatCompletionChunk {
        id: format!("chatcmpl-{}", stamp.job_id),
        object: "chat.completion.chunk".to_owned(),
        created: stamp.created,
        model: stamp.model.to_owned(),
        choices: vec![ChatChunkChoice { index: part.index, delta, finish_reason, logprobs }],
        usage: part.usage,
    })
}

pub fn chunk(part: &Part<'_>, stamp: Stamp<'_>) -> Chunk {
    let text = part.text.get(part.before().len()..).unwrap_or_default().to_owned();
    let finish_reason = part.end.map(|reason| name_of(reason).to_owned());
    let logprobs = logprobs::of_completion(part.tokens_before, part.logprobs, stamp.text);
    Chunk::Completion(CompletionChunk {
        id: format!("cmpl-{}", stamp.job_id),
        object: "text_completion".to_owned(),
        created: stamp.created,
        model: stamp.model.to_owned(),
        choices: vec![CompletionChunkChoice { index: part.index, text, finish_reason, logprobs }],
        usage: part.usage,
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
    Ok(Plan { sequences, answers_each, answer, seed, is_repeatable, streams })
}

/// What an answer says, and what it calls.
fn said(calling: Option<Calling>, text: &str, is_whole: bool) -> Said {
    match calling {
        Some(calling) => calling.read(text, is_whole),
        None => Said { content: text.to_owned(), ..Said::default() },
    }
}

fn completion(output: Output) -> (String, FinishReason, Vec<Logprobs>) {
    match output {
        Output::Completion { text, finish_reason, logprobs, .. } => (text, finish_reason, logprobs),
        Output::Embedding(_) | Output::Scores(_) | Output::Transcript(_) => unreachable!("{OTHER_OUTPUT}"),
    }
}

fn finish_reason(calling: Option<Calling>, said: &Said, reason: FinishReason) -> String {
    calling.and_then(|calling| calling.finish_reason(said, reason)).unwrap_or_else(|| name_of(reason)).to_owned()
}

fn name_of(reason: FinishReason) -> &'static str {
    match reason {
        FinishReason::Stop => "stop",
        FinishReason::Length => "length",
    }
}
