//! The arguments of `inferq dead`.

use std::time::Duration;

use clap::{Args, Subcommand};
use schemas::header::DeadClass;
use schemas::subject::JobId;

use super::parse_job_id;

#[derive(Subcommand, Debug)]
pub enum DeadCommand {
    /// List dead letters, the newest last
    #[command(after_help = "Examples:
  inferq dead list --newer-than 1h
  inferq dead list --class poison --output json | jq -r .job_id")]
    List(FilterArgs),
    /// Print a dead letter: its headers, the job, what happened to it, and its earlier lives
    Show(ShowArgs),
    /// Publish jobs again, under their ids and with their history
    #[command(after_help = "Examples:
  inferq dead replay 0198c1f2-7a55-7d3c-9d0e-4a5b6c7d8e9f
  inferq dead replay --class exhausted --newer-than 2h --dry-run
  inferq dead replay --model all-MiniLM-L6-v2 --reason 'out of memory'")]
    Replay(ReplayArgs),
    /// Delete dead letters, and their jobs with them
    #[command(after_help = "Examples:
  inferq dead purge --older-than 14d
  inferq dead purge --class invalid --tenant acme")]
    Purge(SelectionArgs),
}

/// Which letters are meant. Several filters must all be met.
#[derive(Args, Debug)]
#[command(next_help_heading = "Filters")]
pub struct FilterArgs {
    /// Jobs of this model
    #[arg(long, value_name = "NAME")]
    pub model: Option<String>,
    /// Why they were given up: `invalid`, `poison`, `exhausted` or `expired`
    #[arg(long)]
    pub class: Option<DeadClass>,
    /// Part of the reason
    #[arg(long, value_name = "TEXT")]
    pub reason: Option<String>,
    /// Jobs of this tenant; of all tenants by default
    #[arg(long, value_name = "NAME")]
    pub tenant: Option<String>,
    /// Given up longer ago than this, such as 90s, 2h or 3d
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    pub older_than: Option<Duration>,
    /// Given up within this time, such as 90s, 2h or 3d
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    pub newer_than: Option<Duration>,
}

#[derive(Args, Debug)]
pub struct ShowArgs {
    /// Id of the job
    #[arg(value_parser = parse_job_id)]
    pub job_id: JobId,
    #[command(flatten)]
    pub filter: FilterArgs,
}

#[derive(Args, Debug)]
pub struct ReplayArgs {
    /// Only print which jobs would be published
    #[arg(long)]
    pub dry_run: bool,
    // The heading of its filters holds for what comes after them.
    #[command(flatten)]
    pub selection: SelectionArgs,
}

/// Jobs, filters, or all.
#[derive(Args, Debug)]
pub struct SelectionArgs {
    /// Ids of the jobs
    #[arg(value_name = "JOB_ID", value_parser = parse_job_id)]
    pub job_ids: Vec<JobId>,
    /// All dead letters; needed where neither a job nor a filter is given
    #[arg(long)]
    pub all: bool,
    #[command(flatten)]
    pub filter: FilterArgs,
}

impl FilterArgs {
    /// Whether nothing is filtered by.
    pub fn is_empty(&self) -> bool {
        let Self { model, class, reason, tenant, older_than, newer_than } = self;
        let texts = [model, reason, tenant].iter().all(|text| text.is_none());
        texts && class.is_none() && older_than.is_none() && newer_than.is_none()
    }
}
