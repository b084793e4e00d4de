//! Opens connections to other instances.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use futures_util::{FutureExt as _, future::BoxFuture};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpStream, lookup_host},
    time::timeout,
};

use super::{HANDSHAKE_MAX, NodeName, Security, set_options};
use crate::{
    cluster::transport::{Lane, Stream, Transport},
    ids::InstanceId,
    metrics::Metrics,
    raft::Member,
};

/// Longest time for the resolution of a name.
const RESOLVE_MAX: Duration = Duration::from_secs(2);

/// Longest time for one address to connect, before the next one is tried.
const CONNECT_MAX: Duration = Duration::from_secs(1);

/// Connects by TCP. Names are resolved at every connect, and all addresses tried.
#[derive(Clone, Debug)]
pub struct TcpTransport {
    me: NodeName,
    security: Security,
    metrics: Metrics,
}

impl TcpTransport {
    /// Returns the transport of the instance `me`.
    pub fn new(me: NodeName, security: Security, metrics: Metrics) -> Self {
        Self { me, security, metrics }
    }

    async fn open(self, to: InstanceId, address: String) -> io::Result<Box<dyn Stream>> {
        let resolved = timeout(RESOLVE_MAX, lookup_host(&address)).await;
        let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
        for address in resolved.map_err(|_| late("the name is not resolved in time"))?? {
            if !self.security.permits(address) {
                last = io::Error::new(
                    io::ErrorKind::PermissionDenied,
                    format!("{address} is on another machine, and there is no TLS"),
                );
                continue;
            }
            let connected = timeout(CONNECT_MAX, TcpStream::connect(address)).await;
            let connected = connected.unwrap_or_else(|_| Err(late("no connection in time")));
            match connected {
                Ok(stream) => {
                    let securing = timeout(HANDSHAKE_MAX, self.secure(stream, to));
                    match securing.await.unwrap_or_else(|_| Err(late("no TLS in time"))) {
                        Ok(stream) => return Ok(stream),
                        Err(error) => last = error,
                    }
                }
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    async fn secure(&self, stream: TcpStream, to: InstanceId) -> io::Result<Box<dyn Stream>> {
        set_options(&stream)?;
        match &self.security {
            Security::Insecure | Security::Loopback => Ok(Box::new(stream)),
            Security::Tls(tls) => {
                let target = NodeName { cluster: self.me.cluster, node: to };
                // What is proven by a CA does not outlive it.
                let changed = Box::pin(tls.authority_changes());
                let stream = tls.connect(stream, target).await?;
                Ok(Box::new(Proven { stream, changed: Some(changed) }))
            }
        }
    }
}

/// A connection that ends with the CA that has proven what is at its other end.
struct Proven<S> {
    stream: S,
    /// `None` once it is another.
    changed: Option<BoxFuture<'static, ()>>,
}

impl<S> Proven<S> {
    /// Fails if the CA is another, and has the caller wake up when it becomes that.
    fn check(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        let is_over =
            self.changed.as_mut().is_none_or(|changed| changed.poll_unpin(context).is_ready());
        if is_over {
            self.changed = None;
            return Err(io::Error::new(io::ErrorKind::BrokenPipe, "the CA has changed"));
        }
        Ok(())
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Proven<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check(context)?;
        Pin::new(&mut self.stream).poll_read(context, into)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Proven<S> {
    // What waits to be read is woken when the CA changes, and every connection is read from.
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

fn late(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, what)
}

impl Transport for TcpTransport {
    fn connect(
        &self,
        target: InstanceId,
        member: &Member,
        _: Lane,
    ) -> BoxFuture<'static, io::Result<Box<dyn Stream>>> {
        let (this, address) = (self.clone(), member.raft_addr.clone());
        Box::pin(async move {
            let connects = this.metrics.raft_connects.clone();
            let opened = this.open(target, address).await;
            let outcome = if opened.is_ok() { "open" } else { "failed" };
            connects.with_label_values(&[outcome]).inc();
            opened
        })
    }

    fn resolve(&self, address: &str) -> BoxFuture<'static, Vec<SocketAddr>> {
        let address = address.to_owned();
        Box::pin(async move {
            let resolved = timeout(RESOLVE_MAX, lookup_host(&address)).await;
            resolved.map_or_else(|_| Vec::new(), |found| found.into_iter().flatten().collect())
        })
    }
}
