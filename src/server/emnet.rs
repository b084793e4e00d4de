//! EMNet's requests: ADD_PEER and ASK_IP.

use super::{Heard, wire::EmnetRequest};
use crate::{
    ids::{PeerId, SessionId},
    registry::{Command, Message},
};

/// Ids are below this, as in the seed.
const PEER_IDS: u32 = 1_000_000;

/// What an EMNet request asks of the registry, or the answer to one that asks nothing of it.
pub(super) fn heard(request: EmnetRequest, session: SessionId) -> Heard {
    match request {
        EmnetRequest::AddPeer { address } => {
            Heard::Command(Command::AddPeer { session, address, candidate: random_peer_id() })
        }
        EmnetRequest::AskIp { id } => Heard::Command(Command::AskIp { session, id }),
        EmnetRequest::Other => Heard::Answer(Message::PeerFailed),
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
