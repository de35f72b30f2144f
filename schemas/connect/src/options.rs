//! From flags to the client library's options. Files are read here first, so that a wrong one is named before a
//! connection is tried: a worker would go on trying for ever.

use std::path::Path;

use async_nats::rustls::pki_types::pem::{self, PemObject};
use async_nats::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use async_nats::{AuthError, ConnectOptions, ServerAddr};
use percent_encoding::percent_decode_str;

use crate::refusal::redact;
use crate::secrets::Secrets;
use crate::{ConnectError, NatsArgs};

pub fn options(args: &NatsArgs, addresses: &[ServerAddr]) -> Result<ConnectOptions, ConnectError> {
    let secrets = Secrets::new(args, addresses);
    secrets.answer(&[])?;
    // Asked at each connect, so that credentials that were changed meanwhile are used. The library reads the files of
    // certificates anew by itself.
    let mut options = ConnectOptions::with_auth_callback(move |nonce| {
        let answer = secrets.answer(&nonce).map_err(AuthError::new);
        async move { answer }
    });
    if let Some(path) = &args.tlsca {
        certificates("--tlsca", path)?;
        options = options.add_root_certificates(path.clone());
    }
    if let (Some(cert), Some(key)) = (&args.tlscert, &args.tlskey) {
        certificates("--tlscert", cert)?;
        PrivateKeyDer::from_pem_file(key).map_err(|error| pem_error("--tlskey", key, "private key", &error))?;
        options = options.add_client_certificate(cert.clone(), key.clone());
    }
    // Who names certificates means TLS: a server without it must not be told the password.
    options = options.require_tls(args.tlsca.is_some() || args.tlscert.is_some());
    if args.tlsfirst {
        options = options.tls_first();
    }
    if let Some(prefix) = &args.inbox_prefix {
        options = options.custom_inbox_prefix(prefix);
    }
    Ok(options)
}

/// The servers of a list that is separated by commas.
pub fn addresses(urls: &str) -> Result<Vec<ServerAddr>, ConnectError> {
    let parse = |url: &str| {
        url.trim()
            .parse::<ServerAddr>()
            .map_err(|error| ConnectError::Url { url: redact(url), reason: error.to_string() })
    };
    urls.split(',').map(parse).collect()
}

/// The same servers without what stands before the `@` of a URL: the library logs addresses as they are.
pub fn without_secrets(urls: &str) -> Result<Vec<ServerAddr>, ConnectError> {
    let plain = |url: &str| match url.trim().rsplit_once('@') {
        Some((before, host)) => {
            before.split_once("://").map_or(host.to_owned(), |(scheme, _)| format!("{scheme}://{host}"))
        }
        None => url.to_owned(),
    };
    addresses(&urls.split(',').map(plain).collect::<Vec<_>>().join(","))
}

/// User and password of a URL, or a token.
pub(crate) fn in_url(address: &ServerAddr) -> Option<(String, Option<String>)> {
    let decode = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
    Some((decode(address.username()?), address.password().map(decode)))
}

/// Checks that a file holds certificates, at least one.
fn certificates(key: &'static str, path: &Path) -> Result<(), ConnectError> {
    CertificateDer::from_pem_file(path).map(drop).map_err(|error| pem_error(key, path, "certificate", &error))
}

/// What is wrong with a PEM file, without a word of what is in it.
fn pem_error(key: &'static str, path: &Path, what: &str, error: &pem::Error) -> ConnectError {
    match error {
        pem::Error::Io(error) => unfit(key, path, &format!("cannot be read: {error}")),
        _ => unfit(key, path, &format!("holds no {what} in PEM form")),
    }
}

pub(crate) fn unfit(key: &'static str, path: &Path, reason: &str) -> ConnectError {
    ConnectError::File { key, path: path.display().to_string(), reason: reason.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stands_in_a_url_is_read_as_urls_write_it() {
        let addresses = addresses("nats://h, nats://ann:p%40ss@h2:4223").unwrap();
        assert_eq!(addresses.iter().find_map(in_url), Some(("ann".to_owned(), Some("p@ss".to_owned()))));
        assert_eq!(in_url(&"nats://token@h".parse().unwrap()), Some(("token".to_owned(), None)));
        let plain = without_secrets("nats://h, tls://ann:p%40ss@h2:4223,tok@h3").unwrap();
        assert_eq!(
            plain.iter().map(ServerAddr::as_url_str).collect::<Vec<_>>(),
            ["nats://h", "tls://h2:4223", "nats://h3"]
        );
    }
}
