//! A pool of connections, so that parallel publishers are not held up by one socket.

use connect::{ConnectError, Connection, FirstConnect, NatsArgs};
use deadpool::managed::{self, Metrics, RecycleError, RecycleResult};

/// Makes connections for the pool.
#[derive(Debug)]
pub struct Connector {
    args: NatsArgs,
    name: String,
}

pub type Pool = managed::Pool<Connector>;

/// A pool of at most `size` connections, made when they are first needed.
pub fn pool(args: NatsArgs, name: &str, size: usize) -> Pool {
    let connector = Connector { args, name: name.to_owned() };
    managed::Pool::builder(connector).max_size(size).build().expect("no timeouts are set, so no runtime is needed")
}

impl managed::Manager for Connector {
    type Type = Connection;
    type Error = ConnectError;

    async fn create(&self) -> Result<Connection, ConnectError> {
        connect::connect(&self.args, &self.name, FirstConnect::Fail).await
    }

    /// A connection restores itself; only one that was closed for good is replaced.
    async fn recycle(&self, connection: &mut Connection, _: &Metrics) -> RecycleResult<ConnectError> {
        match connection.connects.has_changed() {
            Ok(_) => Ok(()),
            Err(_) => Err(RecycleError::message("the connection is closed")),
        }
    }
}
