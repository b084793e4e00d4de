//! The repair server (the seed's EMDisi): a client whose neighbour left gets another one.
//!
//! - request: `{"msg":"RECONNECT","id":"any text","ip":"ip:port"}`, where `ip` is the client's own
//!   socket that lost its partner
//! - reply: `{"msg":"CONNECT","ip":"ip:port"}`

use std::{net::IpAddr, sync::Arc};

use serde::Serialize;

use super::{AddressPolicy, Ignored, Object, address::announced};
use crate::{
    ids::{OrphanAddr, RepairId, Socket},
    limits::REPAIR_ID_BYTES_MAX,
};

/// A client asks for a new partner for one of its sockets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReconnectRequest {
    /// The id that both callers share: any text, even none, as in the seed.
    pub id: RepairId,
    /// The socket that lost its partner.
    pub orphan: OrphanAddr,
}

impl ReconnectRequest {
    /// Reads the request of a client that connects from `source`.
    pub fn parse(object: &Object, policy: AddressPolicy, source: IpAddr) -> Result<Self, Ignored> {
        if object.text("msg") != Some("RECONNECT") {
            return Err(Ignored::UnknownMessage);
        }
        let id = object.text("id").ok_or(Ignored::MissingField)?;
        let orphan = object.text("ip").ok_or(Ignored::MissingField)?;
        if id.len() > REPAIR_ID_BYTES_MAX {
            return Err(Ignored::IdTooLong);
        }
        let orphan = OrphanAddr(announced(orphan, policy, source)?);
        Ok(Self { id: RepairId(Arc::from(id)), orphan })
    }
}

/// Returns the bytes that tell a client to connect its orphaned socket to `ip`.
pub fn reply(ip: &Socket) -> Vec<u8> {
    #[derive(Serialize)]
    struct Reply<'a> {
        msg: &'a str,
        ip: String,
    }
    serde_json::to_vec(&Reply { msg: "CONNECT", ip: ip.to_string() }).expect("strings encode")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_have_the_bytes_of_the_seed() {
        assert_eq!(
            String::from_utf8(reply(&Socket::parse("1.2.3.4:5").unwrap())).unwrap(),
            r#"{"msg":"CONNECT","ip":"1.2.3.4:5"}"#
        );
    }
}
