//! A tiny random Llama: what it says is nonsense, but batching and chunking must not change it.

use std::collections::HashMap;

use serde_json::json;
use tokenizers::Tokenizer;

use super::*;

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
    Text::generation(Tokenizer::from_bytes(document.to_string()).unwrap(), None, None, CONTEXT)
}

fn decoder(batch: usize) -> Decoder {
    Decoder::new(Llama::random(VOCABULARY, CONTEXT), Arc::new(text()), Vec::new(), batch)
}

fn sequence(tokens: Vec<u32>, max_tokens: usize, stop: &[String]) -> Sequence {
    let params = SamplingParams { temperature: 0.7, top_p: 0.9, seed: 3, max_tokens, stop: stop.to_vec() };
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

fn letters(output: &Output) -> &str {
    match output {
        Output::Completion { text, .. } => text,
        Output::Embedding(_) | Output::Scores(_) => panic!("a decoder generates"),
    }
}

#[test]
fn a_text_does_not_depend_on_the_batch_nor_on_how_its_prompt_is_chunked() {
    let mut decoder = decoder(3);
    let prompt = |length: u32| (0..length).map(|place| place * 7 % VOCABULARY as u32).collect::<Vec<_>>();
    // The longest prompts take several steps to read, while the short ones already generate.
    let sequences: Vec<_> = [5, 700, 1, 1200, 64].map(|length| sequence(prompt(length), 12, &[])).into();
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
fn a_text_ends_before_its_stop_string_even_across_tokens() {
    let mut decoder = decoder(1);
    let whole = run(&mut decoder, &[sequence(vec![1, 2, 3], 10, &[])]);
    let letters: Vec<char> = letters(&whole[0]).chars().collect();
    let stop: String = letters[4..6].iter().collect();
    let first = letters.windows(2).position(|pair| pair.iter().collect::<String>() == stop).unwrap();
    let stopped = run(&mut decoder, &[sequence(vec![1, 2, 3], 10, &[stop])]);
    let text: String = letters[..first].iter().collect();
    assert_eq!(stopped, [Output::Completion { text, completion_tokens: first + 2, finish_reason: FinishReason::Stop }]);
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
    assert_eq!(ended, [Output::Completion { text, completion_tokens: first + 1, finish_reason: FinishReason::Stop }]);
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
        decoder.add(SequenceId(1), whole.clone().into());
        let mut tokens = Vec::new();
        while !decoder.is_idle() {
            decoder.step().unwrap();
            tokens.extend(decoder.made().into_iter().map(|(_, token)| token));
        }
        let expected = decoder.finished().remove(0).1;
        for made in 0..=tokens.len() {
            let taken_over = Sequence { made: tokens[..made].to_vec(), ..whole.clone() };
            decoder.add(SequenceId(2), taken_over.into());
            let mut again = tokens[..made].to_vec();
            let mut output = None;
            while output.is_none() {
                decoder.step().unwrap();
                again.extend(decoder.made().into_iter().map(|(_, token)| token));
                output = decoder.finished().pop();
            }
            assert_eq!((again, output.unwrap().1), (tokens.clone(), expected.clone()), "after {made} tokens");
        }
    }
}
