//! What a body says of how its answer is generated.

use schemas::completions::{ChatCompletionRequest, CompletionRequest, ResponseFormat, ResponseFormatKind, Sampling};
use schemas::registry::Model;
use serde_json::{Value, json};

use super::Reject;
use super::inputs::too_long;
use crate::engine::grammar::in_style;
use crate::engine::text::Text;
use crate::engine::{Goal, Grammar, SamplingParams, Sequence};

const LOGPROBS_MAX_CHAT: u64 = 20;
const LOGPROBS_MAX_COMPLETION: u64 = 5;
const ANSWERS_MAX: u64 = 128;

/// How many tokens a prompt may take and leave.
pub struct Budget<'a> {
    pub field: &'static str,
    pub max_tokens: Option<u64>,
    pub model: &'a Model,
    pub text: &'a Text,
}

impl Budget<'_> {
    /// A sequence that fits the model: prompt and answer share its context.
    pub fn sequence(&self, tokens: Vec<u32>, param: &str, params: SamplingParams) -> Result<Sequence, Reject> {
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

pub fn sampling_params(sampling: &Sampling, job_id: &str, text: &Text) -> Result<SamplingParams, Reject> {
    let between = |field, value, [least, most]: [f32; 2], default| {
        in_range(field, value, default, |value| (least..=most).contains(&value), &format!("{least} to {most}"))
    };
    let top_k = match sampling.top_k {
        None | Some(-1 | 0) => None,
        Some(count) => Some(usize::try_from(count).map_err(|_| {
            Reject::value("body.top_k", format!("{count} is neither -1, which is for all, nor a number of tokens"))
        })?),
    };
    Ok(SamplingParams {
        temperature: between("temperature", sampling.temperature, [0.0, 2.0], 1.0)?,
        top_p: in_range("top_p", sampling.top_p, 1.0, |value| value > 0.0 && value <= 1.0, "above 0 and up to 1")?,
        top_k,
        min_p: between("min_p", sampling.min_p, [0.0, 1.0], 0.0)?,
        frequency_penalty: between("frequency_penalty", sampling.frequency_penalty, [-2.0, 2.0], 0.0)?,
        presence_penalty: between("presence_penalty", sampling.presence_penalty, [-2.0, 2.0], 0.0)?,
        logit_bias: logit_bias(sampling, text)?,
        seed: sampling.seed.map_or_else(|| seed_of(job_id), |seed| seed as u64),
        stop: sampling.stop.0.clone(),
        ..SamplingParams::default()
    })
}

/// JSON that an answer has to be.
pub struct Format {
    /// The field that says so.
    param: &'static str,
    schema: Value,
}

impl Format {
    /// None where it may be any text.
    pub fn new(sampling: &Sampling) -> Result<Option<Self>, Reject> {
        let Some(ResponseFormat { kind, json_schema }) = &sampling.response_format else { return Ok(None) };
        let (param, schema) = match (kind, json_schema) {
            (ResponseFormatKind::Text, _) => return Ok(None),
            (ResponseFormatKind::JsonObject, _) => ("body.response_format", &json!({ "type": "object" })),
            (ResponseFormatKind::JsonSchema, Some(format)) => {
                ("body.response_format.json_schema.schema", &format.schema)
            }
            (ResponseFormatKind::JsonSchema, None) => {
                return Err(Reject::value("body.response_format.json_schema", "is missing"));
            }
        };
        Ok(Some(Self { param, schema: in_style(schema, false) }))
    }

    pub fn schema(&self) -> &Value {
        &self.schema
    }

    pub fn param(&self) -> &'static str {
        self.param
    }

    pub fn grammar(&self, text: &Text) -> Result<Grammar, Reject> {
        text.grammar(&self.schema).map_err(|error| Reject::value(self.param, error))
    }
}

fn logit_bias(sampling: &Sampling, text: &Text) -> Result<Vec<(u32, f32)>, Reject> {
    let one = |(id, &bias): (&String, &f32)| {
        let param = format!("body.logit_bias.{id}");
        let count = text.vocab_size();
        let known = id.parse::<u32>().ok().filter(|&id| (id as usize) < count);
        let token = known
            .ok_or_else(|| Reject::value(&param, format!("{id:?} is no token of this model, which has {count}")))?;
        match (-100.0..=100.0).contains(&bias) {
            true => Ok((token, bias)),
            false => Err(Reject::value(&param, format!("{bias} is not -100 to 100"))),
        }
    };
    sampling.logit_bias.iter().flatten().map(one).collect()
}

