//! Connections between instances over TCP: [`TcpTransport`] opens them, [`RpcServer`] takes them.
//!
//! Every connection is introduced before it carries anything. With TLS each end shows a
//! certificate of the cluster's own CA, whose name says which instance of which cluster it is
//! ([`NodeName`]); then the one that connected says who it is, whom it wants and what for, and both
//! must agree with the certificates. Whatever does not agree is closed, counted by its reason and
//! never reaches raft. Byte by byte: `proto-docs/cluster-rpc.md`.
//!
//! Without TLS nobody proves anything, so that is for one machine, or for an operator who says that
//! the network is safe: see [`Security`].

pub mod certs;

mod dial;
mod listen;
mod preamble;
mod tls;

#[cfg(test)]
mod tests;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;

use crate::{ids::InstanceId, storage::ClusterId};

pub use dial::TcpTransport;
pub use listen::{RpcServer, RpcServerError};
pub use preamble::Refusal;
pub use tls::{Tls, TlsError, TlsFiles};

/// How long the introduction of a connection may take, on either side.
const HANDSHAKE_MAX: Duration = Duration::from_secs(2);

/// An idle connection whose other end is gone is noticed within idle + 3 intervals; one that sends,
/// within the third.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(5);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(1);
const UNACKNOWLEDGED_MAX: Duration = Duration::from_secs(3);

/// An instance of a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeName {
    /// The cluster.
    pub cluster: ClusterId,
    /// The instance in it.
    pub node: InstanceId,
}

impl NodeName {
    /// The DNS name that a certificate of this instance carries: `node-<id>.<cluster>.emnetchain`,
    /// the cluster in 32 hexadecimal digits. No resolver ever sees it.
    pub fn dns_name(self) -> String {
        format!("node-{}.{}.emnetchain", self.node.0, self.cluster)
    }
}

/// What protects connections between instances.
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
    "the raft address {0} can be reached from other machines, and whoever reaches it could rewrite \
     the registry: give --raft-tls-cert, --raft-tls-key and --raft-tls-ca (`EMNetChain cluster \
     certs` makes them), or --insecure-cluster if the network is safe"
)]
pub struct Unprotected(pub SocketAddr);

impl Security {
    /// What protects an instance that listens on `address` for others: TLS if there is one;
    /// nothing if nothing from elsewhere gets there, or `insecure` says that this is wanted.
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

    /// Whether a connection to or from this address may be used at all.
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
    let keepalive = TcpKeepalive::new()
        .with_time(KEEPALIVE_IDLE)
        .with_interval(KEEPALIVE_INTERVAL)
        .with_retries(3);
    socket.set_tcp_keepalive(&keepalive)?;
    socket.set_tcp_user_timeout(Some(UNACKNOWLEDGED_MAX))
}
