//! The folder that `inferq tenants` keeps: the seeds of all keys, what servers read, and which keys are whose.
//!
//! Seeds of users may be taken away to where they are used; those of an operator and of accounts stay, and are what
//! decides who may do what. Servers are given public keys alone.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use nkeys::{KeyPair, KeyPairType};
use schemas::subject::{NameError, Token};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use time::OffsetDateTime;

use super::claims::{self, Claims};
use super::conf;
use super::plan::{self, CORE, Crossing, LOG, WORK};
use crate::whole::{PUBLIC, SECRET, write_whole};

/// What a server includes.
const CONF: &str = "accounts.conf";
/// What is known of all keys; no secret is in it.
const STATE: &str = "accounts.json";
const KEYS: &str = "keys";
const LOCK: &str = ".lock";
/// The account of the system, which operators have and configurations need not name.
const SYSTEM: &str = "SYS";

/// How servers know accounts and users.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// By the public keys in their configuration.
    Config,
    /// By claims that an operator has signed.
    Operator,
}

/// Whose credentials they are.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    Admin,
    Worker,
    Logger,
    Tenant(String),
}

/// Somebody who may connect.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Listed {
    pub role: &'static str,
    pub tenant: Option<String>,
    pub account: String,
    /// The public key of its user.
    pub user: String,
    /// Its secret: an nkey seed, or credentials.
    pub file: PathBuf,
    /// Whether this call has made the key.
    pub is_new: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    #[error("tenant {0:?} {1}")]
    Name(String, NameError),
    #[error("tenant {0:?} is not there; `inferq tenants list` prints those that are")]
    Unknown(String),
    #[error("{path} was made without an operator; give another folder for one", path = .0.display())]
    OtherMode(PathBuf),
    #[error("{path} does not hold accounts; `inferq tenants add` makes them", path = .0.display())]
    Empty(PathBuf),
    #[error("{path}: {reason}", path = path.display())]
    File { path: PathBuf, reason: String },
    #[error("cannot sign: {0}")]
    Sign(#[from] nkeys::error::Error),
}

impl AccessError {
    /// Whether what was asked for is wrong, whatever the folder holds.
    pub fn is_usage(&self) -> bool {
        matches!(self, Self::Name(..) | Self::OtherMode(_))
    }
}

/// Open and locked.
pub struct Folder {
    path: PathBuf,
    state: State,
    _lock: File,
}

#[derive(Debug, Serialize, Deserialize)]
struct State {
    mode: Mode,
    tenants: BTreeSet<String>,
    /// Public keys of users, by account.
    users: BTreeMap<String, String>,
    /// Users that are let in no more, by account, with the time of that.
    #[serde(default)]
    revoked: BTreeMap<String, Map<String, Value>>,
    /// The digest of what was last said of an account, and when.
    #[serde(default)]
    issued: BTreeMap<String, (String, i64)>,
}

impl Role {
    const FIXED: [Self; 3] = [Self::Admin, Self::Worker, Self::Logger];

    fn as_str(&self) -> &'static str {
        match self {
            Self::Admin => "admin",
            Self::Worker => "worker",
            Self::Logger => "logger",
            Self::Tenant(_) => "tenant",
        }
    }

    fn account(&self) -> Result<String, AccessError> {
        Ok(match self {
            Self::Admin => CORE.to_owned(),
            Self::Worker => WORK.to_owned(),
            Self::Logger => LOG.to_owned(),
            Self::Tenant(name) => plan::tenant_account(&token(name)?),
        })
    }

    /// The name of its file, without an ending.
    fn stem(&self) -> Result<String, AccessError> {
        Ok(match self {
            Self::Tenant(name) => format!("tenant-{}", token(name)?),
            fixed => fixed.as_str().to_owned(),
        })
    }
}

