//! `inferq dead`: lists, shows, sends again and deletes dead letters.

use std::collections::BTreeSet;
use std::pin::pin;

use connect::NatsArgs;
use futures::{Stream, TryStreamExt};
use indicatif::HumanDuration;
use producer::Client;
use producer::client::ReadError;
use producer::dead::{Filter, Letter, OpenLetter, Replayed};
use schemas::subject::{JobId, Token};
use serde_json::{Map, Value, json};
use time::OffsetDateTime;

use super::{Usage, connect, print_json, print_line};
use crate::config::Output;
use crate::config::dead::{DeadCommand, FilterArgs, ReplayArgs, SelectionArgs, ShowArgs};

pub async fn run(nats: &NatsArgs, output: Output, command: DeadCommand) -> anyhow::Result<u8> {
    match command {
        DeadCommand::List(args) => list(nats, output, &args).await,
        DeadCommand::Show(args) => show(nats, output, &args).await,
        DeadCommand::Replay(args) => replay(nats, output, &args).await,
        DeadCommand::Purge(args) => purge(nats, output, &args).await,
    }
}

async fn list(nats: &NatsArgs, output: Output, args: &FilterArgs) -> anyhow::Result<u8> {
    let (_, letters) = find(nats, filter(args, &[])?).await?;
    let mut letters = pin!(letters);
    if output == Output::Text {
        print_line(&row(["JOB ID", "CLASS", "MODEL", "LANE", "TENANT", "AGE", "ATTEMPTS", "REASON"]))?;
    }
    while let Some(letter) = letters.try_next().await? {
        match output {
            Output::Json => print_json(&letter)?,
            Output::Text => print_line(&line(&letter))?,
        }
    }
    Ok(0)
}

async fn show(nats: &NatsArgs, output: Output, args: &ShowArgs) -> anyhow::Result<u8> {
    let (client, letters) = find(nats, filter(&args.filter, std::slice::from_ref(&args.job_id))?).await?;
    let letters: Vec<Letter> = letters.try_collect().await?;
    anyhow::ensure!(!letters.is_empty(), "{}", unknown(args.job_id.as_str()));
    for letter in letters {
        let open = client.open(&letter).await?;
        match output {
            Output::Json => print_json(&whole(&letter, &open)?)?,
            Output::Text => print_open(&letter, &open)?,
        }
    }
    Ok(0)
}

async fn replay(nats: &NatsArgs, output: Output, args: &ReplayArgs) -> anyhow::Result<u8> {
    let (client, letters) = select(nats, &args.selection).await?;
    let mut letters = pin!(letters);
    let mut missing = missing(&args.selection);
    let mut failed = false;
    while let Some(letter) = letters.try_next().await? {
        let id = letter.job_id.as_str();
        missing.remove(id);
        let (outcome, note) = match args.dry_run {
            true => ("would be replayed", None),
            false => match client.replay(&letter).await {
                Ok(Replayed::Queued { without_deadline: false }) => ("replayed", None),
                Ok(Replayed::Queued { without_deadline: true }) => {
                    ("replayed", Some("its deadline had passed and was dropped".to_owned()))
                }
                Ok(Replayed::Answered) => {
                    ("answered", Some("it was answered after all; only the dead letter was deleted".to_owned()))
                }
                Err(error) => {
                    failed = true;
                    ("failed", Some(format!("{error:#}")))
                }
            },
        };
        match output {
            Output::Json => print_json(&json!({ "job_id": id, "outcome": outcome, "note": note }))?,
            Output::Text => print_line(&format!("{id} {outcome}"))?,
        }
        if let Some(note) = note {
            eprintln!("job {id}: {note}");
        }
    }
    Ok(u8::from(complain(&missing) || failed))
}

async fn purge(nats: &NatsArgs, output: Output, args: &SelectionArgs) -> anyhow::Result<u8> {
    let (client, letters) = select(nats, args).await?;
    let mut letters = pin!(letters);
    let mut missing = missing(args);
    let mut purged = 0_u64;
    while let Some(letter) = letters.try_next().await? {
        missing.remove(letter.job_id.as_str());
        client.delete_dead(&letter).await?;
        purged += 1;
    }
    match output {
        Output::Json => print_json(&json!({ "purged": purged }))?,
        Output::Text => print_line(&format!("{purged} dead letters deleted"))?,
    }
    Ok(u8::from(complain(&missing)))
}

