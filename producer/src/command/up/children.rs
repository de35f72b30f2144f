//! The processes that `inferq up` has started, and their orderly end.

use std::time::Duration;

use anyhow::Context as _;
use futures::future::select_all;
use tokio::process::{Child, Command};

/// How long a child may take to end after SIGTERM.
const STOP_MAX: Duration = Duration::from_secs(30);

/// Children in the order they were started; they are stopped in the opposite order.
#[derive(Default)]
pub struct Children {
    running: Vec<(String, Child)>,
}

impl Children {
    /// Starts a child in a process group of its own.
    pub fn start(&mut self, name: &str, command: &mut Command) -> anyhow::Result<()> {
        let program = command.as_std().get_program().to_string_lossy().into_owned();
        let child = command.process_group(0).kill_on_drop(true).spawn();
        self.running.push((name.to_owned(), child.with_context(|| format!("cannot start {program}"))?));
        Ok(())
    }

    /// Waits for a child to end, and gives its name.
    pub async fn first_exit(&mut self) -> String {
        if self.running.is_empty() {
            return std::future::pending().await;
        }
        let waits = self.running.iter_mut().map(|(name, child)| {
            Box::pin(async move {
                // An error means that it cannot be waited for, which is as good as gone.
                let _ = child.wait().await;
                name.clone()
            })
        });
        select_all(waits).await.0
    }

    /// Stops all, the last started first; what does not end in time is killed.
    pub async fn stop(&mut self) {
        while let Some((name, mut child)) = self.running.pop() {
            terminate(&child).await;
            if tokio::time::timeout(STOP_MAX, child.wait()).await.is_err() {
                eprintln!("{name} does not stop, killing it");
                let _ = child.kill().await;
            }
        }
    }
}

/// SIGTERM by the `kill` command: the standard library can only send SIGKILL, and a crate for one call is one too many.
async fn terminate(child: &Child) {
    if let Some(id) = child.id() {
        let _ = Command::new("kill").args(["-TERM", &id.to_string()]).status().await;
    }
}
