//! A tiny random Llama: what it says is nonsense, but batching and chunking must not change it.

use std::collections::HashMap;

use kernels::Activation;
use schemas::registry::Dtype;
use serde_json::json;
use tokenizers::Tokenizer;

use super::*;
use crate::engine::decoder::blueprint::{Dense, Function, Layer, Layers, Perceptron, Rotation, Shape, Source};
use crate::engine::decoder::rotation::Scaling;
use crate::engine::layers::{Affine, NormWeights};
use crate::engine::load::device;
use crate::engine::{FinishReason, Goal, Logprobs, SamplingParams};

const VOCABULARY: usize = 64;
const CONTEXT: usize = 2048;

/// One letter for each token, so that texts can be read.
fn text() -> Text {
    let vocabulary: HashMap<String, u32> =
        (0..VOCABULARY as u32).map(|id| (char::from_u32(0x100 + id).unwrap().to_string(), id)).collect();
    let document = json!({
        "version": "1.0", "added_tokens": [], "decoder": {"type": "Fuse"},
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "\u{100}"},
    });
    Text::generation(Tokenizer::from_bytes(document.to_string()).unwrap(), None, None, None, CONTEXT)
}

/// Two layers of four heads in two groups; the same weights each time.
fn source() -> Source {
    let mut random = fastrand::Rng::with_seed(1);
    let mut values = |count: usize| (0..count).map(|_| random.f32() - 0.5).collect::<Vec<f32>>();
    let mut linear = |inputs: usize, outputs: usize| Affine { weight: values(inputs * outputs), bias: None, inputs };
    let norm = || NormWeights::Rms { weight: vec![1.0; 32], epsilon: 1e-5 };
    let layers = (0..2).map(|_| Layer {
        norm: norm(),
        projection: linear(32, 64),
        head_norms: None,
        rotation: Some(Rotation::new(8, 10_000.0, Scaling::None)),
        window: None,
        sinks: None,
        output: linear(32, 32),
        output_norm: None,
        cross: None,
        perceptron_norm: norm(),
        perceptron: Perceptron::Dense(Dense {
            up: linear(32, 2 * 48),
            function: Function::Gated(Activation::Silu),
            down: linear(48, 32),
        }),
        down_norm: None,
    });
    let mut layers: Vec<_> = layers.map(Some).collect();
    Source {
        has_four_bits: false,
        words: linear(VOCABULARY, 32).weight,
        positions: None,
        layers: Layers::new(2, move |index| Ok(layers[index].take().expect("is read once"))),
        norm: norm(),
        output: None,
        shape: Shape::plain(32, [4, 2], 8, CONTEXT),
    }
}

/// What is computed in here: on the processor, or by the kernels for GPUs, on one or emulated.
#[cfg(not(feature = "gpu"))]
const DTYPES: [Dtype; 3] = [Dtype::F32, Dtype::Int8, Dtype::Int4];
#[cfg(feature = "gpu")]
const DTYPES: [Dtype; 2] = [Dtype::F32, Dtype::F16];

fn decoder_of(dtype: Dtype, blocks: usize, batch: usize) -> Decoder {
    let executor = Executor::new(source(), dtype, blocks, &device().unwrap()).unwrap();
    let mut decoder = Decoder::new(executor, Blocks::new(blocks), Arc::new(text()), Vec::new(), batch);
    decoder.step_tokens = 512;
    decoder
}

fn decoder(batch: usize) -> Decoder {
    decoder_of(Dtype::F32, 200, batch)
}

fn sequence(tokens: Vec<u32>, max_tokens: usize, stop: &[String]) -> Sequence {
    let params = SamplingParams {
        temperature: 0.7,
        top_p: 0.9,
        seed: 3,
        max_tokens,
        stop: stop.to_vec(),
        ..SamplingParams::default()
    };
    Sequence::new(tokens, Goal::Generate(params))
}

fn run(decoder: &mut Decoder, sequences: &[Sequence]) -> Vec<Output> {
    for (id, sequence) in (0..).zip(sequences) {
        decoder.add(SequenceId(id), sequence.clone().into());
    }
    let mut outputs = Vec::new();
    while !decoder.is_idle() {
        decoder.step().unwrap();
        outputs.extend(decoder.finished());
    }
    outputs.sort_by_key(|(id, _)| *id);
    outputs.into_iter().map(|(_, output)| output).collect()
}

#[test]
#[cfg(not(feature = "gpu"))]
fn half_precision_is_refused_on_a_processor() {
    for dtype in [Dtype::F16, Dtype::Bf16] {
        assert!(matches!(Executor::new(source(), dtype, 1, &Device::Cpu), Err(LoadError::NeedsGpu(_))));
    }
}

