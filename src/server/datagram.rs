//! What the reflector answers to a datagram, as a pure function.
//!
//! Anything gets its sender's `ip:port` as text, as the seed's EMUDP does; a STUN Binding request
//! (RFC 8489) gets a Binding response. What looks like an *answer* of either kind gets none, and
//! neither do the ports of services that answer anything, so no two servers can be made to talk
//! to each other without end by one forged datagram (the loops of Pan, Everspaugh and Rossow,
//! "Loopy Hell(ow)", USENIX Security 2024).

use std::net::{IpAddr, SocketAddr};

/// UDP services that answer whatever they get: echo, systat, daytime, qotd, chargen, time, DNS,
/// TFTP, NTP. Programs do not use them for their own sockets, and a NAT maps ports below 1024
/// only to ports below 1024 (RFC 4787, REQ-3), so no honest client is behind them.
const ANSWERING_PORTS: [u16; 9] = [7, 11, 13, 17, 19, 37, 53, 69, 123];

const MAGIC_COOKIE: u32 = 0x2112_A442;
const STUN_HEADER_BYTES: usize = 20;
const BINDING_REQUEST: u16 = 0x0001;
const BINDING_SUCCESS: u16 = 0x0101;
const BINDING_ERROR: u16 = 0x0111;
const ERROR_CODE: u16 = 0x0009;
const UNKNOWN_ATTRIBUTES: u16 = 0x000A;
const XOR_MAPPED_ADDRESS: u16 = 0x0020;

/// The attributes below 0x8000 that may be in a Binding request without asking for anything that
/// this server lacks: MAPPED-ADDRESS and those of authentication, which it does not ask for.
const HARMLESS_ATTRIBUTES: [u16; 7] = [0x0001, 0x0006, 0x0008, 0x0014, 0x0015, 0x001C, 0x001E];

/// An answer to a datagram.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// The seed's: the sender's address as text.
    Text(Vec<u8>),
    /// A STUN response.
    Stun(Vec<u8>),
}

/// Why a datagram gets no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ignored {
    /// It looks like an answer of a server like this one.
    AnswerLike,
    /// It claims to come from a service that answers anything.
    AnsweringPort,
    /// No single host can have sent it from there.
    Sender,
    /// STUN, but no Binding request.
    OtherStun,
}

impl Ignored {
    /// The label of the metric.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::AnswerLike => "answer_like",
            Self::AnsweringPort => "answering_port",
            Self::Sender => "sender",
            Self::OtherStun => "other_stun",
        }
    }
}

/// What to send back to `from`, whose address is canonical.
pub(super) fn answer(datagram: &[u8], from: SocketAddr) -> Result<Answer, Ignored> {
    if ANSWERING_PORTS.contains(&from.port()) {
        return Err(Ignored::AnsweringPort);
    }
    if from.port() == 0 || !is_one_host(from.ip()) {
        return Err(Ignored::Sender);
    }
    if looks_like_text_answer(datagram) {
        return Err(Ignored::AnswerLike);
    }
    match stun_kind(datagram) {
        None => Ok(Answer::Text(from.to_string().into_bytes())),
        Some(BINDING_REQUEST) => Ok(Answer::Stun(binding_response(datagram, from))),
        Some(BINDING_SUCCESS | BINDING_ERROR) => Err(Ignored::AnswerLike),
        Some(_) => Err(Ignored::OtherStun),
    }
}

fn is_one_host(ip: IpAddr) -> bool {
    let broadcast = match ip {
        IpAddr::V4(v4) => v4.is_broadcast() || v4.octets()[0] == 0 || v4.octets()[0] >= 240,
        IpAddr::V6(_) => false,
    };
    !(ip.is_unspecified() || ip.is_multicast() || broadcast)
}

/// Whether the text is an address and a port, with or without brackets and zone: the seed prints
/// IPv6 without brackets.
fn looks_like_text_answer(datagram: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(datagram) else { return false };
    let Some((host, port)) = text.trim().rsplit_once(':') else { return false };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let host = host.split_once('%').map_or(host, |(host, _zone)| host);
    host.parse::<IpAddr>().is_ok() && port.parse::<u16>().is_ok()
}

