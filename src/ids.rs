//! Names for the things that flow through the service: one newtype for each, so that a head
//! cannot be passed where a tail is meant and a session cannot be taken for a client.

use std::{
    fmt,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    sync::Arc,
};

use serde::{Deserialize, Serialize};

/// One server process of the cluster; the same number as its raft node id.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct InstanceId(pub u64);

/// One life of an instance: every start of the process gets a higher one from the registry.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Incarnation(pub u64);

impl Incarnation {
    /// Returns the life after this one.
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

/// A store: the raft log and the votes in one data directory. It is drawn at random with the log,
/// so an emptied directory and a copy made from a backup are other stores than the one before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct StoreId(pub u128);

impl fmt::Display for StoreId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// A history: everything that one cluster has agreed on since it was founded or restored. The
/// first leader draws it at random; two histories never share one, even with equal member lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct HistoryId(pub u128);

impl fmt::Display for HistoryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// One client's TCP connection to one life of one instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SessionId {
    /// The instance that accepted the connection.
    pub instance: InstanceId,
    /// The life of that instance in which it did.
    pub incarnation: Incarnation,
    /// Counts the connections of that life.
    pub connection: u64,
}

/// The id of the request that came over it, for people: instance, life and connection.
impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}-{}", self.instance.0, self.incarnation.0, self.connection)
    }
}

/// Milliseconds of *log time*: it passes only while a leader stamps entries, it never goes back,
/// and no wall clock has a say in it.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Timestamp(pub u64);

impl Timestamp {
    /// Returns this time and `ms` milliseconds more.
    pub fn plus_ms(self, ms: u64) -> Self {
        Self(self.0.saturating_add(ms))
    }

    /// Returns the milliseconds since `earlier`; zero if it lies ahead.
    pub fn ms_since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// Formats milliseconds for people, in the two largest units.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Age(pub u64);

impl fmt::Display for Age {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0 / 1000;
        match seconds {
            0 => write!(f, "{} ms", self.0),
            1..60 => write!(f, "{seconds} s"),
            60..3600 => write!(f, "{} min {} s", seconds / 60, seconds % 60),
            3600..86_400 => write!(f, "{} h {} min", seconds / 3600, seconds / 60 % 60),
            _ => write!(f, "{} d {} h", seconds / 86_400, seconds / 3600 % 24),
        }
    }
}

/// A UDP socket in canonical form, for comparing: an IPv4-mapped IPv6 address is its IPv4 address,
/// and the spelling that a client chose does not count.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Endpoint {
    /// The address, never IPv4-mapped.
    pub ip: IpAddr,
    /// The port.
    pub port: u16,
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        SocketAddr::new(self.ip, self.port).fmt(f)
    }
}

/// A socket as a client spelled it. Neighbours are told the very text that was announced, as the
/// seed does; comparisons use the [`Endpoint`].
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Socket {
    endpoint: Endpoint,
    /// The client's spelling where it differs from the canonical one, which is rare.
    spelling: Option<Arc<str>>,
}

impl Socket {
    /// Reads `ip:port` or `[ip]:port`; `None` for anything else (names, zones, spaces).
    pub fn parse(text: &str) -> Option<Self> {
        if text.len() > crate::limits::SOCKET_TEXT_BYTES_MAX {
            return None;
        }
        let parsed: SocketAddr = text.parse().ok()?;
        if matches!(parsed, SocketAddr::V6(v6) if v6.scope_id() != 0) {
            return None;
        }
        let endpoint = Endpoint { ip: parsed.ip().to_canonical(), port: parsed.port() };
        let spelling = (endpoint.to_string() != text).then(|| Arc::from(text));
        Some(Self { endpoint, spelling })
    }

    /// Returns the canonical form.
    pub fn endpoint(&self) -> Endpoint {
        self.endpoint
    }
}

impl fmt::Display for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.spelling {
            Some(text) => f.write_str(text),
            None => self.endpoint.fmt(f),
        }
    }
}

impl fmt::Debug for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The socket of a client that faces the *later* neighbour.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct HeadAddr(pub Socket);

/// The socket of a client that faces the *earlier* neighbour.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TailAddr(pub Socket);

/// The socket named in a RECONNECT: its partner is gone.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct OrphanAddr(pub Socket);

/// Which of a client's two sockets. `Tail` sorts first, because it faces the earlier neighbour.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Part {
    /// Faces the earlier neighbour.
    Tail,
    /// Faces the later neighbour.
    Head,
}

impl Part {
    /// Returns the other socket of the same client; also the part that a link's far end has.
    pub fn opposite(self) -> Self {
        match self {
            Self::Tail => Self::Head,
            Self::Head => Self::Tail,
        }
    }

