//! What a client shows of itself when a server asks. Files are read each time: a connection that is made again uses the
//! credentials that are there then.

use std::path::{Path, PathBuf};

use async_nats::{Auth, ServerAddr};
use nkeys::KeyPair;

use crate::options::{in_url, unfit};
use crate::{ConnectError, NatsArgs};

/// How an nkey seed of a user begins.
const USER_SEED: &str = "SU";
/// What stands before the JWT in a file of credentials.
const JWT_BEGINS: &str = "BEGIN NATS USER JWT";

/// Where the secrets are. It has no `Debug`, since a password is in it.
pub struct Secrets {
    creds: Option<PathBuf>,
    nkey: Option<PathBuf>,
    user: Option<String>,
    password: Option<String>,
}

impl Secrets {
    pub fn new(args: &NatsArgs, addresses: &[ServerAddr]) -> Self {
        // The library does not use what stands in a URL, which concerns that URL more than a flag or a variable does.
        let (user, password) = match addresses.iter().find_map(in_url) {
            Some((user, password)) => (Some(user), password),
            None => (args.user.clone(), args.password.clone()),
        };
        Self { creds: args.creds.clone(), nkey: args.nkey.clone(), user, password }
    }

    /// The answer to a server's nonce.
    pub fn answer(&self, nonce: &[u8]) -> Result<Auth, ConnectError> {
        let mut auth = Auth::new();
        match (self.user.clone(), self.password.clone()) {
            (Some(user), Some(password)) => (auth.username, auth.password) = (Some(user), Some(password)),
            (token, _) => auth.token = token,
        }
        if let Some(path) = &self.nkey {
            let text = read("--nkey", path)?;
            let key = seed(&text)
                .ok_or_else(|| unfit("--nkey", path, "holds no nkey seed of a user, a line that begins with SU"))?;
            (auth.nkey, auth.signature) = (Some(key.public_key()), key.sign(nonce).ok());
        }
        if let Some(path) = &self.creds {
            let text = read("--creds", path)?;
            let (jwt, key) = credentials(&text).ok_or_else(|| {
                unfit("--creds", path, "holds no user JWT with its nkey seed, as `nsc generate creds` writes")
            })?;
            (auth.jwt, auth.nkey, auth.signature) = (Some(jwt), None, key.sign(nonce).ok());
        }
        Ok(auth)
    }
}

fn read(key: &'static str, path: &Path) -> Result<String, ConnectError> {
    std::fs::read_to_string(path).map_err(|error| unfit(key, path, &format!("cannot be read: {error}")))
}

/// The key of a line that is a user's seed.
fn seed(text: &str) -> Option<KeyPair> {
    let line = text.lines().map(str::trim).find(|line| line.starts_with(USER_SEED))?;
    KeyPair::from_seed(line).ok()
}

fn credentials(text: &str) -> Option<(String, KeyPair)> {
    let mut lines = text.lines().map(str::trim).skip_while(|line| !line.contains(JWT_BEGINS));
    let jwt = lines.nth(1).filter(|line| line.split('.').count() == 3)?;
    Some((jwt.to_owned(), seed(text)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_credentials_has_a_jwt_and_a_seed() {
        let (key, other) = (KeyPair::new_user(), "a.b.c");
        let text = format!(
            "-----BEGIN NATS USER JWT-----\n{other}\n------END NATS USER JWT------\n\nNOTE\n\n\
             -----BEGIN USER NKEY SEED-----\n{}\n------END USER NKEY SEED------\n",
            key.seed().unwrap()
        );
        let (jwt, read) = credentials(&text).unwrap();
        assert_eq!((jwt.as_str(), read.public_key()), (other, key.public_key()));
        assert!(credentials(&text.replace("a.b.c", "a.b")).is_none());
        assert!(credentials(&text.replace("SU", "XX")).is_none());
    }
}
