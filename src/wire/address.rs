//! The sockets that a client may announce.
//!
//! An announced socket will be told to strangers, which will send packets there. So a client out
//! on the internet must not be able to point a chain at the machine of another, nor at the machines
//! behind the service. Two classes matter:
//!
//! - *inside* addresses have a meaning only near their speaker: loopback, private, shared
//!   (100.64.0.0/10), unique local, link-local, and what a local NAT64 translates. Only an inside
//!   source may announce them.
//! - *no* source may announce what cannot be a host's socket: port 0, unspecified, multicast,
//!   broadcast.
//!
//! An IPv6 address that carries an IPv4 one (mapped, compatible, NAT64, 6to4) is judged as the
//! latter.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

use serde::{Deserialize, Serialize};

use super::Ignored;
use crate::ids::{Endpoint, Socket};

/// The operator's choice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AddressPolicy {
    /// A public source announces its own address, an inside one any. The default.
    #[default]
    Auto,
    /// Every source announces any address; inside addresses still need an inside source.
    Any,
    /// Every source announces its own address.
    SourceIp,
}

/// Why a socket may not be announced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum Forbidden {
    /// 255.255.255.255.
    #[error("broadcast address")]
    Broadcast,
    /// An inside address from an outside source.
    #[error("inside address from outside")]
    Inside,
    /// A multicast address.
    #[error("multicast address")]
    Multicast,
    /// Another address than the connection's source, where the policy asks for that one.
    #[error("not the source address")]
    NotSource,
    /// Port 0.
    #[error("port 0")]
    Port,
    /// 0.0.0.0/8 or `::`.
    #[error("unspecified address")]
    Unspecified,
}

impl Forbidden {
    /// Returns the label of the counter of rejected requests.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Broadcast => "address_broadcast",
            Self::Inside => "address_inside",
            Self::Multicast => "address_multicast",
            Self::NotSource => "address_not_source",
            Self::Port => "address_port",
            Self::Unspecified => "address_unspecified",
        }
    }
}

/// Returns whether a client that connects from `source` may announce this socket.
pub fn allow(policy: AddressPolicy, source: IpAddr, announced: &Endpoint) -> Result<(), Forbidden> {
    if announced.port == 0 {
        return Err(Forbidden::Port);
    }
    let source = source.to_canonical(); // a dual-stack listener shows IPv4 clients as mapped
    let source_inside = scope(source) == Ok(Scope::Inside);
    if scope(announced.ip)? == Scope::Inside && !source_inside {
        return Err(Forbidden::Inside);
    }
    let any = match policy {
        AddressPolicy::Any => true,
        AddressPolicy::Auto => source_inside,
        AddressPolicy::SourceIp => false,
    };
    if any || announced.ip == source { Ok(()) } else { Err(Forbidden::NotSource) }
}

/// Reads a field that must be a socket which `source` may announce.
pub(super) fn announced(
    text: &str,
    policy: AddressPolicy,
    source: IpAddr,
) -> Result<Socket, Ignored> {
    let socket = Socket::parse(text).ok_or(Ignored::NotASocket)?;
    allow(policy, source, &socket.endpoint()).map_err(Ignored::Forbidden)?;
    Ok(socket)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Scope {
    /// Has a meaning only near its speaker.
    Inside,
    /// The same host in every spelling.
    Public,
}

fn scope(ip: IpAddr) -> Result<Scope, Forbidden> {
    match ip {
        IpAddr::V4(ip) => scope_v4(ip),
        IpAddr::V6(ip) => scope_v6(ip),
    }
}

fn scope_v4(ip: Ipv4Addr) -> Result<Scope, Forbidden> {
    let [first, second, ..] = ip.octets();
    let shared = first == 100 && second & 0b1100_0000 == 64; // RFC 6598
    if first == 0 {
        Err(Forbidden::Unspecified)
    } else if ip.is_multicast() {
        Err(Forbidden::Multicast)
    } else if ip.is_broadcast() {
        Err(Forbidden::Broadcast)
    } else if ip.is_loopback() || ip.is_private() || ip.is_link_local() || shared {
        Ok(Scope::Inside)
    } else {
        Ok(Scope::Public)
    }
}

fn scope_v6(ip: Ipv6Addr) -> Result<Scope, Forbidden> {
    let site_local = ip.segments()[0] & 0xffc0 == 0xfec0; // RFC 3879, deprecated
    // RFC 8215: what it stands for is known only to the translator next to its speaker.
    let translated = ip.segments()[..3] == [0x64, 0xff9b, 1];
    if ip.is_unspecified() {
        Err(Forbidden::Unspecified)
    } else if ip.is_multicast() {
        Err(Forbidden::Multicast)
    } else if ip.is_loopback()
        || ip.is_unique_local()
        || ip.is_unicast_link_local()
        || site_local
        || translated
    {
        Ok(Scope::Inside)
    } else if let Some(carried) = carried_v4(ip) {
        scope_v4(carried)
    } else {
        Ok(Scope::Public)
    }
}

/// Returns the IPv4 address that an IPv6 one stands for.
fn carried_v4(ip: Ipv6Addr) -> Option<Ipv4Addr> {
    let [a, b, c, d] = match ip.segments() {
        [0, 0, 0, 0, 0, 0 | 0xffff, ..] // RFC 4291, 2.5.5: compatible and mapped
        | [0x64, 0xff9b, 0, 0, 0, 0, ..] => ip.octets()[12..].try_into().ok()?, // RFC 6052: NAT64
        [0x2002, ..] => ip.octets()[2..6].try_into().ok()?, // RFC 3056: 6to4
        _ => return None,
    };
    Some(Ipv4Addr::new(a, b, c, d))
}

/// A word that names no address policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected auto, any or source-ip")]
pub struct UnknownPolicy;

impl FromStr for AddressPolicy {
    type Err = UnknownPolicy;

    fn from_str(word: &str) -> Result<Self, UnknownPolicy> {
        [Self::Auto, Self::Any, Self::SourceIp]
            .into_iter()
            .find(|policy| policy.as_str() == word)
            .ok_or(UnknownPolicy)
    }
}

impl AddressPolicy {
    /// Returns the word in the configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Any => "any",
            Self::SourceIp => "source-ip",
        }
    }
}

