//! The arguments of `inferq tenants`.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

#[derive(Subcommand, Debug)]
pub enum TenantsCommand {
    /// Let tenants in; without a name, only make the accounts of operator, workers and logger
    #[command(after_help = "Examples:
  inferq tenants add acme globex --out /etc/nats/inferq
  echo 'include inferq/accounts.conf' >> /etc/nats/nats.conf
  nats-server --signal reload")]
    Add(AddArgs),
    /// List who may connect, and where their keys are
    List(FolderArgs),
    /// Let tenants in no more, and delete their keys. Their jobs and results stay
    Remove(RemoveArgs),
    /// Make new keys in place of old ones, which are let in no more
    Rotate(RotateArgs),
}

#[derive(Args, Debug)]
pub struct FolderArgs {
    /// Folder of the keys and of what servers include
    #[arg(long, default_value = "inferq-accounts", value_name = "DIR")]
    pub out: PathBuf,
}

#[derive(Args, Debug)]
pub struct AddArgs {
    /// Names of the tenants
    #[arg(value_name = "TENANT")]
    pub tenants: Vec<String>,
    #[command(flatten)]
    pub folder: FolderArgs,
    /// Sign accounts and users as an operator (JWT) in place of listing public keys; for a new folder
    #[arg(long)]
    pub operator: bool,
}

#[derive(Args, Debug)]
pub struct RemoveArgs {
    /// Names of the tenants
    #[arg(required = true, value_name = "TENANT")]
    pub tenants: Vec<String>,
    #[command(flatten)]
    pub folder: FolderArgs,
}

#[derive(Args, Debug)]
pub struct RotateArgs {
    /// Names of the tenants
    #[arg(value_name = "TENANT", required_unless_present = "service")]
    pub tenants: Vec<String>,
    /// The key of a service; may be given several times
    #[arg(long, value_enum, value_name = "SERVICE")]
    pub service: Vec<Service>,
    #[command(flatten)]
    pub folder: FolderArgs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Service {
    Admin,
    Worker,
    Logger,
}
