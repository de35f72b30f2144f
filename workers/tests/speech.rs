//! Whisper against transformers, on the tiny model that `tests/golden/speech/make.py` made in two formats.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use schemas::registry::Registry;
use serde_json::Value;
use workers::engine::load::device;
use workers::engine::speech::Speech;
use workers::engine::speech::mel::{Ear, Mel, RATE};
use workers::engine::text::Text;
use workers::engine::{Engine, Goal, Hearing, LoadError, Output, Sequence, SequenceId, Transcript};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/speech")
}

fn golden() -> Value {
    serde_json::from_slice(&std::fs::read(folder().join("golden.json")).unwrap()).unwrap()
}

fn numbers<T: serde::de::DeserializeOwned>(value: &Value) -> T {
    serde_json::from_value(value.clone()).unwrap()
}

/// What the script makes by the same formula.
fn audio(seconds: f64) -> Vec<f32> {
    let (mut state, turn) = (1_u64, std::f64::consts::TAU);
    let sample = |at: usize| {
        state = (state * 1_103_515_245 + 12_345) % (1 << 31);
        let noise = state as f64 / f64::from(1_u32 << 31) - 0.5;
        let time = at as f64 / RATE as f64;
        let swell = 0.5 + 0.5 * (turn * 3.0 * time).sin();
        let tones = 0.3 * (turn * 330.0 * time).sin() + 0.1 * (turn * 2500.0 * time).sin();
        (swell * tones + 0.01 * noise) as f32
    };
    (0..(seconds * RATE as f64) as usize).map(sample).collect()
}

fn heard(bands: usize, seconds: f64) -> Mel {
    let ear = Ear::new(bands);
    let mut listener = ear.listen();
    listener.hear(&audio(seconds));
    listener.finish()
}

fn try_load(format: &str, dtype: &str) -> Result<(Arc<Text>, Speech), LoadError> {
    let lines = format!("name = \"m\"\ntask = \"transcribe\"\nsource = \"m\"\ndtype = \"{dtype}\"\nlimits.batch = 3");
    let registry = Registry::parse(&format!("[[models]]\n{lines}")).unwrap();
    let (folder, model) = (folder().join(format), &registry.models[0]);
    match dtype {
        // Runs on processors alone.
        "int8" => Speech::load_on_processor(&folder, model),
        _ => Speech::load(&folder, model, &device()?),
    }
}

fn load(format: &str, dtype: &str) -> (Arc<Text>, Speech) {
    try_load(format, dtype).unwrap_or_else(|error| panic!("{format}: {error}"))
}

/// Audio, tokens, and the logits of transformers after each.
fn case() -> (Mel, Vec<u32>, Vec<Vec<f32>>) {
    let golden = golden();
    (heard(80, golden["seconds"].as_f64().unwrap()), numbers(&golden["tokens"]), numbers(&golden["logits"]))
}

#[cfg(not(feature = "gpu"))]
#[test]
fn half_precision_is_refused() {
    for dtype in ["f16", "bf16"] {
        let Err(error) = try_load("whisper", dtype) else { panic!("{dtype} was taken") };
        assert!(error.to_string().contains("needs a GPU; on a processor models compute in f32 or int8"), "{error}");
    }
}

#[cfg(feature = "cuda")]
#[test]
fn half_precision_is_near() {
    let (mel, tokens, theirs) = case();
    for dtype in ["f16", "bf16"] {
        let ours = load("whisper", dtype).1.logits(&mel, 0, &tokens).unwrap().concat();
        assert!(cosine(&ours, &theirs.concat()) > 0.995, "{dtype}");
    }
}

#[test]
fn spectra_are_those_of_transformers() {
    let golden = golden();
    for (bands, name, step) in [(80, "frames", 10), (128, "frames_128", 20)] {
        let mel = heard(bands, golden["seconds"].as_f64().unwrap());
        let mut window = vec![0.0; 200 * bands];
        mel.window(0, &mut window);
        for (index, theirs) in numbers::<Vec<Vec<f32>>>(&golden[name]).iter().enumerate() {
            let ours = &window[index * step * bands..][..bands];
            let apart = ours.iter().zip(theirs).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(apart < 1e-4, "{name} {}: {apart}", index * step);
        }
    }
}

