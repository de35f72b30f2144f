//! Batches, limits and wrong files, on a tiny model of `tests/golden/encoders`. `tests/families.rs` compares the vectors.

use std::path::PathBuf;

use schemas::registry::Registry;

use super::*;

fn golden(family: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/encoders").join(family)
}

fn load(folder: &Path, lines: &str) -> Result<(Text, Encoder), LoadError> {
    let registry = format!("[[models]]\nname = \"m\"\nsource = \"m\"\n{lines}\n");
    Encoder::load(folder, &Registry::parse(&registry).unwrap().models[0], &Device::Cpu)
}

fn bert(lines: &str) -> Encoder {
    load(&golden("bert"), &format!("task = \"embed\"\n{lines}")).unwrap().1
}

fn refusal(folder: &Path, lines: &str) -> String {
    load(folder, lines).map(drop).unwrap_err().to_string()
}

fn add(encoder: &mut Encoder, sequences: &[Vec<u32>]) {
    for (id, tokens) in (0..).zip(sequences) {
        encoder.add(SequenceId(id), Sequence::new(tokens.clone(), Goal::Embed).into());
    }
}

fn run(encoder: &mut Encoder, sequences: &[Vec<u32>]) -> Vec<Output> {
    add(encoder, sequences);
    let mut outputs = Vec::new();
    while !encoder.is_idle() {
        encoder.step().unwrap();
        outputs.extend(encoder.finished());
    }
    outputs.sort_by_key(|(id, _)| *id);
    outputs.into_iter().map(|(_, output)| output).collect()
}

/// Lengths that are all different, of tokens that are too.
fn sequences() -> Vec<Vec<u32>> {
    [3, 64, 1, 17, 40, 2, 80, 5].map(|length| (0..length).map(|at| 5 + (at * 7 + length) % 70).collect()).into()
}

#[test]
fn a_vector_does_not_depend_on_what_else_is_in_the_batch() {
    for dtype in ["f32", "int8"] {
        let mut encoder = bert(&format!("dtype = \"{dtype}\""));
        let together = run(&mut encoder, &sequences());
        for (sequence, expected) in sequences().iter().zip(&together) {
            let alone = run(&mut encoder, std::slice::from_ref(sequence));
            let (Output::Embedding(alone), Output::Embedding(expected)) = (&alone[0], expected) else { panic!() };
            let apart = alone.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(apart < 1e-5, "{dtype}: {apart}");
            assert!((expected.iter().map(|value| value * value).sum::<f32>() - 1.0).abs() < 1e-5);
        }
    }
}

#[test]
fn candle_computes_the_same_as_the_kernels() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/encoders");
    let families = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_dir());
    for folder in families {
        let (_, mut encoder) = load(&folder, "task = \"embed\"").unwrap();
        let expected = run(&mut encoder, &sequences());
        let read = Files::read(&folder, Config::read(&folder).unwrap()).unwrap().model;
        let head = files::embedder(&folder, &read).unwrap();
        encoder.executor = Executor::on(read, head, Dtype::F32, &Device::Cpu).unwrap();
        for (ours, expected) in run(&mut encoder, &sequences()).iter().zip(&expected) {
            let (Output::Embedding(ours), Output::Embedding(expected)) = (ours, expected) else { panic!() };
            let apart = ours.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(apart < 1e-4, "{}: {apart}", folder.display());
        }
    }
}

#[test]
fn a_step_computes_no_more_tokens_than_its_budget_and_a_longer_text_alone() {
    let mut encoder = bert("limits.batch_tokens = 70");
    add(&mut encoder, &sequences());
    let mut steps = Vec::new();
    while !encoder.is_idle() {
        encoder.step().unwrap();
        steps.push(encoder.finished().len());
    }
    // 3 + 64 + 1, 17 + 40 + 2, 80, 5.
    assert_eq!(steps, [3, 3, 1, 1]);
    let sequence = |length| Sequence::new(vec![5; length], Goal::Embed);
    assert!(encoder.takes(&sequence(80)), "nothing waits");
    encoder.add(SequenceId(0), sequence(60).into());
    assert!(encoder.takes(&sequence(10)) && !encoder.takes(&sequence(11)));
    encoder.remove(SequenceId(0));
    assert!(encoder.takes(&sequence(80)) && encoder.is_idle());
}

