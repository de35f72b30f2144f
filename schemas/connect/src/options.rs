//! From flags to the client library's options. Files are read here, so that a wrong one is named before a connection is
//! tried: a worker would go on trying for ever.

use std::path::Path;

use async_nats::rustls::pki_types::pem::{self, PemObject};
use async_nats::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use async_nats::{ConnectOptions, ServerAddr};
use percent_encoding::percent_decode_str;

use crate::refusal::redact;
use crate::{ConnectError, NatsArgs};

/// How an nkey seed of a user begins.
const USER_SEED: &str = "SU";

pub async fn options(args: &NatsArgs, addresses: &[ServerAddr]) -> Result<ConnectOptions, ConnectError> {
    let mut options = ConnectOptions::new();
    if let Some(path) = &args.creds {
        let text = read("--creds", path).await?;
        options = options.credentials(&text).map_err(|_| {
            unfit("--creds", path, "holds no user JWT with its nkey seed, as `nsc generate creds` writes")
        })?;
    }
    if let Some(path) = &args.nkey {
        let text = read("--nkey", path).await?;
        let seed = text.lines().map(str::trim).find(|line| line.starts_with(USER_SEED));
        // The library would find out with each try only.
        let seed = seed.filter(|seed| nkeys::KeyPair::from_seed(seed).is_ok());
        let seed =
            seed.ok_or_else(|| unfit("--nkey", path, "holds no nkey seed of a user, a line that begins with SU"))?;
        options = options.nkey(seed.to_owned());
    }
    // The library does not use what stands in a URL, which concerns that URL more than a flag or a variable does.
    let (user, password) = match addresses.iter().find_map(in_url) {
        Some((user, password)) => (Some(user), password),
        None => (args.user.clone(), args.password.clone()),
    };
    options = match (user, password) {
        (Some(user), Some(password)) => options.user_and_password(user, password),
        (Some(token), None) => options.token(token),
        (None, _) => options,
    };
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

/// User and password of a URL, or a token.
fn in_url(address: &ServerAddr) -> Option<(String, Option<String>)> {
    let decode = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
    Some((decode(address.username()?), address.password().map(decode)))
}

async fn read(key: &'static str, path: &Path) -> Result<String, ConnectError> {
    tokio::fs::read_to_string(path).await.map_err(|error| unfit(key, path, &format!("cannot be read: {error}")))
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

fn unfit(key: &'static str, path: &Path, reason: &str) -> ConnectError {
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
    }
}
