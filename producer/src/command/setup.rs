//! `inferq setup`.

use connect::NatsArgs;
use producer::setup::{Action, Change, Mode, setup};

use super::{connect, print_json, print_line, read_registry};
use crate::config::{Output, SetupArgs};

pub async fn run(nats: &NatsArgs, output: Output, args: &SetupArgs) -> anyhow::Result<u8> {
    let registry = read_registry(&args.registry)?;
    let connection = connect(nats).await?;
    let mode = if args.dry_run { Mode::DryRun } else { Mode::Apply };
    let changes = setup(&connection.jetstream, &registry, mode).await?;
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
    };
    print_line(&format!("{verb} {} {}", change.kind, change.name))?;
    change.fields.iter().try_for_each(|field| print_line(&format!("    {field}")))
}
