//! The chain server's requests: CONNECT.

use super::{Rejection, Sender};
use crate::{
    ids::{ChainName, Source},
    registry::Command,
    wire::{AddressPolicy, Object, chain::ConnectRequest},
};

/// Translates a message to the chain server into a command for the registry.
pub(super) fn command(
    object: &Object,
    sender: Sender,
    policy: AddressPolicy,
) -> Result<Command, Rejection> {
    let Sender { session, source } = sender;
    let ConnectRequest { head, tail } =
        ConnectRequest::parse(object, policy, source).map_err(Rejection::Ignored)?;
    let chain = ChainName::default();
    Ok(Command::Connect { session, source: Source::of(source), chain, head, tail })
}
