//! What waits in the queue, read anew every few seconds, for the metrics. The logger tells it because it is always there:
//! workers are not when they are scaled to zero.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_nats::Client;
use async_nats::jetstream::Context;
use backlog::{Lane, Rate, lanes, model_seconds, paces};
use connect::Connection;
use schemas::pace::Pace;
use schemas::stream;
use time::OffsetDateTime;
use tokio_util::sync::CancellationToken;

use super::metrics::Metrics;

/// As often as Prometheus asks, or oftener.
const LOOK: Duration = Duration::from_secs(5);

/// What waits in one lane of one model.
#[derive(Debug, PartialEq)]
pub struct Waiting {
    pub model: String,
    pub lane: String,
    pub queued: u64,
    pub in_flight: usize,
    /// Age of the first of the waiting jobs, 0 where none waits. None where it could not be looked at.
    pub age: Option<Duration>,
    /// What the waiting jobs would take one worker. None until a worker has told its pace.
    pub worker_seconds: Option<f64>,
}

/// Those who work on a model.
#[derive(Debug, PartialEq)]
pub struct Workers {
    pub model: String,
    pub count: usize,
    /// When its queue will be empty, if nothing comes. None while nobody works on it.
    pub empty_seconds: Option<f64>,
}

/// Keeps the metrics of the queue fresh until `stop`.
pub async fn watch(connection: Connection, metrics: Arc<Metrics>, stop: CancellationToken) {
    let (mut rates, mut is_known) = (HashMap::new(), true);
    loop {
        match look(&connection.client, &connection.jetstream).await {
            Ok((lanes, paces)) => {
                is_known = true;
                remember(&mut rates, &lanes, &paces);
                metrics.set_queue(&waiting(&lanes, &rates), &workers(&lanes, &paces));
            }
            // What is not known is not told: old numbers would be believed.
            Err(error) => {
                if std::mem::take(&mut is_known) {
                    tracing::warn!(%error, "the queue cannot be read, its metrics are not there meanwhile");
                }
                metrics.set_queue(&[], &[]);
            }
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(LOOK) => {}
        }
    }
}

async fn look(client: &Client, jetstream: &Context) -> Result<(Vec<Lane>, Vec<Pace>), async_nats::Error> {
    let jobs = jetstream.get_stream(stream::JOBS).await?;
    Ok((lanes(&jobs).await?, paces(client).await?))
}

/// What the last workers of a model said still holds when there are none.
fn remember(rates: &mut HashMap<String, Rate>, lanes: &[Lane], paces: &[Pace]) {
    for Lane { model, .. } in lanes {
        let rate = Rate::of_model(paces, model);
        if rate.unit_seconds.is_some() {
            rates.insert(model.clone(), rate);
        }
    }
}

fn waiting(lanes: &[Lane], rates: &HashMap<String, Rate>) -> Vec<Waiting> {
    let now = OffsetDateTime::now_utc();
    let waiting = |lane: &Lane| Waiting {
        model: lane.model.clone(),
        lane: lane.lane.clone(),
        queued: lane.queued,
        in_flight: lane.in_flight,
        age: match lane.queued {
            0 => Some(Duration::ZERO),
            // The server's clock may be ahead of ours.
            _ => lane.oldest.map(|oldest| (now - oldest).try_into().unwrap_or_default()),
        },
        worker_seconds: rates.get(&lane.model).and_then(|rate| rate.worker_seconds(lane.queued, &lane.costs)),
    };
    lanes.iter().map(waiting).collect()
}

fn workers(lanes: &[Lane], paces: &[Pace]) -> Vec<Workers> {
    let mut models: Vec<&String> = lanes.iter().map(|lane| &lane.model).collect();
    models.sort();
    models.dedup();
    let of = |model: &String| {
        let rate = Rate::of_model(paces, model);
        Workers {
            model: model.clone(),
            count: paces.iter().filter(|pace| pace.model == *model).count(),
            empty_seconds: model_seconds(lanes, model, &rate),
        }
    };
    models.into_iter().map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lane(lane: &str, queued: u64) -> Lane {
        let (model, lane) = ("m".to_owned(), lane.to_owned());
        Lane { model, lane, queued, in_flight: 1, redelivered: 0, oldest: None, acknowledged: 0, costs: vec![None] }
    }

    fn pace(unit_seconds: Option<f64>) -> Pace {
        Pace { worker: "w".into(), model: "m".into(), unit_seconds, job_cost: Some(100.0), ..Pace::default() }
    }

    #[test]
    fn a_queue_without_workers_keeps_its_work_and_has_no_end() {
        let lanes = [lane("default", 10), lane("flex", 20)];
        let paces = [pace(Some(0.01)), pace(Some(0.01)), pace(None)];
        let mut rates = HashMap::new();
        remember(&mut rates, &lanes, &paces);
        let empty = |seconds, count| vec![Workers { model: "m".into(), count, empty_seconds: seconds }];
        assert_eq!(workers(&lanes, &paces), empty(Some(15.0), 3));
        remember(&mut rates, &lanes, &[]);
        assert_eq!(workers(&lanes, &[]), empty(None, 0));
        let work: Vec<_> = waiting(&lanes, &rates).into_iter().map(|lane| lane.worker_seconds).collect();
        assert_eq!(work, [Some(10.0), Some(20.0)]);
        assert_eq!(waiting(&lanes, &HashMap::new())[0].worker_seconds, None);
    }
}
