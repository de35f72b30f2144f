//! The arguments of `inferq certificates`.

use std::path::PathBuf;

use clap::Args;

#[derive(Args, Debug)]
#[command(after_help = "Examples:
  inferq certificates nats.internal 10.0.0.7 --out /etc/nats/tls
  inferq --tlsca ca.pem --tlscert client.pem --tlskey client.key --server nats.internal status

In the server's configuration:
  tls { cert_file: \"/etc/nats/tls/server.pem\", key_file: \"/etc/nats/tls/server.key\",
        ca_file: \"/etc/nats/tls/ca.pem\", verify: true }

Again, it makes new certificates of the same authority: those before are believed until they end.")]
pub struct CertificatesArgs {
    /// Names and addresses under which the server is reached
    #[arg(value_name = "NAME", default_values = ["localhost", "127.0.0.1", "::1"])]
    pub names: Vec<String>,
    /// Folder of the files
    #[arg(long, default_value = "inferq-certificates", value_name = "DIR")]
    pub out: PathBuf,
}
