//! The consequences of changed asks, clients and runs: the rules 5, 6 and 8 to 12 of
//! `proto-docs/chains.md`, each looked at around the places that changed, until nothing is left to
//! do. So every rule about partners stands in one place, for every event that brings two together.

use super::{
    AskRef, Cause, Client, LinkedBy, Note, Past, Record, Registry, Request, Serial, Side, What,
    Why, index::Timer,
};
use crate::ids::{ChainName, Part, RepairId, Timestamp};

/// An ask that its id may pair: the id, the chain of its client, and the ask.
type FreeKey = (RepairId, Option<ChainName>, AskRef);

/// The most clients between two sockets that are cut off on the word of both, even if they ask.
const DOUBTED_MAX: usize = 2;

impl Registry {
    /// Looks at everything that was touched. Gaps come first: an id pairs what they leave.
    pub(super) fn settle(&mut self) {
        loop {
            while let Some(at) = self.index.unsettled_offers.pop_first() {
                self.unsettle(at);
            }
            if let Some((chain, place)) = self.index.unsettled.pop_first() {
                self.settle_place(&chain, place);
            } else if self.index.unsettled_asks.is_empty() {
                return self.index.rank_changed();
            } else {
                self.settle_asks();
            }
        }
    }

    /// Rule 11: first says which asks are free, then pairs them id by id, in their order.
    fn settle_asks(&mut self) {
        let asks = std::mem::take(&mut self.index.unsettled_asks);
        let free = asks.into_iter().filter_map(|at| self.settle_free(at));
        let mut free: Vec<_> = free.collect();
        free.sort_by(|(a, _, _), (b, _, _)| a.cmp(b)); // stable
        for (n, key) in free.iter().enumerate() {
            if self.pair_by_id(key) {
                // What concerns runs comes first.
                self.index.unsettled_asks.extend(free[n + 1..].iter().map(|(_, _, at)| *at));
                return;
            }
        }
    }

    /// Has an ask, and the place of its client, looked at.
    pub(super) fn unsettle(&mut self, at: AskRef) {
        self.index.unsettled_asks.insert(at);
        if let AskRef::Side(serial, _) = at
            && let Some(client) = self.client(serial)
        {
            let chain = client.chain.clone();
            self.index.unsettled.insert((chain, serial));
        }
    }

    /// Looks at what is around `place`, be there a client or not any more.
    fn settle_place(&mut self, chain: &ChainName, place: Serial) {
        let Some(known) = self.chain(chain) else { return };
        if known.clients.is_empty() {
            self.close_windows(place);
            return self.drop_chain(chain);
        }
        let section = known.sections.find(place);
        self.drop_if_empty(chain, section);
        self.close_windows_of_silent(chain, place);
        self.spare_the_first(chain);
        if self.cut_doubted_around(chain, place) {
            self.index.unsettled.insert((chain.clone(), place));
            return;
        }
        let Some(known) = self.chain(chain) else { return };
        let (tail, head) = ((place, Part::Tail), (place, Part::Head));
        let around = [known.next_ask(tail, false), known.next_ask(head, true)];
        let here = [tail, head].map(|at| known.asks.contains(&at).then_some(at));
        let [before, after] = around;
        let [tail, head] = here;
        for (serial, part) in [before, tail, head, after].into_iter().flatten() {
            match part {
                Part::Head => {
                    self.settle_head(chain, serial);
                    self.settle_run_end(chain, serial);
                }
                Part::Tail => self.settle_tail(chain, serial),
            }
            // Whether it is one end of a gap decides whether its id may pair it.
            self.index.unsettled_asks.insert(AskRef::Side(serial, part));
        }
        self.settle_run_end(chain, place);
        // The runs that wait for the path are known when all that was touched was looked at.
        let next = self.index.unsettled.range((chain.clone(), Serial(0))..).next();
        if next.is_none_or(|(other, _)| other != chain) {
            self.settle_tip(chain);
        }
    }

    fn close_windows(&mut self, place: Serial) {
        self.index.set_window(Timer::Gather(place), None);
        self.index.set_window(Timer::Front(place), None);
    }

    fn close_windows_of_silent(&mut self, chain: &ChainName, place: Serial) {
        let asks =
            |part| self.chain(chain).is_some_and(|known| known.asks.contains(&(place, part)));
        let (tail, head) = (asks(Part::Tail), asks(Part::Head));
        if !head {
            self.index.set_window(Timer::Gather(place), None);
        }
        if !tail {
            self.index.set_window(Timer::Front(place), None);
        }
    }

