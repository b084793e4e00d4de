//! The chain server: a client announces its two sockets and gets those of its neighbours.
//!
//! - request: `{"msg":"CONNECT","head":"ip:port","tail":"ip:port"}`
//! - replies: `{"msg":"CONNECT","part":"head","ip":"ip:port"}` and the same for `tail`

use std::net::IpAddr;

use serde::Serialize;

use super::{AddressPolicy, Ignored, Object, address::announced};
use crate::ids::{HeadAddr, Part, Socket, TailAddr};

/// A client asks to be joined to the chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectRequest {
    /// Its socket for the later neighbour.
    pub head: HeadAddr,
    /// Its socket for the earlier neighbour.
    pub tail: TailAddr,
}

impl ConnectRequest {
    /// Reads the request of a client that connects from `source`.
    pub fn parse(object: &Object, policy: AddressPolicy, source: IpAddr) -> Result<Self, Ignored> {
        if object.text("msg") != Some("CONNECT") {
            return Err(Ignored::UnknownMessage);
        }
        let head = object.text("head").ok_or(Ignored::MissingField)?;
        let tail = object.text("tail").ok_or(Ignored::MissingField)?;
        let head = HeadAddr(announced(head, policy, source)?);
        let tail = TailAddr(announced(tail, policy, source)?);
        if head.0.endpoint() == tail.0.endpoint() {
            return Err(Ignored::HeadIsTail);
        }
        Ok(Self { head, tail })
    }
}

/// Returns the bytes that tell a client to connect its `part` to `ip`.
pub fn reply(part: Part, ip: &Socket) -> Vec<u8> {
    #[derive(Serialize)]
    struct Reply<'a> {
        msg: &'a str,
        part: &'a str,
        ip: String,
    }
    let reply = Reply { msg: "CONNECT", part: part.as_str(), ip: ip.to_string() };
    serde_json::to_vec(&reply).expect("strings encode")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_have_the_bytes_of_the_seed() {
        let reply = |part, ip| String::from_utf8(reply(part, &Socket::parse(ip).unwrap())).unwrap();
        assert_eq!(
            reply(Part::Head, "1.2.3.4:5"),
            r#"{"msg":"CONNECT","part":"head","ip":"1.2.3.4:5"}"#
        );
        assert_eq!(
            reply(Part::Tail, "[2001:DB8::0:1]:05"),
            r#"{"msg":"CONNECT","part":"tail","ip":"[2001:DB8::0:1]:05"}"#,
            "a socket is told as it was announced"
        );
    }
}
