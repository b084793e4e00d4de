//! The operator's settings of the edge, with defaults that run. The configuration maps its
//! keys onto these two structs.

use std::{net::SocketAddr, time::Duration};

use tokio::sync::watch;

use crate::{
    clock,
    descriptors::Shares,
    limits::{NETWORK_SHARE, NETWORK_SOURCES},
    ratelimit::{Rate, RateLimit},
    wire::AddressPolicy,
};

/// Where to listen. Port 0 picks a free one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// The chain server (CONNECT), on all of these.
    pub chains: Vec<SocketAddr>,
    /// The repair server (RECONNECT), the seed's EMDisi.
    pub repair: SocketAddr,
    /// EMNet (ADD_PEER, ASK_IP), if wanted.
    pub emnet: Option<SocketAddr>,
    /// EMUDP and STUN; none if they are not wanted.
    pub reflectors: Vec<SocketAddr>,
}

/// Limits and deadlines of the edge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerOptions {
    /// Client connections over all TCP listeners. By default what the budget of descriptors has
    /// for them: at most four fifths of what the process may open, and what the disk, raft and the
    /// operators' HTTP do not need.
    pub connections_max: usize,
    /// Client connections from one IPv4 address or one IPv6 /64; a /48 may have sixteen times as
    /// many, and no more than a quarter of all. Of more, the oldest silent one of the same source
    /// or /48 is closed.
    pub connections_per_address_max: usize,
    /// Whether loopback and private addresses are bound by `connections_per_address_max` too. They
    /// often stand for many clients: a proxy, a network of containers.
    pub local_addresses_limited: bool,
    /// Connections without a request in hand; of more, the oldest of the source or /48 that has the
    /// most is closed.
    pub silent_max: usize,
    /// From accept to the end of the first request.
    pub first_message_deadline: Duration,
    /// Longest time that an EMNet connection may be idle between two requests.
    pub idle_deadline: Duration,
    /// Longest time that a client may leave an answer in our socket buffer.
    pub write_deadline: Duration,
    /// After our FIN: how long to wait for the client's, so that no RST overtakes the answer.
    pub linger_deadline: Duration,
    /// After the order to stop: how long sessions may take to say goodbye.
    pub stop_deadline: Duration,
    /// Silence on a connection after which keepalive probes begin.
    pub keepalive_idle: Duration,
    /// Between two keepalive probes; the third without an answer ends the connection.
    pub keepalive_interval: Duration,
    /// Longest time that sent bytes may stay unacknowledged before the connection counts as dead.
    pub user_timeout: Duration,
    /// Which sockets a client may announce.
    pub address_policy: AddressPolicy,
    /// Datagrams answered per second and source (IPv4 address or IPv6 /64); sixteen times as many
    /// for a /48, and twenty times for loopback and private addresses, at once as well.
    pub datagrams_per_source: u32,
    /// Datagrams that a source which kept quiet may send at once.
    pub datagrams_per_source_burst: u32,
    /// Datagrams answered per second in all.
    pub datagrams_in_all: u32,
}

impl ServerOptions {
    /// The limit of datagrams, with no turn taken yet.
    pub(super) fn datagram_limit(&self) -> RateLimit {
        let per_source =
            Rate::per_second(self.datagrams_per_source, self.datagrams_per_source_burst);
        RateLimit::new(per_source, self.datagrams_in_all, clock::now())
    }

    /// Client connections from one IPv6 /48.
    pub(super) fn connections_per_network_max(&self) -> usize {
        let of_sources = self.connections_per_address_max.saturating_mul(NETWORK_SOURCES as usize);
        of_sources.min(self.connections_max / NETWORK_SHARE).max(self.connections_per_address_max)
    }
}

/// The options in force; an operator may change them while the servers run. What a listener is
/// bound with stays.
pub type LiveOptions = watch::Receiver<ServerOptions>;

impl Default for ServerOptions {
    fn default() -> Self {
        Self {
            connections_max: Shares::of_this_process().clients,
            connections_per_address_max: 256,
            local_addresses_limited: false,
            silent_max: 4096,
            first_message_deadline: Duration::from_secs(60),
            idle_deadline: Duration::from_secs(600),
            write_deadline: Duration::from_secs(5),
            linger_deadline: Duration::from_secs(2),
            stop_deadline: Duration::from_secs(3),
            keepalive_idle: Duration::from_secs(30),
            keepalive_interval: Duration::from_secs(10),
            user_timeout: Duration::from_secs(60),
            address_policy: AddressPolicy::default(),
            datagrams_per_source: 10,
            datagrams_per_source_burst: 50,
            datagrams_in_all: 20_000,
        }
    }
}
