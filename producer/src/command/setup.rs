//! `inferq setup`.

use std::time::Duration;

use backon::{ExponentialBuilder, Retryable};
use connect::NatsArgs;
use producer::setup::{Action, Change, Mode, is_unanswered, monitor, risks, setup};

use super::{connect, print_json, print_line, read_registry};
use crate::config::{Output, SetupArgs};

/// How long is waited, between tries, for a cluster that has no leader yet.
const PATIENCE: Duration = Duration::from_secs(30);

pub async fn run(nats: &NatsArgs, output: Output, args: &SetupArgs) -> anyhow::Result<u8> {
    let registry = read_registry(&args.registry)?;
    let connection = connect(nats).await?;
    let mode = if args.dry_run { Mode::DryRun } else { Mode::Apply };
    let mut flushes = Vec::new();
    for url in &args.monitor {
        flushes.push(monitor::flush(url).await?);
    }
    let attempt = || setup(&connection.jetstream, &registry, mode);
    let backoff = ExponentialBuilder::default().with_jitter().without_max_times().with_total_delay(Some(PATIENCE));
    let mut changes = attempt
        .retry(backoff)
        .when(is_unanswered)
        .notify(|error, _| eprintln!("inferq: {error:#}; trying again"))
        .await?;
    changes.extend(risks(&connection.jetstream, registry.storage.replicas, &flushes).await?);
    match output {
        Output::Json => print_json(&changes)?,
        Output::Text => changes.iter().try_for_each(|change| print(change, mode))?,
    }
    Ok(0)
}

fn print(change: &Change, mode: Mode) -> anyhow::Result<()> {
    let verb = match (change.action, mode) {
        (Action::Created, Mode::Apply) => "created",
        (Action::Created, Mode::DryRun) => "would create",
        (Action::Changed, Mode::Apply) => "changed",
        (Action::Changed, Mode::DryRun) => "would change",
        (Action::Unchanged, _) => "unchanged",
        (Action::Unregistered, _) => "not in the registry, kept:",
        (Action::Warned, _) => {
            change.fields.iter().for_each(|text| eprintln!("warning: {}: {text}", change.name));
            return Ok(());
        }
    };
    print_line(&format!("{verb} {} {}", change.kind, change.name))?;
    change.fields.iter().try_for_each(|field| print_line(&format!("    {field}")))
}