/// The letters of a selection, which must not be all of them by oversight.
async fn select(
    nats: &NatsArgs,
    args: &SelectionArgs,
) -> anyhow::Result<(Client, impl Stream<Item = Result<Letter, ReadError>> + use<>)> {
    if args.job_ids.is_empty() && args.filter.is_empty() && !args.all {
        return Err(Usage("give ids of jobs, a filter such as --class, or --all".to_owned()).into());
    }
    find(nats, filter(&args.filter, &args.job_ids)?).await
}

async fn find(
    nats: &NatsArgs,
    filter: Filter,
) -> anyhow::Result<(Client, impl Stream<Item = Result<Letter, ReadError>> + use<>)> {
    let client = Client::new(connect(nats).await?);
    let letters = client.dead_letters(filter).await?;
    Ok((client, letters))
}

fn filter(args: &FilterArgs, job_ids: &[JobId]) -> anyhow::Result<Filter> {
    let token = |flag: &str, name: &Option<String>| match name {
        Some(name) => Token::encode(name).map(Some).map_err(|error| Usage(format!("{flag} {name:?} {error}"))),
        None => Ok(None),
    };
    Ok(Filter {
        job_ids: job_ids.to_vec(),
        model: token("--model", &args.model)?,
        tenant: token("--tenant", &args.tenant)?,
        class: args.class,
        reason: args.reason.clone(),
        older_than: args.older_than,
        newer_than: args.newer_than,
    })
}

/// The jobs that were asked for by name, until they are found.
fn missing(args: &SelectionArgs) -> BTreeSet<&str> {
    args.job_ids.iter().map(JobId::as_str).collect()
}

fn complain(missing: &BTreeSet<&str>) -> bool {
    missing.iter().for_each(|id| eprintln!("{}", unknown(id)));
    !missing.is_empty()
}

fn unknown(id: &str) -> String {
    format!("job {id} is not among the dead letters that were asked for; `inferq dead list` lists all")
}

fn line(letter: &Letter) -> String {
    let Letter { job_id, class, model, lane, tenant, attempts, reason, .. } = letter;
    let class = class.map_or("-", |class| class.as_str());
    row([job_id, class, model, lane, tenant, &age(letter), &attempts.to_string(), reason])
}

/// Widths that suit most: rows are printed as they come, so none is known beforehand.
fn row([job_id, class, model, lane, tenant, age, attempts, reason]: [&str; 8]) -> String {
    format!("{job_id:36}  {class:9}  {model:20}  {lane:8}  {tenant:10}  {age:>4}  {attempts:>8}  {reason}")
}

/// In its largest unit, such as `3d`.
fn age(letter: &Letter) -> String {
    let age = (OffsetDateTime::now_utc() - letter.time).unsigned_abs();
    format!("{:#}", HumanDuration(age))
}

fn whole(letter: &Letter, open: &OpenLetter) -> anyhow::Result<Value> {
    let mut object = serde_json::to_value(letter)?;
    object["headers"] =
        headers(letter).into_iter().map(|(name, value)| (name, value.into())).collect::<Map<_, _>>().into();
    object["body"] = open.body.clone();
    object["log"] = serde_json::to_value(&open.log)?;
    object["history"] = serde_json::to_value(&open.history)?;
    Ok(object)
}

fn print_open(letter: &Letter, open: &OpenLetter) -> anyhow::Result<()> {
    print_line(&format!("job {} of tenant {}, given up {}", letter.job_id, letter.tenant, letter.time))?;
    print_line("\nheaders")?;
    headers(letter).iter().try_for_each(|(name, value)| print_line(&format!("  {name}: {value}")))?;
    print_line("\nbody")?;
    print_line(&serde_json::to_string_pretty(&open.body)?)?;
    print_line("\nlog")?;
    open.log.iter().try_for_each(|record| print_line(&format!("  {}", super::logs::line(record))))?;
    print_line("\nhistory")?;
    open.history.iter().try_for_each(|life| {
        let class = life.class.as_str();
        print_line(&format!(
            "  {}  {class} after {} attempts on {}: {}",
            life.time, life.attempts, life.worker, life.reason
        ))
    })
}

/// Without those that are shown by themselves.
fn headers(letter: &Letter) -> Vec<(String, String)> {
    use schemas::header::{DEAD_LOG, HISTORY};
    let all = letter.headers.iter().flat_map(|(name, values)| values.iter().map(move |value| (name, value)));
    let mut shown: Vec<(String, String)> = all.map(|(name, value)| (name.to_string(), value.to_string())).collect();
    shown.retain(|(name, _)| name != DEAD_LOG && name != HISTORY && name != "Nats-Msg-Size");
    shown.sort();
    shown
}
