//! Certificates of the test's own authority, as `inferq certificates` makes them.

use std::path::PathBuf;

use tempfile::TempDir;

use super::{program, run};

/// An authority, with a certificate of a server at 127.0.0.1 and one of a client.
pub struct Certificates {
    folder: TempDir,
}

impl Certificates {
    pub fn new() -> Self {
        let certificates = Self { folder: tempfile::tempdir().unwrap() };
        certificates.renew("127.0.0.1");
        certificates
    }

    /// Makes new certificates of the same authority.
    pub fn renew(&self, name: &str) {
        let folder = self.folder.path().display().to_string();
        let made = run(&program("inferq"), &["certificates", name, "--out", &folder], &[]);
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    }

    /// `ca.pem`, `server.pem`, `server.key`, `client.pem` or `client.key`.
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The `tls` block of a server, with further lines.
    pub fn server(&self, lines: &str) -> String {
        let [cert, key, ca] = ["server.pem", "server.key", "ca.pem"].map(|name| self.file(name).display().to_string());
        format!("tls {{ cert_file: {cert:?}\n key_file: {key:?}\n ca_file: {ca:?}\n {lines} }}\n")
    }
}
