//! Results in both encodings, and their bodies as the answers of every endpoint.
#![no_main]

use libfuzzer_sys::fuzz_target;
use schemas::codec::decode_body;
use schemas::completions::{ChatCompletionResponse, CompletionResponse};
use schemas::embeddings::EmbeddingResponse;
use schemas::result::{ErrorBody, JobResult};

fuzz_target!(|bytes: &[u8]| {
    for result in fuzz::read::<JobResult>(bytes) {
        assert_eq!(result.is_success(), result.response.is_some() && (200..300).contains(&result.status_code()));
        let Some(response) = &result.response else { continue };
        decode_body::<EmbeddingResponse>(&response.body).iter().for_each(fuzz::survives);
        decode_body::<ChatCompletionResponse>(&response.body).iter().for_each(fuzz::survives);
        decode_body::<CompletionResponse>(&response.body).iter().for_each(fuzz::survives);
        decode_body::<ErrorBody>(&response.body).iter().for_each(fuzz::survives);
    }
});
