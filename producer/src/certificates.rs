//! Certificates for TLS between programs: an authority of one's own, and what it signs for a server and for clients.

use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::{fs, io};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PublicKeyData,
};
use sha2::{Digest, Sha256};
use time::{Duration, OffsetDateTime};

use crate::whole::{PUBLIC, SECRET, write_whole};

/// How long the authority is believed, and what it signs.
const AUTHORITY_DAYS: i64 = 3650;
const DAYS: i64 = 825;
/// Clocks of other machines may be behind.
const BEHIND: Duration = Duration::days(1);

#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    #[error("{path}: {reason}", path = path.display())]
    File { path: PathBuf, reason: io::Error },
    #[error("{path} is no private key: {reason}", path = path.display())]
    Key { path: PathBuf, reason: rcgen::Error },
    #[error("{name:?} is no name of a server: {reason}")]
    Name { name: String, reason: rcgen::Error },
    #[error("no certificate can be made: {0}")]
    Failed(#[from] rcgen::Error),
}

/// Makes new certificates in a folder, of a server with these names and of clients: `server.pem`, `client.pem` and their
/// keys. The authority, `ca.pem`, is made the first time and kept, so that old and new certificates are believed alike.
pub fn write(folder: &Path, names: &[String]) -> Result<(), CertificateError> {
    for name in names {
        let checked = CertificateParams::new(vec![name.clone()]);
        checked.map_err(|reason| CertificateError::Name { name: name.clone(), reason })?;
    }
    let failed = |reason| CertificateError::File { path: folder.to_owned(), reason };
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(failed)?;
    let issuer = authority(folder)?;
    for (name, names, usage) in [
        ("server", names, ExtendedKeyUsagePurpose::ServerAuth),
        ("client", &["inferq".to_owned()][..], ExtendedKeyUsagePurpose::ClientAuth),
    ] {
        let key = KeyPair::generate()?;
        let mut params = valid(CertificateParams::new(names.to_vec())?, DAYS);
        params.distinguished_name.push(DnType::CommonName, names.first().map_or(name, String::as_str));
        params.extended_key_usages.push(usage);
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(&key, &issuer)?;
        put(&folder.join(format!("{name}.key")), &key.serialize_pem(), SECRET)?;
        put(&folder.join(format!("{name}.pem")), &certificate.pem(), PUBLIC)?;
    }
    Ok(())
}

/// The authority of a folder. Its name is made from its key: one of another key with the same name would be taken for this
/// one with a wrong signature.
fn authority(folder: &Path) -> Result<Issuer<'static, KeyPair>, CertificateError> {
    let (path, certificate) = (folder.join("ca.key"), folder.join("ca.pem"));
    let key = match fs::read_to_string(&path) {
        Ok(pem) => KeyPair::from_pem(&pem).map_err(|reason| CertificateError::Key { path, reason })?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let key = KeyPair::generate()?;
            put(&path, &key.serialize_pem(), SECRET)?;
            key
        }
        Err(reason) => return Err(CertificateError::File { path, reason }),
    };
    let print = Sha256::digest(key.der_bytes());
    let mut params = valid(CertificateParams::default(), AUTHORITY_DAYS);
    params.distinguished_name.push(DnType::CommonName, format!("inferq {:x}", print)[..23].to_owned());
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    if !certificate.exists() {
        put(&certificate, &params.self_signed(&key)?.pem(), PUBLIC)?;
    }
    Ok(Issuer::new(params, key))
}

fn valid(mut params: CertificateParams, days: i64) -> CertificateParams {
    let now = OffsetDateTime::now_utc();
    (params.not_before, params.not_after) = (now - BEHIND, now + Duration::days(days));
    params
}

fn put(path: &Path, text: &str, mode: u32) -> Result<(), CertificateError> {
    write_whole(path, text.as_bytes(), mode).map_err(|reason| CertificateError::File { path: path.to_owned(), reason })
}