#[test]
fn logits_are_those_of_transformers() {
    let (mel, tokens, theirs) = case();
    for format in ["whisper", "ct2"] {
        let (_, mut speech) = load(format, "f32");
        for (ours, theirs) in speech.logits(&mel, 0, &tokens).unwrap().iter().zip(&theirs) {
            let apart = ours.iter().zip(theirs).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            // Keys and values are kept in f16.
            assert!(apart < 2e-2, "{format}: {apart}");
        }
        if cfg!(not(feature = "emulated")) {
            let (_, mut near) = load(format, "int8");
            let cosine = cosine(&near.logits(&mel, 0, &tokens).unwrap().concat(), &theirs.concat());
            assert!(cosine > 0.995, "{format} in int8: {cosine}");
        }
    }
}

fn cosine(ours: &[f32], theirs: &[f32]) -> f64 {
    let product = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(a * b)).sum::<f64>();
    product(ours, theirs) / (product(ours, ours) * product(theirs, theirs)).sqrt()
}

fn transcribe(speech: &mut Speech, files: &[(Mel, Vec<u32>)]) -> Vec<Transcript> {
    for (id, (mel, prompt)) in (0..).zip(files) {
        let hearing = Hearing {
            mel: Arc::new(mel.clone()),
            language: None,
            translate: false,
            temperature: 0.0,
            words: true,
            seed: 0,
        };
        speech.add(SequenceId(id), Arc::new(Sequence::new(prompt.clone(), Goal::Transcribe(hearing))));
    }
    let mut done = Vec::new();
    while !speech.is_idle() {
        speech.step().unwrap();
        done.extend(speech.finished());
    }
    done.sort_by_key(|(id, _)| *id);
    let transcript = |(_, output)| match output {
        Output::Transcript(transcript) => transcript,
        other => panic!("{other:?}"),
    };
    done.into_iter().map(transcript).collect()
}

#[test]
fn a_file_is_heard_alike_alone_and_among_others() {
    let (_, mut speech) = load("ct2", "f32");
    let files: Vec<(Mel, Vec<u32>)> =
        [1.5, 0.3, 5.0, 0.0, 2.5].into_iter().map(|seconds| (heard(80, seconds), vec![40, 41])).collect();
    let together = transcribe(&mut speech, &files);
    for (file, among) in files.iter().zip(&together) {
        let alone = transcribe(&mut speech, std::slice::from_ref(file));
        assert_eq!(alone[0].segments.len(), among.segments.len());
        for (alone, among) in alone[0].segments.iter().zip(&among.segments) {
            assert_eq!((&alone.tokens, &alone.words), (&among.tokens, &among.words));
            assert!(alone.start < alone.end && alone.end <= file.0.seconds() + 0.02, "{alone:?}");
            assert!(alone.words.windows(2).all(|pair| pair[0].start <= pair[1].start), "{:?}", alone.words);
        }
    }
    assert_eq!((together[3].segments.len(), together[3].tokens), (0, 0), "of nothing");
}

#[test]
fn what_is_taken_out_leaves_room() {
    let (_, mut speech) = load("whisper", "f32");
    let one = [(heard(80, 1.0), Vec::new())];
    let before = transcribe(&mut speech, &one);
    for round in 0..20 {
        let hearing = Hearing {
            mel: Arc::new(heard(80, 3.0)),
            language: None,
            translate: true,
            temperature: 0.7,
            words: false,
            seed: round,
        };
        for id in 0..3 {
            let sequence = Sequence::new(Vec::new(), Goal::Transcribe(hearing.clone()));
            speech.add(SequenceId(id), Arc::new(sequence));
        }
        (0..round % 5).for_each(|_| speech.step().unwrap());
        (0..3).for_each(|id| speech.remove(SequenceId(id)));
        speech.finished();
        assert!(speech.is_idle());
    }
    assert_eq!(transcribe(&mut speech, &one), before);
}