/// How many answers each of the prompts gets.
pub fn answers_each(sampling: &Sampling, prompts: usize, model: &Model) -> Result<usize, Reject> {
    let count = sampling.n.unwrap_or(1);
    if !(1..=ANSWERS_MAX).contains(&count) {
        return Err(Reject::value("body.n", format!("{count} is not 1 to {ANSWERS_MAX}")));
    }
    let (each, most) = (count as usize, model.limits.inputs);
    match each * prompts <= most || each == 1 {
        true => Ok(each),
        false => {
            let message = format!("{count} answers to {prompts} prompts; at most {most} in one job are allowed");
            Err(Reject::value("body.n", message))
        }
    }
}

/// What models that think are told of how long to.
pub fn reasoning_effort(request: &ChatCompletionRequest) -> Result<Option<&str>, Reject> {
    const EFFORTS: [&str; 6] = ["none", "minimal", "low", "medium", "high", "xhigh"];
    match request.reasoning_effort.as_deref() {
        Some(effort) if !EFFORTS.contains(&effort) => {
            let message = format!("{effort:?} is none of {}", EFFORTS.join(", "));
            Err(Reject::value("body.reasoning_effort", message))
        }
        effort => Ok(effort),
    }
}

pub fn logprobs_of_chat(request: &ChatCompletionRequest) -> Result<Option<usize>, Reject> {
    let wanted = request.logprobs == Some(true);
    match request.top_logprobs {
        Some(count) if count > LOGPROBS_MAX_CHAT => {
            Err(Reject::value("body.top_logprobs", format!("{count} is not 0 to {LOGPROBS_MAX_CHAT}")))
        }
        Some(count) if count > 0 && !wanted => {
            Err(Reject::value("body.top_logprobs", format!("{count} is of use with logprobs only; set it to true")))
        }
        count => Ok(wanted.then_some(count.unwrap_or(0) as usize)),
    }
}

pub fn logprobs_of_completion(request: &CompletionRequest) -> Result<Option<usize>, Reject> {
    match request.logprobs {
        Some(count) if count > LOGPROBS_MAX_COMPLETION => {
            Err(Reject::value("body.logprobs", format!("{count} is not 0 to {LOGPROBS_MAX_COMPLETION}")))
        }
        count => Ok(count.map(|count| count as usize)),
    }
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

/// Known fields that no engine can honour change the answer: better refused than ignored.
pub fn refuse_unsupported(body: &Value) -> Result<(), Reject> {
    // Each with the value that asks for nothing.
    let fields = [
        ("functions", json!([])),
        ("function_call", json!("none")),
        ("modalities", json!(["text"])),
        ("audio", Value::Null),
        ("web_search_options", Value::Null),
        ("echo", json!(false)),
        ("suffix", json!("")),
        // vLLM's.
        ("repetition_penalty", json!(1)),
        ("length_penalty", json!(1)),
        ("use_beam_search", json!(false)),
        ("ignore_eos", json!(false)),
        ("min_tokens", json!(0)),
        ("stop_token_ids", json!([])),
        ("bad_words", json!([])),
        ("allowed_token_ids", json!([])),
        ("prompt_logprobs", Value::Null),
        ("structured_outputs", Value::Null),
        ("guided_json", Value::Null),
        ("guided_regex", Value::Null),
        ("guided_choice", Value::Null),
        ("guided_grammar", Value::Null),
    ];
    for (field, harmless) in fields {
        match &body[field] {
            Value::Null => {}
            Value::Number(number) if number.as_f64().is_some() && number.as_f64() == harmless.as_f64() => {}
            value if *value == harmless => {}
            value => return Err(Reject::unsupported(field, format!("{value} is not supported; leave it out"))),
        }
    }
    Ok(())
}

pub fn refuse_best_of(best_of: Option<u64>, n: Option<u64>) -> Result<(), Reject> {
    match best_of {
        Some(count) if count != n.unwrap_or(1) => {
            Err(Reject::unsupported("best_of", format!("{count} is not supported; leave it out")))
        }
        _ => Ok(()),
    }
}

/// FNV-1a: stable over versions and machines, which the standard library's hasher does not promise.
pub fn seed_of(job_id: &str) -> u64 {
    job_id.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}
