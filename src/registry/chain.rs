//! Chains: joining, coming back, being taken out, and settling who is linked with whom.

use std::{collections::BTreeSet, net::IpAddr};

use super::{
    AskRef, Cause, Client, LinkedBy, Message, Note, Record, Refusal, Registry, Request, Serial,
    Side, Standing, Then, What, Why,
};
use crate::ids::{ChainName, HeadAddr, Part, SessionId, TailAddr};

impl Registry {
    pub(super) fn connect(
        &mut self,
        session: SessionId,
        source: IpAddr,
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
        let replaced = history.len() as u64;
        if self.index.clients - replaced >= self.policy().clients_max {
            return self.refuse(session, Refusal::ClientsFull, sockets);
        }
        let bound = self.policy().clients_per_source_max;
        if self.index.holdings(source).is_some_and(|held| held.clients - replaced >= bound) {
            return self.refuse(session, Refusal::SourceFull, sockets);
        }
        for holder in history {
            self.forget_client(holder, Cause::Replaced, Some(session));
        }
        self.join(session, source, chain, head, tail);
    }

    fn join(
        &mut self,
        session: SessionId,
        source: IpAddr,
        chain: &ChainName,
        head: &HeadAddr,
        tail: &TailAddr,
    ) {
        let is_first = !self.index.chains.contains_key(chain);
        let tail_side = match is_first {
            true => Side::Open,
            false => Side::Asking(Box::new(self.new_ask(session, Request::Connect))),
        };
        let head_side = Side::Asking(Box::new(self.new_ask(session, Request::Connect)));
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
            standing: Standing::Member,
            head_side,
            tail_side,
        }));
    }

    /// The client comes back: it is told again what it was told, and asks for the rest.
    fn resume(&mut self, serial: Serial, session: SessionId) {
        for part in [Part::Tail, Part::Head] {
            self.conclude_offer(AskRef::Side(serial, part));
        }
        let serial = self.back_in_path(serial);
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
                Side::Paired { partner, .. } => Some(partner.clone()),
                Side::Asking(_) => {
                    self.take_over(AskRef::Side(serial, part), session, Request::Connect);
                    None
                }
                Side::Open => None,
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

    /// Both sockets ask that have no partner; the tail only if anyone is before it.
    fn ask_where_open(&mut self, serial: Serial, session: SessionId) {
        for part in [Part::Tail, Part::Head] {
            let open = self.client(serial).is_some_and(|client| *client.side(part) == Side::Open);
            if open && (part == Part::Head || self.neighbour(serial, Part::Tail).is_some()) {
                let ask = self.new_ask(session, Request::Connect);
                self.edit_client(serial, |client| {
                    *client.side_mut(part) = Side::Asking(Box::new(ask))
                });
            }
        }
    }

    /// A client that was taken out is appended at the tip again, under a new serial.
    pub(super) fn back_in_path(&mut self, serial: Serial) -> Serial {
        let out = self.client(serial).filter(|client| client.standing == Standing::Out).cloned();
        let Some(client) = out else { return serial };
        self.remove(serial);
        let now = self.now();
        self.insert(Record::Client(Client {
            standing: Standing::Member,
            joined: now,
            refreshed: now,
            ..client
        }))
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

    /// Takes a client out of the path: its neighbours face each other across the gap. It is
    /// remembered for the retention time, in case it was not dead after all. `session` is the
    /// connection whose request is the cause.
    pub(super) fn take_out(&mut self, serial: Serial, cause: Cause, session: Option<SessionId>) {
        for part in [Part::Tail, Part::Head] {
            let at = AskRef::Side(serial, part);
            // A neighbour that was offered this client has been told it: that stands, and ends.
            if let Some(offered) = self.index.offers.get(&at).copied() {
                self.conclude(offered, at, Some(offered), LinkedBy::Repair);
            }
        }
        let Some(client) = self.client(serial) else { return };
        let mut sessions: Vec<SessionId> = [&client.tail_side, &client.head_side]
            .into_iter()
            .filter_map(|side| side.ask().map(|ask| ask.session))
            .collect();
        sessions.dedup();
        for part in [Part::Tail, Part::Head] {
            if self.client(serial).is_some_and(|client| client.side(part).is_linked())
                && let Some(neighbour) = self.neighbour(serial, part)
            {
                let ends = [(serial, part), (neighbour, part.opposite())];
                let about = ends.map(|(serial, part)| {
                    self.client(serial).map(|client| client.socket(part).endpoint())
                });
                self.note(Note { about, session, what: What::Parted });
                self.edit_client(neighbour, |client| {
                    *client.side_mut(part.opposite()) = Side::Open
                });
            }
        }
        let now = self.now();
        self.edit_client(serial, |client| {
            (client.tail_side, client.head_side) = (Side::Open, Side::Open);
            client.standing = Standing::Out;
            client.refreshed = now;
        });
        for session in sessions {
            self.release(session, Why::TakenOut);
        }
        self.note_client(serial, session, What::TakenOut(cause));
    }

    /// Takes a client out for good.
    pub(super) fn forget_client(
        &mut self,
        serial: Serial,
        cause: Cause,
        session: Option<SessionId>,
    ) {
        if self.client(serial).is_some_and(|client| client.standing == Standing::Member) {
            self.take_out(serial, cause, session);
        }
        self.remove(serial);
    }

    /// Looks at everything that was touched until nothing is left to do.
    pub(super) fn settle(&mut self) {
        loop {
            if let Some(at) = self.index.unsettled_asks.pop_first() {
                self.unsettle(at);
            } else if let Some(id) = self.index.unsettled_ids.pop_first() {
                self.settle_id(&id);
            } else if let Some((chain, place)) = self.index.unsettled.pop_first() {
                self.settle_place(&chain, place);
            } else {
                return;
            }
        }
    }

    /// Links what faces each other around `place`, and watches over the silent in between.
    fn settle_place(&mut self, chain: &ChainName, place: Serial) {
        let Some(path) = self.index.chains.get(chain) else { return };
        if path.members.is_empty() {
            self.index.chains.remove(chain);
            self.index.gather_at(place, None);
            return;
        }
        self.spare_the_first(chain, place);
        let Some(path) = self.index.chains.get(chain) else { return };
        let before = path.asks.range(..(place, Part::Tail)).next_back().copied();
        let at_place = (place, Part::Head);
        if !path.asks.contains(&at_place) {
            self.index.gather_at(place, None);
        }
        for (left, part) in before.into_iter().chain([at_place]) {
            if part == Part::Head {
                self.settle_head(chain, left);
            }
        }
    }

    /// The first of a chain has nobody to wait for: its joining tail asks no longer.
    fn spare_the_first(&mut self, chain: &ChainName, place: Serial) {
        let Some(path) = self.index.chains.get(chain) else { return };
        let Some(first) = path.members.first().copied() else { return };
        // Only a change before or at the first member can have made it the first.
        if place > first {
            return;
        }
        let Some(ask) = self.client(first).and_then(|client| client.tail_side.ask()) else {
            return;
        };
        if ask.request != Request::Connect || self.is_engaged(AskRef::Side(first, Part::Tail)) {
            return;
        }
        let session = ask.session;
        self.edit_client(first, |client| client.tail_side = Side::Open);
        if !self.index.holds_asks(session) {
            self.release(session, Why::Answered);
        }
    }

    /// Decides about the head at `left` and the next asking socket after it.
    fn settle_head(&mut self, chain: &ChainName, left: Serial) {
        let Some(path) = self.index.chains.get(chain) else { return };
        let mut from_left = path.asks.range((left, Part::Head)..);
        let facing = match (from_left.next(), from_left.next()) {
            (Some((serial, Part::Head)), Some((right, Part::Tail))) if *serial == left => *right,
            _ => return self.index.gather_at(left, None),
        };
        let (a, b) = (AskRef::Side(left, Part::Head), AskRef::Side(facing, Part::Tail));
        if path.neighbour(left, Part::Head) == Some(facing) {
            self.index.gather_at(left, None);
            return self.engage(a, b, LinkedBy::Join);
        }
        if self.is_engaged(a) || self.is_engaged(b) {
            return self.index.gather_at(left, None);
        }
        let (Some(ask_a), Some(ask_b)) = (self.ask(a), self.ask(b)) else { return };
        let deadline = ask_a.since.max(ask_b.since).plus_ms(self.policy().gather_ms);
        self.index.gather_at(left, Some(deadline));
    }

    /// The gather window after `left` is over: all that kept silent up to the next asking socket
    /// is presumed dead, and the two survivors are linked.
    pub(super) fn gather(&mut self, left: Serial) {
        self.index.gather_at(left, None);
        let Some(path) = self.client(left).and_then(|client| self.index.chains.get(&client.chain))
        else {
            return;
        };
        let mut from_left = path.asks.range((left, Part::Head)..);
        let Some((right, Part::Tail)) = from_left.nth(1).copied() else { return };
        let silent: Vec<Serial> = path.members.range(Serial(left.0 + 1)..right).copied().collect();
        for serial in silent {
            self.take_out(serial, Cause::Silent, None);
        }
        self.engage(
            AskRef::Side(left, Part::Head),
            AskRef::Side(right, Part::Tail),
            LinkedBy::Gather,
        );
    }
}