    /// Returns the word on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tail => "tail",
            Self::Head => "head",
        }
    }
}

/// The name of a chain. The seed's clients are all in the one with the empty name.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ChainName(pub Arc<str>);

/// The id that two RECONNECTs share, as its clients made it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RepairId(pub Arc<str>);

/// The number for which EMNet swaps an address (0 to 999,999, as in the seed).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PeerId(pub u32);

impl PeerId {
    /// The number of ids, as in the seed.
    pub const COUNT: u32 = 1_000_000;
}

/// A source of requests: an IPv4 address, or an IPv6 /64, which is what one
/// customer gets. Every bound per source and the ownership of clients go by it; a wider one goes by
/// its [`Network`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Source(IpAddr);

impl Source {
    /// Returns the source that an address belongs to.
    pub fn of(address: IpAddr) -> Self {
        Self(match address.to_canonical() {
            IpAddr::V4(v4) => IpAddr::V4(v4),
            IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX))),
        })
    }

    /// Returns whether it is of the operator's own networks; see [`is_local`]. Of the /64 of the
    /// IPv6 loopback address, `::1` is the only address that anything comes from.
    pub fn is_local(self) -> bool {
        self.0.is_unspecified() || is_local(self.0)
    }

    /// Returns the network around it, if that is more than the source: the /48 of an IPv6 source.
    pub fn site(self) -> Option<Network> {
        self.0.is_ipv6().then(|| self.network())
    }

    /// Returns all that is counted against it: itself and its site.
    pub fn holders(self) -> impl Iterator<Item = Holder> {
        let site = self.site().map(Holder::Network);
        [Some(Holder::Source(self)), site].into_iter().flatten()
    }
}

/// A network that many sources may share: an IPv6 /48, which is what a site gets, and what one
/// customer can get hold of as 65,536 sources. An IPv4 address is a network of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Network(IpAddr);

impl Source {
    /// Returns the network that it belongs to.
    pub fn network(self) -> Network {
        Network(match self.0 {
            IpAddr::V4(v4) => IpAddr::V4(v4),
            IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() >> 80 << 80)),
        })
    }
}

/// A holder of places and turns. A bound for sources alone is none for an IPv6 site.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Holder {
    /// One source.
    Source(Source),
    /// All sources of one network.
    Network(Network),
}

impl Holder {
    /// Returns whether it is of the operator's own networks; see [`Source::is_local`].
    pub fn is_local(self) -> bool {
        match self {
            Self::Source(source) => source.is_local(),
            Self::Network(Network(prefix)) => Source(prefix).is_local(),
        }
    }
}

/// For people: an IPv4 address, or an IPv6 prefix.
impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            IpAddr::V4(v4) => write!(f, "{v4}"),
            IpAddr::V6(v6) => write!(f, "{v6}/64"),
        }
    }
}

/// Returns whether an address is loopback, private, shared (RFC 6598), link-local or unique local:
/// a host of the operator's own networks rather than of the public internet.
pub fn is_local(ip: IpAddr) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(v4) => {
            let shared = v4.octets()[0] == 100 && v4.octets()[1] & 0xc0 == 64;
            v4.is_loopback() || v4.is_private() || v4.is_link_local() || shared
        }
        IpAddr::V6(v6) => v6.is_loopback() || v6.is_unique_local() || v6.is_unicast_link_local(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ipv6_source_has_a_site_around_it() {
        let of = |address: &str| Source::of(address.parse().unwrap());
        let (one, other) = (of("2001:db8:7:1::1"), of("2001:db8:7:2::1"));
        assert!(one != other && one.site() == other.site());
        assert_ne!(one.site(), of("2001:db8:8:1::1").site());
        assert_eq!(one.holders().count(), 2);
        let v4 = of("::ffff:203.0.113.7");
        assert_eq!(v4.holders().collect::<Vec<_>>(), [Holder::Source(of("203.0.113.7"))]);
    }

    #[test]
    fn loopback_and_private_sources_are_local_with_their_sites() {
        for address in ["127.0.0.1", "10.1.2.3", "100.64.0.1", "::1", "fd00:1:2:3::4", "fe80::1"] {
            let source = Source::of(address.parse().unwrap());
            assert!(source.is_local() && source.holders().all(Holder::is_local), "{address}");
        }
        for address in ["203.0.113.7", "2001:db8::1"] {
            let source = Source::of(address.parse().unwrap());
            assert!(!source.holders().any(Holder::is_local), "{address}");
        }
    }
}
