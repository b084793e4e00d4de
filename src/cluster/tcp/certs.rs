//! Certificates for a first cluster: a CA of its own, and a certificate for each instance.
//!
//! Their validity ends in a distant century: a cluster must not stop one night because a date has
//! come, and clocks play no part in this service. An operator that wants certificates that end has
//! a CA of its own; what matters is the name in them.
//!
//! The key of the CA is needed only to make more certificates. It should not stay on any instance.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose,
};
use tokio_rustls::rustls::{
    RootCertStore,
    crypto::ring,
    pki_types::{CertificateDer, UnixTime},
    server::WebPkiClientVerifier,
};

use super::NodeName;
use crate::{ids::InstanceId, platform, storage::ClusterId};

/// A moment within the validity of every certificate that is made here (in the year 2025).
const A_VALID_MOMENT: Duration = Duration::from_secs(1_750_000_000);

/// Why certificates could not be made.
#[derive(Debug, thiserror::Error)]
pub enum CertsError {
    /// They could not be put together.
    #[error("a certificate cannot be made: {0}")]
    Build(#[from] rcgen::Error),
    /// A file that would be written is there already.
    #[error("{}: it exists already; nothing was written", .0.display())]
    Exists(PathBuf),
    /// The CA in the directory is another.
    #[error("{}: it is not a CA that was made here for this cluster", .0.display())]
    ForeignCa(PathBuf),
    /// A file could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
}

/// Makes, in `dir`, `node-<id>.pem` and `node-<id>.key` for each instance, and a CA for them:
/// `ca.pem` and `ca.key`, unless they are there from an earlier time. The hosts go into the
/// certificate for the sake of other tools; instances do not look at them. Nothing is ever
/// overwritten. Returns the files that were written.
///
/// # Errors
/// If a file for an instance exists, or the CA is another cluster's, or the disk fails.
pub fn make_certs(
    dir: &Path,
    cluster: ClusterId,
    nodes: &[(InstanceId, Vec<String>)],
) -> Result<Vec<PathBuf>, CertsError> {
    let named = |name: String| dir.join(name);
    let (ca_pem, ca_key) = (named("ca.pem".to_owned()), named("ca.key".to_owned()));
    let mut files = Vec::new();
    let authority = if ca_pem.exists() && ca_key.exists() {
        let key = KeyPair::from_pem(&read(&ca_key)?)?;
        Issuer::new(ca_params(cluster), key)
    } else {
        let key = KeyPair::generate()?;
        let params = ca_params(cluster);
        files.push((ca_pem.clone(), params.self_signed(&key)?.pem()));
        files.push((ca_key, key.serialize_pem()));
        Issuer::new(params, key)
    };
    for (node, hosts) in nodes {
        let key = KeyPair::generate()?;
        let params = node_params(NodeName { cluster, node: *node }, hosts)?;
        let certificate = params.signed_by(&key, &authority)?;
        if files.is_empty() && !is_signed_by(certificate.der(), &read(&ca_pem)?) {
            return Err(CertsError::ForeignCa(ca_pem));
        }
        files.push((named(format!("node-{}.pem", node.0)), certificate.pem()));
        files.push((named(format!("node-{}.key", node.0)), key.serialize_pem()));
    }
    write_all(dir, &files)?;
    Ok(files.into_iter().map(|(path, _)| path).collect())
}

/// Returns the CA of a cluster, always under the same name, so that its key alone is enough to go
/// on.
fn ca_params(cluster: ClusterId) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = common_name(&format!("{cluster}.emnetchain"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

/// Returns the certificate of an instance, which it shows when it connects and when it is connected
/// to.
fn node_params(name: NodeName, hosts: &[String]) -> Result<CertificateParams, rcgen::Error> {
    let mut names = vec![name.dns_name()];
    names.extend(hosts.iter().cloned());
    let mut params = CertificateParams::new(names)?;
    params.distinguished_name = common_name(&format!("node-{}", name.node.0));
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    Ok(params)
}

fn common_name(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::CommonName, name);
    distinguished
}

fn is_signed_by(certificate: &CertificateDer<'_>, ca_pem: &str) -> bool {
    use tokio_rustls::rustls::pki_types::pem::PemObject as _;
    let mut roots = RootCertStore::empty();
    for root in CertificateDer::pem_slice_iter(ca_pem.as_bytes()).flatten() {
        let _ = roots.add(root); // what is no certificate signs nothing
    }
    let provider = Arc::new(ring::default_provider());
    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build().is_ok_and(
        |verifier| {
            let then = UnixTime::since_unix_epoch(A_VALID_MOMENT);
            verifier.verify_client_cert(certificate, &[], then).is_ok()
        },
    )
}

fn read(path: &Path) -> Result<String, CertsError> {
    fs::read_to_string(path).map_err(|source| CertsError::Io { path: path.to_path_buf(), source })
}

/// Writes new files, readable by their owner only, if none of them is there.
fn write_all(dir: &Path, files: &[(PathBuf, String)]) -> Result<(), CertsError> {
    if let Some((path, _)) = files.iter().find(|(path, _)| path.exists()) {
        return Err(CertsError::Exists(path.clone()));
    }
    let failed = |path: &Path, source| CertsError::Io { path: path.to_path_buf(), source };
    platform::files::create_private_dir(dir).map_err(|source| failed(dir, source))?;
    for (path, text) in files {
        platform::files::for_owner_only(OpenOptions::new().write(true).create_new(true))
            .open(path)
            .and_then(|mut file| file.write_all(text.as_bytes()).and_then(|()| file.sync_all()))
            .map_err(|source| failed(path, source))?;
    }
    Ok(())
}

#[cfg(test)]
pub(super) mod forge {
    //! Certificates as only an attacker, or a mistake, would make them.

    use super::*;

    /// Files of an instance of any name, signed by the CA of `cluster` in `dir`; out of time, if
    /// wanted.
    pub(in super::super) fn make(
        dir: &Path,
        cluster: ClusterId,
        name: NodeName,
        expired: bool,
    ) -> (PathBuf, PathBuf) {
        let key = KeyPair::from_pem(&read(&dir.join("ca.key")).unwrap()).unwrap();
        let authority = Issuer::new(ca_params(cluster), key);
        let mut params = node_params(name, &[]).unwrap();
        if expired {
            params.not_after = rcgen::date_time_ymd(2001, 1, 1);
        }
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &authority).unwrap();
        let stem = format!("forged-{}-{expired}", name.dns_name());
        let files = (dir.join(format!("{stem}.pem")), dir.join(format!("{stem}.key")));
        let texts = [certificate.pem(), key.serialize_pem()];
        let [pem, key] = texts;
        write_all(dir, &[(files.0.clone(), pem), (files.1.clone(), key)]).unwrap();
        files
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificates_are_made_once_and_more_of_them_later() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("certs");
        let cluster = ClusterId(7);
        let hosts = vec!["one.example".to_owned(), "10.0.0.1".to_owned()];
        let first = make_certs(&path, cluster, &[(InstanceId(1), hosts)]).unwrap();
        assert_eq!(first.len(), 4);
        for file in &first {
            assert_eq!(platform::files::mode(file), 0o600);
        }
        let before: Vec<String> = first.iter().map(|file| read(file).unwrap()).collect();

        let again = make_certs(&path, cluster, &[(InstanceId(1), Vec::new())]);
        assert!(matches!(again, Err(CertsError::Exists(_))), "{again:?}");
        let other = make_certs(&path, ClusterId(8), &[(InstanceId(2), Vec::new())]);
        assert!(matches!(other, Err(CertsError::ForeignCa(_))), "{other:?}");
        let more = make_certs(&path, cluster, &[(InstanceId(2), Vec::new())]).unwrap();
        assert_eq!(more.len(), 2, "the CA is the same");
        let after: Vec<String> = first.iter().map(|file| read(file).unwrap()).collect();
        assert_eq!(before, after);
    }
}
