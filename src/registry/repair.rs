//! Repairs: a socket lost its partner.

use super::{
    AskRef, Caller, Ended, Message, Note, Past, Record, Refusal, Registry, Request, Serial, Side,
    Then, What,
};
use crate::ids::{Part, RepairId, SessionId, Socket, Source};

impl Registry {
    pub(super) fn reconnect(
        &mut self,
        session: SessionId,
        source: Source,
        id: &RepairId,
        orphan: &Socket,
    ) {
        let owned = self.index.sockets.get(&orphan.endpoint()).copied().filter(|(serial, _)| {
            self.client(*serial).is_some_and(|client| client.source == source)
        });
        if let Some((serial, _)) = owned {
            self.hear_from(serial, session);
            // It may have begun to wait before it joined its chain.
            if let Some((before, _)) = self.caller(id, orphan).filter(|(_, of)| *of == source) {
                self.give_up(before, Ended::Superseded);
            }
        }
        if let Some(partner) = self.answer_again(source, id, orphan, owned) {
            return self.tell(session, Message::Repair { ip: partner }, Then::Close);
        }
        self.note(Note {
            about: [Some(orphan.endpoint()), None],
            session: Some(session),
            what: What::Asked(id.clone()),
        });
        match owned {
            Some((serial, part)) => self.repair(serial, part, session, id),
            None => self.call(session, source, id, orphan),
        }
    }

    /// Returns the wait of a socket that no chain knows under this id, and its owner.
    fn caller(&self, id: &RepairId, orphan: &Socket) -> Option<(AskRef, Source)> {
        self.index.asks_with(id).find_map(|at| match at {
            AskRef::Caller(serial) => {
                let caller = self.image.records.get(serial)?.caller()?;
                let is_its = caller.socket.endpoint() == orphan.endpoint();
                is_its.then_some((at, caller.source))
            }
            AskRef::Side(..) => None,
        })
    }

    /// Returns the earlier answer to this caller under this id, if it still holds.
    fn answer_again(
        &mut self,
        source: Source,
        id: &RepairId,
        orphan: &Socket,
        owned: Option<(Serial, Part)>,
    ) -> Option<Socket> {
        let serial = *self.index.answers.get(&(id.clone(), orphan.endpoint(), source))?;
        let Record::Answer(answer) = self.image.records.get(serial)? else { return None };
        let partner = answer.partner.clone();
        let holds = owned.is_none_or(|(serial, part)| {
            let is_same = |now: &Socket| now.endpoint() == partner.endpoint();
            self.partner(serial, part).is_some_and(is_same) && !self.is_doubted(serial, part)
        });
        if holds {
            return Some(partner);
        }
        self.remove(serial);
        None
    }

    /// Returns whether the partner of a client's socket was reported by its other neighbour, or cut
    /// off, since the two are partners.
    fn is_doubted(&self, serial: Serial, part: Part) -> bool {
        let Some(
            Side::Linked { since: partners_since, .. } | Side::Paired { since: partners_since, .. },
        ) = self.client(serial).map(|client| client.side(part))
        else {
            return false;
        };
        let owner = self.partner(serial, part).and_then(|socket| self.find(socket.endpoint()));
        let Some((owner, _)) = owner else { return false };
        let is_reported = |part| {
            let side = self.client(owner).map(|client| client.side(part));
            let reported = side.and_then(Side::reported_at);
            reported.is_some_and(|since| since >= *partners_since)
        };
        let is_cut = self.cut_of(owner).is_some_and(|cut| cut.since >= *partners_since);
        is_cut || is_reported(Part::Tail) || is_reported(Part::Head)
    }

    /// Returns the partner of a client's socket, if it has one.
    pub fn partner(&self, serial: Serial, part: Part) -> Option<&Socket> {
        match self.client(serial)?.side(part) {
            Side::Linked { .. } => {
                let neighbour = self.neighbour(serial, part)?;
                Some(self.client(neighbour)?.socket(part.opposite()))
            }
            Side::Paired { partner, .. } => Some(partner),
            Side::Open(_) | Side::Asking(_) => None,
        }
    }

    /// A socket of a client lost its partner: that is over on both sides, and the socket asks.
    fn repair(&mut self, serial: Serial, part: Part, session: SessionId, id: &RepairId) {
        let at = AskRef::Side(serial, part);
        let request = Request::Reconnect(id.clone());
        if self.ask(at).is_some() {
            return self.take_over(at, session, request);
        }
        self.part(serial, part, true, Some(session));
        self.begin_ask(serial, part, session, request);
    }

    /// A socket that no chain knows waits for the other one with the same id, as in the seed.
    fn call(&mut self, session: SessionId, source: Source, id: &RepairId, orphan: &Socket) {
        match self.caller(id, orphan) {
            Some((at, owner)) if owner == source => {
                return self.take_over(at, session, Request::Reconnect(id.clone()));
            }
            Some(_) => return self.refuse(session, Refusal::NotOwner, [Some(orphan), None]),
            None => {}
        }
        self.room_for_caller(source);
        let ask = self.new_ask(session, Request::Reconnect(id.clone()), Past::Lost);
        self.insert(Record::Caller(Caller { socket: orphan.clone(), source, ask }));
    }

    /// An ask ends without a partner, unless an offer stands.
    pub(super) fn give_up(&mut self, at: AskRef, why: Ended) {
        let Some(session) = self.ask(at).map(|ask| ask.session) else { return };
        let unanswered = !self.is_engaged(at);
        self.withdraw(at, why);
        if unanswered && !self.index.holds_asks(session) {
            self.release(session, why.into());
        }
    }
}
