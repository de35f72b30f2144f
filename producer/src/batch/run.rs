//! A batch file on this machine, from its check to its last line.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use connect::bucket::BODY_BYTES_MAX;
use schemas::subject::Lane;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use traces::Traces;
use uuid::Uuid;

use super::input::{Checked, Rules};
use super::output::{Files, Outputs as _, errors_path};
use super::pump::{Plan, Progress, Run, last_result};
use super::source::Source;
use super::state::{self, State};
use super::transcripts::{Format, Transcripts};
use crate::client::Client;
use crate::pool::Pool;
use crate::reach::Reach;

#[derive(Clone, Debug)]
pub struct Options {
    pub input: Source,
    pub output: PathBuf,
    /// A folder that gets a file for each transcript, and how they are written.
    pub transcripts: Option<(PathBuf, Format)>,
    /// Where failed rows go; beside the output by default.
    pub errors: Option<PathBuf>,
    pub tenant: String,
    /// For rows that name no service tier.
    pub lane: Lane,
    /// Rows published and not answered, at most.
    pub window: usize,
    /// Forget an earlier run.
    pub restart: bool,
    pub traces: Traces,
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Summary {
    pub rows: u64,
    pub failed: u64,
    pub resumed: u64,
    /// Whether it was stopped before the end.
    pub stopped: bool,
}

/// Runs a batch file to its end, or until `stop`. It can be run again in either case.
pub async fn run(
    pool: &Pool,
    options: &Options,
    progress: &watch::Sender<Progress>,
    stop: &CancellationToken,
) -> anyhow::Result<Summary> {
    // Held for the whole run: a connection carries many publishes at a time, and one that is given back at once would be
    // lent again before a second is made.
    let connections = futures::future::try_join_all((0..pool.status().max_size).map(|_| pool.get())).await?;
    let clients: Vec<Client> = connections
        .iter()
        .map(|connection| Client::new((**connection).clone()).with_traces(options.traces.clone()))
        .collect();
    let client = clients[0].clone();
    let errors = options.errors.clone().unwrap_or_else(|| errors_path(&options.output));
    refuse_same_file([options.input.path(), &options.output, &errors, &state::path_of(&options.output)])?;
    let checked = check(&client, options).await?;
    if options.restart {
        for path in [&options.output, &errors, &state::path_of(&options.output)] {
            remove(path)?;
        }
    }
    let (state, is_resumed) = match state::load(&options.output, &checked)? {
        Some(state) if state.tenant != options.tenant => {
            anyhow::bail!(
                "this run belongs to tenant {:?}; give --tenant {:?}, or --restart",
                state.tenant,
                state.tenant
            )
        }
        Some(state) => (state, true),
        None => (begin(&client, options, &checked).await?, false),
    };
    let lines = Files::open(&options.output, &errors, &state.batch_id, state.rows)?;
    let outputs = match (&options.transcripts, &options.input) {
        (Some((folder, format)), Source::Folder(files)) => Transcripts::in_folder(lines, folder, &files.files, *format),
        _ => Transcripts::lines(lines),
    };
    let rules = rules(&client, options).await?;
    let plan = Plan { input: options.input.clone(), state, rules, window: options.window, deadline: None };
    let (mut run, mut results) = Run::begin(clients, plan, outputs, is_resumed, progress).await?;
    let stopped = run.pump(&mut results, progress, stop).await?;
    let summary = Summary { rows: checked.rows, failed: run.outputs.failed(), resumed: run.resumed, stopped };
    run.outputs.lines.finish()?;
    Ok(summary)
}

async fn check(client: &Client, options: &Options) -> anyhow::Result<Checked> {
    let (source, rules) = (options.input.clone(), rules(client, options).await?);
    Ok(tokio::task::spawn_blocking(move || source.check(&rules)).await??)
}

async fn rules(client: &Client, options: &Options) -> anyhow::Result<Rules> {
    let registered = match client.reach().await? {
        Reach::All => Some(client.registered().await?.into_iter().collect()),
        // Rows of an unknown model are refused when they are published.
        Reach::Own => None,
    };
    Ok(Rules { registered, lanes: vec![options.lane], payload_bytes_max: BODY_BYTES_MAX })
}

async fn begin(client: &Client, options: &Options, checked: &Checked) -> anyhow::Result<State> {
    let state = State {
        batch_id: format!("batch_{}", Uuid::now_v7().simple()),
        rows: checked.rows,
        input_sha256: checked.sha256.clone(),
        tenant: options.tenant.clone(),
        results_after: last_result(client, client.reach().await?).await?,
    };
    state::save(&options.output, &state)?;
    Ok(state)
}

/// A file that is read and written, or written twice, would be lost.
fn refuse_same_file(paths: [&Path; 4]) -> anyhow::Result<()> {
    let real =
        |path: &Path| path.canonicalize().or_else(|_| std::path::absolute(path)).unwrap_or_else(|_| path.to_owned());
    let real = paths.map(real);
    for (place, path) in real.iter().enumerate() {
        anyhow::ensure!(
            !real[..place].contains(path),
            "{}: is named twice; input, output and error file must differ",
            path.display()
        );
    }
    Ok(())
}

fn remove(path: &Path) -> anyhow::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| path.display().to_string())
        }
        _ => Ok(()),
    }
}
