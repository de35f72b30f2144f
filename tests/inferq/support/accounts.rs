//! A server with the accounts that `inferq tenants` has made.

use std::path::{Path, PathBuf};
use std::process::Output;

use connect::{Connection, FirstConnect, NatsArgs};
use producer::access::plan::API_PREFIX;
use tempfile::TempDir;

use super::{Cluster, Server, eventually, flags, program, run};

pub struct Accounts {
    pub server: Server,
    folder: TempDir,
    /// How the secrets' files end.
    ending: &'static str,
}

impl Accounts {
    /// Made with flags such as `--operator`.
    pub fn start(tenants: &[&str], arguments: &[&str]) -> Self {
        Self::with(tenants, arguments, "")
    }

    /// On a server with further lines in its configuration.
    pub fn with(tenants: &[&str], arguments: &[&str], config: &str) -> Self {
        let mut accounts = Self::made(tenants, arguments);
        accounts.server = Server::with(&(accounts.include() + config));
        accounts
    }

    /// On a cluster, which is to be reloaded by itself.
    pub async fn on_cluster(tenants: &[&str], arguments: &[&str]) -> (Self, Cluster) {
        let mut accounts = Self::made(tenants, arguments);
        let cluster = Cluster::with(&accounts.include(), accounts.nats("admin")).await;
        accounts.server = Server::at(&cluster.urls());
        (accounts, cluster)
    }

    /// With no server yet.
    fn made(tenants: &[&str], arguments: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let ending = if arguments.contains(&"--operator") { "creds" } else { "nk" };
        checked(&tenants_command(folder.path(), &[&["add"], tenants, arguments].concat()));
        Self { server: Server::at(""), folder, ending }
    }

    /// Files to include are looked for beside the server's own, which is in a folder like this one.
    fn include(&self) -> String {
        let name = self.folder.path().file_name().unwrap().to_str().unwrap();
        format!("include \"../{name}/accounts.conf\"\n")
    }

    /// Runs `inferq tenants`.
    pub fn tenants(&self, arguments: &[&str]) -> Output {
        tenants_command(self.folder.path(), arguments)
    }

    /// Runs `inferq tenants`, which must succeed, and has the server read what it has written. Twice, since it connects a
    /// new account with the others at the next time only.
    pub async fn change(&self, arguments: &[&str]) {
        checked(&self.tenants(arguments));
        for _ in 0..2 {
            self.server.reload().await;
        }
    }

    /// The file of the secret of `admin`, `worker`, `logger` or `tenant-NAME`.
    pub fn secret(&self, name: &str) -> PathBuf {
        self.folder.path().join("keys").join(format!("{name}.{}", self.ending))
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// How they connect.
    pub fn nats(&self, name: &str) -> NatsArgs {
        let secret = Some(self.secret(name));
        let (creds, nkey) = if self.ending == "creds" { (secret, None) } else { (None, secret) };
        let js_api_prefix = (name != "admin").then(|| API_PREFIX.to_owned());
        NatsArgs { creds, nkey, js_api_prefix, ..NatsArgs::to(&self.server.url) }
    }

    /// The same with a copy of the secret, which stays as it is.
    pub fn copied(&self, name: &str) -> NatsArgs {
        let copy = self.folder.path().join(format!("copy-of-{name}"));
        std::fs::copy(self.secret(name), &copy).unwrap();
        let mut nats = self.nats(name);
        [&mut nats.creds, &mut nats.nkey].into_iter().flatten().for_each(|path| path.clone_from(&copy));
        nats
    }

    /// The same as flags, with more arguments behind them.
    pub fn arguments(&self, name: &str, more: &[&str]) -> Vec<String> {
        flags(&self.nats(name)).into_iter().chain(more.iter().map(|&argument| argument.to_owned())).collect()
    }

    pub async fn connect(&self, name: &str) -> Connection {
        connect::connect(&self.nats(name), name, FirstConnect::Fail).await.unwrap()
    }

    /// Waits until the server lets somebody in.
    pub async fn accepts(&self, name: &str) {
        eventually("the server knows them", async || {
            connect::connect(&self.nats(name), name, FirstConnect::Fail).await.ok().map(drop)
        })
        .await;
    }

    /// Waits until the server lets somebody in no more.
    pub async fn refuses(&self, nats: &NatsArgs) {
        eventually("the server has forgotten them", async || {
            connect::connect(nats, "gone", FirstConnect::Fail).await.err().map(drop)
        })
        .await;
    }
}

fn tenants_command(folder: &Path, arguments: &[&str]) -> Output {
    let folder = folder.to_str().unwrap();
    run(&program("inferq"), &[&["tenants"], arguments, &["--out", folder]].concat(), &[])
}

fn checked(output: &Output) {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