    /// Rule 6: no client is before the first, so its joining tail asks no longer.
    fn spare_the_first(&mut self, chain: &ChainName) {
        let Some((first, _)) = self.chain(chain).and_then(|known| known.path_ends()) else {
            return;
        };
        if self.client(first).is_some_and(|client| client.is_marked) {
            self.edit_client(first, |client| client.is_marked = false);
        }
        let at = AskRef::Side(first, Part::Tail);
        let Some(ask) = self.ask(at) else { return };
        if ask.request != Request::Connect || self.is_engaged(at) {
            return;
        }
        let (session, past) = (ask.session, ask.past);
        self.edit_client(first, |client| client.tail_side = Side::Open(past));
        if !self.index.holds_asks(session) {
            self.release(session, Why::Answered);
        }
    }

    /// Rules 5, 8 and 9: a head that asks, and the next asking socket after it.
    fn settle_head(&mut self, chain: &ChainName, left: Serial) {
        let deadline = self.settle_gap(chain, left);
        self.index.set_window(Timer::Gather(left), deadline);
    }

    /// Links the two ends of a gap, or says when what is between them is cut off.
    fn settle_gap(&mut self, chain: &ChainName, left: Serial) -> Option<Timestamp> {
        let known = self.chain(chain)?;
        let right = known.across((left, Part::Head))?;
        let (a, b) = (AskRef::Side(left, Part::Head), AskRef::Side(right, Part::Tail));
        let (inner, last) =
            (known.neighbour(left, Part::Head)?, known.neighbour(right, Part::Tail)?);
        let next = known.neighbour(inner, Part::Head);
        // While one has part in an offer, nothing is decided (rule 9).
        if self.is_engaged(a) || self.is_engaged(b) {
            return None;
        }
        if inner == right {
            let doubts =
                [self.doubted_until(left, Part::Head), self.doubted_until(right, Part::Tail)];
            let until = doubts.into_iter().flatten().max();
            if until.is_none() {
                self.engage(a, b, LinkedBy::Join);
            }
            return until;
        }
        let is_sure = self.is_reported(inner, Part::Tail)
            && self.is_reported(last, Part::Head)
            && (inner == last || next == Some(last));
        if is_sure {
            self.cut(chain, inner, last, Cause::Lost);
            return None;
        }
        Some(self.ask(a)?.since.max(self.ask(b)?.since).plus_ms(self.policy().gather_ms))
    }

    /// Rule 9: the clients between the two ends of a gap kept silent for the gather window.
    pub(super) fn gather(&mut self, left: Serial) {
        self.index.set_window(Timer::Gather(left), None);
        let Some(chain) = self.client(left).map(|client| client.chain.clone()) else { return };
        let Some(known) = self.chain(&chain) else { return };
        let Some(right) = known.across((left, Part::Head)) else { return };
        let inner = (known.neighbour(left, Part::Head), known.neighbour(right, Part::Tail));
        if let (Some(first), Some(last)) = inner
            && first != right
        {
            self.cut(&chain, first, last, Cause::Silent);
        }
        self.engage(
            AskRef::Side(left, Part::Head),
            AskRef::Side(right, Part::Tail),
            LinkedBy::Gather,
        );
    }

    fn is_reported(&self, serial: Serial, part: Part) -> bool {
        self.client(serial).is_some_and(|client| client.side(part).is_reported())
    }

    /// Rule 7: when a doubt that begins now ends.
    pub(super) fn doubt_ends(&self) -> Timestamp {
        self.now().plus_ms(self.policy().gather_ms)
    }

    /// Rule 7: until when an asking socket doubts its neighbour, if it does.
    pub(super) fn doubted_until(&self, serial: Serial, part: Part) -> Option<Timestamp> {
        let ask = self.ask(AskRef::Side(serial, part))?;
        let Past::Left { partner, doubt } = ask.past else { return None };
        let is_neighbour = || self.neighbour(serial, part) == Some(partner);
        doubt.filter(|until| *until > self.now() && is_neighbour())
    }

