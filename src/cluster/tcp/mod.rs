//! Connections between instances over TCP: [`TcpTransport`] opens them, [`RpcServer`] takes them.
//!
//! With TLS each end shows a certificate of the cluster's own CA, whose name says which instance of
//! which cluster it is ([`NodeName`]). A connection without such a certificate is closed and
//! counted. What the two ends then say to each other, and whether they go on, is the same over
//! every transport: see [`rpc::hello`](super::rpc::hello).
//!
//! Without TLS no end proves anything, so that is for one machine, or for an operator that says
//! that the network is safe: see [`Security`].

pub mod certs;

mod dates;
mod dial;
mod listen;
mod places;
mod tls;

#[cfg(test)]
mod tests;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use socket2::SockRef;
use tokio::net::TcpStream;

use crate::platform::sockets::{give_up_after, keep_alive};

pub use super::transport::NodeName;
pub use dial::TcpTransport;
pub use listen::{RpcServer, RpcServerError};
pub use tls::{Tls, TlsError, TlsFiles, check_files, look_into};

/// Longest time for the TLS handshake of a connection, on either side.
const HANDSHAKE_MAX: Duration = Duration::from_secs(2);

/// An idle connection whose other end is gone is noticed within idle + 3 intervals; one that sends,
/// within the third.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(5);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(1);
const UNACKNOWLEDGED_MAX: Duration = Duration::from_secs(3);

/// The protection of connections between instances.
#[derive(Clone, Debug)]
pub enum Security {
    /// Nothing; the operator says that the network is safe.
    Insecure,
    /// Nothing; but connections do not leave this machine.
    Loopback,
    /// TLS, each end with a certificate.
    Tls(Arc<Tls>),
}

/// The addresses of this instance can be reached from elsewhere, and nothing protects them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the raft address {0} can be reached from other machines, and what reaches it could rewrite \
     the registry: give --raft-tls-cert, --raft-tls-key and --raft-tls-ca (`EMNetChain cluster \
     certs` makes them), or --insecure-cluster if the network is safe"
)]
pub struct Unprotected(pub SocketAddr);

impl Security {
    /// Returns the protection of an instance that listens on `address` for others: TLS if there is
    /// one; nothing if nothing from elsewhere gets there, or `insecure` says that this is wanted.
    ///
    /// # Errors
    /// If there should be TLS.
    pub fn choose(
        address: SocketAddr,
        tls: Option<Tls>,
        insecure: bool,
    ) -> Result<Self, Unprotected> {
        match tls {
            Some(tls) => Ok(Self::Tls(Arc::new(tls))),
            None if address.ip().to_canonical().is_loopback() => Ok(Self::Loopback),
            None if insecure => Ok(Self::Insecure),
            None => Err(Unprotected(address)),
        }
    }

    /// Returns whether a connection to or from this address may be used at all.
    fn permits(&self, address: SocketAddr) -> bool {
        match self {
            Self::Insecure | Self::Tls(_) => true,
            Self::Loopback => address.ip().to_canonical().is_loopback(),
        }
    }
}

/// Options of every connection: small messages leave at once, and a dead end is noticed.
fn set_options(stream: &TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    keep_alive(&socket, KEEPALIVE_IDLE, KEEPALIVE_INTERVAL)?;
    give_up_after(&socket, UNACKNOWLEDGED_MAX)
}
