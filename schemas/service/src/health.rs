//! Asks a running program of this crate whether it is ready: the health check of images that have neither shell nor curl.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const TIMEOUT: Duration = Duration::from_secs(3);
/// Far above what `/readyz` answers.
const ANSWER_MAX: u64 = 4096;

#[derive(Debug, thiserror::Error)]
pub enum HealthError {
    #[error("--admin {address}: {error}; give the address that the running program was given")]
    Unreachable { address: SocketAddr, error: io::Error },
    #[error("not ready: {said}")]
    NotReady { said: String },
}

/// Returns when `/readyz` of the program with this admin address says yes. An address of all interfaces is asked by
/// loopback.
pub async fn check(admin: SocketAddr) -> Result<(), HealthError> {
    let address = SocketAddr::new(reachable(admin.ip()), admin.port());
    let answer = match tokio::time::timeout(TIMEOUT, get(address)).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(error)) => return Err(HealthError::Unreachable { address, error }),
        Err(_) => return Err(HealthError::Unreachable { address, error: io::ErrorKind::TimedOut.into() }),
    };
    judge(&answer)
}

fn reachable(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    }
}

// Written by hand: a client of TLS and pools, started every few seconds, would cost more than the check is worth.
async fn get(address: SocketAddr) -> io::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(b"GET /readyz HTTP/1.0\r\n\r\n").await?;
    let mut answer = Vec::new();
    stream.take(ANSWER_MAX).read_to_end(&mut answer).await?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

fn judge(answer: &str) -> Result<(), HealthError> {
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((answer, ""));
    match head.split_whitespace().nth(1) {
        Some("200") => Ok(()),
        _ => Err(HealthError::NotReady { said: if body.is_empty() { head } else { body }.trim().to_owned() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_200_is_healthy() {
        assert!(judge("HTTP/1.0 200 OK\r\n\r\nok\n").is_ok());
        let said = |answer| judge(answer).unwrap_err().to_string();
        assert_eq!(said("HTTP/1.0 503 Service Unavailable\r\n\r\nstarting\n"), "not ready: starting");
        assert_eq!(said("HTTP/1.0 404 Not Found\r\n\r\n"), "not ready: HTTP/1.0 404 Not Found");
        assert_eq!(said(""), "not ready: ");
    }

    #[test]
    fn all_interfaces_are_asked_by_loopback() {
        let asked = |ip: &str| reachable(ip.parse().unwrap()).to_string();
        assert_eq!(
            (asked("0.0.0.0"), asked("::"), asked("10.0.0.7")),
            ("127.0.0.1".into(), "::1".into(), "10.0.0.7".into())
        );
    }
}
