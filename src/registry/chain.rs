//! Chains: joining, returning, and leaving.

use std::collections::BTreeSet;

use super::{
    AskRef, Cause, Client, LinkedBy, Message, Note, Past, Record, Refusal, Registry, Request,
    Serial, Side, Then, What, Why, path::Chain,
};
use crate::ids::{ChainName, HeadAddr, Part, SessionId, Socket, Source, TailAddr};

impl Registry {
    pub(super) fn connect(
        &mut self,
        session: SessionId,
        source: Source,
        chain: &ChainName,
        head: &HeadAddr,
        tail: &TailAddr,
    ) {
        let sockets = [Some(&head.0), Some(&tail.0)];
        let holders = [head.0.endpoint(), tail.0.endpoint()]
            .map(|endpoint| self.index.sockets.get(&endpoint).map(|(serial, _)| *serial));
        for holder in holders.into_iter().flatten() {
            if self.client(holder).is_some_and(|client| client.source != source) {
                return self.refuse(session, Refusal::NotOwner, sockets);
            }
        }
        if let Some(known) = holders[0].filter(|serial| {
            self.client(*serial).is_some_and(|client| {
                client.chain == *chain
                    && client.head.0.endpoint() == head.0.endpoint()
                    && client.tail.0.endpoint() == tail.0.endpoint()
            })
        }) {
            return self.resume(known, session);
        }
        // The same owner uses one of these sockets in another pair: that pair is history.
        let history: BTreeSet<Serial> = holders.into_iter().flatten().collect();
        // What it replaces makes room for it.
        if history.is_empty() {
            self.room_for_client(source, session, chain);
        }
        for holder in history {
            self.forget_client(holder, Cause::Replaced, Some(session));
        }
        self.join(session, source, chain, head, tail);
    }

    fn join(
        &mut self,
        session: SessionId,
        source: Source,
        chain: &ChainName,
        head: &HeadAddr,
        tail: &TailAddr,
    ) {
        let is_first = self.chain(chain).and_then(Chain::path_ends).is_none();
        let mut ask = || Side::Asking(Box::new(self.new_ask(session, Request::Connect, Past::New)));
        let tail_side = if is_first { Side::Open(Past::New) } else { ask() };
        let head_side = ask();
        let now = self.now();
        self.note(Note {
            about: [Some(head.0.endpoint()), Some(tail.0.endpoint())],
            session: Some(session),
            what: What::Joined,
        });
        self.insert(Record::Client(Client {
            chain: chain.clone(),
            head: head.clone(),
            tail: tail.clone(),
            source,
            joined: now,
            refreshed: now,
            session,
            is_marked: false,
            head_side,
            tail_side,
        }));
    }

    /// The client comes back: it gets its answers again, and asks for the rest.
    fn resume(&mut self, serial: Serial, session: SessionId) {
        for part in [Part::Tail, Part::Head] {
            self.conclude_offer(AskRef::Side(serial, part));
        }
        self.hear_from(serial, session);
        self.note_client(serial, Some(session), What::CameBack);
        self.ask_where_open(serial, session);
        let mut told = Vec::new();
        for part in [Part::Tail, Part::Head] {
            let Some(client) = self.client(serial) else { continue };
            let partner = match client.side(part) {
                Side::Linked { .. } => self
                    .neighbour(serial, part)
                    .and_then(|neighbour| self.client(neighbour))
                    .map(|neighbour| neighbour.socket(part.opposite()).clone()),
                Side::Paired { partner, .. } => Some(Socket::clone(partner)),
                Side::Asking(_) => {
                    self.take_over(AskRef::Side(serial, part), session, Request::Connect);
                    None
                }
                Side::Open(_) => None,
            };
            told.extend(partner.map(|ip| Message::Link { part, ip }));
        }
        let done = !self.index.holds_asks(session);
        let last = told.len();
        for (number, message) in (1..).zip(told) {
            let then = if done && number == last { Then::Close } else { Then::Stay };
            self.tell(session, message, then);
        }
    }

