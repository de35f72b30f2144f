//! `inferq keys`.

use connect::NatsArgs;
use producer::keys::{self, Key};
use serde_json::json;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::{connect, print_json, print_line, tenant_token};
use crate::config::Output;
use crate::config::gateway::{CreateKeyArgs, KeysCommand};

pub async fn run(nats: &NatsArgs, output: Output, command: KeysCommand) -> anyhow::Result<u8> {
    let jetstream = connect(nats).await?.jetstream;
    match command {
        KeysCommand::Create(args) => {
            let (secret, key) = made(&args)?;
            keys::store(&jetstream, &secret, &key).await?;
            match output {
                Output::Json => print_json(&json!({ "secret": secret, "key": key }))?,
                Output::Text => {
                    print_line(&secret)?;
                    eprintln!(
                        "key {} ({}) is stored as a digest: this is the only time that it is shown",
                        key.id, key.name
                    );
                }
            }
        }
        KeysCommand::List => {
            let all = keys::list(&jetstream).await?;
            match output {
                Output::Json => all.iter().try_for_each(|(_, key)| print_json(key))?,
                Output::Text => {
                    print_line(&row(["ID", "NAME", "TENANT", "LANES", "A MINUTE", "JOBS", "RIGHTS", "EXPIRES"]))?;
                    for (_, key) in &all {
                        print_line(&line(key))?;
                    }
                }
            }
        }
        KeysCommand::Revoke { id } => {
            let key = keys::revoke(&jetstream, &id).await?;
            match output {
                Output::Json => print_json(&key)?,
                Output::Text => eprintln!("key {} ({}) is revoked", key.id, key.name),
            }
        }
    }
    Ok(0)
}

fn made(args: &CreateKeyArgs) -> anyhow::Result<(String, Key)> {
    tenant_token(&args.tenant)?;
    let secret = keys::make_secret()?;
    let now = OffsetDateTime::now_utc().unix_timestamp();
    let key = Key {
        id: keys::id_of(&keys::digest(&secret)),
        name: args.name.clone(),
        tenant: args.tenant.tenant.clone(),
        lanes: args.lanes.clone(),
        requests_per_minute: args.requests_per_minute,
        jobs_max: args.jobs_max,
        operator: args.operator,
        created_at: now,
        expires_at: args.expires_in.map(|age| now.saturating_add_unsigned(age.as_secs())),
    };
    Ok((secret, key))
}

fn line(key: &Key) -> String {
    let lanes = key.lanes.iter().map(|lane| lane.as_str()).collect::<Vec<_>>().join(",");
    let limit = |limit: Option<u64>| limit.map_or("any".to_owned(), |limit| limit.to_string());
    let day = |at: i64| OffsetDateTime::from_unix_timestamp(at).ok()?.format(&Rfc3339).ok();
    let expires = key.expires_at.and_then(day).unwrap_or_else(|| "never".to_owned());
    let (rate, jobs) = (limit(key.requests_per_minute.map(u64::from)), limit(key.jobs_max));
    let rights = if key.operator { "operator" } else { "own" };
    row([&key.id, &key.name, &key.tenant, &lanes, &rate, &jobs, rights, &expires])
}

fn row([id, name, tenant, lanes, rate, jobs, rights, expires]: [&str; 8]) -> String {
    format!("{id:<13} {name:<16} {tenant:<16} {lanes:<22} {rate:<9} {jobs:<9} {rights:<9} {expires}")
}
