//! EMNet's address book: an address for an id, and the address back, once.

use super::{Message, Peer, Record, Registry, Then};
use crate::ids::{PeerId, SessionId, Source};

impl Registry {
    pub(super) fn add_peer(
        &mut self,
        session: SessionId,
        source: Source,
        address: &str,
        candidate: PeerId,
    ) {
        self.room_for_peer(source);
        let message = match self.free_peer_id(candidate) {
            Some(id) => {
                let until = self.now().plus_ms(self.policy().retention_ms);
                let peer = Peer {
                    id,
                    source,
                    address: address.to_owned(),
                    until,
                    #[cfg(feature = "rules-3")]
                    made_by: self.mark_peer(),
                };
                self.insert(Record::Peer(peer));
                Message::PeerAdded { id }
            }
            None => Message::PeerFailed,
        };
        self.tell(session, message, Then::Stay);
    }

    pub(super) fn take_peer(&mut self, session: SessionId, id: PeerId) {
        let taken = self.index.peers.get(&id).copied().and_then(|serial| self.remove(serial));
        let message = match taken {
            Some(Record::Peer(peer)) => Message::PeerFound { address: peer.address },
            Some(
                Record::Client(_) | Record::Caller(_) | Record::Answer(_) | Record::Section(_),
            )
            | None => Message::PeerFailed,
        };
        self.tell(session, message, Then::Stay);
    }

    /// Returns the candidate, or the next id after it that is free.
    fn free_peer_id(&self, candidate: PeerId) -> Option<PeerId> {
        if self.index.peers.len() >= PeerId::COUNT as usize {
            return None;
        }
        let mut free = candidate.0 % PeerId::COUNT;
        while self.index.peers.contains_key(&PeerId(free)) {
            free = (free + 1) % PeerId::COUNT;
        }
        Some(PeerId(free))
    }
}
