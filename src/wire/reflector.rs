//! EMUDP: tells the sender of a datagram its `ip:port`.
//!
//! STUN requests get a STUN answer. Everything else, even nothing, gets the address as text: the
//! seed's protocol. Since a datagram's source can be forged, an answer must never be worth a
//! further answer: two such servers would keep each other busy for ever with one forged packet.

use std::net::IpAddr;

use super::stun;
use crate::{ids::Endpoint, limits::SOCKET_TEXT_BYTES_MAX};

/// Ports below this one belong to services (echo, chargen, DNS, NTP and so on), not to clients.
const CLIENT_PORT_MIN: u16 = 1024;

/// The answer to a datagram.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// A STUN response.
    Stun(Vec<u8>),
    /// The source address as text.
    Text(String),
}

impl Answer {
    /// Returns the bytes of the datagram.
    pub fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Stun(bytes) => bytes,
            Self::Text(text) => text.as_bytes(),
        }
    }

    /// Returns the label of the counter of answers.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Stun(_) => "stun",
            Self::Text(_) => "text",
        }
    }
}

/// Why a datagram is not answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Silence {
    /// It is itself the answer of such a server.
    #[error("an answer of a reflector")]
    Reflection,
    /// It claims to come from where no client can be.
    #[error("not a client's socket")]
    Source,
    /// It is STUN that must not be answered.
    #[error("STUN, but not a request")]
    Stun,
}

impl Silence {
    /// Returns the label of the counter of dropped datagrams.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Reflection => "reflection",
            Self::Source => "source",
            Self::Stun => "stun",
        }
    }
}

/// Returns the answer to a datagram from `source`. The server's own sockets must be kept out
/// before.
pub fn answer(payload: &[u8], source: Endpoint) -> Result<Answer, Silence> {
    if !may_be_client(source) {
        return Err(Silence::Source);
    }
    if stun::is_stun(payload) {
        let request = stun::BindingRequest::parse(payload).map_err(|_| Silence::Stun)?;
        return Ok(Answer::Stun(request.reply(source)));
    }
    if is_reflection(payload) {
        return Err(Silence::Reflection);
    }
    Ok(Answer::Text(source.to_string()))
}

/// Returns whether a payload is what a reflector answers: an `ip:port`, in our spelling or in that
/// of the seed, which prints IPv6 without brackets; or STUN that is not a request.
pub fn is_reflection(payload: &[u8]) -> bool {
    if stun::is_stun(payload) {
        return stun::BindingRequest::parse(payload).is_err();
    }
    let payload = payload.trim_ascii();
    let payload = payload.strip_suffix(b"\0").unwrap_or(payload);
    if payload.len() > SOCKET_TEXT_BYTES_MAX {
        return false;
    }
    let Ok(text) = str::from_utf8(payload) else {
        return false;
    };
    let Some((ip, port)) = text.rsplit_once(':') else {
        return false;
    };
    let ip = ip.strip_prefix('[').and_then(|ip| ip.strip_suffix(']')).unwrap_or(ip);
    let ip = ip.split_once('%').map_or(ip, |(ip, _zone)| ip);
    ip.parse::<IpAddr>().is_ok() && port.parse::<u16>().is_ok()
}

/// Returns whether a client can be at this socket: a single host's address, and no service's port.
fn may_be_client(source: Endpoint) -> bool {
    let broadcast = matches!(source.ip, IpAddr::V4(ip) if ip.is_broadcast());
    source.port >= CLIENT_PORT_MIN
        && !source.ip.is_unspecified()
        && !source.ip.is_multicast()
        && !broadcast
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Socket;

    fn socket(text: &str) -> Endpoint {
        Socket::parse(text).unwrap().endpoint()
    }

    #[test]
    fn any_datagram_is_answered_with_its_source() {
        for payload in [&b""[..], b"ping", b"\xff\xfe", b"1.2.3.4", b"hello:5", &[0; 1500]] {
            assert_eq!(
                answer(payload, socket("203.0.113.9:4000")),
                Ok(Answer::Text("203.0.113.9:4000".into()))
            );
        }
        assert_eq!(
            answer(b"ping", socket("[2001:db8::9]:4000")),
            Ok(Answer::Text("[2001:db8::9]:4000".into()))
        );
        assert_eq!(
            answer(b"ping", socket("[::ffff:203.0.113.9]:4000")),
            Ok(Answer::Text("203.0.113.9:4000".into())),
            "behind a dual-stack socket"
        );
    }

    #[test]
    fn no_answer_of_a_reflector_is_answered() {
        let source = socket("203.0.113.9:4000");
        let answers = [
            "1.2.3.4:5",
            "255.255.255.255:65535",
            "[2001:db8::9]:4000",
            "[2001:db8:1234:5678:1111:2222:3333:4444]:65535",
            "2001:db8::9:4000",
            "2001:db8:1234:5678:1111:2222:3333:4444:65535",
            "::1:4000",
            "fe80::1%eth0:4000",
            "[fe80::1%3]:4000",
            "1.2.3.4:5\n",
            " 1.2.3.4:5\r\n",
            "1.2.3.4:5\0",
        ];
        for payload in answers {
            assert!(is_reflection(payload.as_bytes()), "{payload}");
            assert_eq!(answer(payload.as_bytes(), source), Err(Silence::Reflection), "{payload}");
        }
        let mut request = [0; 20];
        request[1] = 1;
        request[4..8].copy_from_slice(&[0x21, 0x12, 0xa4, 0x42]);
        assert!(!is_reflection(&request));
        let response = answer(&request, source).unwrap();
        assert_eq!(response.kind(), "stun");
        assert!(is_reflection(response.as_bytes()));
        assert_eq!(answer(response.as_bytes(), source), Err(Silence::Stun));
    }

    #[test]
    fn a_source_that_cannot_be_a_client_is_not_answered() {
        for source in ["1.2.3.4:0", "1.2.3.4:7", "1.2.3.4:1023", "0.0.0.0:5000", "224.0.0.1:5000"] {
            assert_eq!(answer(b"ping", socket(source)), Err(Silence::Source), "{source}");
        }
        assert_eq!(answer(b"", socket("255.255.255.255:5000")), Err(Silence::Source));
        assert_eq!(answer(b"", socket("[ff02::1]:5000")), Err(Silence::Source));
        assert!(answer(b"", socket("1.2.3.4:1024")).is_ok());
    }
}
