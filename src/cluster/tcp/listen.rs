//! Takes the connections of other instances.
//!
//! An instance has at most one connection of each kind to us: a new one takes the place of the
//! old, whose other end is usually gone. So what a member can hold is bounded, and a member that
//! comes back need not wait until we notice that it was gone.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    net::{TcpListener, TcpStream},
    sync::oneshot,
    task::{JoinError, JoinSet},
    time::{sleep, timeout},
};

use super::{
    HANDSHAKE_MAX, NodeName, Refusal, Security,
    preamble::{self, Hello},
    set_options, tls,
};
use crate::{
    cluster::{
        rpc::Service,
        transport::{Lane, Stream},
    },
    ids::InstanceId,
    limits::RPC_CONNECTIONS_MAX,
    metrics::Metrics,
};

/// The pause when the system is out of descriptors or memory.
const PAUSE: Duration = Duration::from_millis(100);

/// Listens for other instances.
#[derive(Debug)]
pub struct RpcServer {
    listener: TcpListener,
    door: Arc<Door>,
}

/// Why no more connections are taken.
#[derive(Debug, thiserror::Error)]
pub enum RpcServerError {
    /// The listener broke.
    #[error("the raft listener broke: {0}")]
    Accept(#[source] io::Error),
    /// A connection's task panicked.
    #[error("a raft connection's task failed: {0}")]
    Connection(#[source] JoinError),
}

/// Judges newcomers, and knows who is in.
#[derive(Debug)]
struct Door {
    me: NodeName,
    security: Security,
    metrics: Metrics,
    /// By dropping the sender, the connection is ended.
    open: Mutex<BTreeMap<(InstanceId, Lane), oneshot::Sender<Infallible>>>,
}

/// A connection that was let in.
struct Guest {
    stream: Box<dyn Stream>,
    peer: InstanceId,
    lane: Lane,
}

impl RpcServer {
    /// A server for the instance `me`. Connections wait until [`RpcServer::run`].
    pub fn new(listener: TcpListener, me: NodeName, security: Security, metrics: Metrics) -> Self {
        let door = Door { me, security, metrics, open: Mutex::default() };
        Self { listener, door: Arc::new(door) }
    }

    /// Takes connections and serves them; ends only by failing. Dropping the future closes all.
    ///
    /// # Errors
    /// If the listener breaks or a task panics: the instance must not live on as half a service.
    pub async fn run(self, service: Service) -> Result<Infallible, RpcServerError> {
        let service = Arc::new(service);
        let mut connections = JoinSet::new();
        let mut warned = false;
        loop {
            tokio::select! {
                biased;
                Some(ended) = connections.join_next() => ended.map_err(RpcServerError::Connection)?,
                accepted = self.listener.accept() => match accepted {
                    Ok((stream, address)) => {
                        warned = false;
                        if connections.len() < RPC_CONNECTIONS_MAX {
                            let (door, service) = (Arc::clone(&self.door), Arc::clone(&service));
                            connections.spawn(door.welcome(stream, address, service));
                        } else {
                            self.door.refuse(address, Refusal::Crowded.as_str());
                        }
                    }
                    // That connection is gone; the next one may be fine.
                    Err(error) if is_of_one(&error) => {}
                    Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                        return Err(RpcServerError::Accept(error));
                    }
                    Err(error) => {
                        if !std::mem::replace(&mut warned, true) {
                            tracing::warn!(%error, "cannot accept raft connections for now");
                        }
                        sleep(PAUSE).await;
                    }
                },
            }
        }
    }
}

/// Whether an error of accept(2) is about the connection, not about the listener or the system.
fn is_of_one(error: &io::Error) -> bool {
    let kinds = [
        io::ErrorKind::ConnectionAborted,
        io::ErrorKind::ConnectionReset,
        io::ErrorKind::Interrupted,
    ];
    kinds.contains(&error.kind())
}

impl Door {
    fn refuse(&self, address: SocketAddr, reason: &'static str) {
        self.metrics.raft_refused.with_label_values(&[reason]).inc();
        tracing::debug!(%address, reason, "raft connection refused");
    }

    /// Lets a connection in, or not, and stays with it to its end.
    async fn welcome(
        self: Arc<Self>,
        stream: TcpStream,
        address: SocketAddr,
        service: Arc<Service>,
    ) {
        let introduced = timeout(HANDSHAKE_MAX, self.introduce(stream)).await;
        let Guest { stream, peer, lane } = match introduced.unwrap_or(Err(Refusal::Timeout)) {
            Ok(guest) => guest,
            Err(refusal) => return self.refuse(address, refusal.as_str()),
        };
        let superseded = self.enter(peer, lane);
        let connections = self.metrics.raft_connections.with_label_values(&[lane.as_str()]);
        connections.inc();
        let served = tokio::select! {
            served = service.serve(stream, peer, lane) => served,
            _ = superseded => Ok(()),
        };
        connections.dec();
        self.forget_ended();
        if let Err(error) = served {
            tracing::debug!(peer = peer.0, lane = lane.as_str(), %error, "raft connection ended");
            if let Some(reason) = error.refusal() {
                self.refuse(address, reason);
            }
        }
    }

    /// Finds out who is at the other end.
    async fn introduce(&self, stream: TcpStream) -> Result<Guest, Refusal> {
        // A connection that is broken already will fail below.
        let _ = set_options(&stream);
        match &self.security {
            Security::Insecure | Security::Loopback => self.judge(Box::new(stream), |_| true).await,
            Security::Tls(tls) => {
                let secured = tls.accept(stream).await;
                let (stream, certificate) = secured.map_err(|_| Refusal::Tls)?;
                self.judge(Box::new(stream), |name| tls::is_of(&certificate, name)).await
            }
        }
    }

    /// Hears the hello and answers it.
    async fn judge(
        &self,
        mut stream: Box<dyn Stream>,
        proven: impl Fn(NodeName) -> bool,
    ) -> Result<Guest, Refusal> {
        let hello = Hello::read(&mut stream).await?;
        let known = hello
            .check(self.me)
            .and_then(|()| if proven(hello.from) { Ok(()) } else { Err(Refusal::Identity) });
        let answered = preamble::answer(&mut stream, hello.version, known.err()).await;
        known?;
        answered.map_err(|_| Refusal::Preamble)?;
        Ok(Guest { stream, peer: hello.from.node, lane: hello.lane })
    }

    /// Notes a connection; what is returned is ready when a newer one has taken its place.
    fn enter(&self, peer: InstanceId, lane: Lane) -> oneshot::Receiver<Infallible> {
        let (place, superseded) = oneshot::channel();
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.insert((peer, lane), place);
        superseded
    }

    fn forget_ended(&self) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|_, place| !place.is_closed());
    }
}
