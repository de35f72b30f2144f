//! Listening, with TLS or without, and the end of it.

use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use axum_server::Handle;
use axum_server::tls_rustls::RustlsConfig;
use hyper_util::rt::TokioTimer;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::routes::router;
use super::{Gateway, KeyMode, batches, control, hooks};

/// Time for the head of a request: who sends it a byte at a time holds up nobody else.
const HEAD_MAX: Duration = Duration::from_secs(20);
/// How often the files of a certificate are looked at.
const RELOAD_EVERY: Duration = Duration::from_secs(60);

/// Files in PEM form. They are read again from time to time.
#[derive(Clone, Debug)]
pub struct Tls {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

/// A gateway that listens.
#[derive(Debug)]
pub struct Listening {
    pub address: SocketAddr,
    task: tokio::task::JoinHandle<std::io::Result<()>>,
}

impl Listening {
    /// Returns when the last connection is closed after the gateway was stopped.
    pub async fn ended(self) -> anyhow::Result<()> {
        Ok(self.task.await??)
    }
}

/// Listens until the gateway is stopped; then open requests have as long as `grace`.
pub async fn serve(
    gateway: Arc<Gateway>,
    address: SocketAddr,
    tls: Option<Tls>,
    grace: Duration,
) -> anyhow::Result<Listening> {
    if gateway.options.keys == KeyMode::Required {
        let (loaded, mut is_loaded) = watch::channel(false);
        let jetstream = gateway.client.connection.jetstream.clone();
        let (keys, stopping) = (gateway.keys.clone(), gateway.stopping.clone());
        tokio::spawn(async move { stopping.run_until_cancelled(keys.keep(jetstream, loaded)).await });
        is_loaded.wait_for(|loaded| *loaded).await?;
    }
    let listener = TcpListener::bind(address).with_context(|| format!("--listen {address}"))?;
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?;
    let handle = Handle::new();
    let control = control::answer(&gateway).await?;
    let (stopping, stop) = (gateway.stopping.clone(), handle.clone());
    tokio::spawn(async move {
        stopping.cancelled().await;
        // Others are asked from now on.
        let _ = control.stop().await;
        stop.graceful_shutdown(Some(grace));
    });
    tokio::spawn(batches::keep(gateway.clone()));
    tokio::spawn(hooks::keep(gateway.clone()));
    let service = router(gateway.clone()).into_make_service();
    let task = match tls {
        None => {
            let mut server = axum_server::from_tcp(listener)?.handle(handle);
            server.http_builder().http1().timer(TokioTimer::new()).header_read_timeout(HEAD_MAX);
            tokio::spawn(server.serve(service))
        }
        Some(files) => {
            let config = tls_config(files, gateway.stopping.clone()).await?;
            let mut server = axum_server::from_tcp_rustls(listener, config)?.handle(handle);
            server.http_builder().http1().timer(TokioTimer::new()).header_read_timeout(HEAD_MAX);
            tokio::spawn(server.serve(service))
        }
    };
    Ok(Listening { address, task })
}

async fn tls_config(files: Tls, stopping: CancellationToken) -> anyhow::Result<RustlsConfig> {
    // There is one provider in the program; another part may have named it already.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let named = || format!("{} and {}", files.certificate.display(), files.key.display());
    let config = RustlsConfig::from_pem_file(&files.certificate, &files.key).await.with_context(named)?;
    let renewed = config.clone();
    tokio::spawn(async move {
        let renew = async {
            loop {
                tokio::time::sleep(RELOAD_EVERY).await;
                if let Err(error) = renewed.reload_from_pem_file(&files.certificate, &files.key).await {
                    tracing::warn!(%error, "certificate not read again, the old one stays");
                }
            }
        };
        stopping.run_until_cancelled(renew).await;
    });
    Ok(config)
}
