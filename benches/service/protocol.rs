//! The clients' side of the seed's protocol, to the byte: what is sent, and what may come back.
//!
//! Every client of a run has a number, and its sockets spell that number, so that a client told a
//! socket can tell whose it is: `10.x.y.z` holds the number, the port holds the role.

use std::net::{Ipv4Addr, SocketAddrV4};

/// Clients that one run can number: three bytes of an address.
pub(crate) const CLIENTS_MAX: usize = 1 << 24;

/// Which of a client's two sockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// Faces the later neighbour.
    Head,
    /// Faces the earlier neighbour.
    Tail,
}

impl Part {
    fn port(self) -> u16 {
        match self {
            Self::Head => 1000,
            Self::Tail => 2000,
        }
    }
}

/// The port of a socket that lost its partner.
const ORPHAN_PORT: u16 = 3000;

/// The CONNECT of client `number`.
pub(crate) fn connect(number: usize) -> String {
    let (head, tail) = (socket(number, Part::Head.port()), socket(number, Part::Tail.port()));
    format!(r#"{{"msg":"CONNECT","head":"{head}","tail":"{tail}"}}"#)
}

/// The RECONNECT with which orphan `number` asks for its partner.
pub(crate) fn reconnect(id: &str, number: usize) -> String {
    let ip = socket(number, ORPHAN_PORT);
    format!(r#"{{"msg":"RECONNECT","id":"{id}","ip":"{ip}"}}"#)
}

/// The only right answer to a RECONNECT whose partner is orphan `number`.
pub(crate) fn repaired(number: usize) -> String {
    format!(r#"{{"msg":"CONNECT","ip":"{}"}}"#, socket(number, ORPHAN_PORT))
}

/// Reads a link message: which of the reader's sockets is linked, and the client at the far end.
/// `None` unless every byte is as the seed writes it.
pub(crate) fn read_link(message: &[u8]) -> Option<(Part, usize)> {
    let text = std::str::from_utf8(message).ok()?;
    let rest = text.strip_prefix(r#"{"msg":"CONNECT","part":""#)?;
    let (part, far_end, rest) = match rest.split_at_checked(4)? {
        ("head", rest) => (Part::Head, Part::Tail, rest),
        ("tail", rest) => (Part::Tail, Part::Head, rest),
        _ => return None,
    };
    let ip = rest.strip_prefix(r#"","ip":""#)?.strip_suffix(r#""}"#)?;
    let [_, x, y, z] = ip.parse::<SocketAddrV4>().ok()?.ip().octets();
    let number = usize::from(x) << 16 | usize::from(y) << 8 | usize::from(z);
    (ip == socket(number, far_end.port()).to_string()).then_some((part, number))
}

fn socket(number: usize, port: u16) -> SocketAddrV4 {
    assert!(number < CLIENTS_MAX, "a run numbers at most {CLIENTS_MAX} clients");
    let [.., x, y, z] = number.to_be_bytes();
    SocketAddrV4::new(Ipv4Addr::new(10, x, y, z), port)
}
