//! From a job's body to the body of its answer, on the tiny models of `tests/golden/encoders`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use schemas::job::Job;
use schemas::registry::{Model, Registry};
use serde_json::{Value, json};
use time::OffsetDateTime;
use workers::endpoint::{self, Known, Plan, Stamp};
use workers::engine::{Loaded, SequenceId, load};

fn folder(family: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/encoders").join(family)
}

fn golden(family: &str) -> Value {
    serde_json::from_slice(&std::fs::read(folder(family).join("golden.json")).unwrap()).unwrap()
}

fn model(lines: &str) -> Model {
    let registry = format!("[[models]]\nname = \"m\"\nsource = \"m\"\n{lines}");
    Registry::parse(&registry).unwrap().models.remove(0)
}

fn prepare(url: &str, mut body: Value, model: &Model, loaded: &Loaded) -> Plan {
    body["model"] = json!("m");
    let job: Job = serde_json::from_value(json!({ "url": url, "body": body })).unwrap();
    endpoint::prepare(&job, Known { job_id: "id", published: OffsetDateTime::UNIX_EPOCH }, model, &loaded.text).unwrap()
}

fn answer(url: &str, body: Value, family: &str, lines: &str) -> Value {
    let model = model(lines);
    let mut loaded = load(&model, Some(&folder(family))).unwrap();
    let plan = prepare(url, body, &model, &loaded);
    for (id, sequence) in (0..).zip(&plan.sequences) {
        loaded.engine.add(SequenceId(id), Arc::new(sequence.clone()));
    }
    let mut outputs = Vec::new();
    while !loaded.engine.is_idle() {
        loaded.engine.step().unwrap();
        outputs.extend(loaded.engine.finished());
    }
    outputs.sort_by_key(|(id, _)| *id);
    let outputs = outputs.into_iter().map(|(_, output)| output).collect();
    let stamp = Stamp { model: "m", job_id: "id", created: 1, prompt_tokens: 9, text: &loaded.text };
    serde_json::to_value(plan.answer.body(outputs, stamp).0).unwrap()
}

fn scores(case: &Value) -> Vec<f64> {
    serde_json::from_value(case["scores"].clone()).unwrap()
}

#[test]
fn documents_are_ranked_by_the_probability_of_their_scores() {
    for family in ["bert-rerank", "xlm-roberta-rerank"] {
        let golden = golden(family);
        let cases = golden["documents"].as_array().unwrap();
        let mut expected: Vec<(usize, f64)> = cases.iter().map(|case| scores(case)[0]).enumerate().collect();
        expected.sort_by(|(_, a), (_, b)| b.total_cmp(a));
        let documents: Vec<&Value> = cases.iter().map(|case| &case["text"]).collect();
        let body = json!({ "query": golden["query"], "documents": documents, "return_documents": true });
        let answer = answer("/v1/rerank", body, family, "task = \"rerank\"");
        let results = answer["results"].as_array().unwrap();
        assert_eq!(results.len(), expected.len());
        for (result, (index, score)) in results.iter().zip(expected) {
            assert_eq!(result["index"], index);
            assert_eq!(result["document"]["text"], cases[index]["text"]);
            let probability = 1.0 / (1.0 + (-score).exp());
            assert!((result["relevance_score"].as_f64().unwrap() - probability).abs() < 1e-4, "{family}: {result}");
        }
    }
}

#[test]
fn a_text_gets_the_label_of_its_highest_score_and_the_probability_of_each() {
    const LABELS: [&str; 3] = ["bad", "middling", "good"];
    let golden = golden("distilbert");
    let cases = golden["cases"].as_array().unwrap();
    let texts: Vec<&Value> = cases.iter().map(|case| &case["text"]).collect();
    for use_activation in [true, false] {
        let body = json!({ "input": texts, "use_activation": use_activation });
        let answer = answer("/v1/classify", body, "distilbert", "task = \"classify\"");
        for (data, case) in answer["data"].as_array().unwrap().iter().zip(cases) {
            let scores = scores(case);
            let best = (0..3).max_by(|&a, &b| scores[a].total_cmp(&scores[b])).unwrap();
            assert_eq!(data["label"], LABELS[best]);
            let sum: f64 = scores.iter().map(|score| score.exp()).sum();
            for (prob, score) in data["probs"].as_array().unwrap().iter().zip(&scores) {
                let expected = if use_activation { score.exp() / sum } else { *score };
                assert!((prob.as_f64().unwrap() - expected).abs() < 1e-3, "{data}");
            }
        }
    }
}

