//! Asks: the sockets that wait for a partner, their connections, and the meeting of two.

use super::{
    Answer, Ask, AskRef, Client, Ended, Line, LinkedBy, Message, Note, Past, Record, Registry,
    Request, Serial, Side, Then, What, Why,
};
use crate::ids::{Part, SessionId, Socket, Source};

impl Registry {
    pub(super) fn ask(&self, at: AskRef) -> Option<&Ask> {
        match at {
            AskRef::Side(serial, part) => self.client(serial)?.side(part).ask(),
            AskRef::Caller(serial) => Some(&self.image.records.get(serial)?.caller()?.ask),
        }
    }

    fn edit_ask(&mut self, at: AskRef, change: impl FnOnce(&mut Ask)) {
        let serial = match at {
            AskRef::Side(serial, _) | AskRef::Caller(serial) => serial,
        };
        self.edit(serial, |record| match (record, at) {
            (Record::Client(client), AskRef::Side(_, part)) => {
                if let Side::Asking(ask) = client.side_mut(part) {
                    change(ask);
                }
            }
            (Record::Caller(caller), AskRef::Caller(_)) => change(&mut caller.ask),
            (
                Record::Client(_)
                | Record::Caller(_)
                | Record::Answer(_)
                | Record::Peer(_)
                | Record::Section(_),
                _,
            ) => {}
        });
    }

    /// Returns a new ask over `session`, of a socket that remembers this.
    pub(super) fn new_ask(&mut self, session: SessionId, request: Request, past: Past) -> Ask {
        let since = self.now();
        Ask {
            session,
            number: self.next_serial(),
            since,
            until: since.plus_ms(self.policy().ask_ms_max),
            request,
            line: Line::Open,
            past,
        }
    }

    /// Has an open socket of a client ask.
    pub(super) fn begin_ask(
        &mut self,
        serial: Serial,
        part: Part,
        session: SessionId,
        request: Request,
    ) {
        let past = match self.client(serial).map(|client| client.side(part)) {
            Some(Side::Open(past @ (Past::New | Past::Left { .. }))) => *past,
            // It says the same of the partner that reported it, only later (rule 7).
            Some(Side::Open(Past::Reported { again: true, .. })) if request != Request::Connect => {
                let doubt = Some(self.doubt_ends());
                let left = |partner| Past::Left { partner, doubt };
                self.neighbour(serial, part).map_or(Past::Lost, left)
            }
            // A client that asks is not gone, even if its partner said so.
            Some(_) | None => Past::Lost,
        };
        let ask = self.new_ask(session, request, past);
        self.edit_client(serial, |client| *client.side_mut(part) = Side::Asking(Box::new(ask)));
    }

    /// An ask is repeated over a new connection, which will be told instead of the old one.
    pub(super) fn take_over(&mut self, at: AskRef, session: SessionId, request: Request) {
        let Some(ask) = self.ask(at) else { return };
        let (previous, line) = (ask.session, ask.line.clone());
        let until = self.now().plus_ms(self.policy().ask_ms_max);
        self.edit_ask(at, |ask| {
            (ask.session, ask.request, ask.line, ask.until) = (session, request, Line::Open, until);
        });
        // A tail that asks by CONNECT is bound by other rules than one that asks by RECONNECT.
        self.unsettle(at);
        if previous != session && !self.index.holds_asks(previous) {
            self.release(previous, Why::Superseded);
        }
        // What was offered may have been read: it stands, and is told again.
        if let Line::Offered(partner) = line {
            self.conclude(at, partner, None, LinkedBy::Repair);
        }
    }

    /// Makes partners of an ask and the one that it was offered, before anything else happens to
    /// it: it may have read the offer.
    pub(super) fn conclude_offer(&mut self, to: AskRef) {
        if let Some(Line::Offered(partner)) = self.ask(to).map(|ask| ask.line.clone()) {
            self.conclude(to, partner, Some(to), LinkedBy::Repair);
        }
    }

    /// Two asks meet: they are told each other, or the half-closed one is offered the other first.
    pub(super) fn engage(&mut self, a: AskRef, b: AskRef, by: LinkedBy) {
        if self.is_engaged(a) || self.is_engaged(b) {
            return;
        }
        let half_closed = [a.min(b), a.max(b)] // in the order of asks
            .into_iter()
            .find(|at| self.ask(*at).is_some_and(|ask| ask.line == Line::HalfClosed));
        match half_closed {
            Some(first) => self.offer(first, if first == a { b } else { a }),
            None => self.conclude(a, b, None, by),
        }
    }

