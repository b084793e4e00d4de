//! EMNet's requests: ADD_PEER and ASK_IP.

use super::{Request, Sender};
use crate::{
    ids::PeerId,
    registry::{Command, Message},
    wire::{Object, emnet},
};

/// Ids are below this, as in the seed.
const PEER_IDS: u32 = 1_000_000;

/// What a message to EMNet asks of the registry, or the answer to one that asks nothing of it.
pub(super) fn request(object: &Object, sender: Sender) -> Request {
    let session = sender.session;
    match emnet::Request::parse(object) {
        Ok(emnet::Request::AddPeer(address)) => {
            Request::Command(Command::AddPeer { session, address, candidate: random_peer_id() })
        }
        Ok(emnet::Request::AskIp(id)) => Request::Command(Command::AskIp { session, id }),
        Err(emnet::Failed) => Request::Answer(Message::PeerFailed),
    }
}

/// Chance enters here and travels through the log, so that all replicas agree.
fn random_peer_id() -> PeerId {
    let random = getrandom::u32().expect("the kernel's random numbers do not run out");
    PeerId(random % PEER_IDS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_ids_stay_below_a_million_and_differ() {
        let ids: std::collections::BTreeSet<_> = (0..64).map(|_| random_peer_id()).collect();
        assert!(ids.len() > 32 && ids.iter().all(|id| id.0 < PEER_IDS));
    }
}
