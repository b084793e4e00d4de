//! The edge of the service: the servers that clients connect to. No decision about chains is made
//! here. A request becomes a [`Command`] and goes to the proposer; what the registry makes of it
//! comes back as [`crate::registry::Effect`]s through the [`Outbox`].
//!
//! - [`Servers`] binds all listeners before any serves, and then runs them.
//! - `listener` accepts, `doors` give each connection its session, `admission` says which may stay,
//!   `session` is the life of a connection, `ear` its hearing, `line` and `stream` its bytes.
//! - `chain`, `repair` and `emnet` turn requests into commands.
//! - `reflector` is EMUDP and STUN.
//!
//! The module deliberately lacks a decision about chains, a clock for clients' asks (the
//! registry's log time decides), and any memory of a client beyond its connection.

mod admission;
mod chain;
mod doors;
mod ear;
mod emnet;
mod line;
mod listener;
mod options;
mod outbox;
mod reflector;
mod repair;
mod session;
mod stream;
#[cfg(test)]
mod tests;

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use tokio::{
    net::TcpListener,
    sync::{mpsc, watch},
    task::{JoinError, JoinSet},
};

pub use doors::Doors;
pub use options::{Addresses, LiveOptions, ServerOptions};
pub use outbox::Outbox;
pub use stream::ClientStream;

use listener::Acceptor;
use reflector::{Limit, Reflector};

use crate::{
    descriptors::Shares,
    ids::SessionId,
    metrics::Metrics,
    queue::Queued,
    registry::{Command, Message, Refusal},
    sockets::Datagrams,
    wire::{self, Dialect, Ignored, WireError},
};

/// The progress of an instance towards its end. It never goes back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Nothing can be answered yet; connections wait in the kernel. Datagrams are answered.
    #[default]
    Starting,
    /// New clients are welcome.
    Serving,
    /// An operator had it take no new connections; those that exist go on. Datagrams are answered.
    Drained,
    /// The same, because it is being stopped.
    Draining,
    /// Sessions are closed, and the servers end.
    Stopping,
}

/// Why the edge failed. Each of these ends the instance: it must not live on as half a service.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// A listener cannot be bound.
    #[error("the {server} server cannot listen on {address}")]
    Bind {
        /// Which server.
        server: &'static str,
        /// Where.
        address: SocketAddr,
        /// Why not.
        source: io::Error,
    },
    /// A listener broke.
    #[error("the {server} server can no longer accept connections")]
    Accept {
        /// Which server.
        server: &'static str,
        /// Why.
        source: io::Error,
    },
    /// A session panicked, which is a defect of ours.
    #[error("a session panicked")]
    Session {
        /// The panic.
        source: JoinError,
    },
}

/// All listeners of the edge, bound and not yet serving.
#[derive(Debug)]
pub struct Servers {
    options: LiveOptions,
    addresses: Addresses,
    acceptors: Vec<(Protocol, TcpListener)>,
    reflectors: Vec<Datagrams>,
}

impl Servers {
    /// Binds everything, or nothing. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// If an address is taken, not ours or forbidden.
    pub fn bind(wanted: &Addresses, options: LiveOptions) -> Result<Self, ServerError> {
        let tcp = |protocol: Protocol, address| {
            let failed = |source| ServerError::Bind { server: protocol.as_str(), address, source };
            let listener = listener::bind(address, &options.borrow()).map_err(failed)?;
            let bound = listener.local_addr().map_err(failed)?;
            Ok::<_, ServerError>((bound, (protocol, listener)))
        };
        let chains = wanted.chains.iter().map(|address| tcp(Protocol::Chain, *address));
        let (chains, mut acceptors): (Vec<_>, Vec<_>) =
            chains.collect::<Result<Vec<_>, _>>()?.into_iter().unzip();
        let (repair, repair_listener) = tcp(Protocol::Repair, wanted.repair)?;
        let emnet = wanted.emnet.map(|address| tcp(Protocol::Emnet, address)).transpose()?;
        let udp = |address: &SocketAddr| {
            let failed =
                |source| ServerError::Bind { server: "reflector", address: *address, source };
            Datagrams::bind(*address).map_err(failed)
        };
        let reflectors = wanted.reflectors.iter().map(udp).collect::<Result<Vec<_>, _>>()?;
        let (emnet, emnet_listener) = emnet.unzip();
        acceptors.push(repair_listener);
        acceptors.extend(emnet_listener);
        Ok(Self {
            addresses: Addresses {
                chains,
                repair,
                emnet,
                reflectors: reflectors.iter().map(Datagrams::address).collect(),
            },
            acceptors,
            reflectors,
            options,
        })
    }

