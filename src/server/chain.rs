//! The chain server's requests: CONNECT.

use std::net::IpAddr;

use super::{
    Rejection,
    wire::{AddressPolicy, ConnectRequest},
};
use crate::{
    ids::{ChainName, SessionId},
    registry::Command,
};

/// What a CONNECT asks of the registry.
pub(super) fn command(
    request: ConnectRequest,
    session: SessionId,
    source: IpAddr,
    policy: &AddressPolicy,
) -> Result<Command, Rejection> {
    let ConnectRequest { head, tail } = request;
    if !policy.allow(source, &head.0) || !policy.allow(source, &tail.0) {
        return Err(Rejection::AddressPolicy);
    }
    Ok(Command::Connect { session, source, chain: ChainName::default(), head, tail })
}
