//! Image files: whatever is in one, it is seen or refused, within its limits.
#![no_main]

use std::sync::Once;

use libfuzzer_sys::fuzz_target;

mod engine {
    pub use super::resize::Pixels;
}
#[path = "../../../../workers/src/picture.rs"]
mod picture;
#[path = "../../../../workers/src/engine/clip/resize.rs"]
mod resize;

static QUIET: Once = Once::new();

fuzz_target!(|bytes: &[u8]| {
    // A decoder that panics has refused a file; libFuzzer would end the process before that is caught.
    QUIET.call_once(|| std::panic::set_hook(Box::new(|_| {})));
    let Ok(pixels) = picture::read(bytes) else { return };
    if pixels.values.len() != pixels.width * pixels.height * 3 {
        std::process::abort();
    }
    if pixels.width * pixels.height <= 1 << 16 {
        let seen = pixels.resized(32, 32, resize::Filter::Bicubic).cropped(16, 16);
        if seen.values.len() != 16 * 16 * 3 {
            std::process::abort();
        }
        pixels.resized(40, 8, resize::Filter::Bilinear);
    }
});