#[test]
fn logprobs_are_the_same_for_a_text_that_is_taken_over() {
    let mut decoder = decoder(2);
    let mut whole = sequence(prompt(40), 12, &[]);
    if let Goal::Generate(params) = &mut whole.goal {
        params.logprobs = Some(3);
    }
    let (tokens, expected) = run_whole(&mut decoder, &whole);
    let Output::Completion { logprobs, .. } = &expected else { panic!("a decoder generates") };
    assert_eq!(logprobs.iter().map(|one| one.token).collect::<Vec<_>>(), tokens);
    assert!(logprobs.iter().all(|one| one.top.len() == 3 && one.top[0].1 >= one.logprob));
    for made in [1, 7, 11, 12] {
        let taken_over = Sequence { made: tokens[..made].to_vec(), ..whole.clone() };
        let again = run(&mut decoder, &[taken_over]).remove(0);
        let Output::Completion { logprobs: again, .. } = &again else { panic!("a decoder generates") };
        let apart = |a: &Logprobs, b: &Logprobs| (a.token != b.token) || (a.logprob - b.logprob).abs() > 1e-4;
        assert_eq!(again.len(), 12);
        assert!(!again.iter().zip(logprobs).any(|(a, b)| apart(a, b)), "after {made}: {again:?} and {logprobs:?}");
    }
}

/// The tokens that are made of one sequence, and its output.
fn run_whole(decoder: &mut Decoder, sequence: &Sequence) -> (Vec<u32>, Output) {
    let output = run(decoder, std::slice::from_ref(sequence)).remove(0);
    (decoder.made().into_iter().map(|made| made.token).collect(), output)
}

fn letters(output: &Output) -> &str {
    match output {
        Output::Completion { text, .. } => text,
        Output::Embedding(_) | Output::Scores(_) | Output::Transcript(_) => panic!("a decoder generates"),
    }
}

fn prompt(length: u32) -> Vec<u32> {
    (0..length).map(|place| place * 7 % VOCABULARY as u32).collect()
}

#[test]
fn a_text_does_not_depend_on_the_batch_nor_on_how_its_prompt_is_chunked() {
    for dtype in DTYPES {
        does_not_depend_on_the_batch(dtype);
    }
}

fn does_not_depend_on_the_batch(dtype: Dtype) {
    let mut decoder = decoder_of(dtype, 200, 3);
    // The longest prompts take several steps to read, while the short ones already generate.
    let mut sequences: Vec<_> = [5, 700, 1, 1200, 64].map(|length| sequence(prompt(length), 12, &[])).into();
    // Some of them are drawn where their logits are.
    for (index, sequence) in sequences.iter_mut().enumerate() {
        let Goal::Generate(params) = &mut sequence.goal else { panic!("a decoder generates") };
        (params.temperature, params.top_p) = [(0.7, 0.9), (0.7, 1.0), (0.0, 1.0)][index % 3];
    }
    let together = run(&mut decoder, &sequences);
    for (sequence, expected) in sequences.iter().zip(&together) {
        assert_eq!(&run(&mut decoder, std::slice::from_ref(sequence))[0], expected);
        assert!(matches!(
            expected,
            Output::Completion { completion_tokens: 12, finish_reason: FinishReason::Length, .. }
        ));
    }
}

#[test]
fn guesses_change_how_long_a_text_takes_and_not_the_text() {
    for dtype in DTYPES {
        for temperature in [0.0, 0.3] {
            let sequences: Vec<_> = [5, 40, 90].map(|length| guessable(prompt(length), temperature)).into();
            for together in [1, 3] {
                let (plain, guessed) = (&mut decoder_of(dtype, 200, together), &mut decoder_of(dtype, 200, together));
                guessed.guesses = 8;
                let (expected, steps) = run_counted(plain, &sequences);
                let (outputs, fewer) = run_counted(guessed, &sequences);
                assert_eq!(outputs, expected, "{dtype:?}, {temperature}, {together} together");
                assert_eq!(guessed.blocks.free(), plain.blocks.free());
                assert!(fewer < steps, "{dtype:?}, {temperature}, {together} together: {fewer} steps of {steps}");
            }
        }
    }
}

/// A long text with all that can be said of each token.
fn guessable(tokens: Vec<u32>, temperature: f32) -> Sequence {
    let params = SamplingParams {
        temperature,
        seed: 5,
        // An emulator takes its time.
        max_tokens: if cfg!(feature = "gpu") { 50 } else { 120 },
        frequency_penalty: -0.2,
        logprobs: Some(0),
        ..SamplingParams::default()
    };
    Sequence::new(tokens, Goal::Generate(params))
}

/// Texts with their tokens, and the steps it took. How probable tokens are depends a little on what is computed beside them.
fn run_counted(decoder: &mut Decoder, sequences: &[Sequence]) -> (Vec<(Vec<u32>, String)>, usize) {
    for (id, sequence) in (0..).zip(sequences) {
        decoder.add(SequenceId(id), sequence.clone().into());
    }
    let (mut outputs, mut made, mut steps) = (Vec::new(), vec![Vec::new(); sequences.len()], 0);
    while !decoder.is_idle() {
        decoder.step().unwrap();
        steps += 1;
        decoder.made().into_iter().for_each(|one| made[one.id.0 as usize].push(one.token));
        outputs.extend(decoder.finished());
    }
    outputs.sort_by_key(|(id, _)| *id);
    for ((_, output), made) in outputs.iter().zip(&made) {
        let Output::Completion { logprobs, .. } = output else { panic!("a decoder generates") };
        assert!(logprobs.iter().map(|one| one.token).eq(made.iter().copied()), "each token has its probability");
    }
    (made.into_iter().zip(outputs.iter().map(|(_, output)| letters(output).to_owned())).collect(), steps)
}

