//! A server with the accounts that `inferq tenants` has made.

use std::path::{Path, PathBuf};
use std::process::Output;

use connect::{Connection, FirstConnect, NatsArgs};
use producer::access::plan::API_PREFIX;
use tempfile::TempDir;

use super::{Server, eventually, flags, program, run};

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
        let folder = tempfile::tempdir().unwrap();
        let ending = if arguments.contains(&"--operator") { "creds" } else { "nk" };
        checked(&tenants_command(folder.path(), &[&["add"], tenants, arguments].concat()));
        // Files to include are looked for beside the server's own, which is in a folder like this one.
        let name = folder.path().file_name().unwrap().to_str().unwrap();
        let server = Server::with(&format!("include \"../{name}/accounts.conf\"\n{config}"));
        Self { server, folder, ending }
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
            let before = self.reloads();
            self.server.signal("-HUP");
            eventually("the server has read its configuration", async || (self.reloads() > before).then_some(())).await;
        }
    }

    fn reloads(&self) -> usize {
        let log = std::fs::read_to_string(self.server.folder().join("nats.log")).unwrap();
        log.matches("Reloaded server configuration").count()
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