    /// Rule 8: cuts off what two sockets around `place` doubt. What changed at a place can be the
    /// last that was missing for any of the sockets whose word is about it or about a client beside
    /// it. These need not be the nearest that ask: what is between them may ask as well.
    fn cut_doubted_around(&mut self, chain: &ChainName, place: Serial) -> bool {
        let Some(known) = self.chain(chain).filter(|known| known.doubts > 0) else { return false };
        let before = std::iter::successors(Some(place), |at| known.neighbour(*at, Part::Tail));
        let heads: Vec<Serial> = before.take(DOUBTED_MAX + 2).collect();
        heads.into_iter().any(|head| self.cut_doubted(chain, head))
    }

    /// Rule 8: cuts off the client behind a head, or the two, of which this head and the tail
    /// beyond say that they are gone, and one of them doubts. What they ask does not count: it is
    /// what kept the two apart.
    fn cut_doubted(&mut self, chain: &ChainName, left: Serial) -> bool {
        let Some(known) = self.chain(chain) else { return false };
        let behind = |at: Serial| known.neighbour(at, Part::Head);
        let Some(first) = behind(left) else { return false };
        let mut lasts = std::iter::successors(Some(first), |at| behind(*at)).take(DOUBTED_MAX);
        let last = lasts.find(|last| {
            let Some(right) = behind(*last) else { return false };
            let ends = [(left, Part::Head, first), (right, Part::Tail, *last)];
            let doubts = |(end, part, _)| self.doubted_until(end, part).is_some();
            ends.into_iter().all(|(end, part, of)| self.says_gone(end, part, of))
                && ends.into_iter().any(doubts)
        });
        let Some(last) = last else { return false };
        self.cut(chain, first, last, Cause::Lost);
        true
    }

    /// Returns whether a socket that asks, and has part in no offer, has reported the client
    /// beside it.
    fn says_gone(&self, serial: Serial, part: Part, of: Serial) -> bool {
        let at = AskRef::Side(serial, part);
        let past = self.ask(at).map(|ask| ask.past);
        let has_left = matches!(past, Some(Past::Left { partner, .. }) if partner == of);
        has_left && !self.is_engaged(at)
    }

    /// Rules 10 and 12: a tail that asks, with no asking head right before it.
    fn settle_tail(&mut self, chain: &ChainName, serial: Serial) {
        let deadline = self.settle_front(chain, serial);
        self.index.set_window(Timer::Front(serial), deadline);
    }

    fn settle_front(&mut self, chain: &ChainName, serial: Serial) -> Option<Timestamp> {
        let known = self.chain(chain)?;
        let ask = self.ask(AskRef::Side(serial, Part::Tail))?;
        let is_first = known.neighbour(serial, Part::Tail).is_none();
        let is_path = known.is_path(serial);
        if is_first && !is_path {
            self.put_back(chain, serial);
            return None;
        }
        let waits = match is_path {
            true => ask.past != Past::New && !is_first && !self.client(serial)?.is_marked,
            false => true,
        };
        let has_gap = known.across((serial, Part::Tail)).is_some();
        (waits && !has_gap).then(|| ask.since.plus_ms(self.policy().gather_ms))
    }

    /// Rules 10 and 12: no head asked before this tail for the gather window.
    pub(super) fn front(&mut self, serial: Serial) {
        self.index.set_window(Timer::Front(serial), None);
        let Some(chain) = self.client(serial).map(|client| client.chain.clone()) else { return };
        let Some(known) = self.chain(&chain) else { return };
        if known.is_path(serial) {
            self.edit_client(serial, |client| client.is_marked = true);
            let about = self.client(serial).map(Client::sockets).unwrap_or_default();
            return self.note(Note { about, session: None, what: What::CountsAsFirst });
        }
        let (Some((first, _)), Some(before)) =
            (known.ends(serial), known.neighbour(serial, Part::Tail))
        else {
            return;
        };
        self.cut(&chain, first, before, Cause::Silent);
        self.put_back(&chain, serial);
    }

    /// Rule 10: keeps account of runs that are cut off and whose last head asks.
    fn settle_run_end(&mut self, chain: &ChainName, place: Serial) {
        let Some(known) = self.index.chains.get_mut(chain) else { return };
        let waits = known.asks.contains(&(place, Part::Head))
            && !known.is_path(place)
            && known.ends(place).is_some_and(|(_, last)| last == place);
        if waits {
            known.waiting_runs.insert(place);
        } else {
            known.waiting_runs.remove(&place);
        }
    }

