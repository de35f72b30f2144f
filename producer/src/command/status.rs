//! `inferq status`.

use connect::NatsArgs;
use producer::status::{LaneStatus, Status, StreamStatus, status};

use super::{connect, print_json};
use crate::config::Output;

pub async fn run(nats: &NatsArgs, output: Output) -> anyhow::Result<u8> {
    let connection = connect(nats).await?;
    let status = status(&connection.client, &connection.jetstream).await?;
    match output {
        Output::Json => print_json(&status)?,
        Output::Text => print(&status),
    }
    Ok(0)
}

fn print(status: &Status) {
    let width = status.lanes.iter().map(|lane| lane.model.chars().count()).max().unwrap_or(5).max(5);
    println!(
        "{:width$}  {:8}  {:>8}  {:>9}  {:>11}  {:>7}",
        "MODEL", "LANE", "QUEUED", "IN FLIGHT", "REDELIVERED", "WORKERS"
    );
    for LaneStatus { model, lane, queued, in_flight, redelivered, .. } in &status.lanes {
        let workers = status.workers.get(model).copied().unwrap_or(0);
        println!("{model:width$}  {lane:8}  {queued:>8}  {in_flight:>9}  {redelivered:>11}  {workers:>7}");
    }
    println!();
    for (name, StreamStatus { messages, bytes }) in
        [("jobs", &status.jobs), ("results", &status.results), ("dead letters", &status.dead)]
    {
        println!("{name:12}  {messages:>10} messages  {:>12}", indicatif::HumanBytes(*bytes).to_string());
    }
}
