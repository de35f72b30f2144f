//! How producers and workers reach NATS: one set of options, one way to connect, one reading of publish errors.
//!
//! It knows nothing of jobs; it is apart from `schemas` because that crate does no I/O.

pub mod bucket;
pub mod config;
pub mod growing;
mod options;
mod publish;
mod refusal;
mod secrets;

use std::time::Duration;

use async_nats::jetstream::{self, context::ContextBuilder};
use async_nats::{Client, Event, ServerAddr};
use tokio::sync::watch;

pub use config::NatsArgs;
pub use publish::{PublishFailure, classify_publish};
pub use refusal::ConnectError;

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

/// Connects with the given options, under a name that the server's monitoring shows.
pub async fn connect(args: &NatsArgs, name: &str, first: FirstConnect) -> Result<Connection, ConnectError> {
    let addresses = options::addresses(&args.server)?;
    let (sender, connects) = watch::channel(0_u64);
    let client = match dial(args, &addresses, name, FirstConnect::Fail, sender.clone()).await {
        // The library goes on trying, but does not say what is wrong.
        Err(error) if first == FirstConnect::Retry && !error.is_usage() => {
            tracing::warn!("{error}; trying again");
            dial(args, &addresses, name, first, sender).await?
        }
        dialled => dialled?,
    };
    let builder = ContextBuilder::new().timeout(REQUEST_TIMEOUT).max_ack_inflight(UNCONFIRMED_MAX);
    let jetstream = match &args.js_api_prefix {
        Some(prefix) => builder.api_prefix(prefix.clone()).build(client.clone()),
        None => builder.build(client.clone()),
    };
    let api_prefix = args.js_api_prefix.clone().unwrap_or_else(|| NatsArgs::JS_API_PREFIX.to_owned());
    Ok(Connection { client, jetstream, api_prefix, connects })
}

async fn dial(
    args: &NatsArgs,
    addresses: &[ServerAddr],
    name: &str,
    first: FirstConnect,
    connects: watch::Sender<u64>,
) -> Result<Client, ConnectError> {
    let made = connects.subscribe();
    let mut options = options::options(args, addresses)?
        .name(name)
        .ping_interval(PING_INTERVAL)
        .request_timeout(Some(REQUEST_TIMEOUT))
        // The library waits before the first try too, which nobody needs: a command would begin with a pause.
        .reconnect_delay_callback(move |attempts| match (*made.borrow(), attempts) {
            (0, 1) => Duration::ZERO,
            _ => reconnect_delay(attempts),
        })
        .event_callback(move |event| {
            if matches!(event, Event::Connected) {
                connects.send_modify(|count| *count += 1);
            }
            async move { report(&event) }
        });
    if first == FirstConnect::Retry {
        options = options.retry_on_initial_connect();
    }
    options
        .connect(options::without_secrets(&args.server)?)
        .await
        .map_err(|error| refusal::classify_connect(&error, args))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reconnects_are_quick_and_capped() {
        assert!(reconnect_delay(0) <= Duration::from_millis(50));
        assert!((RECONNECT_DELAY_MAX / 2..=RECONNECT_DELAY_MAX).contains(&reconnect_delay(100)));
    }
}
