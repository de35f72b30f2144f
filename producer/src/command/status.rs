//! `inferq status`.

use std::time::Duration;

use connect::NatsArgs;
use indicatif::HumanDuration;
use producer::Client;
use producer::standing::Standing;
use producer::status::{LaneStatus, Status, StreamStatus, status};
use schemas::subject::{JobId, Token};
use serde::Serialize;

use super::{connect, print_json, print_line, tenant_token};
use crate::config::{Output, StatusArgs};

pub async fn run(nats: &NatsArgs, output: Output, args: StatusArgs) -> anyhow::Result<u8> {
    let tenant = tenant_token(&args.tenant)?;
    let connection = connect(nats).await?;
    if let Some(job_id) = args.job_id {
        return one(&Client::new(connection), output, &tenant, &job_id).await;
    }
    let status = status(&connection.client, &connection.jetstream).await?;
    match output {
        Output::Json => print_json(&status)?,
        Output::Text => print(&status)?,
    }
    Ok(0)
}

/// Where one job stands. An unknown one ends the command with 1.
async fn one(client: &Client, output: Output, tenant: &Token, job_id: &JobId) -> anyhow::Result<u8> {
    #[derive(Serialize)]
    struct One<'a> {
        job_id: &'a str,
        #[serde(flatten)]
        standing: &'a Standing,
    }
    let standing = client.standing(tenant, job_id).await?;
    match output {
        Output::Json => print_json(&One { job_id: job_id.as_str(), standing: &standing })?,
        Output::Text if standing == Standing::Unknown => eprintln!("{job_id} {}", words(&standing)),
        Output::Text => print_line(&format!("{job_id} {}", words(&standing)))?,
    }
    Ok(u8::from(standing == Standing::Unknown))
}

fn words(standing: &Standing) -> String {
    match standing {
        Standing::Answered { status_code } => format!("answered with status {status_code}"),
        Standing::Waiting { model, lane, position, eta_seconds } => {
            let eta = eta_seconds.map_or("no worker has told its pace yet".to_owned(), |seconds| {
                format!("its turn comes in about {}", human(seconds))
            });
            format!("waiting for {model} in lane {lane}, about number {position}; {eta}")
        }
        Standing::Running { model, lane, worker, attempt } => {
            let worker = worker.as_ref().map_or(String::new(), |worker| format!(" on {worker}"));
            let attempt = attempt.map_or(String::new(), |attempt| format!(", attempt {attempt}"));
            format!("running{worker}{attempt}, for {model} in lane {lane}")
        }
        Standing::Unknown => "unknown: it neither waits nor runs, and has no result".to_owned(),
    }
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
