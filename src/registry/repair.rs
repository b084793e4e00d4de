//! Repairs: a socket lost its partner.

use std::net::IpAddr;

use super::{
    AskRef, Caller, Cause, Ended, LinkedBy, Message, Note, Record, Refusal, Registry, Request,
    Serial, Side, Then, What,
};
use crate::ids::{Part, RepairId, SessionId, Socket};

impl Registry {
    pub(super) fn reconnect(
        &mut self,
        session: SessionId,
        source: IpAddr,
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

    /// The wait of a socket that no chain knows under this id, and who owns it.
    fn caller(&self, id: &RepairId, orphan: &Socket) -> Option<(AskRef, IpAddr)> {
        self.index.asks_with(id).into_iter().find_map(|at| match at {
            AskRef::Caller(serial) => match self.image.records.get(serial)? {
                Record::Caller(caller) if caller.socket.endpoint() == orphan.endpoint() => {
                    Some((at, caller.source))
                }
                Record::Caller(_) | Record::Client(_) | Record::Answer(_) | Record::Peer(_) => None,
            },
            AskRef::Side(..) => None,
        })
    }

    /// What this caller was told under this id, if that still holds.
    fn answer_again(
        &mut self,
        source: IpAddr,
        id: &RepairId,
        orphan: &Socket,
        owned: Option<(Serial, Part)>,
    ) -> Option<Socket> {
        let serial = *self.index.answers.get(&(id.clone(), orphan.endpoint(), source))?;
        let Record::Answer(answer) = self.image.records.get(serial)? else { return None };
        let partner = answer.partner.clone();
        let holds = owned.is_none_or(|(serial, part)| {
            self.partner(serial, part).is_some_and(|now| now.endpoint() == partner.endpoint())
        });
        if holds {
            return Some(partner);
        }
        self.remove(serial);
        None
    }

    /// The partner of a client's socket, if it has one.
    pub fn partner(&self, serial: Serial, part: Part) -> Option<&Socket> {
        match self.client(serial)?.side(part) {
            Side::Linked { .. } => {
                let neighbour = self.neighbour(serial, part)?;
                Some(self.client(neighbour)?.socket(part.opposite()))
            }
            Side::Paired { partner, .. } => Some(partner),
            Side::Open | Side::Asking(_) => None,
        }
    }

    /// A socket of a chain lost its partner: the partner leaves the path, and the socket asks.
    fn repair(&mut self, serial: Serial, part: Part, session: SessionId, id: &RepairId) {
        let serial = self.back_in_path(serial);
        let linked = self.client(serial).is_some_and(|client| client.side(part).is_linked());
        if linked && let Some(lost) = self.neighbour(serial, part) {
            self.take_out(lost, Cause::Lost, Some(session));
        }
        let at = AskRef::Side(serial, part);
        let request = Request::Reconnect(id.clone());
        if self.ask(at).is_some() {
            return self.take_over(at, session, request);
        }
        let ask = self.new_ask(session, request);
        self.edit_client(serial, |client| *client.side_mut(part) = Side::Asking(Box::new(ask)));
    }

    /// A socket that no chain knows waits for the other one with the same id, as in the seed.
    fn call(&mut self, session: SessionId, source: IpAddr, id: &RepairId, orphan: &Socket) {
        match self.caller(id, orphan) {
            Some((at, owner)) if owner == source => {
                return self.take_over(at, session, Request::Reconnect(id.clone()));
            }
            Some(_) => return self.refuse(session, Refusal::NotOwner, [Some(orphan), None]),
            None => {}
        }
        if self.index.waiting.len() as u64 >= self.policy().repairs_max {
            return self.refuse(session, Refusal::RepairsFull, [Some(orphan), None]);
        }
        let bound = self.policy().repairs_per_source_max;
        if self.index.holdings(source).is_some_and(|held| held.callers >= bound) {
            return self.refuse(session, Refusal::SourceFull, [Some(orphan), None]);
        }
        let ask = self.new_ask(session, Request::Reconnect(id.clone()));
        self.insert(Record::Caller(Caller { socket: orphan.clone(), source, ask }));
    }

    /// Pairs the waiters of an id: always two different sockets, never two of one client.
    pub(super) fn settle_id(&mut self, id: &RepairId) {
        let mut waiting = self.index.asks_with(id);
        waiting.retain(|at| !self.is_engaged(*at)); // so that few are left to compare
        for (position, a) in waiting.iter().enumerate() {
            for b in &waiting[position + 1..] {
                if !self.same_party(*a, *b) {
                    self.engage(*a, *b, LinkedBy::Repair);
                }
            }
        }
    }

    /// Whether two asks with one id are of one socket or of one client. A client's socket may have
    /// begun to wait before it joined its chain, or another source may wait in its name.
    fn same_party(&self, a: AskRef, b: AskRef) -> bool {
        match (a, b) {
            (AskRef::Side(client, _), AskRef::Side(other, _)) => client == other,
            (AskRef::Side(client, part), AskRef::Caller(caller)) => {
                let (client_of_a, caller) = (self.client(client), self.image.records.get(caller));
                let (Some(owner), Some(Record::Caller(caller))) = (client_of_a, caller) else {
                    return false;
                };
                let holder = self.index.sockets.get(&caller.socket.endpoint());
                holder.is_some_and(|(holder, other)| {
                    *holder == client && (*other == part || owner.source == caller.source)
                })
            }
            // Callers of one id have different sockets, and come after the clients.
            (AskRef::Caller(_), AskRef::Side(..) | AskRef::Caller(_)) => false,
        }
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