    /// Returns where the servers are bound; port 0 has become the port picked.
    pub fn addresses(&self) -> &Addresses {
        &self.addresses
    }

    /// Says so if clients could take the descriptors of the disk.
    fn compare_descriptors(&self) {
        let Shares { clients, .. } = Shares::of_this_process();
        let allowed = self.options.borrow().connections_max;
        if allowed > clients {
            tracing::warn!(
                allowed,
                room = clients,
                "connections_max is higher than the descriptors allow; if clients take those of \
                 the disk, the instance stops"
            );
        }
    }

    /// Serves. Commands go to the proposer, effects come through the outbox; `phase` leads the
    /// servers to their end, and its sender must be kept until then. A task that ends before
    /// [`Phase::Stopping`], or with an error, must end the instance.
    pub fn serve(
        self,
        commands: mpsc::Sender<Queued>,
        outbox: &Arc<Outbox>,
        metrics: &Metrics,
        phase: &watch::Receiver<Phase>,
    ) -> JoinSet<Result<(), ServerError>> {
        self.compare_descriptors();
        let mut tasks = JoinSet::new();
        let limit = Limit::new(&self.options);
        for datagrams in self.reflectors {
            let (options, limit) = (self.options.clone(), limit.clone());
            let reflector = Reflector::new(datagrams, options, limit, metrics.clone());
            let phase = phase.clone();
            tasks.spawn(async move {
                reflector.run(phase).await;
                Ok(())
            });
        }
        let doors = Doors::new(commands, Arc::clone(outbox), self.options, metrics.clone());
        let doors = Arc::new(doors);
        for (protocol, listener) in self.acceptors {
            let acceptor =
                Acceptor { listener, protocol, doors: Arc::clone(&doors), phase: phase.clone() };
            tasks.spawn(acceptor.run());
        }
        tasks
    }
}

/// Which protocol a TCP listener speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// The chain server's: CONNECT.
    Chain,
    /// The repair server's: RECONNECT.
    Repair,
    /// EMNet's: ADD_PEER and ASK_IP.
    Emnet,
}

impl Protocol {
    /// Returns the name of the server, as metrics and logs have it.
    fn as_str(self) -> &'static str {
        match self {
            Self::Chain => "chain",
            Self::Repair => "repair",
            Self::Emnet => "emnet",
        }
    }

    /// Returns the JSON dialect of its clients.
    fn dialect(self) -> Dialect {
        match self {
            Self::Chain | Self::Repair => Dialect::Seed,
            Self::Emnet => Dialect::Json,
        }
    }
}

/// A request, as far as the edge understands it.
#[derive(Debug)]
enum Request {
    /// For the registry.
    Command(Command),
    /// EMNet: to be answered on the spot.
    Answer(Message),
}

/// Where a request came from.
#[derive(Clone, Copy, Debug)]
struct Sender {
    session: SessionId,
    source: IpAddr,
}

/// Returns the bytes that tell a client a message.
fn encode(message: &Message) -> Vec<u8> {
    match message {
        Message::Link { part, ip } => wire::chain::reply(*part, ip),
        Message::Repair { ip } => wire::repair::reply(ip),
        Message::PeerAdded { id } => wire::emnet::Reply::Added(*id).encode(),
        Message::PeerFound { address } => wire::emnet::Reply::Found(address).encode(),
        Message::PeerFailed => wire::emnet::Reply::Failed.encode(),
    }
}

/// Why a connection or a request was turned away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rejection {
    /// It had a request in hand, and made room for a later one of its source or site, or of all.
    Displaced,
    /// Too many bytes without a request in them, or behind one.
    Flood,
    /// A message that is no request to this server.
    Ignored(Ignored),
    /// No request within the deadline.
    Overdue,
    /// The registry refused the request.
    Refused(Refusal),
    /// Its place was needed before it had sent a request.
    Silent,
    /// The client leaves its answers unread.
    SlowReader,
    /// Bytes that are no message.
    Wire(WireError),
}

impl Rejection {
    fn as_str(self) -> &'static str {
        match self {
            Self::Displaced => "displaced",
            Self::Flood => "flood",
            Self::Ignored(ignored) => ignored.reason(),
            Self::Overdue => "overdue",
            Self::Refused(Refusal::NotOwner) => "not_owner",
            Self::Silent => "silent",
            Self::SlowReader => "slow_reader",
            Self::Wire(error) => error.reason(),
        }
    }

    fn count(self, metrics: &Metrics) {
        metrics.rejected.with_label_values(&[self.as_str()]).inc();
    }
}
