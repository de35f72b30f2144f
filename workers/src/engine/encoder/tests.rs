//! A tiny random BERT, written to a folder as a real one would be.

use std::collections::HashMap;
use std::path::Path;

use candle_core::{Device, Tensor};
use serde_json::json;

use super::*;
use crate::engine::Goal;

const HIDDEN: usize = 8;

fn write_model(folder: &Path) {
    let config = json!({
        "model_type": "bert", "hidden_size": HIDDEN, "num_hidden_layers": 2, "num_attention_heads": 2,
        "max_position_embeddings": 16, "hidden_act": "gelu", "layer_norm_eps": 1e-12,
    });
    let words: HashMap<String, u32> =
        ["[UNK]", "[CLS]", "[SEP]", "a", "b", "c"].iter().zip(0..).map(|(word, id)| (word.to_string(), id)).collect();
    let tokenizer = json!({
        "version": "1.0", "added_tokens": [], "pre_tokenizer": {"type": "Whitespace"},
        "model": {"type": "WordLevel", "vocab": words, "unk_token": "[UNK]"},
    });
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    std::fs::write(folder.join("tokenizer.json"), tokenizer.to_string()).unwrap();
    let mut tensors = HashMap::new();
    let mut add = |name: String, shape: &[usize]| {
        let tensor = Tensor::randn(0_f32, 0.5, shape, &Device::Cpu).unwrap();
        tensors.insert(name, tensor);
    };
    add("embeddings.word_embeddings.weight".into(), &[6, HIDDEN]);
    add("embeddings.position_embeddings.weight".into(), &[16, HIDDEN]);
    add("embeddings.token_type_embeddings.weight".into(), &[2, HIDDEN]);
    let mut linear = |name: &str, out: &[usize]| {
        add(format!("{name}.weight"), out);
        add(format!("{name}.bias"), &out[..1]);
    };
    linear("embeddings.LayerNorm", &[HIDDEN]);
    for layer in 0..2 {
        let name = format!("encoder.layer.{layer}");
        for part in ["attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"] {
            linear(&format!("{name}.{part}"), &[HIDDEN, HIDDEN]);
        }
        linear(&format!("{name}.attention.output.LayerNorm"), &[HIDDEN]);
        linear(&format!("{name}.intermediate.dense"), &[16, HIDDEN]);
        linear(&format!("{name}.output.dense"), &[HIDDEN, 16]);
        linear(&format!("{name}.output.LayerNorm"), &[HIDDEN]);
    }
    candle_core::safetensors::save(&tensors, folder.join(files::WEIGHTS)).unwrap();
}

fn run(encoder: &mut Encoder, sequences: &[Vec<u32>]) -> Vec<Vec<f32>> {
    for (id, tokens) in (0..).zip(sequences) {
        encoder.add(SequenceId(id), Sequence::new(tokens.clone(), Goal::Embed).into());
    }
    let mut outputs = Vec::new();
    while !encoder.is_idle() {
        encoder.step().unwrap();
        outputs.extend(encoder.finished());
    }
    outputs.sort_by_key(|(id, _)| *id);
    let vector = |(_, output)| match output {
        Output::Embedding(vector) => vector,
        Output::Completion { .. } => panic!("an encoder embeds"),
    };
    outputs.into_iter().map(vector).collect()
}

#[test]
fn a_vector_does_not_depend_on_what_else_is_in_the_batch() {
    let folder = tempfile::tempdir().unwrap();
    write_model(folder.path());
    let (_, mut encoder) = Encoder::load(folder.path(), &Limits::default(), &Device::Cpu).unwrap();
    let sequences = vec![vec![1, 3, 2], vec![1, 3, 4, 5, 3, 2], vec![4], vec![5; 16]];
    let together = run(&mut encoder, &sequences);
    for (sequence, expected) in sequences.iter().zip(&together) {
        let alone = run(&mut encoder, std::slice::from_ref(sequence));
        let difference = alone[0].iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(difference < 1e-5, "{difference}");
        assert!((expected.iter().map(|value| value * value).sum::<f32>() - 1.0).abs() < 1e-5);
    }
}

#[test]
fn files_that_are_missing_or_corrupt_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let load = || Encoder::load(folder.path(), &Limits::default(), &Device::Cpu).map(drop).unwrap_err().to_string();
    assert!(load().contains("config.json: is missing"));
    write_model(folder.path());
    std::fs::write(folder.path().join(files::WEIGHTS), b"\x40\0\0\0\0\0\0\0{").unwrap();
    assert!(load().contains("model.safetensors: "), "{}", load());
    candle_core::safetensors::save(&HashMap::<String, Tensor>::new(), folder.path().join(files::WEIGHTS)).unwrap();
    assert!(load().contains("tensor embeddings.token_type_embeddings.weight is missing"), "{}", load());
}
