//! Numbers as JSON has them. MessagePack can hold infinity and NaN, and a large number of JSON is infinite as an `f32`:
//! what was read like that could not be written again, since JSON would say null.

use serde::de::Error;
use serde::{Deserialize, Deserializer};

/// What [`finite`] can look through.
pub(crate) trait Numbers {
    fn are_finite(&self) -> bool;
}

impl Numbers for f32 {
    fn are_finite(&self) -> bool {
        self.is_finite()
    }
}

impl Numbers for f64 {
    fn are_finite(&self) -> bool {
        self.is_finite()
    }
}

impl<T: Numbers> Numbers for Option<T> {
    fn are_finite(&self) -> bool {
        self.iter().all(T::are_finite)
    }
}

impl<T: Numbers> Numbers for std::collections::BTreeMap<String, T> {
    fn are_finite(&self) -> bool {
        self.values().all(T::are_finite)
    }
}

impl<T: Numbers> Numbers for Vec<T> {
    fn are_finite(&self) -> bool {
        self.iter().all(T::are_finite)
    }
}

/// Reads a field, and refuses numbers that are infinite or none.
pub(crate) fn finite<'de, D: Deserializer<'de>, T: Deserialize<'de> + Numbers>(deserializer: D) -> Result<T, D::Error> {
    let numbers = T::deserialize(deserializer)?;
    match numbers.are_finite() {
        true => Ok(numbers),
        false => Err(D::Error::custom("is not a finite number")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::codec::{Encoding, decode_body};
    use crate::completions::Sampling;
    use crate::embeddings::Vector;
    use crate::log::{LogEvent, LogMessage, LogRecord};
    use crate::pace::Pace;

    #[test]
    fn a_number_that_json_cannot_hold_is_refused() {
        assert!(decode_body::<Vector>(&json!([0.5, 3.4e38])).is_ok());
        assert!(decode_body::<Vector>(&json!([0.5, 3.5e38])).is_err());
        let error = decode_body::<Sampling>(&json!({"temperature": 1e39})).unwrap_err();
        assert_eq!((error.path.as_str(), error.message.as_str()), ("temperature", "is not a finite number"));
        for number in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            let text = || "a".to_owned();
            let event = LogEvent::Started { queue_seconds: number };
            let record = LogRecord { time: text(), job_id: text(), model: text(), worker: text(), attempt: 1, event };
            assert!(Encoding::MessagePack.decode::<LogMessage>(&Encoding::MessagePack.encode(&vec![record])).is_err());
            let pace = Pace { worker: text(), model: text(), unit_seconds: Some(number), ..Pace::default() };
            assert!(Encoding::MessagePack.decode::<Pace>(&Encoding::MessagePack.encode(&pace)).is_err());
        }
    }
}
