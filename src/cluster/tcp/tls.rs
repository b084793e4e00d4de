//! TLS between instances: version 1.3 only, with a certificate of the cluster's CA at both ends.
//!
//! The CA is the cluster's own: a holder of a certificate of it is an instance, and *which* one
//! says the DNS name in the certificate ([`NodeName::dns_name`]). No session is resumed, so every
//! connection is judged by the files as they are. [`Tls::reload`] reads them again; connections
//! that are open go on, unless the CA is another: then all are ended, from either side,
//! and opened again with what is in force.

use std::{
    convert::Infallible,
    fs,
    io::{self, Read as _},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{net::TcpStream, sync::watch};
use tokio_rustls::{
    TlsAcceptor, TlsConnector, client, rustls,
    rustls::{
        CertificateError, ClientConfig, RootCertStore, ServerConfig,
        client::{Resumption, verify_server_cert_signed_by_trust_anchor, verify_server_name},
        crypto::ring,
        pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject as _},
        server::{ParsedCertificate, WebPkiClientVerifier},
        version::TLS13,
    },
    server,
};

use super::{
    NodeName,
    dates::{self, Dates, Stage},
};
use crate::secrets::exposure;

/// Where certificates and key are, in PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The certificates of the cluster's CA; more than one while it is being replaced.
    pub ca: PathBuf,
    /// This instance's certificate, and what leads from it to the CA.
    pub certificate: PathBuf,
    /// Its private key, readable by its owner only.
    pub key: PathBuf,
}

/// Why the files are of no use.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The private key can be read by others.
    #[error("{}: other users can read it (mode {mode:03o}); `chmod 600` it", path.display())]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// The certificate is that of another instance.
    #[error("{}: it is not the certificate of {name}", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
        /// The name that it should carry.
        name: String,
    },
    /// A file does not hold what it should.
    #[error("{}: {why}", path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// The fault.
        why: String,
    },
}

/// Certificates and key of this instance, ready for use.
pub struct Tls {
    files: TlsFiles,
    me: NodeName,
    current: Mutex<Arc<Loaded>>,
    /// Told when the CA is another one.
    authorities: watch::Sender<()>,
    /// The last news of the time that is left.
    told: Mutex<Stage>,
}

/// Interval between looks at the dates while an instance runs: they can be told by the hour.
const DATES_EVERY: Duration = Duration::from_secs(60);

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tls").field("files", &self.files).field("me", &self.me).finish()
    }
}

/// The files as they were read.
struct Loaded {
    /// The certificates of the CA.
    ca: Vec<CertificateDer<'static>>,
    /// The certificate of this instance, and what leads from it to the CA.
    chain: Vec<CertificateDer<'static>>,
    /// When all of them are good; `None` if a certificate does not tell.
    dates: Option<Dates>,
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
}

impl Tls {
    /// Reads the files of `me`.
    ///
    /// # Errors
    /// If one of them is of no use, or the key is exposed.
    pub fn load(files: TlsFiles, me: NodeName) -> Result<Self, TlsError> {
        let loaded = read(&files, me)?;
        Ok(Self::new(files, me, loaded))
    }

    fn new(files: TlsFiles, me: NodeName, loaded: Loaded) -> Self {
        let (authorities, _) = watch::channel(());
        let (current, told) = (Mutex::new(Arc::new(loaded)), Mutex::new(Stage::Good));
        Self { files, me, current, authorities, told }
    }

    /// Reads the files of an attacker, whose certificate another CA has signed.
    #[cfg(test)]
    pub(super) fn load_forged(files: TlsFiles, me: NodeName) -> Result<Self, TlsError> {
        let (chain, ca) = (read_certificates(&files.certificate)?, read_certificates(&files.ca)?);
        let loaded = assemble(&files, me, chain, ca)?;
        Ok(Self::new(files, me, loaded))
    }

    /// Reads the files again, for the connections from now on; returns whether they are others than
    /// before.
    ///
    /// # Errors
    /// As for [`Tls::load`], or if they are out of date; what was read before stays in use.
    pub fn reload(&self) -> Result<bool, TlsError> {
        check_dates(&self.files)?;
        let loaded = Arc::new(read(&self.files, self.me)?);
        let before = {
            let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::replace(&mut *current, Arc::clone(&loaded))
        };
        if before.ca != loaded.ca {
            self.authorities.send_replace(());
        }
        Ok(before.ca != loaded.ca || before.chain != loaded.chain)
    }

    /// Until when the certificates are good, in seconds since 1970; 0 if they do not tell.
    pub fn good_until(&self) -> i64 {
        self.current().dates.map_or(0, |dates| dates.until)
    }

