//! Presence: a worker answers on the NATS services API, so that `inferq status` and `nats micro ls` can list it.

use std::collections::HashMap;

use async_nats::Client;
use async_nats::service::{Service, ServiceExt};
use schemas::registry::Model;

/// The service's name, shared by all workers.
pub const SERVICE: &str = schemas::WORKER_SERVICE;

/// Announces the worker for as long as the value lives.
pub async fn announce(client: &Client, worker: &str, model: &Model) -> anyhow::Result<Service> {
    let metadata: HashMap<String, String> =
        [("worker", worker), ("model", &model.name), ("in_flight_max", &model.limits.in_flight.to_string())]
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into();
    let builder = client.service_builder().description("runs jobs of one model").metadata(metadata);
    builder.start(SERVICE, env!("CARGO_PKG_VERSION")).await.map_err(anyhow::Error::from_boxed)
}
