//! A network that can fail: a TCP proxy between a program and its server, which cuts connections or goes silent.

use std::io;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};

/// What the proxy does with what it is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Line {
    /// It passes everything on.
    Open,
    /// The same until a client sends these words. They still arrive; the line is [`Line::Deaf`] by then.
    OpenUntil(&'static str),
    /// What clients send arrives, and they hear nothing.
    Deaf,
    /// Connections stay, new ones are taken, and nothing arrives any more: neither side is told. What was sent arrives
    /// when the line is open again.
    Silent,
    /// Connections are closed, new ones too.
    Cut,
}

/// Its connections end when it is dropped.
pub struct Proxy {
    pub url: String,
    line: watch::Sender<Line>,
    task: AbortHandle,
}

impl Proxy {
    /// Stands before the server of a URL such as `nats://127.0.0.1:4222`.
    pub async fn before(url: &str) -> Self {
        let server = url.trim_start_matches("nats://").to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("nats://{}", listener.local_addr().unwrap());
        let line = watch::Sender::new(Line::Open);
        let task = tokio::spawn(accept(listener, server, line.clone())).abort_handle();
        Self { url, line, task }
    }

    pub fn set(&self, line: Line) {
        self.line.send_replace(line);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Which way a connection's bytes go.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    FromClient,
    ToClient,
}

async fn accept(listener: TcpListener, server: String, line: watch::Sender<Line>) {
    let mut connections = JoinSet::new();
    while let Ok((client, _)) = listener.accept().await {
        while connections.try_join_next().is_some() {}
        connections.spawn(carry(client, server.clone(), line.clone()));
    }
}

/// Carries one connection until either side ends it or the line is cut.
async fn carry(client: TcpStream, server: String, line: watch::Sender<Line>) {
    let mut cut = line.subscribe();
    let both = async {
        pass(&line, Way::FromClient).await?;
        let server = TcpStream::connect(server).await?;
        server.set_nodelay(true)?;
        client.set_nodelay(true)?;
        let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
        tokio::select! {
            ended = pump(from_client, to_server, &line, Way::FromClient) => ended,
            ended = pump(from_server, to_client, &line, Way::ToClient) => ended,
        }
    };
    // However it ended, both connections are closed now, and their programs see that.
    tokio::select! {
        _ = cut.wait_for(|line| *line == Line::Cut) => {}
        _ = both => {}
    }
}

async fn pump(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, line: &watch::Sender<Line>, way: Way) -> io::Result<()> {
    let mut buffer = vec![0; 64 << 10];
    // Words may come in two parts.
    let mut tail = Vec::new();
    loop {
        let count = from.read(&mut buffer).await?;
        if count == 0 {
            return Ok(());
        }
        let state = *line.borrow();
        if let (Line::OpenUntil(words), Way::FromClient) = (state, way) {
            tail.extend_from_slice(&buffer[..count]);
            if tail.windows(words.len()).any(|window| window == words.as_bytes()) {
                line.send_replace(Line::Deaf);
            }
            tail.drain(..tail.len().saturating_sub(words.len()));
        }
        pass(line, way).await?;
        to.write_all(&buffer[..count]).await?;
    }
}

/// Waits until the line lets bytes pass that way.
async fn pass(line: &watch::Sender<Line>, way: Way) -> io::Result<()> {
    let passes = |line: &Line| match line {
        Line::Open | Line::OpenUntil(_) => true,
        Line::Deaf => way == Way::FromClient,
        Line::Silent | Line::Cut => false,
    };
    line.subscribe().wait_for(passes).await.map(drop).map_err(io::Error::other)
}
