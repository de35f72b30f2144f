//! Faults that a prompt of the echo engine may ask for, where the registry allows it: what tests do to a worker.

use super::{Sequence, StepError};

/// More than any limit that a test sets, and less than what a machine has.
const MEMORY_MAX: usize = 4 << 30;
const MEMORY_STEP: usize = 64 << 20;

/// Does what the prompt asks for.
pub fn trip(sequence: &Sequence) -> Result<(), StepError> {
    let prompt: Vec<u8> = sequence.tokens.iter().map(|&token| u8::try_from(token).unwrap_or(b'?')).collect();
    let asks = |fault: &[u8]| prompt.windows(fault.len()).any(|window| window == fault);
    assert!(!asks(b"!panic!"), "the prompt asked for a panic");
    if asks(b"!error!") {
        return Err(StepError("the prompt asked for an error".to_owned()));
    }
    if asks(b"!abort!") {
        std::process::abort();
    }
    if asks(b"!oom!") {
        let mut taken = Vec::new();
        while taken.len() * MEMORY_STEP < MEMORY_MAX {
            taken.push(vec![1_u8; MEMORY_STEP]);
        }
        return Err(StepError(format!("there was memory for {} MiB", (taken.len() * MEMORY_STEP) >> 20)));
    }
    while asks(b"!hang!") {
        std::thread::park();
    }
    Ok(())
}
