//! What a job's headers ask for, from their values alone.
//!
//! It knows neither NATS nor the engines, so that `tests/fuzz` can read any bytes with it without building those.

use schemas::header;
use schemas::result::ErrorObject;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// A century: more would overflow a date.
const SECONDS_MAX: f64 = 3.2e9;

/// The earlier of a deadline and the end of a time-out.
pub fn deadline(
    deadline: Option<&str>,
    timeout: Option<&str>,
    published: OffsetDateTime,
) -> Result<Option<OffsetDateTime>, ErrorObject> {
    let deadline = deadline.map(|value| {
        OffsetDateTime::parse(value, &Rfc3339)
            .map_err(|_| wrong(header::DEADLINE, value, "an RFC 3339 time such as 2027-01-31T12:00:00Z"))
    });
    let timeout = timeout.map(|value| match value.parse::<f64>() {
        Ok(seconds) if seconds > 0.0 && seconds.is_finite() => {
            Ok(published.checked_add(time::Duration::seconds_f64(seconds.min(SECONDS_MAX))))
        }
        _ => Err(wrong(header::TIMEOUT, value, "a number of seconds above 0, such as 90 or 0.5")),
    });
    let (deadline, timeout) = (deadline.transpose()?, timeout.transpose()?.flatten());
    Ok(deadline.into_iter().chain(timeout).min())
}

/// How often the job may be tried, within the model's own limit.
pub fn attempts_max(value: Option<&str>, limit: u32) -> Result<u32, ErrorObject> {
    let Some(value) = value else { return Ok(limit) };
    match value.parse::<u32>() {
        Ok(asked) if asked > 0 => Ok(asked.min(limit)),
        _ => Err(wrong(header::MAX_ATTEMPTS, value, "a whole number from 1")),
    }
}

/// Whether the answer may come from the cache and be kept in it.
pub fn may_cache(value: Option<&str>) -> Result<bool, ErrorObject> {
    match value {
        None => Ok(true),
        Some("no-store") => Ok(false),
        Some(value) => Err(wrong(header::CACHE, value, "no-store")),
    }
}

/// Whether the answer is wanted in chunks.
pub fn streams(value: Option<&str>) -> Result<bool, ErrorObject> {
    match value {
        None => Ok(false),
        Some("tokens") => Ok(true),
        Some(value) => Err(wrong(header::STREAM, value, "tokens")),
    }
}

/// The producer's estimate, in the model's units. One that no job can cost is none: sums of such would overflow, and the
/// pace of the worker with them.
pub fn cost(value: Option<&str>) -> Option<f64> {
    value?.parse().ok().filter(|cost: &f64| (0.0..=header::COST_MAX).contains(cost))
}

fn wrong(name: &'static str, value: &str, wanted: &str) -> ErrorObject {
    ErrorObject::invalid("invalid_value", name.to_owned(), format!("{name}: {value:?} is not {wanted}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cost_that_no_job_has_is_not_believed() {
        assert_eq!(cost(Some("12.5")), Some(12.5));
        for wrong in ["1e300", "-1", "NaN", "inf", "x"] {
            assert_eq!(cost(Some(wrong)), None, "{wrong}");
        }
    }
}
