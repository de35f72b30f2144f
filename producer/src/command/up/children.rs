//! The processes that `inferq up` has started, and their orderly end.

use std::time::Duration;

use anyhow::Context as _;
use futures::future::select_all;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
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
            terminate(&child);
            if tokio::time::timeout(STOP_MAX, child.wait()).await.is_err() {
                eprintln!("{name} does not stop, killing it");
                let _ = child.kill().await;
            }
        }
    }
}

fn terminate(child: &Child) {
    if let Some(id) = child.id().and_then(|id| i32::try_from(id).ok()) {
        // It may have ended in this moment.
        let _ = kill(Pid::from_raw(id), Signal::SIGTERM);
    }
}