#[test]
fn texts_that_are_the_same_have_the_same_vector_each_under_its_own_id() {
    let mut encoder = bert("");
    let outputs = run(&mut encoder, &[vec![5, 6], vec![7], vec![5, 6], vec![7]]);
    assert_eq!(outputs[0], outputs[2]);
    assert_eq!(outputs[1], outputs[3]);
    assert_ne!(outputs[0], outputs[1]);
}

#[test]
fn prompts_are_those_of_the_files_and_of_the_registry() {
    let folder = copy("bert");
    let file = folder.path().join("config_sentence_transformers.json");
    std::fs::write(file, r#"{"prompts": {"query": "q: ", "document": ""}, "default_prompt_name": null}"#).unwrap();
    let load = |lines: &str| load(folder.path(), &format!("task = \"embed\"\n{lines}")).map(|(text, _)| text);
    let text = load("prompts.query = \"ask: \"\nprompts.other = \"o: \"\ndefault_prompt_name = \"other\"").unwrap();
    assert_eq!(text.prompts().get(Some("query")), Ok("ask: "));
    assert_eq!(text.prompts().get(Some("document")), Ok(""));
    assert_eq!(text.prompts().get(None), Ok("o: "));
    let error = load("default_prompt_name = \"nope\"").unwrap_err().to_string();
    assert!(error.contains("default_prompt_name: \"nope\" is no prompt; this model has \"document\""), "{error}");
}

#[test]
fn files_that_are_missing_or_corrupt_are_named() {
    let embed = "task = \"embed\"";
    let empty = tempfile::tempdir().unwrap();
    assert!(refusal(empty.path(), embed).contains("config.json: is missing"));
    let folder = copy("bert");
    let weights = folder.path().join("model.safetensors");
    let whole = std::fs::read(&weights).unwrap();
    for (bytes, reason) in [
        (&b"\x40\0\0\0\0\0\0\0{"[..], "model.safetensors: "),
        (&whole[..whole.len() - 4], "is cut off"),
        (b"\x02\0\0\0\0\0\0\0{}", "tensor embeddings.position_embeddings.weight is missing"),
    ] {
        std::fs::write(&weights, bytes).unwrap();
        let error = refusal(folder.path(), embed);
        assert!(error.contains(reason), "{error}");
    }
}

#[test]
fn a_configuration_that_is_not_understood_is_refused_by_its_key() {
    let folder = copy("bert");
    let path = folder.path().join("config.json");
    let whole: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    for (task, key, value, reason) in [
        ("embed", "model_type", "t5".into(), "is \"t5\"; encoders are bert,"),
        ("embed", "num_attention_heads", 5.into(), "5 do not divide 32 values"),
        ("embed", "hidden_act", "xielu".into(), "\"xielu\" is not supported"),
        ("embed", "vocab_size", 7.into(), "has the shape [77, 32]"),
        ("embed", "intermediate_size", 7.into(), "has the shape [48, 32]; [7, 32] is wanted"),
        ("rerank", "num_labels", 3.into(), "are 3; the task \"rerank\" takes a model of 1"),
    ] {
        let mut config = whole.clone();
        config[key] = value;
        std::fs::write(&path, config.to_string()).unwrap();
        let error = refusal(folder.path(), &format!("task = \"{task}\""));
        assert!(error.contains(reason), "{key}: {error}");
    }
}

#[test]
fn a_tokenizer_with_more_tokens_than_the_model_is_refused() {
    let folder = copy("bert");
    let path = folder.path().join("tokenizer.json");
    let mut tokenizer: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    tokenizer["model"]["vocab"]["zz"] = 77.into();
    std::fs::write(&path, tokenizer.to_string()).unwrap();
    let error = refusal(folder.path(), "task = \"embed\"");
    assert!(error.contains("tokenizer.json: has tokens up to 77, the model has vectors for 77 of them"), "{error}");
}

/// A folder of its own with a model's files.
fn copy(family: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for name in ["config.json", "tokenizer.json", "model.safetensors"] {
        std::fs::copy(golden(family).join(name), folder.path().join(name)).unwrap();
    }
    folder
}
