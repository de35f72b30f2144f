//! Jobs in both encodings, and their bodies as every endpoint reads them.
#![no_main]

use libfuzzer_sys::fuzz_target;
use schemas::audio::TranscriptionRequest;
use schemas::classify::ClassifyRequest;
use schemas::codec::decode_body;
use schemas::completions::{ChatCompletionRequest, CompletionRequest, Sampling};
use schemas::embeddings::EmbeddingRequest;
use schemas::input::TextOrTokens;
use schemas::job::Job;

fuzz_target!(|bytes: &[u8]| {
    for job in fuzz::read::<Job>(bytes) {
        if let Ok(body) = decode_body::<EmbeddingRequest>(&job.body) {
            assert!(!body.input.prompts().is_empty());
            fuzz::survives(&body);
        }
        if let Ok(body) = decode_body::<CompletionRequest>(&job.body) {
            check_prompts(&body.prompt);
            fuzz::survives(&body);
        }
        decode_body::<ChatCompletionRequest>(&job.body).iter().for_each(fuzz::survives);
        decode_body::<TranscriptionRequest>(&job.body).iter().for_each(fuzz::survives);
        decode_body::<ClassifyRequest>(&job.body).iter().for_each(fuzz::survives);
        decode_body::<Sampling>(&job.body).iter().for_each(fuzz::survives);
    }
});

fn check_prompts(input: &TextOrTokens) {
    let prompts = input.prompts().len();
    assert!(if input.is_list() { prompts > 0 } else { prompts == 1 });
}
