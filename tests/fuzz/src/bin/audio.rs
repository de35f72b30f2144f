//! Audio files: whatever is in one, it is heard or refused, within its limits.
#![no_main]

use std::sync::Once;

use libfuzzer_sys::fuzz_target;

#[allow(dead_code)]
#[path = "../../../../workers/src/audio.rs"]
mod audio;

const SECONDS_MAX: u64 = 30;

static QUIET: Once = Once::new();

fuzz_target!(|bytes: &[u8]| {
    // A decoder that panics has refused a file; libFuzzer would end the process before that is caught.
    QUIET.call_once(|| std::panic::set_hook(Box::new(|_| {})));
    let mut heard = 0;
    let read = audio::read(bytes.to_vec(), None, SECONDS_MAX, |samples| {
        assert!(samples.iter().all(|sample| sample.is_finite()));
        heard += samples.len();
    });
    // What is refused may have been heard in part.
    if heard > (SECONDS_MAX as usize + 1) * audio::RATE as usize || (read.is_ok() && heard == 0) {
        std::process::abort();
    }
});