    pub(super) fn is_engaged(&self, at: AskRef) -> bool {
        let offered = |ask: &Ask| matches!(ask.line, Line::Offered(_));
        self.index.offers.contains_key(&at) || self.ask(at).is_none_or(offered)
    }

    fn offer(&mut self, to: AskRef, partner: AskRef) {
        let (Some(ask), Some(socket)) = (self.ask(to), self.socket(partner)) else { return };
        let message = message_for(&ask.request, to, socket.clone());
        let session = ask.session;
        self.edit_ask(to, |ask| ask.line = Line::Offered(partner));
        self.tell(session, message, Then::Confirm);
    }

    /// The two are partners from now on. `told` is the one that was offered the other already.
    pub(super) fn conclude(&mut self, a: AskRef, b: AskRef, told: Option<AskRef>, by: LinkedBy) {
        let (Some(of_a), Some(of_b)) = (self.party(a), self.party(b)) else { return };
        let linked = self.face_each_other(a, b);
        let waited_ms = self.now().ms_since(of_a.ask.since.min(of_b.ask.since));
        let joined = [&of_a, &of_b].iter().all(|party| party.ask.request == Request::Connect);
        let both_repair = [&of_a, &of_b].iter().all(|party| party.ask.request != Request::Connect);
        // The one that was offered the other is done first. Of a newcomer's link the earlier client
        // is told first, of any other pair the second caller.
        let a_first = match told {
            Some(offered) => offered == a,
            None if both_repair || !linked => of_a.ask.number > of_b.ask.number,
            None => matches!(a, AskRef::Side(_, Part::Head)),
        };
        let left = |party: &Party, other: AskRef| match (party.ask.past, other) {
            (Past::Left { partner, .. }, AskRef::Side(serial, _)) => partner == serial,
            (Past::New | Past::Lost | Past::Reported { .. } | Past::Left { .. }, _) => false,
        };
        let by = match by {
            _ if left(&of_a, b) || left(&of_b, a) => LinkedBy::Again,
            LinkedBy::Gather => LinkedBy::Gather,
            _ if joined => LinkedBy::Join,
            LinkedBy::Join | LinkedBy::Repair | LinkedBy::Again => LinkedBy::Repair,
        };
        let ordered = if a_first {
            [(&of_a, &of_b), (&of_b, &of_a)]
        } else {
            [(&of_b, &of_a), (&of_a, &of_b)]
        };
        for (party, partner) in ordered {
            self.settle_party(party, &partner.socket, linked.then_some(by));
        }
        for (party, partner) in ordered {
            self.tell_party(party, &partner.socket, told == Some(party.at));
        }
        let newer = if of_a.ask.number > of_b.ask.number { &of_a } else { &of_b };
        self.note(Note {
            about: [&of_a, &of_b].map(|party| Some(party.socket.endpoint())),
            session: Some(newer.ask.session),
            what: match linked {
                true => What::Linked { by, waited_ms },
                false => What::Paired { waited_ms },
            },
        });
    }

    fn party(&self, at: AskRef) -> Option<Party> {
        let source = match at {
            AskRef::Side(serial, _) => self.client(serial)?.source,
            AskRef::Caller(serial) => self.image.records.get(serial)?.caller()?.source,
        };
        Some(Party { at, ask: self.ask(at)?.clone(), socket: self.socket(at)?.clone(), source })
    }

    /// The ask ends with a partner: the socket remembers it, and so does the repair id.
    fn settle_party(&mut self, party: &Party, partner: &Socket, linked: Option<LinkedBy>) {
        let now = self.now();
        match party.at {
            AskRef::Side(serial, part) => self.edit_client(serial, |client| {
                client.refreshed = now;
                client.is_marked &= part == Part::Head || linked.is_none();
                *client.side_mut(part) = match linked {
                    Some(by) => Side::Linked { since: now, by },
                    None => Side::Paired { partner: Box::new(partner.clone()), since: now },
                };
            }),
            AskRef::Caller(serial) => {
                self.remove(serial);
            }
        }
        if let Request::Reconnect(id) = &party.ask.request {
            let socket = party.socket.endpoint();
            let same = (id.clone(), socket, party.source);
            if let Some(old) = self.index.answers.get(&same).copied() {
                self.remove(old);
            }
            self.insert(Record::Answer(Answer {
                id: id.clone(),
                socket,
                source: party.source,
                partner: partner.clone(),
                until: now.plus_ms(self.policy().retention_ms),
            }));
            self.trim_answers();
        }
    }

