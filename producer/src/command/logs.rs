//! `inferq logs`.

use std::pin::pin;

use connect::NatsArgs;
use futures::StreamExt;
use producer::Client;
use schemas::log::{LogEvent, LogRecord};

use super::{connect, print_json, print_line, tenant_token};
use crate::config::{LogsArgs, Output};

pub async fn run(nats: &NatsArgs, output: Output, args: LogsArgs) -> anyhow::Result<u8> {
    let tenant = tenant_token(&args.tenant)?;
    let client = Client::new(connect(nats).await?);
    let mut messages = pin!(client.logs(&tenant, &args.job_id, args.follow).await?);
    let mut records = 0;
    while let Some(message) = messages.next().await {
        for record in message? {
            records += 1;
            match output {
                Output::Json => print_json(&record)?,
                Output::Text => print_line(&line(&record))?,
            }
            if matches!(record.event, LogEvent::Finished { .. }) {
                return Ok(0);
            }
        }
    }
    if records == 0 {
        anyhow::bail!("job {} has no log: no worker has started it, or its log has expired", args.job_id);
    }
    Ok(0)
}

/// A record in words.
pub fn line(record: &LogRecord) -> String {
    let LogRecord { time, worker, attempt, model, .. } = record;
    let what = match &record.event {
        LogEvent::Queued { lane } => format!("queued for {model} in lane {lane}"),
        LogEvent::Started { queue_seconds } => {
            format!("started by {worker}, attempt {attempt}, after {queue_seconds:.3} s in the queue")
        }
        LogEvent::Progress { completion_tokens, audio_seconds } => {
            let tokens = completion_tokens.map(|tokens| format!("{tokens} tokens generated"));
            let audio = audio_seconds.map(|seconds| format!("{seconds:.1} s of audio read"));
            let far = [tokens, audio].into_iter().flatten().collect::<Vec<_>>().join(", ");
            if far.is_empty() { "running".to_owned() } else { format!("running: {far}") }
        }
        LogEvent::Retried { reason, delay_seconds } => {
            format!("attempt {attempt} failed: {reason}; next in {delay_seconds:.1} s")
        }
        LogEvent::Finished { status_code, run_seconds, usage } => {
            let tokens = usage.map_or(String::new(), |usage| format!(", {} tokens", usage.total_tokens));
            format!("finished with status {status_code} after {run_seconds:.3} s{tokens}")
        }
    };
    format!("{time}  {what}")
}
