//! Calls of tools, and streams of several answers: by the echo engine, which says the calls that it is told, and by a real
//! model.

use schemas::chunk::Chunk;
use schemas::codec::Encoding;
use schemas::completions::TokenLogprob;
use schemas::tools::{FunctionCall, ToolCall, ToolCallDelta};
use serde_json::{Value, json};

use crate::support::{Deployment, echo_registry, eventually, root};
use crate::tokens::chunks;

const GENERATOR: &str = "SmolLM2-135M-Instruct";
const CHAT: &str = "/v1/chat/completions";

fn weather() -> Value {
    let parameters = json!({
        "type": "object",
        "properties": {
            "city": { "enum": ["Paris", "Rome", "Oslo"] },
            "days": { "type": "integer", "minimum": 1, "maximum": 7 },
        },
        "required": ["city", "days"], "additionalProperties": false,
    });
    json!({ "type": "function", "function": { "name": "forecast", "description": "The weather to come.", "parameters": parameters } })
}

fn clock() -> Value {
    json!({ "type": "function", "function": { "name": "clock" } })
}

async fn answer(deployment: &Deployment, body: &Value) -> (String, Value) {
    let id = deployment.submit(&json!({ "url": CHAT, "body": body }), Encoding::Json).await;
    let (_, result) = deployment.result(id.as_str()).await;
    assert_eq!(result["response"]["status_code"], 200, "{result}");
    (id.to_string(), result["response"]["body"].clone())
}

/// An answer that was put together from its chunks.
#[derive(Debug, Default, PartialEq)]
struct Told {
    content: String,
    calls: Vec<ToolCall>,
    logprobs: Vec<TokenLogprob>,
    finish_reason: Option<String>,
}

impl Told {
    fn add(&mut self, chunk: &Chunk) {
        let Chunk::Chat(chunk) = chunk else { panic!("{chunk:?}") };
        let choice = &chunk.choices[0];
        assert_eq!(self.finish_reason, None, "it goes on after its end");
        self.content += choice.delta.content.as_deref().unwrap_or_default();
        for ToolCallDelta { index, id, kind, function } in choice.delta.tool_calls.clone() {
            match (id, kind, function.name) {
                (Some(id), Some(kind), Some(name)) => {
                    assert_eq!(index, self.calls.len());
                    self.calls.push(ToolCall {
                        id,
                        kind,
                        function: FunctionCall { name, arguments: function.arguments },
                    });
                }
                (None, None, None) => self.calls[index].function.arguments += &function.arguments,
                other => panic!("half a beginning: {other:?}"),
            }
        }
        let logprobs = choice.logprobs.iter().flat_map(|logprobs| &logprobs.content);
        self.logprobs.extend(logprobs.cloned());
        self.finish_reason.clone_from(&choice.finish_reason);
    }
}

/// What the chunks of a job tell, checked against its result.
async fn told(deployment: &Deployment, id: &str, body: &Value) -> Vec<Told> {
    let all = chunks(deployment, id).await;
    let choices = body["choices"].as_array().unwrap();
    let mut told: Vec<Told> = choices.iter().map(|_| Told::default()).collect();
    assert!(all.iter().zip(0..).all(|((number, _), place)| *number == place), "numbers have gaps");
    all.iter().for_each(|(_, chunk)| told[chunk.index()].add(chunk));
    let last: Vec<bool> = all.iter().map(|(_, chunk)| chunk.is_last()).collect();
    assert!(last.iter().rev().skip(1).all(|is_last| !is_last) && last.last() == Some(&true), "{last:?}");
    for (told, choice) in told.iter().zip(choices) {
        let message = &choice["message"];
        assert_eq!(told.content, message["content"].as_str().unwrap_or_default());
        let calls: Vec<ToolCall> = serde_json::from_value(message["tool_calls"].clone()).unwrap_or_default();
        assert_eq!(told.calls, calls);
        assert_eq!(told.finish_reason.as_deref(), choice["finish_reason"].as_str());
        assert_eq!(
            told.logprobs,
            serde_json::from_value::<Vec<_>>(choice["logprobs"]["content"].clone()).unwrap_or_default()
        );
    }
    told
}

fn echo_body(said: &str) -> Value {
    json!({
        "model": "echo", "stream": true, "temperature": 0, "tools": [weather(), clock()],
        "messages": [{ "role": "user", "content": said }],
    })
}

const TWO_CALLS: &str = "I will look.\n<tool_call>\n{\"name\": \"forecast\", \"arguments\": {\"city\": \"Rome\", \"days\": 2}}\n</tool_call>\n<tool_call>\n{\"name\": \"clock\", \"arguments\": {}}\n</tool_call>";

