//! What a server's monitoring says that no client is told.

use std::time::Duration;

use anyhow::Context as _;
use serde::Deserialize;

use super::danger::Flush;

/// How long the server may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// The part of `/varz` that is read.
#[derive(Deserialize)]
struct Varz {
    server_name: String,
    #[serde(default)]
    jetstream: JetStream,
}

#[derive(Default, Deserialize)]
struct JetStream {
    config: Option<JetStreamConfig>,
}

#[derive(Deserialize)]
struct JetStreamConfig {
    /// Nanoseconds.
    #[serde(default)]
    sync_interval: u64,
    #[serde(default)]
    sync_always: bool,
}

/// Asks a server's monitoring, such as `http://127.0.0.1:8222`, when it writes through to its disk.
pub async fn flush(url: &str) -> anyhow::Result<Flush> {
    let text = read(url).await.with_context(|| {
        format!("--monitor {url} cannot be read; give the URL of a server's monitoring, such as http://127.0.0.1:8222")
    })?;
    parse(&text).with_context(|| format!("--monitor {url}"))
}

async fn read(url: &str) -> reqwest::Result<String> {
    let client = reqwest::Client::builder().timeout(PATIENCE).build()?;
    let varz = format!("{}/varz", url.trim_end_matches('/'));
    client.get(varz).send().await?.error_for_status()?.text().await
}

fn parse(text: &str) -> anyhow::Result<Flush> {
    let varz: Varz = serde_json::from_str(text).context("is not the monitoring of a NATS server")?;
    let config = varz.jetstream.config.context("is of a server without JetStream; name one that stores")?;
    let interval = Duration::from_nanos(config.sync_interval);
    Ok(Flush { server: varz.server_name, interval, always: config.sync_always })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn varz_is_read_as_the_server_writes_it() {
        let text = r#"{"server_name": "n1", "jetstream": {"config": {"sync_interval": 120000000000, "strict": true}}}"#;
        let flush = parse(text).unwrap();
        assert_eq!(flush, Flush { server: "n1".to_owned(), interval: Duration::from_secs(120), always: false });
        assert!(parse(&text.replace("\"strict\"", "\"sync_always\"")).unwrap().always);
        assert!(
            format!("{:#}", parse(r#"{"server_name": "n1", "jetstream": {}}"#).unwrap_err())
                .contains("without JetStream")
        );
        assert!(parse("<html>").is_err());
    }
}