/// The message type, if this is a STUN message (RFC 8489, section 5), or a response of the older
/// RFC 3489, which has no magic cookie.
fn stun_kind(datagram: &[u8]) -> Option<u16> {
    let kind = be_u16(datagram, 0)?;
    let length = usize::from(be_u16(datagram, 2)?);
    if kind >= 0x4000 || length % 4 != 0 || datagram.len() != STUN_HEADER_BYTES + length {
        return None;
    }
    let has_cookie = datagram[4..8] == MAGIC_COOKIE.to_be_bytes();
    (has_cookie || matches!(kind, BINDING_SUCCESS | BINDING_ERROR)).then_some(kind)
}

/// A success response with the sender's address, or error 420 if the request asks for something
/// that this server does not know (section 6.3.1).
fn binding_response(request: &[u8], from: SocketAddr) -> Vec<u8> {
    let unknown = unknown_attributes(&request[STUN_HEADER_BYTES..]);
    let mut body = Vec::new();
    let kind = if unknown.is_empty() {
        put_attribute(&mut body, XOR_MAPPED_ADDRESS, &xor_mapped(from, &request[4..20]));
        BINDING_SUCCESS
    } else {
        put_attribute(&mut body, ERROR_CODE, &[0, 0, 4, 20]);
        let list: Vec<u8> = unknown.iter().flat_map(|kind| kind.to_be_bytes()).collect();
        put_attribute(&mut body, UNKNOWN_ATTRIBUTES, &list);
        BINDING_ERROR
    };
    let length = u16::try_from(body.len()).expect("shorter than the request or than 64 bytes");
    let mut response = Vec::with_capacity(STUN_HEADER_BYTES + body.len());
    response.extend_from_slice(&kind.to_be_bytes());
    response.extend_from_slice(&length.to_be_bytes());
    response.extend_from_slice(&request[4..20]); // cookie and transaction id
    response.extend_from_slice(&body);
    response
}

/// The attributes that a server must understand and this one does not, each once.
fn unknown_attributes(mut attributes: &[u8]) -> Vec<u16> {
    let mut unknown = Vec::new();
    while let (Some(kind), Some(length)) = (be_u16(attributes, 0), be_u16(attributes, 2)) {
        if kind < 0x8000 && !HARMLESS_ATTRIBUTES.contains(&kind) && !unknown.contains(&kind) {
            unknown.push(kind);
        }
        let padded = usize::from(length).next_multiple_of(4);
        attributes = attributes.get(4 + padded..).unwrap_or_default();
    }
    unknown
}

/// The value of XOR-MAPPED-ADDRESS (section 14.2); `key` is the cookie and the transaction id.
fn xor_mapped(from: SocketAddr, key: &[u8]) -> Vec<u8> {
    let (family, ip) = match from.ip() {
        IpAddr::V4(v4) => (1, v4.octets().to_vec()),
        IpAddr::V6(v6) => (2, v6.octets().to_vec()),
    };
    let mut value = vec![0, family];
    value.extend(from.port().to_be_bytes().iter().zip(key).map(|(byte, key)| byte ^ key));
    value.extend(ip.iter().zip(key).map(|(byte, key)| byte ^ key));
    value
}

fn put_attribute(body: &mut Vec<u8>, kind: u16, value: &[u8]) {
    body.extend_from_slice(&kind.to_be_bytes());
    body.extend_from_slice(&u16::try_from(value.len()).expect("values are short").to_be_bytes());
    body.extend_from_slice(value);
    body.resize(body.len().next_multiple_of(4), 0);
}

