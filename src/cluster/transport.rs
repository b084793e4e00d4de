//! How instances reach each other: a transport opens connections, and a connection is bytes both
//! ways between two instances that know each other. What travels over it is the matter of
//! [`rpc`](super::rpc), the same over whatever transport; [`tcp`](super::tcp) is the service's own.

use std::io;

use futures_util::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::{ids::InstanceId, raft::Member};

/// What a connection is for. Each kind has one of its own, so that a snapshot or a crowd of entries
/// delays neither a heartbeat nor a vote.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Lane {
    /// Entries, one request after another without waiting, answered in order.
    Append,
    /// Heartbeats, votes and forwarded proposals, answered as they are done.
    Calls,
    /// One snapshot.
    Snapshot,
}

impl Lane {
    /// Its name in metrics and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Append => "append",
            Self::Calls => "calls",
            Self::Snapshot => "snapshot",
        }
    }
}

/// A connection: bytes both ways, in order.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin + 'static {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Stream for T {}

/// Opens connections to other instances.
pub trait Transport: Send + Sync + 'static {
    /// Opens a connection. When it comes back, this end has made sure that the other one is
    /// `target`, and the other end that it may speak with us; what it then says on the connection
    /// goes through [`Service::serve`](super::rpc::Service::serve) there.
    ///
    /// Whoever implements this bounds the time that it takes.
    fn connect(
        &self,
        target: InstanceId,
        member: &Member,
        lane: Lane,
    ) -> BoxFuture<'static, io::Result<Box<dyn Stream>>>;
}

/// The transport of an instance that is alone: nobody can be reached.
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
