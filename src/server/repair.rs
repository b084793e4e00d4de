//! The repair server's requests (the seed's EMDisi): RECONNECT.

use std::net::IpAddr;

use super::{
    Rejection,
    wire::{AddressPolicy, ReconnectRequest},
};
use crate::{ids::SessionId, registry::Command};

/// What a RECONNECT asks of the registry.
pub(super) fn command(
    request: ReconnectRequest,
    session: SessionId,
    source: IpAddr,
    policy: &AddressPolicy,
) -> Result<Command, Rejection> {
    let ReconnectRequest { id, ip } = request;
    if !policy.allow(source, &ip.0) {
        return Err(Rejection::AddressPolicy);
    }
    Ok(Command::Reconnect { session, source, id, orphan: ip })
}
