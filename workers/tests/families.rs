//! Every family of encoders against transformers, on the tiny models that `tests/golden/encoders/make.py` made.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use schemas::registry::Registry;
use serde_json::Value;
use workers::engine::{Engine, Goal, Loaded, Output, Sequence, SequenceId, load};

/// Every folder of a family.
fn families() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/encoders");
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut families: Vec<_> = entries.filter(|path| path.join("golden.json").exists()).collect();
    families.sort();
    assert_eq!(families.len(), 9);
    families
}

fn read(folder: &Path, task: &str, dtype: &str) -> Loaded {
    let lines = format!("name = \"m\"\ntask = \"{task}\"\nsource = \"m\"\ndtype = \"{dtype}\"");
    let registry = Registry::parse(&format!("[[models]]\n{lines}")).unwrap();
    load(&registry.models[0], Some(folder)).unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
}

fn golden(folder: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(folder.join("golden.json")).unwrap()).unwrap()
}

fn numbers<T: serde::de::DeserializeOwned>(value: &Value) -> Vec<T> {
    serde_json::from_value(value.clone()).unwrap()
}

/// Runs all sequences in one batch.
fn run(engine: &mut dyn Engine, sequences: Vec<Sequence>) -> Vec<Vec<f32>> {
    for (id, sequence) in sequences.into_iter().enumerate() {
        engine.add(SequenceId(id as u64), Arc::new(sequence));
    }
    let mut outputs = Vec::new();
    while !engine.is_idle() {
        engine.step().unwrap();
        outputs.extend(engine.finished());
    }
    outputs.sort_by_key(|(id, _)| *id);
    let values = |(_, output)| match output {
        Output::Embedding(values) | Output::Scores(values) => values,
        Output::Completion { .. } | Output::Transcript(_) => panic!("an encoder generates nothing"),
    };
    outputs.into_iter().map(values).collect()
}

#[track_caller]
fn assert_near(folder: &Path, what: &str, ours: &[Vec<f32>], cases: &[Value]) {
    assert_eq!(ours.len(), cases.len());
    for (ours, case) in ours.iter().zip(cases) {
        let theirs: Vec<f32> = numbers(&case[what]);
        assert_eq!(ours.len(), theirs.len());
        let scale = theirs.iter().fold(1.0_f32, |most, value| most.max(value.abs()));
        let apart = ours.iter().zip(&theirs).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(apart < 2e-4 * scale, "{}, {what} of {}: {ours:?} and {theirs:?}", folder.display(), case["text"]);
    }
}

#[test]
fn vectors_and_scores_are_those_of_transformers() {
    for folder in families() {
        let golden = golden(&folder);
        let cases = golden["cases"].as_array().unwrap();
        let is_reranker = folder.to_str().unwrap().ends_with("-rerank");
        let classify = if is_reranker { "rerank" } else { "classify" };
        for (task, goal, what) in [("embed", Goal::Embed, "embedding"), (classify, Goal::Score, "scores")] {
            let Loaded { text, mut engine, .. } = read(&folder, task, "f32");
            let sequence = |case: &Value| {
                let tokens = text.encode(case["text"].as_str().unwrap()).unwrap();
                assert_eq!(tokens, numbers::<u32>(&case["token_ids"]), "{}", folder.display());
                Sequence::new(tokens, goal.clone())
            };
            let sequences = cases.iter().map(sequence).collect();
            assert_near(&folder, what, &run(&mut *engine, sequences), cases);
        }
    }
}

#[test]
fn pairs_are_those_of_transformers() {
    for folder in families() {
        let golden = golden(&folder);
        let documents = golden["documents"].as_array().unwrap();
        let is_reranker = folder.to_str().unwrap().ends_with("-rerank");
        let Loaded { text, mut engine, .. } = read(&folder, if is_reranker { "rerank" } else { "classify" }, "f32");
        let query = text.pair(golden["query"].as_str().unwrap()).unwrap();
        let sequence = |case: &Value| {
            let (tokens, pair_at) = text.encode_pair(&query, case["text"].as_str().unwrap(), None).unwrap();
            assert_eq!(tokens, numbers::<u32>(&case["token_ids"]), "{}", folder.display());
            Sequence { pair_at, ..Sequence::new(tokens, Goal::Score) }
        };
        let sequences = documents.iter().map(sequence).collect();
        assert_near(&folder, "scores", &run(&mut *engine, sequences), documents);
    }
}

#[test]
fn a_cut_pair_keeps_its_first_text_and_its_special_tokens() {
    for folder in families() {
        let Loaded { text, .. } = read(&folder, "embed", "f32");
        let pair = text.pair("abc").unwrap();
        let whole = text.encode_pair(&pair, "defghi", None).unwrap().0;
        let cut = text.encode_pair(&pair, "defghi", Some(whole.len() - 2)).unwrap().0;
        let (end, kept) = cut.split_last().unwrap();
        assert_eq!(kept.len(), whole.len() - 3);
        assert_eq!((Some(end), kept), (whole.last(), &whole[..kept.len()]), "{}", folder.display());
    }
}

#[cfg(not(feature = "cuda"))]
#[test]
fn int8_is_near() {
    for folder in families() {
        let golden = golden(&folder);
        let cases = golden["cases"].as_array().unwrap();
        let mut engine = read(&folder, "embed", "int8").engine;
        let sequences = cases.iter().map(|case| Sequence::new(numbers(&case["token_ids"]), Goal::Embed)).collect();
        for (ours, case) in run(&mut *engine, sequences).iter().zip(cases) {
            let theirs: Vec<f32> = numbers(&case["embedding"]);
            let cosine: f32 = ours.iter().zip(&theirs).map(|(a, b)| a * b).sum();
            assert!(cosine > 0.97, "{}: {cosine} for {}", folder.display(), case["text"]);
        }
    }
}
