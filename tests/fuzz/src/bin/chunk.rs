//! Chunks of streamed answers in both encodings.
#![no_main]

use libfuzzer_sys::fuzz_target;
use schemas::chunk::Chunk;

fuzz_target!(|bytes: &[u8]| {
    for chunk in fuzz::read::<Chunk>(bytes) {
        let _ = (chunk.text(), chunk.finish_reason());
    }
});
