//! Why there is no connection, and what to do about it. No message shows a password, a token or a seed.

use std::error::Error as _;
use std::io;

use async_nats::ConnectErrorKind;
use async_nats::rustls;

use crate::NatsArgs;

#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("--server {url:?}: {reason}; give a URL such as nats://127.0.0.1:4222")]
    Url { url: String, reason: String },
    #[error("{key} {path:?} {reason}")]
    File { key: &'static str, path: String, reason: String },
    #[error("{url} does not accept {given}")]
    Denied { url: String, given: String },
    #[error(
        "no TLS with {url}: {reason}; --tlsca names the authority that signed the server's certificate, --tlscert and --tlskey the client's own certificate where the server asks for one"
    )]
    Tls { url: String, reason: String },
    #[error("{url} sent no greeting; a server with `handshake_first` waits for --tlsfirst")]
    Silent { url: String },
    #[error(
        "cannot connect to {url}: {reason}; is nats-server running there? `inferq up` starts one, --server or NATS_URL names another"
    )]
    Refused { url: String, reason: String },
}

impl ConnectError {
    /// Whether the options are wrong by themselves, whatever the server says.
    pub fn is_usage(&self) -> bool {
        matches!(self, Self::Url { .. } | Self::File { .. })
    }
}

/// Reads the client library's error.
pub fn classify_connect(error: &async_nats::ConnectError, args: &NatsArgs) -> ConnectError {
    let (url, reason) = (redact(&args.server), error.to_string());
    match error.kind() {
        ConnectErrorKind::AuthorizationViolation | ConnectErrorKind::Authentication => {
            ConnectError::Denied { url, given: given(args) }
        }
        ConnectErrorKind::TimedOut => ConnectError::Silent { url },
        // The server gave up first.
        _ if reason.contains("expected INFO, got nothing") => ConnectError::Silent { url },
        _ if is_tls(error) => ConnectError::Tls { url, reason },
        _ => ConnectError::Refused { url, reason },
    }
}

/// What the client has shown of itself.
fn given(args: &NatsArgs) -> String {
    match args {
        NatsArgs { server, .. } if server.contains('@') => "what stands before the @ of the URL".to_owned(),
        NatsArgs { creds: Some(path), .. } => format!("the credentials of --creds {path:?}"),
        NatsArgs { nkey: Some(path), .. } => format!("the nkey of --nkey {path:?}"),
        NatsArgs { user: Some(user), password: Some(_), .. } => {
            format!("user {user:?} with the password of --password or NATS_PASSWORD")
        }
        NatsArgs { user: Some(_), .. } => {
            "the token of --user or NATS_USER (a user name would need --password)".to_owned()
        }
        _ => {
            "a client without credentials; give --creds, --nkey, --user and --password, or a token as --user".to_owned()
        }
    }
}

/// A failed handshake comes as an input error with rustls's own inside.
fn is_tls(error: &async_nats::ConnectError) -> bool {
    let inner = error.source().and_then(|source| source.downcast_ref::<io::Error>()).and_then(io::Error::get_ref);
    error.kind() == ConnectErrorKind::Tls || inner.is_some_and(|inner| inner.is::<rustls::Error>())
}

/// URLs may carry a password, which no message shows.
pub fn redact(urls: &str) -> String {
    let hide = |url: &str| match url.rsplit_once('@') {
        Some((before, host)) => {
            format!("{}***@{host}", before.split_once("://").map_or(String::new(), |(s, _)| format!("{s}://")))
        }
        None => url.to_owned(),
    };
    urls.split(',').map(hide).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_in_a_url_is_not_shown() {
        assert_eq!(redact("nats://u:p@h:4222,nats://h2"), "nats://***@h:4222,nats://h2");
    }

    #[test]
    fn what_was_given_is_named_without_its_secret() {
        let plain = NatsArgs::to("nats://h");
        let password = NatsArgs { user: Some("ann".into()), password: Some("secret".into()), ..plain.clone() };
        let token = NatsArgs { user: Some("secret".into()), ..plain.clone() };
        let creds = NatsArgs { creds: Some("ann.creds".into()), ..plain.clone() };
        let cases = [
            (password, "user \"ann\""),
            (token, "the token of --user"),
            (creds, "--creds \"ann.creds\""),
            (NatsArgs::to("nats://ann:secret@h"), "of the URL"),
            (plain, "without credentials"),
        ];
        for (args, says) in cases {
            let given = given(&args);
            assert!(given.contains(says) && !given.contains("secret"), "{given}");
        }
    }
}
