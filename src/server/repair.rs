//! The repair server's requests (the seed's EMDisi): RECONNECT.

use super::{Rejection, Sender};
use crate::{
    ids::Source,
    registry::Command,
    wire::{AddressPolicy, Object, repair::ReconnectRequest},
};

/// Translates a message to the repair server into a command for the registry.
pub(super) fn command(
    object: &Object,
    sender: Sender,
    policy: AddressPolicy,
) -> Result<Command, Rejection> {
    let Sender { session, source } = sender;
    let ReconnectRequest { id, orphan } =
        ReconnectRequest::parse(object, policy, source).map_err(Rejection::Ignored)?;
    Ok(Command::Reconnect { session, source: Source::of(source), id, orphan })
}