impl Folder {
    /// Opens a folder, or makes one in a mode that is given. Waits for others that have it open.
    pub fn open(path: &Path, mode: Option<Mode>) -> Result<Self, AccessError> {
        let state = path.join(STATE);
        if mode.is_none() && !state.exists() {
            return Err(AccessError::Empty(path.to_owned()));
        }
        let keys = path.join(KEYS);
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&keys).map_err(failed(&keys))?;
        let lock = path.join(LOCK);
        let lock_file = File::create(&lock).map_err(failed(&lock))?;
        lock_file.lock().map_err(failed(&lock))?;
        let read = match fs::read(&state) {
            Ok(text) => serde_json::from_slice(&text).map_err(|error| failed(&state)(error.into()))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => State {
                mode: mode.unwrap_or(Mode::Config),
                tenants: BTreeSet::new(),
                users: BTreeMap::new(),
                revoked: BTreeMap::new(),
                issued: BTreeMap::new(),
            },
            Err(error) => return Err(failed(&state)(error)),
        };
        if mode == Some(Mode::Operator) && read.mode == Mode::Config {
            return Err(AccessError::OtherMode(path.to_owned()));
        }
        Ok(Self { path: path.to_owned(), state: read, _lock: lock_file })
    }

    /// What a server includes.
    pub fn conf(&self) -> PathBuf {
        self.path.join(CONF)
    }

    /// All who may connect.
    pub fn list(&self) -> Result<Vec<Listed>, AccessError> {
        self.roles().iter().map(|role| self.listed(role, false)).collect()
    }

    /// Lets tenants in, and makes keys for whoever has none.
    pub fn add(&mut self, tenants: &[String]) -> Result<Vec<Listed>, AccessError> {
        for name in tenants {
            token(name)?;
        }
        self.state.tenants.extend(tenants.iter().cloned());
        let mut listed = Vec::new();
        for role in self.roles() {
            let is_new = !self.state.users.contains_key(&role.account()?);
            if is_new {
                self.make_user(&role)?;
            }
            listed.push(self.listed(&role, is_new)?);
        }
        self.write()?;
        Ok(listed)
    }

    /// Takes tenants away.
    pub fn remove(&mut self, tenants: &[String]) -> Result<Vec<Listed>, AccessError> {
        let roles = self.known(tenants.iter().cloned().map(Role::Tenant))?;
        let removed = roles.iter().map(|role| self.listed(role, false)).collect::<Result<Vec<_>, _>>()?;
        for (name, listed) in tenants.iter().zip(&removed) {
            self.state.tenants.remove(name);
            self.state.users.remove(&listed.account);
            self.state.revoked.remove(&listed.account);
            self.state.issued.remove(&listed.account);
        }
        self.write()?;
        for listed in &removed {
            for path in [listed.file.clone(), self.account_seed(&listed.account)] {
                match fs::remove_file(&path) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(&path)(error)),
                    _ => {}
                }
            }
        }
        Ok(removed)
    }

    /// Gives new keys, and lets the old ones in no more.
    pub fn rotate(&mut self, roles: &[Role]) -> Result<Vec<Listed>, AccessError> {
        let roles = self.known(roles.iter().cloned())?;
        for role in &roles {
            let account = role.account()?;
            if self.state.mode == Mode::Operator
                && let Some(old) = self.state.users.get(&account).cloned()
            {
                self.state.revoked.entry(account).or_default().insert(old, json!(now()));
            }
            self.make_user(role)?;
        }
        self.write()?;
        roles.iter().map(|role| self.listed(role, true)).collect()
    }

    fn roles(&self) -> Vec<Role> {
        Role::FIXED.into_iter().chain(self.state.tenants.iter().cloned().map(Role::Tenant)).collect()
    }

    fn known(&self, roles: impl Iterator<Item = Role>) -> Result<Vec<Role>, AccessError> {
        let check = |role| match role {
            Role::Tenant(name) if !self.state.tenants.contains(&name) => Err(AccessError::Unknown(name)),
            known => Ok(known),
        };
        roles.map(check).collect()
    }

    fn listed(&self, role: &Role, is_new: bool) -> Result<Listed, AccessError> {
        let account = role.account()?;
        let tenant = match role {
            Role::Tenant(name) => Some(name.clone()),
            _ => None,
        };
        let user = self.state.users.get(&account).cloned().unwrap_or_default();
        Ok(Listed { role: role.as_str(), tenant, account, user, file: self.secret(role)?, is_new })
    }

    /// The file of a user's secret.
    fn secret(&self, role: &Role) -> Result<PathBuf, AccessError> {
        let ending = match self.state.mode {
            Mode::Config => "nk",
            Mode::Operator => "creds",
        };
        Ok(self.path.join(KEYS).join(format!("{}.{ending}", role.stem()?)))
    }

    fn account_seed(&self, account: &str) -> PathBuf {
        self.path.join(KEYS).join(format!("account-{account}.nk"))
    }

    /// Makes a key and writes its secret, then notes it.
    fn make_user(&mut self, role: &Role) -> Result<(), AccessError> {
        let (account, user) = (role.account()?, KeyPair::new_user());
        let (seed, public) = (user.seed()?, user.public_key());
        let text = match self.state.mode {
            Mode::Config => format!("{seed}\n"),
            Mode::Operator => {
                let issuer = self.account_key(&account)?;
                let claims = Claims { issuer: &issuer, subject: &public, name: &account, nats: claims::user() };
                let jwt = claims.sign(now())?;
                format!(
                    "-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n\
                     -----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
                )
            }
        };
        put(&self.secret(role)?, text.as_bytes(), SECRET)?;
        self.state.users.insert(account, public);
        Ok(())
    }

    /// Writes what servers read, then what is known: after a crash in between, the same command does the rest.
    fn write(&mut self) -> Result<(), AccessError> {
        let tenants = self.state.tenants.iter().map(|name| token(name)).collect::<Result<Vec<_>, _>>()?;
        let text = match self.state.mode {
            Mode::Config => conf::render(&tenants, |account| self.state.users.get(account).cloned()),
            Mode::Operator => self.signed(&tenants)?,
        };
        let state = serde_json::to_vec_pretty(&self.state).expect("the state is plain JSON");
        put(&self.conf(), text.as_bytes(), PUBLIC)?;
        put(&self.path.join(STATE), &state, PUBLIC)
    }

    /// The configuration of servers that trust the operator.
    fn signed(&mut self, tenants: &[Token]) -> Result<String, AccessError> {
        let operator = self.path.join(KEYS).join("operator.nk");
        let operator = key(KeyPairType::Operator, &operator, !self.state.issued.is_empty())?;
        let mut keys = BTreeMap::new();
        for account in plan::accounts(tenants).into_iter().chain([SYSTEM.to_owned()]) {
            keys.insert(account.clone(), self.account_key(&account)?);
        }
        let public = |account: &str| keys.get(account).map(KeyPair::public_key).unwrap_or_default();
        let activation = |crossing: &Crossing| {
            let (issuer, subject) = (&keys[&crossing.from], public(&crossing.to));
            let nats = claims::activation(crossing);
            // Its time says nothing: the account it stands in has one.
            Claims { issuer, subject: &subject, name: &crossing.subject, nats }.sign(0)
        };
        let itself = operator.public_key();
        let jwt = Claims { issuer: &operator, subject: &itself, name: "inferq", nats: claims::operator() }.sign(0)?;
        let mut text = String::from("# Written by `inferq tenants`, which writes it anew: changes by hand are lost.\n");
        text +=
            &format!("operator: {jwt}\nsystem_account: {}\nresolver: MEMORY\nresolver_preload {{\n", public(SYSTEM));
        for (account, key) in &keys {
            let revoked = self.state.revoked.get(account).cloned().unwrap_or_default();
            let nats = match account.as_str() {
                SYSTEM => claims::system(),
                _ => claims::account(account, tenants, public, activation, &revoked)?,
            };
            let (subject, now) = (key.public_key(), now());
            let claims = Claims { issuer: &operator, subject: &subject, name: account, nats };
            let digest = claims.digest();
            let last = self.state.issued.entry(account.clone()).or_insert_with(|| (digest.clone(), now));
            if last.0 != digest {
                *last = (digest, now);
            }
            text += &format!("  {subject}: {}\n", claims.sign(last.1)?);
        }
        Ok(text + "}\n")
    }

    fn account_key(&self, account: &str) -> Result<KeyPair, AccessError> {
        key(KeyPairType::Account, &self.account_seed(account), self.state.issued.contains_key(account))
    }
}

/// A key of the operator or of an account. It is made when it is first needed, and not again when it is lost: all that
/// it has signed would be void.
fn key(kind: KeyPairType, path: &Path, exists: bool) -> Result<KeyPair, AccessError> {
    match fs::read_to_string(path) {
        Ok(seed) => Ok(KeyPair::from_seed(seed.trim())?),
        Err(error) if error.kind() == io::ErrorKind::NotFound && !exists => {
            let key = KeyPair::new(kind);
            put(path, format!("{}\n", key.seed()?).as_bytes(), SECRET)?;
            Ok(key)
        }
        Err(error) => Err(failed(path)(error)),
    }
}

fn token(name: &str) -> Result<Token, AccessError> {
    Token::encode(name).map_err(|error| AccessError::Name(name.to_owned(), error))
}

fn now() -> i64 {
    OffsetDateTime::now_utc().unix_timestamp()
}

fn failed(path: &Path) -> impl Fn(io::Error) -> AccessError {
    let path = path.to_owned();
    move |error| AccessError::File { path: path.clone(), reason: error.to_string() }
}

fn put(path: &Path, text: &[u8], mode: u32) -> Result<(), AccessError> {
    write_whole(path, text, mode).map_err(failed(path))
}