impl fmt::Display for AddressPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the verdict of a policy on an announced socket, from an outside source and from an
    /// inside one.
    fn verdicts(policy: AddressPolicy, announced: &str) -> [&'static str; 2] {
        let announced = Socket::parse(announced).expect(announced).endpoint();
        ["203.0.113.7", "192.168.1.7"].map(|source| {
            allow(policy, source.parse().unwrap(), &announced)
                .map_or_else(Forbidden::reason, |()| "ok")
        })
    }

    const NOT_SOURCE: &str = "address_not_source";

    /// Announced socket; verdict under `any` from outside and from inside.
    const TABLE: &[(&str, &str, &str)] = &[
        // No host at all.
        ("1.2.3.4:0", "address_port", "address_port"),
        ("127.0.0.1:0", "address_port", "address_port"),
        ("[2001:db8::1]:0", "address_port", "address_port"),
        ("0.0.0.0:5", "address_unspecified", "address_unspecified"),
        ("0.0.0.1:5", "address_unspecified", "address_unspecified"),
        ("0.255.255.255:5", "address_unspecified", "address_unspecified"),
        ("[::]:5", "address_unspecified", "address_unspecified"),
        ("224.0.0.0:5", "address_multicast", "address_multicast"),
        ("224.0.0.1:5", "address_multicast", "address_multicast"),
        ("239.255.255.250:1900", "address_multicast", "address_multicast"),
        ("239.255.255.255:5", "address_multicast", "address_multicast"),
        ("[ff02::1]:5", "address_multicast", "address_multicast"),
        ("[ff0e::1]:5", "address_multicast", "address_multicast"),
        ("255.255.255.255:5", "address_broadcast", "address_broadcast"),
        // The same in disguise.
        ("[::ffff:0.0.0.0]:5", "address_unspecified", "address_unspecified"),
        ("[::ffff:224.0.0.1]:5", "address_multicast", "address_multicast"),
        ("[::ffff:255.255.255.255]:5", "address_broadcast", "address_broadcast"),
        ("[::ffff:e000:1]:5", "address_multicast", "address_multicast"),
        ("[64:ff9b::224.0.0.1]:5", "address_multicast", "address_multicast"),
        ("[64:ff9b::255.255.255.255]:5", "address_broadcast", "address_broadcast"),
        ("[64:ff9b::]:5", "address_unspecified", "address_unspecified"),
        ("[2002:e000:1::]:5", "address_multicast", "address_multicast"),
        ("[2002::]:5", "address_unspecified", "address_unspecified"),
        ("[::224.0.0.1]:5", "address_multicast", "address_multicast"),
        ("[::2]:5", "address_unspecified", "address_unspecified"),
        // Inside.
        ("127.0.0.1:5", "address_inside", "ok"),
        ("127.255.255.254:5", "address_inside", "ok"),
        ("10.0.0.0:5", "address_inside", "ok"),
        ("10.255.255.255:5", "address_inside", "ok"),
        ("172.16.0.1:5", "address_inside", "ok"),
        ("172.31.255.254:5", "address_inside", "ok"),
        ("192.168.0.1:5", "address_inside", "ok"),
        ("192.168.255.254:5", "address_inside", "ok"),
        ("100.64.0.1:5", "address_inside", "ok"),
        ("100.127.255.254:5", "address_inside", "ok"),
        ("169.254.1.1:5", "address_inside", "ok"),
        ("169.254.169.254:80", "address_inside", "ok"),
        ("[::1]:5", "address_inside", "ok"),
        ("[fe80::1]:5", "address_inside", "ok"),
        ("[febf::1]:5", "address_inside", "ok"),
        ("[fec0::1]:5", "address_inside", "ok"),
        ("[fec1::1]:5", "address_inside", "ok"),
        ("[feff:ffff::1]:5", "address_inside", "ok"),
        ("[64:ff9b:1::8.8.8.8]:5", "address_inside", "ok"),
        ("[fc00::1]:5", "address_inside", "ok"),
        ("[fdff:ffff::1]:5", "address_inside", "ok"),
        ("[::ffff:127.0.0.1]:5", "address_inside", "ok"),
        ("[::ffff:10.1.2.3]:5", "address_inside", "ok"),
        ("[::ffff:a9fe:a9fe]:80", "address_inside", "ok"),
        ("[::127.0.0.1]:5", "address_inside", "ok"),
        ("[64:ff9b::7f00:1]:5", "address_inside", "ok"),
        ("[64:ff9b::10.0.0.1]:5", "address_inside", "ok"),
        ("[2002:7f00:1::1]:5", "address_inside", "ok"),
        ("[2002:c0a8:101::1]:5", "address_inside", "ok"),
        // Public, and just beside the ranges above.
        ("1.0.0.0:5", "ok", "ok"),
        ("8.8.8.8:53", "ok", "ok"),
        ("9.255.255.255:5", "ok", "ok"),
        ("11.0.0.0:5", "ok", "ok"),
        ("100.63.255.255:5", "ok", "ok"),
        ("100.128.0.0:5", "ok", "ok"),
        ("126.255.255.255:5", "ok", "ok"),
        ("128.0.0.0:5", "ok", "ok"),
        ("169.253.255.255:5", "ok", "ok"),
        ("172.15.255.255:5", "ok", "ok"),
        ("172.32.0.0:5", "ok", "ok"),
        ("192.167.255.255:5", "ok", "ok"),
        ("192.169.0.0:5", "ok", "ok"),
        ("203.0.113.7:65535", "ok", "ok"),
        ("223.255.255.255:5", "ok", "ok"),
        ("[::ffff:8.8.8.8]:5", "ok", "ok"),
        ("[64:ff9b::8.8.8.8]:5", "ok", "ok"),
        ("[2002:808:808::1]:5", "ok", "ok"),
        ("[2001:db8::1]:5", "ok", "ok"),
        ("[2606:4700::1111]:443", "ok", "ok"),
        ("[fbff::1]:5", "ok", "ok"),
        ("[fe00::1]:5", "ok", "ok"),
    ];

    #[test]
    fn every_address_of_the_table_is_judged() {
        assert!(TABLE.len() >= 60);
        for (announced, outside, inside) in TABLE {
            assert_eq!(verdicts(AddressPolicy::Any, announced), [*outside, *inside], "{announced}");
            // `auto` adds to it that a public source names itself.
            let own = announced.starts_with("203.0.113.7:");
            let auto = if *outside == "ok" && !own { NOT_SOURCE } else { outside };
            assert_eq!(verdicts(AddressPolicy::Auto, announced), [auto, *inside], "{announced}");
            // `source-ip` adds that an inside one does as well.
            let strict = if *inside == "ok" { NOT_SOURCE } else { inside };
            assert_eq!(verdicts(AddressPolicy::SourceIp, announced), [auto, strict], "{announced}");
        }
    }

    #[test]
    fn under_every_policy_a_source_may_announce_itself() {
        for source in ["203.0.113.7", "192.168.1.7", "127.0.0.1", "2001:db8::1", "::1", "fe80::1"] {
            let source: IpAddr = source.parse().unwrap();
            for policy in [AddressPolicy::Auto, AddressPolicy::Any, AddressPolicy::SourceIp] {
                let announced = Endpoint { ip: source, port: 9 };
                assert_eq!(allow(policy, source, &announced), Ok(()), "{policy} {source}");
            }
        }
    }

    #[test]
    fn a_mapped_source_is_its_ipv4_address() {
        let announced = Socket::parse("203.0.113.7:5").unwrap().endpoint();
        let source = "::ffff:203.0.113.7".parse().unwrap();
        assert_eq!(allow(AddressPolicy::Auto, source, &announced), Ok(()));
        let inside = Socket::parse("10.0.0.1:5").unwrap().endpoint();
        assert_eq!(allow(AddressPolicy::Any, source, &inside), Err(Forbidden::Inside));
        let source = "::ffff:127.0.0.1".parse().unwrap();
        assert_eq!(allow(AddressPolicy::Auto, source, &inside), Ok(()));
    }

    #[test]
    fn policies_are_named_as_in_the_configuration() {
        for policy in [AddressPolicy::Auto, AddressPolicy::Any, AddressPolicy::SourceIp] {
            assert_eq!(policy.to_string().parse(), Ok(policy));
            assert_eq!(serde_json::to_value(policy).unwrap(), policy.as_str());
        }
        assert_eq!("Auto".parse::<AddressPolicy>(), Err(UnknownPolicy));
    }
}