fn slow_echo() -> String {
    echo_registry(20, "in_flight = 4\nack_wait_seconds = 1").replace("echo = {", "echo = { step_tokens = 1,")
}

#[tokio::test]
async fn calls_are_told_as_they_are_made_and_in_the_result() {
    let (deployment, _worker) = Deployment::with_worker(&slow_echo()).await;
    let (id, body) = answer(&deployment, &echo_body(TWO_CALLS)).await;
    let choice = &body["choices"][0];
    assert_eq!(
        (&choice["finish_reason"], &choice["message"]["content"]),
        (&json!("tool_calls"), &json!("I will look."))
    );
    let calls = &choice["message"]["tool_calls"];
    assert_eq!(calls[0]["function"], json!({ "name": "forecast", "arguments": "{\"city\": \"Rome\", \"days\": 2}" }));
    assert_eq!(calls[1]["function"], json!({ "name": "clock", "arguments": "{}" }));
    told(&deployment, &id, &body).await;
    let only = TWO_CALLS.strip_prefix("I will look.\n").unwrap();
    let (_, body) = answer(&deployment, &echo_body(only)).await;
    assert_eq!(body["choices"][0]["message"]["content"], Value::Null);
    let mut cut = echo_body(only);
    cut["max_tokens"] = json!(60);
    let (id, body) = answer(&deployment, &cut).await;
    assert_eq!(body["choices"][0]["finish_reason"], "length");
    assert!(told(&deployment, &id, &body).await[0].calls[0].function.arguments.starts_with("{\"ci"));
}

#[tokio::test]
async fn a_tool_that_must_not_be_called_is_not() {
    let (deployment, _worker) = Deployment::with_worker(&echo_registry(0, "")).await;
    let mut body = echo_body(TWO_CALLS);
    body["tool_choice"] = json!("none");
    let (_, body) = answer(&deployment, &body).await;
    assert_eq!(body["choices"][0]["message"], json!({ "role": "assistant", "content": TWO_CALLS, "refusal": null }));
}

#[tokio::test]
async fn several_answers_go_on_where_their_killed_worker_stood() {
    let (deployment, worker) = Deployment::with_worker(&slow_echo()).await;
    let mut body = echo_body(&TWO_CALLS.repeat(2));
    body["n"] = json!(3);
    body["logprobs"] = json!(true);
    let id = deployment.submit(&json!({ "url": CHAT, "body": body }), Encoding::Json).await.to_string();
    eventually("some chunks are there", async || (chunks(&deployment, &id).await.len() >= 12).then_some(())).await;
    worker.signal("-KILL");
    let before = chunks(&deployment, &id).await;
    let _second = deployment.worker("echo").await;
    let (_, result) = deployment.result(&id).await;
    let body = &result["response"]["body"];
    assert_eq!(body["choices"].as_array().unwrap().len(), 3, "{result}");
    assert_eq!(chunks(&deployment, &id).await[..before.len()], before[..], "published chunks have changed");
    let told = told(&deployment, &id, body).await;
    assert!(told.iter().all(|answer| answer.calls.len() == 4 && answer.logprobs.len() == TWO_CALLS.len() * 2));
    // What is printed is the first of them.
    let printed = deployment.inferq(&["tokens", &id]);
    let (out, err) = (String::from_utf8_lossy(&printed.stdout), String::from_utf8_lossy(&printed.stderr));
    assert!(out.starts_with("I will look.\nforecast {\"city\": \"Rome\", \"days\": 2}\nclock {}\n"), "{out}");
    assert!(err.contains("2 more answers"), "{err}");
}

