//! `inferq status`.

use std::time::Duration;

use connect::NatsArgs;
use indicatif::HumanDuration;
use producer::status::{LaneStatus, Status, StreamStatus, status};

use super::{connect, print_json, print_line};
use crate::config::Output;

pub async fn run(nats: &NatsArgs, output: Output) -> anyhow::Result<u8> {
    let connection = connect(nats).await?;
    let status = status(&connection.client, &connection.jetstream).await?;
    match output {
        Output::Json => print_json(&status)?,
        Output::Text => print(&status)?,
    }
    Ok(0)
}

fn print(status: &Status) -> anyhow::Result<()> {
    let width = status.lanes.iter().map(|lane| lane.model.chars().count()).max().unwrap_or(5).max(5);
    print_line(&format!(
        "{:width$}  {:8}  {:>8}  {:>9}  {:>11}  {:>7}  {:>7}",
        "MODEL", "LANE", "QUEUED", "IN FLIGHT", "REDELIVERED", "BACKLOG", "WORKERS"
    ))?;
    for LaneStatus { model, lane, queued, in_flight, redelivered, backlog_seconds, .. } in &status.lanes {
        let workers = status.workers.get(model).copied().unwrap_or(0);
        let backlog = backlog_seconds.map_or("-".to_owned(), human);
        print_line(&format!(
            "{model:width$}  {lane:8}  {queued:>8}  {in_flight:>9}  {redelivered:>11}  {backlog:>7}  {workers:>7}"
        ))?;
    }
    print_line("")?;
    for (name, StreamStatus { messages, bytes }) in
        [("jobs", &status.jobs), ("results", &status.results), ("dead letters", &status.dead)]
    {
        let bytes = indicatif::HumanBytes(*bytes).to_string();
        print_line(&format!("{name:12}  {messages:>10} messages  {bytes:>12}"))?;
    }
    Ok(())
}

/// Seconds in their largest unit, such as `3m`.
fn human(seconds: f64) -> String {
    format!("{:#}", HumanDuration(Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)))
}
