//! `inferq tokens`, and the printing of chunks that `inferq submit --stream` shares.

use std::io::Write;
use std::pin::pin;
use std::time::Duration;

use connect::NatsArgs;
use futures::{Stream, TryStreamExt};
use producer::Client;
use producer::client::ReadError;
use producer::reach::Reach;
use producer::standing::Standing;
use schemas::chunk::Chunk;
use schemas::result::JobResult;
use schemas::subject::{JobId, Token};
use schemas::tools::ToolCallDelta;

use super::results::{in_time, print_result};
use super::{connect, print_json, print_line, tenant_token};
use crate::config::{Output, TokensArgs};

pub async fn run(nats: &NatsArgs, output: Output, args: TokensArgs) -> anyhow::Result<u8> {
    let tenant = tenant_token(&args.tenant)?;
    let client = Client::new(connect(nats).await?);
    // Nothing would ever come. A tenant's own credentials cannot know.
    if client.reach().await? == Reach::All && client.standing(&tenant, &args.job_id).await? == Standing::Unknown {
        anyhow::bail!(
            "job {} of tenant {:?} is unknown: it neither waits nor runs, and has no result",
            args.job_id,
            args.tenant.tenant
        );
    }
    let timeout = Duration::from_secs(args.timeout_seconds);
    let chunks = client.tokens(&tenant, &args.job_id, args.from).await?;
    let from_start = args.from == 0;
    in_time(timeout, &args.job_id, follow(&client, &tenant, &args.job_id, chunks, from_start, output)).await
}

/// Prints the answer of a job as it is made, by its chunks from the first or from a later one on. The exit code is that
/// of its result.
pub async fn follow(
    client: &Client,
    tenant: &Token,
    job_id: &JobId,
    chunks: impl Stream<Item = Result<(u64, Chunk), ReadError>>,
    from_start: bool,
    output: Output,
) -> anyhow::Result<u8> {
    let mut chunks = pin!(chunks);
    let (mut printed, mut others) = (false, 0);
    let read = loop {
        match chunks.try_next().await {
            Ok(Some((_, chunk))) => {
                others = others.max(chunk.index());
                print_chunk(output, &chunk)?;
            }
            Ok(None) => break Ok(()),
            Err(error) => break Err(error),
        }
        printed = true;
    };
    if printed && output == Output::Text {
        print_line("")?;
        if others > 0 {
            eprintln!(
                "this is the first answer; `inferq tokens {job_id} --output json` shows the {others} more answers too"
            );
        }
    }
    read?;
    let result = client.wait(tenant, job_id).await?;
    if !result.is_success() {
        eprintln!("job {job_id} failed with status {}: {}", result.status_code(), complaint(&result));
        return Ok(1);
    }
    if !printed && from_start {
        eprintln!("job {job_id} has no chunks: it does not stream, or they are gone; this is its result");
        return print_result(&result);
    }
    Ok(0)
}

/// A chunk, where the reader sees it at once. As text, that is the first answer's, with each call of a tool in a line.
fn print_chunk(output: Output, chunk: &Chunk) -> anyhow::Result<()> {
    if output == Output::Json {
        return print_json(chunk);
    }
    if chunk.index() > 0 {
        return Ok(());
    }
    let mut out = std::io::stdout();
    out.write_all(chunk.text().as_bytes())?;
    for ToolCallDelta { function, .. } in chunk.tool_calls() {
        if let Some(name) = &function.name {
            write!(out, "\n{name} ")?;
        }
        out.write_all(function.arguments.as_bytes())?;
    }
    Ok(out.flush()?)
}

/// Why a job failed, in the words of its result.
fn complaint(result: &JobResult) -> String {
    match (&result.error, &result.response) {
        (Some(error), _) => error.message.clone(),
        (None, Some(response)) => {
            let message = response.body["error"]["message"].as_str();
            message.map_or_else(|| response.body.to_string(), str::to_owned)
        }
        (None, None) => "the result says nothing".to_owned(),
    }
}
