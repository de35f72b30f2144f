//! Webhooks: ends of batches and jobs, told by HTTP, in OpenAI's shape, signed as Standard Webhooks has it.
//!
//! The URL comes from a caller, so it has to be of a host that the operator allows, and no redirect is followed.

use std::time::Duration;

use anyhow::Context as _;
use backon::{ExponentialBuilder, Retryable};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, Mac};
use reqwest::Url;
use serde_json::{Value, json};
use sha2::Sha256;
use time::OffsetDateTime;

use super::error::{ApiError, ApiResult};

const SECRET_PREFIX: &str = "whsec_";
const TIMEOUT: Duration = Duration::from_secs(15);
/// Some hours, all pauses together.
const TRIES: usize = 16;
const PAUSE_MIN: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(3600);

/// Where webhooks may go and how they are signed.
#[derive(Clone, Debug, Default)]
pub struct WebhookOptions {
    /// Host names, with a port where it is not the scheme's own.
    pub hosts: Vec<String>,
    pub secret: Option<WebhookSecret>,
}

/// `whsec_` and base64.
#[derive(Clone)]
pub struct WebhookSecret(Vec<u8>);

#[derive(Debug)]
pub struct Webhooks {
    options: WebhookOptions,
    client: reqwest::Client,
}

impl std::fmt::Debug for WebhookSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("WebhookSecret")
    }
}

impl std::str::FromStr for WebhookSecret {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let key = text.trim().strip_prefix(SECRET_PREFIX).and_then(|text| STANDARD.decode(text).ok());
        match key {
            Some(key) if key.len() >= 16 => Ok(Self(key)),
            _ => Err(format!("is not {SECRET_PREFIX} and the base64 of 16 bytes or more")),
        }
    }
}

impl WebhookSecret {
    /// The signature of a message.
    fn sign(&self, id: &str, timestamp: i64, body: &str) -> String {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.0).expect("any length is a key");
        mac.update(format!("{id}.{timestamp}.{body}").as_bytes());
        format!("v1,{}", STANDARD.encode(mac.finalize().into_bytes()))
    }
}

impl Webhooks {
    pub fn new(options: WebhookOptions) -> anyhow::Result<Self> {
        let client = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).timeout(TIMEOUT);
        Ok(Self { options, client: client.build().context("the client of webhooks")? })
    }

    /// Refuses a URL that is not allowed.
    pub fn check(&self, url: &str) -> ApiResult<()> {
        let wrong = |message: String| ApiError::invalid("invalid_value", "webhook_url", message);
        let parsed = Url::parse(url).map_err(|error| wrong(format!("{url:?}: {error}")))?;
        if !matches!(parsed.scheme(), "http" | "https") || !parsed.username().is_empty() || parsed.password().is_some()
        {
            return Err(wrong(format!("{url:?} is not http:// or https:// without a user")));
        }
        let host = match (parsed.host_str().unwrap_or_default(), parsed.port()) {
            (host, Some(port)) => format!("{host}:{port}"),
            (host, None) => host.to_owned(),
        };
        match self.options.hosts.contains(&host) && self.options.secret.is_some() {
            true => Ok(()),
            false => Err(wrong(format!(
                "webhooks to {host:?} are not allowed; --webhook-host of the gateway says which are"
            ))),
        }
    }

    /// Tells that something is over, again and again until the other side says that it has heard or the tries are spent.
    /// The event has one id, so that it can be told from another.
    pub async fn deliver(&self, url: &str, kind: &str, of: &str, data: Value) {
        let Some(secret) = self.options.secret.as_ref().filter(|_| self.check(url).is_ok()) else {
            tracing::warn!(of, "webhook not sent: its host is not allowed any more");
            return;
        };
        let id = format!("evt_{of}");
        let created_at = OffsetDateTime::now_utc().unix_timestamp();
        let body =
            json!({ "id": id, "object": "event", "created_at": created_at, "type": kind, "data": data }).to_string();
        let send = || async {
            let timestamp = OffsetDateTime::now_utc().unix_timestamp();
            let request = self
                .client
                .post(url)
                .header("content-type", "application/json")
                .header("webhook-id", &id)
                .header("webhook-timestamp", timestamp.to_string())
                .header("webhook-signature", secret.sign(&id, timestamp, &body))
                .body(body.clone());
            request.send().await?.error_for_status().map(drop)
        };
        let pauses = ExponentialBuilder::default().with_min_delay(PAUSE_MIN).with_max_delay(PAUSE_MAX);
        let told = send.retry(pauses.with_max_times(TRIES).with_jitter()).await;
        if let Err(error) = told {
            tracing::warn!(of, error = %error.without_url(), "webhook not delivered, given up");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_is_that_of_the_standard() {
        // The example of the Standard Webhooks specification.
        let secret: WebhookSecret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw".parse().unwrap();
        let signature = secret.sign("msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, r#"{"test": 2432232314}"#);
        assert_eq!(signature, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
        assert!("whsec_x".parse::<WebhookSecret>().is_err() && "abc".parse::<WebhookSecret>().is_err());
    }

    #[test]
    fn only_allowed_hosts_are_told() {
        let secret = Some("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw".parse().unwrap());
        let options = WebhookOptions { hosts: vec!["a.example".into(), "b.example:8443".into()], secret };
        let webhooks = Webhooks::new(options).unwrap();
        for url in ["https://a.example/x", "http://a.example:80/x", "https://b.example:8443/"] {
            assert!(webhooks.check(url).is_ok(), "{url}");
        }
        for url in ["https://a.example:81/", "https://c.example", "ftp://a.example", "https://u:p@a.example", "a", ""] {
            assert!(webhooks.check(url).is_err(), "{url}");
        }
        assert!(Webhooks::new(WebhookOptions::default()).unwrap().check("https://a.example").is_err());
    }
}
