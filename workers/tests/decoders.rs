//! Every family of decoders against transformers, on the tiny models that `tests/golden/decoders/make.py` made; by the kernels
//! for GPUs, where the tests are built with them, on a GPU or emulated.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use schemas::registry::Registry;
use serde_json::Value;
use workers::engine::decoder::Decoder;
use workers::engine::load::device;
use workers::engine::{Engine, Goal, SamplingParams, Sequence, SequenceId};

/// Every folder of a family.
fn families() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/decoders");
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut families: Vec<_> = entries.filter(|path| path.join("golden.json").exists()).collect();
    families.sort();
    assert_eq!(families.len(), 13);
    families
}

fn cases(folder: &Path) -> Vec<Value> {
    let golden: Value = serde_json::from_slice(&std::fs::read(folder.join("golden.json")).unwrap()).unwrap();
    golden["cases"].as_array().unwrap().clone()
}

/// The formats that a family is there in.
fn formats(folder: &Path) -> impl Iterator<Item = PathBuf> {
    [folder.to_owned(), folder.join("model.gguf")].into_iter().filter(|path| path.exists())
}

fn load(path: &Path, dtype: &str) -> Decoder {
    let lines = format!("name = \"m\"\ntask = \"generate\"\nsource = \"m\"\ndtype = \"{dtype}\"");
    let registry = Registry::parse(&format!("[[models]]\n{lines}\nlimits.kv_cache_mebibytes = 1")).unwrap();
    let loaded = Decoder::load(path, &registry.models[0], &device().unwrap());
    loaded.unwrap_or_else(|error| panic!("{}: {error}", path.display())).1
}

fn numbers<T: serde::de::DeserializeOwned>(value: &Value) -> Vec<T> {
    serde_json::from_value(value.clone()).unwrap()
}

#[track_caller]
fn assert_near(folder: &Path, ours: &[f32], theirs: &[f32], most: f32) {
    assert_eq!(ours.len(), theirs.len());
    let apart = ours.iter().zip(theirs).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(apart < most, "{}: {apart} apart, {ours:?} and {theirs:?}", folder.display());
}

#[test]
fn logits_are_those_of_transformers() {
    let mut files = 0;
    for folder in families() {
        for path in formats(&folder) {
            files += 1;
            let mut decoder = load(&path, "f32");
            for case in cases(&folder) {
                compare(&path, &mut decoder, &case);
            }
        }
    }
    assert_eq!(files, 13 + 10, "and GGUF files beside some");
}

fn compare(path: &Path, decoder: &mut Decoder, case: &Value) {
    let (tokens, theirs, last) = last_logits(decoder, case);
    let scale = theirs.iter().fold(1.0_f32, |most, value| most.max(value.abs()));
    // Keys and values are kept in f16.
    assert_near(path, &last, &theirs, 5e-3 * scale);
    assert_near(path, &decoder.score(&tokens).unwrap(), &numbers::<f32>(&case["logprobs"]), 5e-3 * scale);
}

/// The tokens of a case, and the logits after them: theirs and ours.
fn last_logits(decoder: &mut Decoder, case: &Value) -> (Vec<u32>, Vec<f32>, Vec<f32>) {
    let tokens: Vec<u32> = numbers(&case["token_ids"]);
    let mut last = Vec::new();
    decoder.read(&tokens, |_, logits| last = logits.to_vec()).unwrap();
    (tokens, numbers(&case["logits"]), last)
}

/// What is rounded moves all logits a little: it is the squares of their distances that stay small.
#[test]
#[cfg(not(feature = "gpu"))]
fn fewer_bits_are_near_to_what_they_stand_for() {
    for folder in families() {
        // Half the steps, as inputs have them on processors without VNNI, are four times the squares.
        let inputs = 0.03;
        // Weights are rounded too, but for those that are of four bits already.
        let rounded = if folder.ends_with("gpt-oss-mxfp4") { 0.01 } else { 0.25 };
        for (path, (dtype, most)) in
            formats(&folder).flat_map(|path| [("int8", inputs), ("int4", rounded)].map(|near| (path.clone(), near)))
        {
            let mut decoder = load(&path, dtype);
            let (mut apart, mut whole) = (0.0, 0.0);
            for case in cases(&folder) {
                let (_, theirs, ours) = last_logits(&mut decoder, &case);
                apart += ours.iter().zip(&theirs).map(|(a, b)| (a - b).powi(2)).sum::<f32>();
                whole += theirs.iter().map(|value| value.powi(2)).sum::<f32>();
            }
            assert!(apart / whole < most, "{} in {dtype}: {}", path.display(), apart / whole);
        }
    }
}

#[test]
#[cfg(feature = "gpu")]
fn half_precision_is_near() {
    for folder in families() {
        let mut decoder = load(&folder, "f16");
        for case in cases(&folder) {
            let (_, theirs, ours) = last_logits(&mut decoder, &case);
            let apart: f32 = ours.iter().zip(&theirs).map(|(a, b)| (a - b).powi(2)).sum();
            let whole: f32 = theirs.iter().map(|value| value.powi(2)).sum();
            assert!(apart / whole < 1e-4, "{}: {}", folder.display(), apart / whole);
        }
    }
}

#[test]
fn what_follows_greedily_is_what_transformers_says() {
    for folder in families() {
        let mut decoder = load(&folder, "f32");
        let cases = cases(&folder);
        let mut following = vec![Vec::new(); cases.len()];
        for (id, case) in cases.iter().enumerate() {
            let params = SamplingParams { temperature: 0.0, max_tokens: 10, ..SamplingParams::default() };
            let sequence = Sequence::new(numbers(&case["token_ids"]), Goal::Generate(params));
            decoder.add(SequenceId(id as u64), Arc::new(sequence));
        }
        while !decoder.is_idle() {
            decoder.step().unwrap();
            decoder.made().into_iter().for_each(|made| following[made.id.0 as usize].push(made.token));
        }
        for (ours, case) in following.iter().zip(&cases) {
            let mut theirs: Vec<u32> = numbers(&case["following"]);
            // A text ends where its model says so.
            if let Some(end) = theirs.iter().position(|token| *token == 1) {
                theirs.truncate(end + 1);
            }
            assert_eq!(*ours, theirs, "{} after {}", folder.display(), case["token_ids"]);
        }
    }
}
