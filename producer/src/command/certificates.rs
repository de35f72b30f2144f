//! `inferq certificates`.

use producer::certificates::{CertificateError, write};
use serde::Serialize;

use super::{Usage, print_json, print_line};
use crate::config::Output;
use crate::config::certificates::CertificatesArgs;

#[derive(Serialize)]
struct Made {
    file: String,
    /// Who is given it.
    r#for: &'static str,
}

/// By name, the files and whom they are for.
const FILES: [(&str, &str); 6] = [
    ("ca.pem", "everybody: --tlsca, and ca_file of the server"),
    ("ca.key", "nobody: it signs the certificates"),
    ("server.pem", "the server: cert_file"),
    ("server.key", "the server: key_file"),
    ("client.pem", "programs: --tlscert"),
    ("client.key", "programs: --tlskey"),
];

pub fn run(output: Output, args: &CertificatesArgs) -> anyhow::Result<u8> {
    write(&args.out, &args.names).map_err(|error| match error {
        CertificateError::Name { .. } => anyhow::Error::new(Usage(error.to_string())),
        other => other.into(),
    })?;
    let made = FILES.map(|(name, r#for)| Made { file: args.out.join(name).display().to_string(), r#for });
    if output == Output::Json {
        print_json(&made)?;
        return Ok(0);
    }
    for Made { file, r#for } in made {
        print_line(&format!("{file}  for {}", r#for))?;
    }
    Ok(0)
}
