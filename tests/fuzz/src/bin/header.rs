//! Headers: lines of `Name: value`, read as a worker and the tools for dead letters read them.
#![no_main]

use std::collections::HashMap;

use libfuzzer_sys::fuzz_target;
use schemas::codec::Encoding;
use schemas::header::{self, DeadClass, Life};
use schemas::log::LogMessage;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

#[path = "../../../../workers/src/asked.rs"]
mod asked;

/// The model's own limit.
const ATTEMPTS: u32 = 3;

fuzz_target!(|text: &str| {
    let headers: HashMap<&str, &str> = text.lines().filter_map(|line| line.split_once(": ")).collect();
    let value = |name| headers.get(name).copied();
    if let Ok(encoding) = Encoding::from_content_type(value(header::CONTENT_TYPE)) {
        assert_eq!(Encoding::from_content_type(Some(encoding.content_type())), Ok(encoding));
    }
    let published = value(header::PUBLISHED).and_then(|time| OffsetDateTime::parse(time, &Rfc3339).ok());
    let published = published.unwrap_or(OffsetDateTime::UNIX_EPOCH);
    if let Ok(Some(deadline)) = asked::deadline(value(header::DEADLINE), value(header::TIMEOUT), published) {
        check_deadline(deadline);
    }
    if let Ok(attempts) = asked::attempts_max(value(header::MAX_ATTEMPTS), ATTEMPTS) {
        assert!((1..=ATTEMPTS).contains(&attempts));
    }
    let _ = (asked::may_cache(value(header::CACHE)), asked::streams(value(header::STREAM)));
    assert!(asked::cost(value(header::COST)).is_none_or(|cost| cost.is_finite() && cost >= 0.0));
    if let Some(class) = value(header::DEAD_CLASS).and_then(|class| class.parse::<DeadClass>().ok()) {
        assert_eq!(Some(class.as_str()), value(header::DEAD_CLASS));
    }
    value(header::HISTORY).map(|lives| fuzz::read::<Vec<Life>>(lives.as_bytes()));
    value(header::DEAD_LOG).map(|log| fuzz::read::<LogMessage>(log.as_bytes()));
});

/// A lifted job keeps its deadline: it can be written as a header and is read as the same time.
fn check_deadline(deadline: OffsetDateTime) {
    let _ = deadline - OffsetDateTime::UNIX_EPOCH;
    let written = deadline.format(&Rfc3339).expect("a deadline can be written as it was");
    let read = asked::deadline(Some(&written), None, OffsetDateTime::UNIX_EPOCH);
    assert_eq!(read, Ok(Some(deadline)), "{written}");
}
