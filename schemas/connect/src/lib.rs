//! How producers and workers reach NATS: one set of options, one way to connect, one reading of publish errors.
//!
//! It knows nothing of jobs; it is apart from `schemas` because that crate does no I/O.

pub mod config;
mod publish;

use std::path::Path;
use std::time::Duration;

use async_nats::jetstream::{self, context::ContextBuilder};
use async_nats::{Client, ConnectOptions, Event, ServerAddr};
use tokio::sync::watch;

pub use config::NatsArgs;
pub use publish::{PublishFailure, classify_publish};

const PING_INTERVAL: Duration = Duration::from_secs(10);
const RECONNECT_DELAY_MAX: Duration = Duration::from_secs(1);
/// How long JetStream may take to confirm a publish or answer a request before it is tried again.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// Publishes whose confirmation is awaited at a time; more wait for a slot.
const UNCONFIRMED_MAX: usize = 4096;

/// A connection that restores itself, and how often it has done so.
#[derive(Clone, Debug)]
pub struct Connection {
    pub client: Client,
    pub jetstream: jetstream::Context,
    /// Of the JetStream API, for requests that the client library has no call for.
    pub api_prefix: String,
    /// Counts the connections made; it changes after each reconnect.
    pub connects: watch::Receiver<u64>,
}

/// What to do when no server answers at first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FirstConnect {
    /// Say so: a person waits.
    Fail,
    /// Go on trying: a service waits for its server.
    Retry,
}

#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("--server {url:?}: {reason}; give a URL such as nats://127.0.0.1:4222")]
    Url { url: String, reason: String },
    #[error("{key} {path:?} cannot be read: {reason}")]
    File { key: &'static str, path: String, reason: String },
    #[error(
        "cannot connect to {url}: {reason}; is nats-server running there? `inferq up` starts one, --server or NATS_URL names another"
    )]
    Refused { url: String, reason: String },
}

/// Connects with the given options, under a name that the server's monitoring shows.
pub async fn connect(args: &NatsArgs, name: &str, first: FirstConnect) -> Result<Connection, ConnectError> {
    let addresses = addresses(&args.server)?;
    let (sender, connects) = watch::channel(0_u64);
    let mut options = options(args)
        .await?
        .name(name)
        .ping_interval(PING_INTERVAL)
        .request_timeout(Some(REQUEST_TIMEOUT))
        .reconnect_delay_callback(reconnect_delay)
        .event_callback(move |event| {
            if matches!(event, Event::Connected) {
                sender.send_modify(|count| *count += 1);
            }
            async move { report(&event) }
        });
    if first == FirstConnect::Retry {
        options = options.retry_on_initial_connect();
    }
    let client = options
        .connect(addresses.as_slice())
        .await
        .map_err(|error| ConnectError::Refused { url: redact(&args.server), reason: error.to_string() })?;
    let builder = ContextBuilder::new().timeout(REQUEST_TIMEOUT).max_ack_inflight(UNCONFIRMED_MAX);
    let jetstream = match &args.js_api_prefix {
        Some(prefix) => builder.api_prefix(prefix.clone()).build(client.clone()),
        None => builder.build(client.clone()),
    };
    let api_prefix = args.js_api_prefix.clone().unwrap_or_else(|| "$JS.API".to_owned());
    Ok(Connection { client, jetstream, api_prefix, connects })
}

async fn options(args: &NatsArgs) -> Result<ConnectOptions, ConnectError> {
    let mut options = ConnectOptions::new();
    if let Some(path) = &args.creds {
        options = options.credentials_file(path).await.map_err(|error| unreadable("--creds", path, error))?;
    }
    if let Some(path) = &args.nkey {
        let seed = tokio::fs::read_to_string(path).await.map_err(|error| unreadable("--nkey", path, error))?;
        options = options.nkey(seed.trim().to_owned());
    }
    options = match (&args.user, &args.password) {
        (Some(user), Some(password)) => options.user_and_password(user.clone(), password.clone()),
        (Some(token), None) => options.token(token.clone()),
        (None, _) => options,
    };
    if let Some(path) = &args.tlsca {
        options = options.add_root_certificates(path.clone());
    }
    if let (Some(cert), Some(key)) = (&args.tlscert, &args.tlskey) {
        options = options.add_client_certificate(cert.clone(), key.clone());
    }
    if args.tlsfirst {
        options = options.tls_first();
    }
    if let Some(prefix) = &args.inbox_prefix {
        options = options.custom_inbox_prefix(prefix);
    }
    Ok(options)
}

fn addresses(urls: &str) -> Result<Vec<ServerAddr>, ConnectError> {
    let parse = |url: &str| {
        url.trim()
            .parse::<ServerAddr>()
            .map_err(|error| ConnectError::Url { url: redact(url), reason: error.to_string() })
    };
    urls.split(',').map(parse).collect()
}

/// Doubles from 50 ms to a second, and takes a random half to whole of that, so that a fleet does not return at once.
fn reconnect_delay(attempts: usize) -> Duration {
    let doubled = Duration::from_millis(50 << attempts.min(6)).min(RECONNECT_DELAY_MAX);
    doubled.mul_f64(0.5 + fastrand::f64() / 2.0)
}

fn report(event: &Event) {
    match event {
        Event::Connected => tracing::info!("connected to nats"),
        Event::Draining | Event::Closed => tracing::debug!(event = %event, "connection ends"),
        Event::Disconnected => tracing::warn!("disconnected from nats, reconnecting"),
        Event::SlowConsumer(id) => tracing::warn!(subscription = id, "slow consumer: messages were dropped"),
        other => tracing::warn!(event = %other, "nats connection event"),
    }
}

fn unreadable(key: &'static str, path: &Path, error: std::io::Error) -> ConnectError {
    ConnectError::File { key, path: path.display().to_string(), reason: error.to_string() }
}

/// URLs may carry a password, which no message shows.
fn redact(urls: &str) -> String {
    let hide = |url: &str| match url.rsplit_once('@') {
        Some((before, host)) => {
            format!("{}***@{host}", before.split_once("://").map_or(String::new(), |(s, _)| format!("{s}://")))
        }
        None => url.to_owned(),
    };
    urls.split(',').map(hide).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_in_a_url_is_not_shown() {
        assert_eq!(redact("nats://u:p@h:4222,nats://h2"), "nats://***@h:4222,nats://h2");
    }

    #[test]
    fn reconnects_are_quick_and_capped() {
        assert!(reconnect_delay(0) <= Duration::from_millis(50));
        assert!((RECONNECT_DELAY_MAX / 2..=RECONNECT_DELAY_MAX).contains(&reconnect_delay(100)));
    }
}