fn be_u16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn request(kind: u16, attributes: &[u8]) -> Vec<u8> {
        let mut request = kind.to_be_bytes().to_vec();
        request.extend((attributes.len() as u16).to_be_bytes());
        request.extend(MAGIC_COOKIE.to_be_bytes());
        request.extend(*b"transactions");
        request.extend(attributes);
        request
    }

    #[test]
    fn any_datagram_gets_its_senders_address_as_text() {
        for datagram in [&b""[..], b"ping", b"\n", b"{}", &[0; 20], &[0xff; 1500]] {
            let text = |sender| answer(datagram, from(sender));
            assert_eq!(text("1.2.3.4:5678"), Ok(Answer::Text(b"1.2.3.4:5678".to_vec())));
            assert_eq!(text("[2001:db8::1]:9"), Ok(Answer::Text(b"[2001:db8::1]:9".to_vec())));
        }
    }

    #[test]
    fn what_looks_like_an_answer_gets_none() {
        let sender = from("1.2.3.4:5678");
        for text in ["1.2.3.4:80", "[::1]:80", "::1:80", "fe80::1%eth0:80", " 1.2.3.4:80\n"] {
            assert_eq!(answer(text.as_bytes(), sender), Err(Ignored::AnswerLike), "{text}");
        }
        for ours in [answer(b"x", sender), answer(&request(1, &[]), sender)] {
            let (Ok(Answer::Text(ours)) | Ok(Answer::Stun(ours))) = ours else { panic!() };
            assert_eq!(answer(&ours, sender), Err(Ignored::AnswerLike));
        }
        let mut older = request(BINDING_SUCCESS, &[]);
        older[4..8].fill(0);
        assert_eq!(answer(&older, sender), Err(Ignored::AnswerLike));
    }

    #[test]
    fn senders_that_are_no_client_get_nothing() {
        for port in ANSWERING_PORTS {
            let sender = SocketAddr::from(([1, 2, 3, 4], port));
            assert_eq!(answer(b"x", sender), Err(Ignored::AnsweringPort));
        }
        for sender in ["1.2.3.4:0", "0.0.0.0:5", "255.255.255.255:5", "224.0.0.1:5", "[ff02::1]:5"]
        {
            assert_eq!(answer(b"x", from(sender)), Err(Ignored::Sender), "{sender}");
        }
    }

    /// RFC 5769, sections 2.2 and 2.3: the mapped addresses of the sample responses.
    #[test]
    fn stun_answers_match_the_test_vectors() {
        let id = [0xb7, 0xe7, 0xa7, 0x01, 0xbc, 0x34, 0xd6, 0x86, 0xfa, 0x87, 0xdf, 0xae];
        let mut plain = request(BINDING_REQUEST, &[]);
        plain[8..20].copy_from_slice(&id);
        let Ok(Answer::Stun(v4)) = answer(&plain, from("192.0.2.1:32853")) else { panic!() };
        assert_eq!(v4[..8], [1, 1, 0, 12, 0x21, 0x12, 0xa4, 0x42]);
        assert_eq!(v4[8..20], id);
        assert_eq!(v4[20..], [0, 0x20, 0, 8, 0, 1, 0xa1, 0x47, 0xe1, 0x12, 0xa6, 0x43]);
        let sender = from("[2001:db8:1234:5678:11:2233:4455:6677]:32853");
        let Ok(Answer::Stun(v6)) = answer(&plain, sender) else { panic!() };
        let value = [
            0, 2, 0xa1, 0x47, 0x01, 0x13, 0xa9, 0xfa, 0xa5, 0xd3, 0xf1, 0x79, 0xbc, 0x25, 0xf4,
            0xb5, 0xbe, 0xd2, 0xb9, 0xd9,
        ];
        assert_eq!(v6[20..], [&[0, 0x20, 0, 20][..], &value].concat());
    }

    #[test]
    fn stun_demands_that_cannot_be_met_get_error_420() {
        let change_request = [0, 3, 0, 4, 0, 0, 0, 6];
        let software = [0x80, 0x22, 0, 3, b'a', b'b', b'c', 0];
        let both = request(BINDING_REQUEST, &[&software[..], &change_request].concat());
        let Ok(Answer::Stun(error)) = answer(&both, from("192.0.2.1:9")) else { panic!() };
        assert_eq!(error[..4], [1, 0x11, 0, 16]);
        assert_eq!(error[20..], [0, 9, 0, 4, 0, 0, 4, 20, 0, 10, 0, 2, 0, 3, 0, 0]);
    }

    #[test]
    fn other_stun_messages_get_nothing() {
        for kind in [0x0011, 0x0003, 0x0016, 0x0113] {
            let other = request(kind, &[]);
            assert_eq!(answer(&other, from("192.0.2.1:9")), Err(Ignored::OtherStun));
        }
    }

    #[test]
    fn no_answer_is_longer_than_the_request_or_than_the_seeds_longest() {
        for attributes in 0..64u8 {
            let list: Vec<u8> = (0..attributes).flat_map(|i| [0x7f, i, 0, 0]).collect();
            let request = request(BINDING_REQUEST, &list);
            let Ok(Answer::Stun(response)) = answer(&request, from("[2001:db8::1]:9")) else {
                panic!()
            };
            assert!(response.len() <= request.len().max(47), "{attributes}");
        }
    }
}