#[test]
fn a_text_ends_before_its_stop_string_even_across_tokens() {
    let mut decoder = decoder(1);
    let whole = run(&mut decoder, &[sequence(vec![1, 2, 3], 10, &[])]);
    let letters: Vec<char> = letters(&whole[0]).chars().collect();
    let stop: String = letters[4..6].iter().collect();
    let first = letters.windows(2).position(|pair| pair.iter().collect::<String>() == stop).unwrap();
    let stopped = run(&mut decoder, &[sequence(vec![1, 2, 3], 10, &[stop])]);
    let text: String = letters[..first].iter().collect();
    assert_eq!(
        stopped,
        [Output::Completion {
            text,
            completion_tokens: first + 2,
            finish_reason: FinishReason::Stop,
            logprobs: Vec::new()
        }]
    );
}

#[test]
fn a_text_ends_with_its_end_token_which_counts_but_is_not_text() {
    let mut plain = decoder(1);
    let whole = run(&mut plain, &[sequence(vec![9], 6, &[])]);
    let end = letters(&whole[0]).chars().nth(3).unwrap() as u32 - 0x100;
    let first = letters(&whole[0]).chars().position(|letter| letter as u32 - 0x100 == end).unwrap();
    plain.ends = vec![end];
    let ended = run(&mut plain, &[sequence(vec![9], 6, &[])]);
    let text: String = letters(&whole[0]).chars().take(first).collect();
    assert_eq!(
        ended,
        [Output::Completion {
            text,
            completion_tokens: first + 1,
            finish_reason: FinishReason::Stop,
            logprobs: Vec::new()
        }]
    );
}

#[test]
fn a_removed_sequence_makes_room() {
    let mut decoder = decoder(1);
    decoder.add(SequenceId(1), sequence(vec![1], 1000, &[]).into());
    decoder.add(SequenceId(2), sequence(vec![1], 1, &[]).into());
    decoder.step().unwrap();
    decoder.remove(SequenceId(1));
    decoder.step().unwrap();
    assert_eq!(decoder.finished().len(), 1);
    assert!(decoder.is_idle());
}

#[test]
fn a_text_that_is_taken_over_ends_as_it_would_have() {
    for temperature in [0.0, 0.7] {
        let mut decoder = decoder(2);
        let mut whole = sequence(vec![3, 1, 4], 12, &[]);
        if let Goal::Generate(params) = &mut whole.goal {
            params.temperature = temperature;
        }
        let (tokens, expected) = run_whole(&mut decoder, &whole);
        for made in 0..=tokens.len() {
            let taken_over = Sequence { made: tokens[..made].to_vec(), ..whole.clone() };
            decoder.add(SequenceId(2), taken_over.into());
            let mut again = tokens[..made].to_vec();
            let mut output = None;
            while output.is_none() {
                decoder.step().unwrap();
                again.extend(decoder.made().into_iter().map(|made| made.token));
                output = decoder.finished().pop();
            }
            assert_eq!((again, output.unwrap().1), (tokens.clone(), expected.clone()), "after {made} tokens");
        }
    }
}

#[test]
fn with_few_blocks_sequences_wait_or_begin_again_and_none_is_lost() {
    let sequences: Vec<_> = [5, 100, 1, 130, 64, 31, 32].map(|length| sequence(prompt(length), 90, &[])).into();
    let expected = run(&mut decoder(4), &sequences);
    // The longest alone needs seven.
    for blocks in [7, 9, 12] {
        let mut decoder = decoder_of(Dtype::F32, blocks, 4);
        assert_eq!(run(&mut decoder, &sequences), expected, "{blocks} blocks");
        assert_eq!(decoder.blocks.free(), blocks);
    }
}

#[test]
fn tokens_that_several_prompts_begin_with_are_computed_once() {
    let mut decoder = decoder(8);
    let shared = prompt(4 * BLOCK as u32);
    let sequences: Vec<_> = (0..6_u32).map(|own| sequence([&shared[..], &[own; 5]].concat(), 4, &[])).collect();
    let alone: Vec<_> = sequences
        .iter()
        .map(|one| run(&mut decoder_of(Dtype::F32, 200, 1), std::slice::from_ref(one)).remove(0))
        .collect();
    for (id, sequence) in (0..).zip(&sequences) {
        decoder.add(SequenceId(id), sequence.clone().into());
    }
    decoder.step().unwrap();
    assert_eq!(decoder.running.len(), 1, "the others wait for what it computes");
    decoder.step().unwrap();
    assert_eq!(decoder.running.len(), 6);
    assert_eq!(decoder.blocks.free(), 200 - 4 - 6);
    let rest = run(&mut decoder, &[]);
    assert_eq!(rest, alone);
    // What has ended is shared too.
    decoder.add(SequenceId(9), sequences[0].clone().into());
    decoder.admit();
    assert_eq!(decoder.running[0].computed, 4 * BLOCK);
}
