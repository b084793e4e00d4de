//! What an operator may set about the edge, with defaults that run. The configuration maps its
//! keys onto these two structs.

use std::{net::SocketAddr, time::Duration};

use tokio::sync::watch;

use crate::{
    limits::{NETWORK_SHARE, NETWORK_SOURCES},
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
    /// Client connections over all TCP listeners. By default at most four fifths of the descriptors
    /// that the process may open, so that raft, metrics and the disk keep theirs.
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
    /// How long an EMNet connection may be idle between two requests.
    pub idle_deadline: Duration,
    /// How long a client may leave an answer in our socket buffer.
    pub write_deadline: Duration,
    /// After our FIN: how long to wait for the client's, so that no RST overtakes the answer.
    pub linger_deadline: Duration,
    /// After the order to stop: how long sessions may take to say goodbye.
    pub stop_deadline: Duration,
    /// Silence on a connection after which keepalive probes begin.
    pub keepalive_idle: Duration,
    /// Between two keepalive probes; the third without an answer ends the connection.
    pub keepalive_interval: Duration,
    /// How long sent bytes may stay unacknowledged before the connection counts as dead.
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

/// Descriptors that neither clients nor operators may take: about 20 for listeners, the log and the
/// image, and as many for what comes and goes, such as snapshots. A disk that is refused one stops
/// the instance.
const OWN_DESCRIPTORS: usize = 40;

/// How many descriptors connections may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shares {
    /// Those of clients.
    pub(super) clients: usize,
    /// Those of the operators' HTTP.
    pub(super) operators: usize,
}

impl Shares {
    /// What this process may open, shared out.
    pub(super) fn of_this_process() -> Self {
        let limits = std::fs::read_to_string("/proc/self/limits").unwrap_or_default();
        Self::of(descriptors_max(&limits).unwrap_or(usize::MAX))
    }

    fn of(descriptors: usize) -> Self {
        let operators = (descriptors / 8).clamp(1, 128);
        let left = descriptors.saturating_sub(OWN_DESCRIPTORS + operators);
        Self { clients: left.min(descriptors / 5 * 4).clamp(1, 100_000), operators }
    }
}

/// The soft limit of open files out of `/proc/self/limits`; `None` if there is none.
fn descriptors_max(limits: &str) -> Option<usize> {
    let line = limits.lines().find(|line| line.starts_with("Max open files"))?;
    line.split_whitespace().nth(3)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_descriptor_limit_is_read_from_proc() {
        let limits = "Limit                     Soft Limit           Hard Limit           Units\n\
                      Max open files            1024                 524288               files\n";
        assert_eq!(descriptors_max(limits), Some(1024));
        assert_eq!(descriptors_max("Max open files  unlimited  unlimited  files"), None);
        assert!(ServerOptions::default().connections_max > 0);
    }

    #[test]
    fn connections_leave_the_disk_its_descriptors() {
        let of = |descriptors| {
            let Shares { clients, operators } = Shares::of(descriptors);
            assert!(descriptors <= 48 || clients + operators + OWN_DESCRIPTORS <= descriptors);
            (clients, operators)
        };
        assert_eq!(of(64), (16, 8));
        assert_eq!(of(256), (184, 32));
        assert_eq!(of(1024), (816, 128));
        assert_eq!(of(usize::MAX), (100_000, 128));
        assert_eq!(of(20), (1, 2), "too few to live on, but nothing breaks here");
    }
}
