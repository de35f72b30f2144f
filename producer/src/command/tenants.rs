//! `inferq tenants`. It connects to no server: servers read what it writes.

use producer::access::plan::{API_PREFIX, CORE};
use producer::access::{AccessError, Folder, Listed, Mode, Role};

use super::{Usage, print_json, print_line};
use crate::config::Output;
use crate::config::tenants::{AddArgs, FolderArgs, RemoveArgs, RotateArgs, Service, TenantsCommand};

pub fn run(output: Output, command: TenantsCommand) -> anyhow::Result<u8> {
    match command {
        TenantsCommand::Add(args) => add(output, &args),
        TenantsCommand::List(args) => list(output, &args),
        TenantsCommand::Remove(args) => remove(output, &args),
        TenantsCommand::Rotate(args) => rotate(output, &args),
    }
}

fn add(output: Output, args: &AddArgs) -> anyhow::Result<u8> {
    let mode = if args.operator { Mode::Operator } else { Mode::Config };
    let mut folder = Folder::open(&args.folder.out, Some(mode)).map_err(usage)?;
    let listed = folder.add(&args.tenants).map_err(usage)?;
    let is_changed = listed.iter().any(|listed| listed.is_new);
    print(output, &listed)?;
    if is_changed {
        // A server connects a new account with the others at the second time.
        advise(&folder, "include it in the server's configuration where that is not done, and (twice)");
    }
    Ok(0)
}

fn list(output: Output, args: &FolderArgs) -> anyhow::Result<u8> {
    let listed = Folder::open(&args.out, None).and_then(|folder| folder.list()).map_err(usage)?;
    print(output, &listed)?;
    Ok(0)
}

fn remove(output: Output, args: &RemoveArgs) -> anyhow::Result<u8> {
    let mut folder = Folder::open(&args.folder.out, None).map_err(usage)?;
    print(output, &folder.remove(&args.tenants).map_err(usage)?)?;
    advise(&folder, "until then they are let in:");
    Ok(0)
}

fn rotate(output: Output, args: &RotateArgs) -> anyhow::Result<u8> {
    let services = args.service.iter().map(|service| match service {
        Service::Admin => Role::Admin,
        Service::Worker => Role::Worker,
        Service::Logger => Role::Logger,
    });
    let roles: Vec<Role> = services.chain(args.tenants.iter().cloned().map(Role::Tenant)).collect();
    let mut folder = Folder::open(&args.folder.out, None).map_err(usage)?;
    print(output, &folder.rotate(&roles).map_err(usage)?)?;
    advise(&folder, "bring the new files to where the old ones are used, then");
    Ok(0)
}

fn print(output: Output, listed: &[Listed]) -> anyhow::Result<()> {
    if output == Output::Json {
        return print_json(&listed);
    }
    for Listed { role, tenant, account, file, is_new, .. } in listed {
        let name = tenant.as_deref().unwrap_or_default();
        let news = if *is_new { "  new" } else { "" };
        // The account that has the streams finds the API where everybody looks for it.
        let prefix = if account == CORE { String::new() } else { format!("  --js-api-prefix {API_PREFIX}") };
        print_line(&format!("{role:<7} {name:<20} {}{prefix}{news}", file.display()))?;
    }
    Ok(())
}

fn advise(folder: &Folder, first: &str) {
    eprintln!("{} is written; {first} have it read: nats-server --signal reload", folder.conf().display());
}

fn usage(error: AccessError) -> anyhow::Error {
    if error.is_usage() { Usage(error.to_string()).into() } else { error.into() }
}
