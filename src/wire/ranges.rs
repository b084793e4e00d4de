//! The address policy against a second reading of the same RFCs: a table of prefixes as the IANA
//! registries print them. Masks are easy to get wrong by a few bits, and a table of examples shows
//! that only at the ends of a range. So the first and the last address of every range are judged,
//! both neighbours of it, and any address in between, plain and carried by IPv6.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use proptest::prelude::*;

use super::{AddressPolicy, Forbidden, allow};
use crate::ids::Endpoint;

/// The use of a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    Public,
    Inside,
    No(Forbidden),
    /// IPv6 that stands for the IPv4 address behind this number of bits.
    Carrier(u32),
}

use Class::{Carrier, Inside, No, Public};

/// A prefix and its class. A longer prefix counts before a shorter one.
const RANGES: &[(&str, u32, Class)] = &[
    ("0.0.0.0", 0, Public),
    ("0.0.0.0", 8, No(Forbidden::Unspecified)),
    ("10.0.0.0", 8, Inside),     // RFC 1918
    ("100.64.0.0", 10, Inside),  // RFC 6598
    ("127.0.0.0", 8, Inside),    // RFC 1122
    ("169.254.0.0", 16, Inside), // RFC 3927
    ("172.16.0.0", 12, Inside),  // RFC 1918
    ("192.168.0.0", 16, Inside), // RFC 1918
    ("224.0.0.0", 4, No(Forbidden::Multicast)),
    ("255.255.255.255", 32, No(Forbidden::Broadcast)),
    ("::", 0, Public),
    ("::", 128, No(Forbidden::Unspecified)),
    ("::1", 128, Inside),
    ("::", 96, Carrier(96)),         // RFC 4291, compatible
    ("::ffff:0:0", 96, Carrier(96)), // RFC 4291, mapped
    ("64:ff9b::", 96, Carrier(96)),  // RFC 6052
    ("64:ff9b:1::", 48, Inside),     // RFC 8215
    ("2002::", 16, Carrier(16)),     // RFC 3056
    ("fc00::", 7, Inside),           // RFC 4193
    ("fe80::", 10, Inside),          // RFC 4291
    ("fec0::", 10, Inside),          // RFC 3879
    ("ff00::", 8, No(Forbidden::Multicast)),
];

/// Returns an address as a number, with how many bits it has.
fn bits(ip: IpAddr) -> (u128, u32) {
    match ip {
        IpAddr::V4(ip) => (u32::from(ip).into(), 32),
        IpAddr::V6(ip) => (ip.into(), 128),
    }
}

fn address(bits: u128, width: u32) -> IpAddr {
    match width {
        32 => Ipv4Addr::from(bits as u32).into(),
        _ => Ipv6Addr::from(bits).into(),
    }
}

/// Returns the first and the last address of a range, as numbers, and their width.
fn span(base: &str, prefix: u32) -> (u128, u128, u32) {
    let (first, width) = bits(base.parse().expect("an address"));
    let size = (width - prefix).min(127);
    let below = if width - prefix == 128 { u128::MAX } else { (1_u128 << size) - 1 };
    (first, first | below, width)
}

fn class(ip: IpAddr) -> Class {
    let (number, width) = bits(ip);
    let holds = |(base, prefix, _): &&(&str, u32, Class)| {
        let (first, last, wide) = span(base, *prefix);
        wide == width && (first..=last).contains(&number)
    };
    let narrowest = RANGES.iter().filter(holds).max_by_key(|(_, prefix, _)| *prefix);
    match narrowest.expect("a range of all addresses").2 {
        Carrier(at) => class(address(number >> (128 - 32 - at) & u128::from(u32::MAX), 32)),
        class @ (Public | Inside | No(_)) => class,
    }
}

/// Asserts that an address is judged by its class, from outside and from inside.
fn assert_judged(ip: IpAddr) {
    let announced = Endpoint { ip, port: 5 };
    let says = |source: &str| allow(AddressPolicy::Any, source.parse().expect(source), &announced);
    let (outside, inside) = match class(ip) {
        Public => (Ok(()), Ok(())),
        Inside => (Err(Forbidden::Inside), Ok(())),
        No(why) => (Err(why), Err(why)),
        Carrier(_) => unreachable!("it is looked through"),
    };
    assert_eq!(says("203.0.113.7"), outside, "{ip} from outside");
    assert_eq!(says("192.168.1.7"), inside, "{ip} from inside");
    // As a source, an address is inside exactly if it is as an announced one.
    let near = allow(AddressPolicy::Any, ip, &Endpoint { ip: [10, 0, 0, 1].into(), port: 5 });
    assert_eq!(near.is_ok(), class(ip) == Inside, "{ip} as a source");
}

/// Returns an address, and what carries it if it is IPv4.
fn in_all_disguises(ip: IpAddr) -> Vec<IpAddr> {
    let (number, width) = bits(ip);
    let mut all = vec![ip];
    for (base, _, class) in RANGES {
        if let (Carrier(at), 32) = (class, width) {
            let (prefix, _) = bits(base.parse().expect("an address"));
            all.push(address(prefix | number << (128 - 32 - at), 128));
        }
    }
    all
}

#[test]
fn ranges_end_where_their_rfcs_end_them() {
    for (base, prefix, _) in RANGES {
        let (first, last, width) = span(base, *prefix);
        let all = if width == 32 { u128::from(u32::MAX) } else { u128::MAX };
        for number in [first, last, first.wrapping_sub(1) & all, last.wrapping_add(1) & all] {
            in_all_disguises(address(number, width)).into_iter().for_each(assert_judged);
        }
    }
}

proptest! {
    #[test]
    fn any_address_is_judged_by_its_range(
        range in prop::sample::select(RANGES),
        any in any::<u128>(),
        flipped in 0_u32..128,
    ) {
        let (first, last, width) = span(range.0, range.1);
        // Within the range, or one bit away from it.
        let within = first | any & (last - first);
        for number in [within, within ^ 1 << (flipped % width)] {
            in_all_disguises(address(number, width)).into_iter().for_each(assert_judged);
        }
    }
}