    /// Says in the log until when the certificates are good, or why they are not.
    pub fn tell_dates(&self) {
        let now = dates::now();
        let (stage, _) = self.look_at_dates(now);
        if let Err(error) = check_dates(&self.files) {
            tracing::error!("this instance cannot connect to others: {error}");
        } else if stage != Stage::Good {
            tracing::warn!("{stage}");
        } else {
            let days = self.current().dates.map(|dates| dates.days_left(now));
            tracing::info!(days, "the certificates are good");
        }
    }

    /// Says in the log when the certificates come to their end, as long as the instance runs: 30
    /// days before, each day of the last week, and when they have expired.
    pub async fn watch_dates(self: Arc<Self>) -> Infallible {
        loop {
            match self.due(dates::now()) {
                Some(stage @ Stage::Expired) => tracing::error!("{stage}"),
                Some(stage) => tracing::warn!("{stage}"),
                None => {}
            }
            tokio::time::sleep(DATES_EVERY).await;
        }
    }

    /// Returns the news of a moment about the time that is left, if that was not said yet.
    pub(super) fn due(&self, now: i64) -> Option<Stage> {
        let (stage, is_new) = self.look_at_dates(now);
        (is_new && stage != Stage::Good).then_some(stage)
    }

    /// Returns the time that is left at a moment, and whether that is news.
    fn look_at_dates(&self, now: i64) -> (Stage, bool) {
        let stage = self.current().dates.map_or(Stage::Good, |dates| dates.stage(now));
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        (stage, std::mem::replace(&mut *told, stage) != stage)
    }

    /// Waits until the CA is another than it was at the call.
    pub(super) fn authority_changes(&self) -> impl Future<Output = ()> + Send + 'static {
        let mut changes = self.authorities.subscribe();
        async move {
            if changes.changed().await.is_err() {
                std::future::pending().await
            }
        }
    }

    fn current(&self) -> Arc<Loaded> {
        Arc::clone(&self.current.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Makes a connection secure that we opened, and sure that `target` is at its other end.
    pub(super) async fn connect(
        &self,
        stream: TcpStream,
        target: NodeName,
    ) -> io::Result<client::TlsStream<TcpStream>> {
        let name = server_name(target)?;
        TlsConnector::from(Arc::clone(&self.current().client)).connect(name, stream).await
    }

    /// Makes a connection secure that we accepted, and returns the certificate of its other end.
    pub(super) async fn accept(
        &self,
        stream: TcpStream,
    ) -> io::Result<(server::TlsStream<TcpStream>, CertificateDer<'static>)> {
        let acceptor = TlsAcceptor::from(Arc::clone(&self.current().server));
        let stream = acceptor.accept(stream).await?;
        let chain = stream.get_ref().1.peer_certificates();
        let certificate = chain.and_then(<[_]>::first).cloned();
        let certificate = certificate.ok_or(io::ErrorKind::PermissionDenied)?;
        Ok((stream, certificate))
    }
}

/// Looks whether the files hold certificates and a key, whosever they are.
///
/// # Errors
/// If one of them is of no use, or the key is exposed.
pub fn look_into(files: &TlsFiles) -> Result<(), TlsError> {
    read_certificates(&files.certificate)?;
    read_certificates(&files.ca)?;
    read_key(&files.key).map(drop)
}

/// Looks whether the files of an instance are what they should be, and good now. Without a name
/// it is not known whose they should be.
///
/// # Errors
/// As for [`Tls::load`], or if a certificate is out of date.
pub fn check_files(files: &TlsFiles, me: Option<NodeName>) -> Result<(), TlsError> {
    match me {
        Some(me) => drop(read(files, me)?),
        None => look_into(files)?,
    }
    check_dates(files)
}

/// Looks whether the certificates of an instance and of its CA are good now.
///
/// # Errors
/// If one of them has expired or is not valid yet, or a file cannot be read.
fn check_dates(files: &TlsFiles) -> Result<(), TlsError> {
    let now = dates::now();
    for path in [&files.certificate, &files.ca] {
        let certificates = read_certificates(path)?;
        let faults = certificates.iter().map(|it| Dates::of(it).and_then(|it| it.fault(now)));
        // Of several CAs, as while one is being replaced, one that is good is enough.
        let faults: Vec<Option<String>> = faults.collect();
        let is_good = path == &files.ca && faults.iter().any(Option::is_none);
        if let Some(why) = faults.into_iter().flatten().next().filter(|_| !is_good) {
            return Err(TlsError::Unusable { path: path.clone(), why });
        }
    }
    Ok(())
}

/// Returns whether a certificate, already known to be of our CA, is that of `name`.
pub(super) fn is_of(certificate: &CertificateDer<'_>, name: NodeName) -> bool {
    let Ok(server_name) = server_name(name) else { return false };
    ParsedCertificate::try_from(certificate)
        .is_ok_and(|parsed| verify_server_name(&parsed, &server_name).is_ok())
}

fn server_name(name: NodeName) -> io::Result<ServerName<'static>> {
    ServerName::try_from(name.dns_name()).map_err(io::Error::other)
}

