//! `inferq cancel`.

use connect::NatsArgs;
use producer::Client;
use producer::cancel::Cancellation;
use serde_json::json;

use super::{connect, print_json, print_line, tenant_token};
use crate::config::{CancelArgs, Output};

pub async fn run(nats: &NatsArgs, output: Output, args: CancelArgs) -> anyhow::Result<u8> {
    let tenant = tenant_token(&args.tenant)?;
    let client = Client::new(connect(nats).await?);
    let mut code = 0;
    for job_id in &args.job_ids {
        let outcome = client.cancel(&tenant, job_id).await?;
        if output == Output::Json {
            print_json(&json!({ "job_id": job_id.as_str(), "outcome": outcome }))?;
        }
        match outcome {
            Cancellation::Cancelled if output == Output::Text => print_line(&format!("{job_id} cancelled"))?,
            Cancellation::Cancelled => {}
            Cancellation::Answered => {
                eprintln!("job {job_id} is already answered; `inferq results {job_id}` prints its result");
                code = 1;
            }
            Cancellation::Unknown => {
                eprintln!(
                    "job {job_id} of tenant {:?} is unknown: it neither waits nor runs, and has no result; nothing was done",
                    args.tenant.tenant
                );
                code = 1;
            }
        }
    }
    Ok(code)
}
