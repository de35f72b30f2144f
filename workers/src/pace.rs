//! Pace: what a unit of work costs this worker, and what waits.
//!
//! A unit is a token. Time counts while anything is in flight, so that the pace is that of all jobs together.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_nats::Client;
use futures::StreamExt;
use schemas::codec::Encoding;
use schemas::pace;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::engine::thread::Steps;

/// Busy time that makes one measurement.
const SPAN: Duration = Duration::from_secs(1);
/// What the newest measurement counts.
const SHARE: f64 = 0.3;

/// Shared by all deliveries of a worker.
#[derive(Debug)]
pub struct Pace {
    worker: String,
    model: String,
    device: &'static str,
    steps: Arc<Steps>,
    measured: Mutex<Measured>,
}

#[derive(Debug, Default)]
struct Measured {
    in_flight: usize,
    /// Since when this span's busy time was last added up.
    since: Option<Instant>,
    busy: Duration,
    units: f64,
    /// Whether a whole span was measured.
    has_span: bool,
    unit_seconds: Option<f64>,
    job_cost: Option<f64>,
}

impl Pace {
    pub fn new(worker: &str, model: &str, device: &'static str, steps: Arc<Steps>) -> Self {
        Self { worker: worker.to_owned(), model: model.to_owned(), device, steps, measured: Mutex::default() }
    }

    pub fn begin(&self) {
        let mut measured = self.measured.lock().expect("no panic while held");
        measured.in_flight += 1;
        measured.since.get_or_insert_with(Instant::now);
    }

    /// A delivery has ended; `units` is what it has done, none where it was not answered.
    pub fn end(&self, units: Option<f64>) {
        let mut measured = self.measured.lock().expect("no panic while held");
        measured.end(units, Instant::now());
    }

    pub fn answer(&self) -> pace::Pace {
        let measured = self.measured.lock().expect("no panic while held");
        let (unit_seconds, job_cost) = (measured.unit_seconds, measured.job_cost);
        pace::Pace {
            worker: self.worker.clone(),
            model: self.model.clone(),
            unit_seconds,
            job_cost,
            device: Some(self.device.to_owned()),
            in_flight: measured.in_flight as u64,
            batch_size: self.steps.batch_size(),
        }
    }

    /// Seconds that this worker alone needs for so many jobs.
    pub fn seconds(&self, jobs: u64) -> f64 {
        let measured = self.measured.lock().expect("no panic while held");
        jobs as f64 * measured.unit_seconds.unwrap_or(0.0) * measured.job_cost.unwrap_or(0.0)
    }
}

impl Measured {
    fn end(&mut self, units: Option<f64>, now: Instant) {
        self.in_flight = self.in_flight.saturating_sub(1);
        if let Some(since) = self.since.take() {
            self.busy += now.saturating_duration_since(since);
        }
        self.since = (self.in_flight > 0).then_some(now);
        let Some(units) = units else { return };
        self.units += units;
        self.job_cost = Some(mix(self.job_cost, units));
        if self.units <= 0.0 {
            return;
        }
        let measured = self.busy.as_secs_f64() / self.units;
        // The first jobs are slower than those that follow: until a span is over, all there is is its beginning.
        if !self.has_span {
            self.unit_seconds = Some(measured);
        } else if self.busy >= SPAN {
            self.unit_seconds = Some(mix(self.unit_seconds, measured));
        }
        if self.busy >= SPAN {
            self.has_span = true;
            (self.busy, self.units) = (Duration::ZERO, 0.0);
        }
    }
}

fn mix(before: Option<f64>, now: f64) -> f64 {
    before.map_or(now, |before| before + SHARE * (now - before))
}

/// Answers whoever asks for the pace, for as long as the guard lives.
pub async fn announce(pace: Arc<Pace>, client: &Client) -> Result<DropGuard, async_nats::SubscribeError> {
    let mut asked = client.subscribe(pace::SUBJECT).await?;
    let (client, stop) = (client.clone(), CancellationToken::new());
    let stopped = stop.clone();
    tokio::spawn(async move {
        while let Some(Some(question)) = stopped.run_until_cancelled(asked.next()).await {
            if let Some(reply) = question.reply {
                // Whoever asked asks again.
                let _ = client.publish(reply, Encoding::Json.encode(&pace.answer()).into()).await;
            }
        }
    });
    Ok(stop.drop_guard())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_unit_costs_the_busy_time_of_all_jobs_together() {
        let start = Instant::now();
        let at = |milliseconds| start + Duration::from_millis(milliseconds);
        let mut measured = Measured { in_flight: 4, since: Some(start), ..Measured::default() };
        for job in 1..=4 {
            measured.end(Some(100.0), at(job * 500));
        }
        let unit_seconds = measured.unit_seconds.unwrap();
        assert!((unit_seconds - 0.005).abs() < 0.000_5, "{unit_seconds}");
        assert_eq!(measured.job_cost, Some(100.0));
        // An idle hour costs nothing.
        measured.in_flight = 1;
        measured.since = Some(at(3_600_000));
        measured.end(Some(200.0), at(3_601_000));
        assert!((measured.unit_seconds.unwrap() - 0.005).abs() < 0.000_5);
    }
}