fn read(files: &TlsFiles, me: NodeName) -> Result<Loaded, TlsError> {
    let (chain, ca) = (read_certificates(&files.certificate)?, read_certificates(&files.ca)?);
    let is_ours = is_signed_by(&ca, &chain);
    let loaded = assemble(files, me, chain, ca)?;
    if !is_ours {
        let why = format!("it is not of the CA in {}", files.ca.display());
        return Err(TlsError::Unusable { path: files.certificate.clone(), why });
    }
    Ok(loaded)
}

fn assemble(
    files: &TlsFiles,
    me: NodeName,
    chain: Vec<CertificateDer<'static>>,
    ca: Vec<CertificateDer<'static>>,
) -> Result<Loaded, TlsError> {
    if !chain.first().is_some_and(|first| is_of(first, me)) {
        let (path, name) = (files.certificate.clone(), me.dns_name());
        return Err(TlsError::Foreign { path, name });
    }
    let key = read_key(&files.key)?;
    let unusable = |path: &Path, why: &dyn ToString| TlsError::Unusable {
        path: path.to_path_buf(),
        why: why.to_string(),
    };
    let mut roots = RootCertStore::empty();
    let authority = ca.iter().filter_map(Dates::of).max_by_key(|dates| dates.until);
    let own = chain.iter().filter_map(Dates::of);
    let dates = own.chain(authority).reduce(Dates::and);
    for root in &ca {
        roots.add(root.clone()).map_err(|error| unusable(&files.ca, &error))?;
    }
    let roots = Arc::new(roots);
    let provider = Arc::new(ring::default_provider());
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(&provider))
            .build()
            .map_err(|error| unusable(&files.ca, &error))?;
    let of_certificate = |error: rustls::Error| unusable(&files.certificate, &error);

    let mut client = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&TLS13])
        .map_err(of_certificate)?
        .with_root_certificates(roots)
        .with_client_auth_cert(chain.clone(), key.clone_key())
        .map_err(of_certificate)?;
    client.resumption = Resumption::disabled();
    let mut server = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])
        .map_err(of_certificate)?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain.clone(), key)
        .map_err(of_certificate)?;
    server.send_tls13_tickets = 0;
    Ok(Loaded { ca, chain, dates, client: Arc::new(client), server: Arc::new(server) })
}

/// Returns whether a certificate leads to one of these CAs. What is out of date is another matter,
/// so this is asked of the last moment at which the certificate is good.
fn is_signed_by(ca: &[CertificateDer<'static>], chain: &[CertificateDer<'static>]) -> bool {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(ca.iter().cloned());
    let Some((own, between)) = chain.split_first() else { return false };
    let Ok(parsed) = ParsedCertificate::try_from(own) else { return false };
    let until = Dates::of(own).and_then(|dates| u64::try_from(dates.until).ok());
    let until = UnixTime::since_unix_epoch(Duration::from_secs(until.unwrap_or_default()));
    let algorithms = ring::default_provider().signature_verification_algorithms.all;
    let found =
        verify_server_cert_signed_by_trust_anchor(&parsed, &roots, between, until, algorithms);
    !matches!(
        found,
        Err(rustls::Error::InvalidCertificate(
            CertificateError::UnknownIssuer | CertificateError::BadSignature
        ))
    )
}

fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let unusable = |why: String| TlsError::Unusable { path: path.to_path_buf(), why };
    let bytes = fs::read(path).map_err(|error| unusable(error.to_string()))?;
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    let certificates = read.map_err(|error| unusable(format!("not PEM: {error}")))?;
    if certificates.is_empty() {
        return Err(unusable("there is no certificate in it".to_owned()));
    }
    Ok(certificates)
}

fn read_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    let unusable = |why: String| TlsError::Unusable { path: path.to_path_buf(), why };
    let failed = |error: io::Error| unusable(error.to_string());
    let mut file = fs::File::open(path).map_err(failed)?;
    if let Some(mode) = exposure(&file.metadata().map_err(failed)?) {
        return Err(TlsError::Exposed { path: path.to_path_buf(), mode });
    }
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).map_err(failed)?;
    PrivateKeyDer::from_pem_slice(&bytes)
        .map_err(|error| unusable(format!("not a private key in PEM: {error}")))
}
