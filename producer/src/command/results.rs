//! `inferq results`, and the waiting and printing that `inferq submit --wait` shares.

use std::time::Duration;

use connect::NatsArgs;
use producer::Client;
use schemas::result::JobResult;
use schemas::subject::{JobId, Token};

use super::{connect, print_json, tenant_token};
use crate::config::ResultsArgs;

pub async fn run(nats: &NatsArgs, args: ResultsArgs) -> anyhow::Result<u8> {
    let tenant = tenant_token(&args.tenant)?;
    let client = Client::new(connect(nats).await?);
    let result = if args.wait {
        wait(&client, &tenant, &args.job_id, Duration::from_secs(args.timeout_seconds)).await?
    } else {
        let stored = client.result(&tenant, &args.job_id).await?;
        stored.ok_or_else(|| {
            anyhow::anyhow!(
                "job {} of tenant {:?} has no result: it is waiting, running, unknown or its result has expired; \
                 `inferq logs` tells what happened, --wait waits for it",
                args.job_id,
                args.tenant.tenant
            )
        })?
    };
    print_result(&result)
}

pub async fn wait(client: &Client, tenant: &Token, job_id: &JobId, timeout: Duration) -> anyhow::Result<JobResult> {
    in_time(timeout, job_id, async { Ok(client.wait(tenant, job_id).await?) }).await
}

/// Waits for what ends with the job's result.
pub async fn in_time<T>(
    timeout: Duration,
    job_id: &JobId,
    waiting: impl Future<Output = anyhow::Result<T>>,
) -> anyhow::Result<T> {
    match tokio::time::timeout(timeout, waiting).await {
        Ok(done) => done,
        Err(_) => anyhow::bail!(
            "no result within {} s; the job goes on: `inferq results {job_id} --wait` waits again, `inferq status` shows the queue",
            timeout.as_secs()
        ),
    }
}

/// Prints the result's line; the exit code says whether it is an answer or an error.
pub fn print_result(result: &JobResult) -> anyhow::Result<u8> {
    print_json(result)?;
    Ok(u8::from(!result.is_success()))
}
