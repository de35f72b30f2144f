//! What a job costs, estimated cheaply: enough to say how long a queue is in seconds rather than in jobs.

use serde_json::Value;

/// Bytes of text in a token, roughly, for English and the tokenizers of the day.
const BYTES_PER_TOKEN: f64 = 4.0;

/// The estimate that is sent as `Inferq-Cost` where nobody gives a better one, in tokens: a quarter of the job's bytes
/// as the prompt, and as many tokens as the body allows to be generated (`max_completion_tokens` or `max_tokens`, `n` times).
pub fn estimate(payload_bytes: usize, body: &Value) -> f64 {
    let allowed = ["max_completion_tokens", "max_tokens"].iter().find_map(|field| body.get(field)?.as_u64());
    let answers = body.get("n").and_then(Value::as_u64).unwrap_or(1);
    (payload_bytes as f64 / BYTES_PER_TOKEN).ceil() + allowed.unwrap_or(0) as f64 * answers as f64
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn bytes_and_allowed_tokens_are_added() {
        assert_eq!(estimate(401, &json!({ "input": "x" })), 101.0);
        assert_eq!(estimate(400, &json!({ "max_tokens": 50 })), 150.0);
        assert_eq!(estimate(400, &json!({ "max_tokens": 50, "n": 3 })), 250.0);
        assert_eq!(estimate(400, &json!({ "max_tokens": 50, "max_completion_tokens": 7 })), 107.0);
        assert_eq!(estimate(0, &json!({ "max_tokens": "many" })), 0.0);
    }
}