#[test]
fn each_answer_has_a_draw_of_its_own_and_the_probabilities_of_its_tokens() {
    let body = json!({
        "prompt": [[0, 2, 3], [0, 9]], "n": 2, "logprobs": 2, "max_tokens": 5, "seed": 1, "logit_bias": {"0": -100, "1": -100},
    });
    let ask = || answer("/v1/completions", body.clone(), "../decoders/llama", "task = \"generate\"");
    let said = ask();
    let choices = said["choices"].as_array().unwrap();
    assert_eq!(choices.iter().map(|choice| choice["index"].as_u64().unwrap()).collect::<Vec<_>>(), [0, 1, 2, 3]);
    for choice in choices {
        let logprobs = &choice["logprobs"];
        let tokens: Vec<String> = serde_json::from_value(logprobs["tokens"].clone()).unwrap();
        assert_eq!((choice["text"].as_str().unwrap(), tokens.len()), (&*tokens.concat(), 5));
        assert_eq!(logprobs["text_offset"], json!([0, 1, 2, 3, 4]));
        for (at, top) in logprobs["top_logprobs"].as_array().unwrap().iter().enumerate() {
            let best = top.as_object().unwrap().values().map(|value| value.as_f64().unwrap()).fold(-99.0, f64::max);
            assert!(top.as_object().unwrap().len() == 2 && best >= logprobs["token_logprobs"][at].as_f64().unwrap());
        }
    }
    assert_ne!(choices[0]["text"], choices[1]["text"]);
    assert_eq!(said, ask());
    let model = model("task = \"generate\"");
    let loaded = load(&model, Some(&folder("../decoders/llama"))).unwrap();
    let plan = prepare("/v1/completions", body, &model, &loaded);
    assert_eq!((plan.sequences.len(), plan.prompt_tokens()), (4, 5), "a prompt counts once");
}

#[test]
fn a_chat_tells_the_bytes_of_its_tokens() {
    let body = json!({
        "messages": [{ "role": "user", "content": "\u{105}\u{106}" }], "logprobs": true, "top_logprobs": 1,
        "max_tokens": 3, "temperature": 0,
    });
    let said = answer("/v1/chat/completions", body, "../decoders/llama", "task = \"generate\"");
    let choice = &said["choices"][0];
    let content = choice["logprobs"]["content"].as_array().unwrap();
    let bytes: Vec<u8> =
        content.iter().flat_map(|one| serde_json::from_value::<Vec<u8>>(one["bytes"].clone()).unwrap()).collect();
    assert_eq!(choice["message"]["content"].as_str().unwrap().as_bytes(), bytes);
    for one in content {
        let best = &one["top_logprobs"][0];
        assert_eq!((&one["token"], &one["logprob"]), (&best["token"], &best["logprob"]), "greedy takes the best");
    }
}

#[test]
fn a_prompt_stands_before_each_text_and_before_no_tokens() {
    let model =
        model("task = \"embed\"\nprompts.query = \"ask \"\nprompts.other = \"o \"\ndefault_prompt_name = \"other\"");
    let loaded = load(&model, Some(&folder("bert"))).unwrap();
    let tokens = |body| prepare("/v1/embeddings", body, &model, &loaded).sequences.remove(0).tokens;
    let encode = |text| loaded.text.encode(text).unwrap();
    assert_eq!(tokens(json!({ "input": "ab", "prompt_name": "query" })), encode("ask ab"));
    assert_eq!(tokens(json!({ "input": ["ab"] })), encode("o ab"));
    assert_eq!(tokens(json!({ "input": [7, 8], "prompt_name": "query" })), [7, 8]);
}
