//! The transport between instances. It opens connections, and a connection is bytes both
//! ways between two instances that know each other. What travels over it is the matter of
//! [`rpc`](super::rpc), the same over every transport; [`tcp`](super::tcp) is the service's own.

use std::{io, net::SocketAddr, sync::Arc};

use futures_util::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::{ids::InstanceId, raft::Member, storage::ClusterId};

/// An instance of a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeName {
    /// The cluster.
    pub cluster: ClusterId,
    /// The instance in it.
    pub node: InstanceId,
}

impl NodeName {
    /// Returns the DNS name that a certificate of this instance carries:
    /// `node-<id>.<cluster>.emnetchain`, the cluster in 32 hexadecimal digits. No resolver sees it.
    pub fn dns_name(self) -> String {
        format!("node-{}.{}.emnetchain", self.node.0, self.cluster)
    }
}

/// The purpose of a connection. Each kind has one of its own, so that a snapshot or a crowd of
/// entries delays neither a heartbeat nor a vote.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Lane {
    /// Entries, one request after another without waiting, answered in order.
    Append,
    /// Heartbeats, votes and forwarded proposals, answered as they are done.
    Calls,
    /// Nothing: the one that opens it wants to know which store answers at an address, and the
    /// introduction says so. It takes no other connection's place.
    Probe,
    /// One snapshot.
    Snapshot,
}

impl Lane {
    /// Returns its name in metrics and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Append => "append",
            Self::Calls => "calls",
            Self::Probe => "probe",
            Self::Snapshot => "snapshot",
        }
    }
}

/// A connection: bytes both ways, in order.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin + 'static {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Stream for T {}

/// Opens connections to other instances.
pub trait Transport: Send + Sync + 'static {
    /// Opens a connection to `target`, which this end has proven as far as the transport can (with
    /// TLS: by the certificate). Both ends then introduce themselves over it
    /// ([`hello`](super::rpc::hello)): this one by
    /// [`Greeter::greet`](super::greeter::Greeter::greet), the other one in
    /// [`Service::serve`](super::service::Service::serve).
    ///
    /// The implementation bounds the time that this takes.
    fn connect(
        &self,
        target: InstanceId,
        member: &Member,
        lane: Lane,
    ) -> BoxFuture<'static, io::Result<Box<dyn Stream>>>;

    /// Returns the same transport without knowledge of its own: it looks for a member exactly where
    /// it should be. `None` if this one does so.
    fn exactly(&self) -> Option<Arc<dyn Transport>> {
        None
    }

    /// Returns the sockets that an address stands for at present; none if that cannot be told.
    fn resolve(&self, _address: &str) -> BoxFuture<'static, Vec<SocketAddr>> {
        Box::pin(std::future::ready(Vec::new()))
    }

    /// Takes note that a connection to `target` for calls was lost after it had been open.
    fn lost(&self, _target: InstanceId) {}

    /// Waits until `target` is to be reached elsewhere than it would be now.
    fn moved(&self, _target: InstanceId, _member: &Member) -> BoxFuture<'static, ()> {
        Box::pin(std::future::pending())
    }
}

/// The transport of an instance that is alone: it reaches no other.
#[derive(Clone, Copy, Debug, Default)]
pub struct Alone;

impl Transport for Alone {
    fn connect(
        &self,
        target: InstanceId,
        _: &Member,
        _: Lane,
    ) -> BoxFuture<'static, io::Result<Box<dyn Stream>>> {
        let why = format!("this instance is alone; there is no instance {}", target.0);
        Box::pin(std::future::ready(Err(io::Error::new(io::ErrorKind::NotConnected, why))))
    }
}
