//! Log messages in both encodings, and a worker's answer about its pace.
#![no_main]

use libfuzzer_sys::fuzz_target;
use schemas::log::LogMessage;
use schemas::pace::Pace;

fuzz_target!(|bytes: &[u8]| {
    fuzz::read::<LogMessage>(bytes);
    fuzz::read::<Pace>(bytes);
});
