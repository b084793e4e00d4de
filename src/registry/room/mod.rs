//! Room: the choice of an entry to evict when a table is full, or when one source has its share
//! (rule 19 of `proto-docs/chains.md`). A bound keeps no client out for good: what one hand has
//! made too much of goes, and the newcomer comes in.
//!
//! The entry to go is found in O(log n): an index holds the entries of each source and network in
//! the order in which they go, and the networks by what they could give.

use super::{
    AskRef, Cause, Ended, Forgotten, Note, Record, Registry, Serial, What, policy::NETWORK_SHARES,
    shares::Shares,
};
use crate::ids::{ChainName, Holder, SessionId, Source};

/// The most entries that give way to one newcomer: one in the common case, and two if a table
/// holds more than it may, as after a change of settings, so that it comes down to its bound in the
/// end.
const EVICTIONS_MAX: usize = 2;

/// The bound that a newcomer would exceed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Over {
    /// The share of one source or network.
    Share(Holder),
    /// The table.
    Whole,
}

/// Returns the bound that one more entry from `source` exceeds, in a table of `whole` entries of
/// which each source may have `each`. While the table is no more than half full, no source is
/// bounded.
///
/// A bound is one at least, so what is over it holds something that can go.
fn over(shares: &Shares, source: Source, whole: u64, each: u64) -> Option<Over> {
    let (whole, each) = (whole.max(1), each.max(1));
    if !source.is_local() && 2 * shares.len() > whole {
        let narrow = Holder::Source(source);
        if shares.of(narrow) >= each {
            return Some(Over::Share(narrow));
        }
        let wide = source.site().map(Holder::Network);
        let is_full = |wide: &Holder| shares.of(*wide) >= each.saturating_mul(NETWORK_SHARES);
        if let Some(wide) = wide.filter(is_full) {
            return Some(Over::Share(wide));
        }
    }
    (shares.len() >= whole).then_some(Over::Whole)
}

impl Registry {
    /// Has entries go until one more from `source` is none too many. `spare` finds what goes, and
    /// `evict` takes it out.
    fn make_room(
        &mut self,
        source: Source,
        bounds: (u64, u64),
        shares: fn(&Self) -> &Shares,
        spare: impl Fn(&Self, Over) -> Option<Serial>,
        evict: impl Fn(&mut Self, Serial),
    ) {
        let (whole, each) = bounds;
        for _ in 0..EVICTIONS_MAX {
            let over = over(shares(self), source, whole, each);
            let Some(spare) = over.and_then(|over| spare(self, over)) else { break };
            evict(self, spare);
        }
    }

    /// Makes room for one more client of a chain.
    pub(super) fn room_for_client(
        &mut self,
        source: Source,
        session: SessionId,
        chain: &ChainName,
    ) {
        let bounds = (self.policy().clients_max, self.policy().clients_per_source_max);
        let spare = |registry: &Self, over| match over {
            // The newest of all: clients that were linked long ago have no connection and are well,
            // so one that floods the table behind an address of many pushes out what it has just
            // made.
            Over::Share(holder) => registry.index.client_shares.spare(holder),
            Over::Whole => registry.spare_client(source, chain),
        };
        let evict = |registry: &mut Self, spare| {
            registry.forget_client(spare, Cause::MadeRoom, Some(session));
            registry.settle();
        };
        self.make_room(source, bounds, |it| &it.index.client_shares, spare, evict);
    }

    /// Returns the client that gives way when the registry is full: one of the source that has the
    /// most, so that a flood is its own loss. Nothing else may decide. What is silent is no worse
    /// than what asks: a few connections keep clients asking. What was reported or cut off may be
    /// well: two hostile ends bring that about.
    fn spare_client(&self, source: Source, chain: &ChainName) -> Option<Serial> {
        let shares = &self.index.client_shares;
        // Where all have one client each the tip is the newest. If it went, no newcomer would ever
        // be linked with the one before it.
        let path = self.index.chains.get(chain).and_then(|chain| chain.path_ends());
        let tip = path.map(|(_, tip)| tip);
        shares.newest_of_most_new(source).or_else(|| shares.newest_of_most(source, tip))
    }

    /// Makes room for one more wait of a socket that no chain knows: the oldest goes, because what
    /// it waits for has not come for the longest time.
    pub(super) fn room_for_caller(&mut self, source: Source) {
        let bounds = (self.policy().repairs_max, self.policy().repairs_per_source_max);
        let spare = |registry: &Self, over| oldest(&registry.index.caller_shares, over, source);
        let evict = |registry: &mut Self, spare| {
            registry.give_up(AskRef::Caller(spare), Ended::MadeRoom);
        };
        self.make_room(source, bounds, |it| &it.index.caller_shares, spare, evict);
    }

    /// Makes room for one more EMNet entry. The oldest goes: an entry is asked for soon after it
    /// was made, or never.
    pub(super) fn room_for_peer(&mut self, source: Source) {
        let bounds = (self.policy().peers_max, self.policy().peers_per_source_max);
        let spare = |registry: &Self, over| oldest(&registry.index.peer_shares, over, source);
        self.make_room(source, bounds, |it| &it.index.peer_shares, spare, Self::evict);
    }

    /// Has answers go until there are no more than may be: always the oldest of the source that
    /// has the most, so that none pushes out those of others.
    pub(super) fn trim_answers(&mut self) {
        while self.index.answer_shares.len() > self.policy().repairs_max.max(1)
            && let Some(spare) = self.index.answer_shares.oldest_of_most(None)
        {
            self.evict(spare);
        }
    }

    /// Takes out an answer or an EMNet entry.
    fn evict(&mut self, serial: Serial) {
        let (about, what) = match self.remove(serial) {
            Some(Record::Answer(answer)) => (Some(answer.socket), Forgotten::Answer),
            Some(Record::Peer(_)) => (None, Forgotten::Peer),
            Some(Record::Client(_) | Record::Caller(_) | Record::Section(_)) | None => return,
        };
        self.note(Note { about: [about, None], session: None, what: What::MadeRoom(what) });
    }
}

/// Returns the entry that gives way in a table without clients.
fn oldest(shares: &Shares, over: Over, newcomer: Source) -> Option<Serial> {
    match over {
        Over::Share(holder) => shares.spare(holder),
        Over::Whole => shares.oldest_of_most(Some(newcomer)),
    }
}

#[cfg(test)]
mod tests;