    fn tell_party(&mut self, party: &Party, partner: &Socket, already: bool) {
        let session = party.ask.session;
        let done = !self.index.holds_asks(session);
        if !already {
            let then = if done { Then::Close } else { Then::Stay };
            self.tell(session, message_for(&party.ask.request, party.at, partner.clone()), then);
        } else if done {
            self.release(session, Why::Answered);
        }
    }

    /// Ends an ask without a partner. An offer that may have been read stands: unless the client
    /// hung up, which says that the offer was not read, the two become partners after all.
    pub(super) fn withdraw(&mut self, at: AskRef, why: Ended) {
        if let Some(offered) = self.index.offers.get(&at).copied() {
            return self.conclude(offered, at, Some(offered), LinkedBy::Repair);
        }
        if why != Ended::HungUp
            && let Some(Line::Offered(partner)) = self.ask(at).map(|ask| ask.line.clone())
        {
            return self.conclude(at, partner, Some(at), LinkedBy::Repair);
        }
        self.note_ask(at, What::Ended(why));
        match at {
            AskRef::Side(serial, part) => {
                let Some(past) = self.ask(at).map(|ask| ask.past) else { return };
                self.edit_client(serial, |client| *client.side_mut(part) = Side::Open(past));
                let leaves = |client: &Client| client.is_idle() && !client.is_reported();
                if self.client(serial).is_some_and(leaves) && self.is_path(serial) {
                    self.remove(serial);
                }
            }
            AskRef::Caller(serial) => {
                self.remove(serial);
            }
        }
    }

    pub(super) fn disconnect(&mut self, session: SessionId) {
        for at in self.index.asks_of(session) {
            self.withdraw(at, Ended::HungUp);
        }
    }

    pub(super) fn half_close(&mut self, session: SessionId) {
        for at in self.index.asks_of(session) {
            if self.ask(at).is_some_and(|ask| ask.line == Line::Open) {
                self.edit_ask(at, |ask| ask.line = Line::HalfClosed);
            }
        }
    }

    pub(super) fn delivered(&mut self, session: SessionId) {
        for at in self.index.asks_of(session) {
            self.conclude_offer(at);
        }
    }

    /// The instance that held the ask is gone; its client has the resume grace to come back.
    pub(super) fn detach(&mut self, at: AskRef) {
        self.note_ask(at, What::Detached);
        let grace_ends = self.now().plus_ms(self.policy().resume_grace_ms);
        self.edit_ask(at, |ask| {
            ask.until = ask.until.min(grace_ends);
            if !matches!(ask.line, Line::Offered(_)) {
                ask.line = Line::Detached;
            }
        });
    }

    fn note_ask(&mut self, at: AskRef, what: What) {
        let about = [self.socket(at).map(Socket::endpoint), None];
        let session = self.ask(at).map(|ask| ask.session);
        self.note(Note { about, session, what });
    }

    fn socket(&self, at: AskRef) -> Option<&Socket> {
        match at {
            AskRef::Side(serial, part) => Some(self.client(serial)?.socket(part)),
            AskRef::Caller(serial) => Some(&self.image.records.get(serial)?.caller()?.socket),
        }
    }

    /// Returns whether two asks are the facing sockets of neighbours in one chain.
    fn face_each_other(&self, a: AskRef, b: AskRef) -> bool {
        match (a, b) {
            (AskRef::Side(left, Part::Head), AskRef::Side(right, Part::Tail))
            | (AskRef::Side(right, Part::Tail), AskRef::Side(left, Part::Head)) => {
                self.neighbour(left, Part::Head) == Some(right)
            }
            (AskRef::Side(..) | AskRef::Caller(_), AskRef::Side(..) | AskRef::Caller(_)) => false,
        }
    }
}

/// One of two sockets that become partners.
struct Party {
    at: AskRef,
    ask: Ask,
    socket: Socket,
    source: Source,
}

/// Returns the words for a partner, as the request's server says them.
fn message_for(request: &Request, at: AskRef, ip: Socket) -> Message {
    match (request, at) {
        (Request::Connect, AskRef::Side(_, part)) => Message::Link { part, ip },
        (Request::Reconnect(_), _) | (Request::Connect, AskRef::Caller(_)) => {
            Message::Repair { ip }
        }
    }
}