#[tokio::test]
async fn completions_of_several_prompts_stream_with_their_logprobs() {
    let (deployment, _worker) = Deployment::with_worker(&slow_echo()).await;
    let body =
        json!({ "model": "echo", "prompt": ["aé", "bcd"], "n": 2, "stream": true, "logprobs": 1, "temperature": 0 });
    let id = deployment.submit(&json!({ "url": "/v1/completions", "body": body }), Encoding::Json).await.to_string();
    let (_, result) = deployment.result(&id).await;
    let choices = result["response"]["body"]["choices"].as_array().unwrap();
    let mut told = vec![(String::new(), Vec::new(), Vec::new()); 4];
    for (_, chunk) in chunks(&deployment, &id).await {
        let Chunk::Completion(chunk) = chunk else { panic!("{chunk:?}") };
        let choice = &chunk.choices[0];
        let (text, tokens, offsets) = &mut told[choice.index];
        text.push_str(&choice.text);
        let logprobs = choice.logprobs.iter();
        logprobs.clone().for_each(|logprobs| tokens.extend(logprobs.tokens.clone()));
        logprobs.for_each(|logprobs| offsets.extend(logprobs.text_offset.clone()));
    }
    assert_eq!(told.iter().map(|(text, ..)| text.as_str()).collect::<Vec<_>>(), ["aé", "aé", "bcd", "bcd"]);
    for ((_, tokens, offsets), choice) in told.iter().zip(choices) {
        assert_eq!(
            (&json!(tokens), &json!(offsets)),
            (&choice["logprobs"]["tokens"], &choice["logprobs"]["text_offset"])
        );
    }
}

#[tokio::test]
async fn a_real_model_calls_what_it_has_to_with_arguments_that_follow_the_schema() {
    let registry = std::fs::read_to_string(root().join("workers/models.toml")).unwrap();
    let deployment = Deployment::new(&registry).await;
    let _worker = deployment.worker(GENERATOR).await;
    let ask = |choice: Value, more: Value| {
        let mut body = json!({
            "model": GENERATOR, "tools": [weather(), clock()], "tool_choice": choice, "max_tokens": 80, "seed": 3,
            "stream": true, "messages": [{ "role": "user", "content": "What will the weather be in Oslo, for 3 days?" }],
        });
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body
    };
    let named = json!({ "type": "function", "function": { "name": "forecast" } });
    let follows = |call: &ToolCall| {
        let arguments: Value = serde_json::from_str(&call.function.arguments).unwrap();
        match call.function.name.as_str() {
            "forecast" => {
                let cities = ["Paris", "Rome", "Oslo"].map(|city| json!(city));
                assert!(cities.contains(&arguments["city"]) && (1..=7).contains(&arguments["days"].as_u64().unwrap()));
            }
            "clock" => assert_eq!(arguments, json!({})),
            other => panic!("{other} is no tool"),
        }
    };
    let (id, body) = answer(&deployment, &ask(named, json!({ "n": 4, "logprobs": true, "top_logprobs": 1 }))).await;
    for answer in told(&deployment, &id, &body).await {
        assert_eq!((answer.content.as_str(), answer.finish_reason.as_deref()), ("", Some("stop")), "{answer:?}");
        assert!(answer.calls.len() == 1 && answer.calls[0].function.name == "forecast" && !answer.logprobs.is_empty());
        answer.calls.iter().for_each(follows);
    }
    let one = json!({ "n": 4, "parallel_tool_calls": false });
    let (id, body) = answer(&deployment, &ask(json!("required"), one)).await;
    for answer in told(&deployment, &id, &body).await {
        assert_eq!((answer.calls.len(), answer.finish_reason.as_deref()), (1, Some("tool_calls")), "{answer:?}");
        answer.calls.iter().for_each(follows);
    }
    // It may do as it likes, and does not get the frame of a call wrong.
    let (id, body) = answer(&deployment, &ask(json!("auto"), json!({ "n": 8 }))).await;
    for answer in told(&deployment, &id, &body).await {
        let is_cut = answer.finish_reason.as_deref() == Some("length");
        answer.calls.iter().rev().skip(usize::from(is_cut)).for_each(follows);
        assert!(!answer.calls.is_empty() || !answer.content.is_empty() || is_cut, "{answer:?}");
        assert!(is_cut || !answer.content.contains("<tool_call>"), "{answer:?}");
    }
    // What a tool said is read: another answer than to another thing.
    let after = |said: &str| {
        let call = json!({ "id": "c", "type": "function", "function": { "name": "forecast", "arguments": "{\"city\":\"Oslo\",\"days\":3}" } });
        let messages = json!([
            { "role": "user", "content": "What will the weather be in Oslo, for 3 days?" },
            { "role": "assistant", "content": null, "tool_calls": [call] },
            { "role": "tool", "tool_call_id": "c", "content": said },
        ]);
        ask(json!("none"), json!({ "temperature": 0, "messages": messages }))
    };
    let (_, snow) = answer(&deployment, &after("snow, -12 degrees")).await;
    let (_, sun) = answer(&deployment, &after("sunshine, 31 degrees")).await;
    assert_ne!(snow["choices"][0]["message"]["content"], sun["choices"][0]["message"]["content"]);
    assert!(snow["usage"]["prompt_tokens"].as_u64() > Some(60), "{snow}");
}