    /// Rules 8 and 10: a silent tip that was reported is cut off, and a run that waits for a tip
    /// that asks comes back if there is none.
    fn settle_tip(&mut self, chain: &ChainName) {
        let Some(known) = self.chain(chain) else { return };
        let waiting = known.waiting_run();
        let Some((_, tip)) = known.path_ends() else {
            waiting.into_iter().for_each(|of| self.put_back(chain, of));
            return;
        };
        let Some(client) = self.client(tip) else { return };
        let before = known.neighbour(tip, Part::Tail);
        let asks = |serial| {
            let at = (serial, Part::Head);
            known.asks.contains(&at) && !self.is_engaged(AskRef::Side(serial, Part::Head))
        };
        if client.is_silent() && client.tail_side.is_reported() && before.is_some_and(asks) {
            return self.cut(chain, tip, tip, Cause::Lost);
        }
        if client.head_side.ask().is_none()
            && let Some(of) = waiting
        {
            self.put_back(chain, of);
        }
    }

    /// Opens or closes the window of an ask, and says whether its id may pair it.
    fn settle_free(&mut self, at: AskRef) -> Option<FreeKey> {
        let Some(Request::Reconnect(id)) = self.ask(at).map(|ask| ask.request.clone()) else {
            self.index.set_window(Timer::Free(at), None);
            return None;
        };
        let now = self.now();
        let (chain, free_at) = match at {
            AskRef::Caller(_) => (None, Some(now)),
            AskRef::Side(serial, part) => {
                let chain = self.client(serial)?.chain.clone();
                let has_gap = self.chain(&chain)?.across((serial, part)).is_some();
                let free_at = self.ask(at)?.since.plus_ms(self.policy().gather_ms);
                (Some(chain), (!has_gap).then_some(free_at))
            }
        };
        self.index.set_window(Timer::Free(at), free_at.filter(|free_at| *free_at > now));
        let key = (id, chain, at);
        if free_at.is_none_or(|free_at| free_at > now) || self.is_engaged(at) {
            self.index.free.remove(&key);
            return None;
        }
        self.index.free.insert(key.clone());
        Some(key)
    }

    /// Pairs an ask with the first one in the order of asks that fits it, unless an earlier one
    /// fits that. Whether there was any.
    fn pair_by_id(&mut self, key: &FreeKey) -> bool {
        let Some(other) = self.first_fitting(key) else { return false };
        let Some(first) = self.first_fitting(&other) else { return false };
        self.engage(first.2, other.2, LinkedBy::Repair);
        true
    }

    /// Returns the first ask that this one's id may pair it with.
    fn first_fitting(&self, (id, chain, at): &FreeKey) -> Option<FreeKey> {
        let from = |chain| (id.clone(), chain, super::index::LOWEST);
        let strangers = self.index.free.range(from(None)..);
        let strangers = strangers.take_while(|(of, chain, _)| of == id && chain.is_none());
        let clients = chain.clone().unwrap_or_default();
        let clients = self.index.free.range(from(Some(clients))..);
        let clients =
            clients.take_while(|(of, other, _)| of == id && (chain.is_none() || other == chain));
        let others = clients.chain(strangers);
        let fits = |(_, _, other): &&FreeKey| other != at && !self.is_same_party(*at, *other);
        others.filter(fits).min_by_key(|(_, _, other)| *other).cloned()
    }

    /// Rule 11: the gather window of an ask by RECONNECT is over.
    pub(super) fn free(&mut self, at: AskRef) {
        self.index.set_window(Timer::Free(at), None);
        self.index.unsettled_asks.insert(at);
    }

    /// Returns whether two asks with one id are of one socket or of one client. A client's socket
    /// may have begun to wait before it joined its chain, or another source may wait in its name.
    fn is_same_party(&self, a: AskRef, b: AskRef) -> bool {
        match (a, b) {
            (AskRef::Side(client, _), AskRef::Side(other, _)) => client == other,
            (AskRef::Side(client, part), AskRef::Caller(caller))
            | (AskRef::Caller(caller), AskRef::Side(client, part)) => {
                let caller = self.image.records.get(caller).and_then(Record::caller);
                let (Some(owner), Some(caller)) = (self.client(client), caller) else {
                    return false;
                };
                let holder = self.index.sockets.get(&caller.socket.endpoint());
                holder.is_some_and(|(holder, other)| {
                    *holder == client && (*other == part || owner.source == caller.source)
                })
            }
            (AskRef::Caller(a), AskRef::Caller(b)) => a == b, // others have other sockets
        }
    }
}
