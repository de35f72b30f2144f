//! What the targets share: a value that was read can be written and is then read as the same.

use std::fmt::Debug;

use schemas::codec::Encoding;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Reads bytes as JSON and as MessagePack, and returns what they mean where they mean anything.
pub fn read<T: Serialize + DeserializeOwned + PartialEq + Debug>(bytes: &[u8]) -> Vec<T> {
    let values = [Encoding::Json, Encoding::MessagePack].map(|encoding| encoding.decode::<T>(bytes));
    let values: Vec<T> = values.into_iter().flatten().collect();
    values.iter().for_each(survives);
    values
}

/// Both encodings give back what was written.
pub fn survives<T: Serialize + DeserializeOwned + PartialEq + Debug>(value: &T) {
    for encoding in [Encoding::Json, Encoding::MessagePack] {
        let written = encoding.encode(value);
        let read = encoding.decode::<T>(&written);
        assert_eq!(read.as_ref(), Ok(value), "{encoding:?}: {}", written.escape_ascii());
    }
}
