//! Chunks of streamed answers in both encodings, and the ids of their tokens.
#![no_main]

use libfuzzer_sys::fuzz_target;
use schemas::chunk::{Chunk, read_token_ids, write_token_ids};

fuzz_target!(|bytes: &[u8]| {
    for chunk in fuzz::read::<Chunk>(bytes) {
        let _ = (chunk.text(), chunk.finish_reason());
    }
    let ids = read_token_ids(&String::from_utf8_lossy(bytes));
    assert_eq!(read_token_ids(&write_token_ids(&ids)), ids);
});
