//! `inferq gateway`.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use connect::{FirstConnect, NatsArgs};
use producer::Client;
use producer::gateway::metrics::Metrics;
use producer::gateway::{self, Gateway, KeyMode, Options, Tls, WebhookOptions, WebhookSecret};
use producer::reach::Reach;
use service::admin::{self, Admin, Phase};
use service::{health, stop_on_signal};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use traces::Traces;

use super::{Usage, tenant_token};
use crate::config::gateway::{self as config, GatewayArgs};

pub async fn run(nats: &NatsArgs, traces: Traces, args: GatewayArgs) -> anyhow::Result<u8> {
    if args.command.is_some() {
        health::check(args.admin).await?;
        return Ok(0);
    }
    let options = options(&args)?;
    let tls = args.tls_cert.clone().zip(args.tls_key.clone()).map(|(certificate, key)| Tls { certificate, key });
    let stop = stop_on_signal()?;
    let (phase, watched) = watch::channel(Phase::Loading);
    let connecting = connect::connect(nats, "inferq-gateway", FirstConnect::Retry);
    let Some(connection) = stop.run_until_cancelled(connecting).await else { return Ok(0) };
    let connection = connection?;
    let metrics = Arc::new(Metrics::default());
    let render = {
        let (metrics, connection) = (metrics.clone(), connection.clone());
        move || metrics.render(&connection)
    };
    let admin = Admin { phase: watched, client: connection.client.clone(), metrics: Arc::new(render) };
    let closed = CancellationToken::new();
    let bound =
        admin::serve(args.admin, admin, closed.clone()).await.with_context(|| format!("--admin {}", args.admin))?;
    let client = Client::new(connection).with_traces(traces);
    anyhow::ensure!(
        client.reach().await? == Reach::All,
        "these NATS credentials are a tenant's own; a gateway acts for all tenants and needs the operator's"
    );
    let gateway = Arc::new(Gateway::new(client, options, metrics, stop.clone())?);
    let grace = Duration::from_secs(args.grace_seconds);
    let serving = gateway::serve(gateway.clone(), args.listen, tls, grace);
    let Some(listening) = stop.run_until_cancelled(serving).await else { return Ok(0) };
    let listening = listening?;
    phase.send_replace(Phase::Running);
    tracing::info!(listen = %listening.address, admin = %bound, keys = ?args.keys, "ready");
    stop.cancelled().await;
    phase.send_replace(Phase::Draining);
    listening.ended().await?;
    if tokio::time::timeout(grace, gateway.settled()).await.is_err() {
        tracing::warn!("batches not given back in time; another gateway finds them silent");
    }
    closed.cancel();
    Ok(0)
}

fn options(args: &GatewayArgs) -> anyhow::Result<Options> {
    let tenant = tenant_token(&args.tenant)?;
    for origin in &args.cors_origin {
        if origin != "*" && (!origin.contains("://") || origin.ends_with('/')) {
            return Err(Usage(format!("--cors-origin {origin:?} is no origin, such as https://example.com")).into());
        }
    }
    Ok(Options {
        keys: match args.keys {
            config::KeyMode::Required => KeyMode::Required,
            config::KeyMode::Off => KeyMode::Off,
        },
        tenant,
        tenant_name: args.tenant.tenant.clone(),
        timeout: Duration::from_secs(args.timeout_seconds),
        resume: Duration::from_secs(args.resume_seconds),
        body_bytes: args.body_mebibytes as usize * (1 << 20),
        file_bytes: usize::try_from(u64::from(args.file_mebibytes) << 20).unwrap_or(usize::MAX),
        webhooks: WebhookOptions { hosts: args.webhook_host.clone(), secret: secret(args)? },
        show_payloads: args.show_payloads,
        origins: args.cors_origin.clone(),
    })
}

fn secret(args: &GatewayArgs) -> anyhow::Result<Option<WebhookSecret>> {
    let Some(path) = &args.webhook_secret_file else { return Ok(None) };
    let wrong = |reason: String| Usage(format!("--webhook-secret-file {}: {reason}", path.display()));
    let text = std::fs::read_to_string(path).map_err(|error| wrong(error.to_string()))?;
    Ok(Some(text.parse().map_err(wrong)?))
}