    /// Both sockets ask that have no partner; the tail of the first client of the path does not.
    fn ask_where_open(&mut self, serial: Serial, session: SessionId) {
        for part in [Part::Tail, Part::Head] {
            let is_open = self
                .client(serial)
                .is_some_and(|client| matches!(client.side(part), Side::Open(_)));
            let may_ask = part == Part::Head
                || self.neighbour(serial, Part::Tail).is_some()
                || !self.is_path(serial);
            if is_open && may_ask {
                self.begin_ask(serial, part, session, Request::Connect);
            }
        }
    }

    /// A client is there: it has just asked.
    pub(super) fn hear_from(&mut self, serial: Serial, session: SessionId) {
        let now = self.now();
        self.edit_client(serial, |client| (client.refreshed, client.session) = (now, session));
    }

    fn note_client(&mut self, serial: Serial, session: Option<SessionId>, what: What) {
        let about = self.client(serial).map(Client::sockets).unwrap_or_default();
        self.note(Note { about, session, what });
    }

    /// Ends the link or the pair of a client's socket on both sides: the client reports its
    /// partner, or is gone itself. `session` is the connection whose request is the cause.
    pub(super) fn part(
        &mut self,
        serial: Serial,
        part: Part,
        is_report: bool,
        session: Option<SessionId>,
    ) {
        let Some(client) = self.client(serial) else { return };
        let own = client.socket(part).endpoint();
        let partner = match client.side(part) {
            Side::Linked { .. } => {
                self.neighbour(serial, part).map(|serial| (serial, part.opposite()))
            }
            Side::Paired { partner, .. } => self.find(partner.endpoint()).filter(|(other, of)| {
                self.client(*other).is_some_and(|other| match other.side(*of) {
                    Side::Paired { partner, .. } => partner.endpoint() == own,
                    Side::Open(_) | Side::Asking(_) | Side::Linked { .. } => false,
                })
            }),
            Side::Open(_) | Side::Asking(_) => return,
        };
        let [own_past, past] = match is_report {
            true => self.pasts_of_report(client.side(part), partner),
            false => [Past::Lost; 2],
        };
        let other = partner.and_then(|(serial, part)| Some(self.client(serial)?.socket(part)));
        let about = [Some(own), other.map(Socket::endpoint)];
        self.note(Note { about, session, what: What::Parted });
        self.edit_client(serial, |client| *client.side_mut(part) = Side::Open(own_past));
        if let Some((other, of)) = partner {
            self.edit_client(other, |client| *client.side_mut(of) = Side::Open(past));
            // What was reported may be cut off at once, also if no link of its path has changed.
            if let Some(chain) = self.client(other).map(|client| client.chain.clone()) {
                self.index.unsettled.insert((chain, other));
            }
        }
    }

    /// Returns the memories of a report (rule 7): of the socket that reports its partner, and of
    /// the partner's.
    fn pasts_of_report(&self, side: &Side, partner: Option<(Serial, Part)>) -> [Past; 2] {
        let now = self.now();
        let retention_ms = self.policy().retention_ms;
        let reported = |again| Past::Reported { since: now, again };
        match (side, partner) {
            (Side::Linked { since, by }, Some((partner, _))) => {
                let again = *by == LinkedBy::Again && now < since.plus_ms(retention_ms);
                let doubt = again.then(|| self.doubt_ends());
                [Past::Left { partner, doubt }, reported(again)]
            }
            (Side::Linked { .. } | Side::Paired { .. } | Side::Open(_) | Side::Asking(_), _) => {
                [Past::Lost, reported(false)]
            }
        }
    }

    /// Takes a client out for good.
    pub(super) fn forget_client(
        &mut self,
        serial: Serial,
        cause: Cause,
        session: Option<SessionId>,
    ) {
        for part in [Part::Tail, Part::Head] {
            let at = AskRef::Side(serial, part);
            // A socket that was offered this client has been told it: that stands, and ends.
            if let Some(offered) = self.index.offers.get(&at).copied() {
                self.conclude(offered, at, Some(offered), LinkedBy::Repair);
            }
            self.part(serial, part, false, session);
        }
        let Some(client) = self.client(serial) else { return };
        let mut sessions: Vec<SessionId> = [&client.tail_side, &client.head_side]
            .into_iter()
            .filter_map(|side| side.ask().map(|ask| ask.session))
            .collect();
        sessions.dedup();
        self.note_client(serial, session, What::TakenOut(cause));
        self.remove(serial);
        for session in sessions {
            self.release(session, Why::TakenOut);
        }
    }
}
