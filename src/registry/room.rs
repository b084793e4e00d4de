//! Room: what gives way when a table is full, or when one source has as much of it as it may
//! (rule 19 of `proto-docs/chains.md`). A bound keeps no client out for good: what one hand has
//! made too much of goes, and the newcomer comes in.
//!
//! What goes is found in O(log n): an index holds the entries of each source and network in the
//! order in which they go, and the networks by what they could give.

use super::{
    AskRef, Cause, Ended, Forgotten, Note, Record, Refusal, Registry, Serial, What,
    policy::NETWORK_SHARES,
    shares::{Shares, Spare},
};
use crate::ids::{Holder, SessionId, Source};

/// How many entries give way to one newcomer at most: one in the common case, and two if a table
/// holds more than it may, as after a change of settings, so that it comes down to its bound in the
/// end.
const EVICTIONS_MAX: usize = 2;

/// What a newcomer would be too many for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Over {
    /// The share of one source or network.
    Share(Holder),
    /// The table.
    Whole,
}

impl Over {
    /// Why a newcomer stays out; `full` if it is the table.
    fn refusal(self, full: Refusal) -> Refusal {
        match self {
            Self::Share(_) => Refusal::SourceFull,
            Self::Whole => full,
        }
    }
}

/// What one more entry from `source` is too many for, in a table of `whole` entries of which each
/// source may have `each`. While the table is no more than half full, no source is bounded.
fn over(shares: &Shares, source: Source, whole: u64, each: u64) -> Option<Over> {
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
    ///
    /// # Errors
    /// Nothing can give way; what the newcomer is too many for.
    fn make_room(
        &mut self,
        source: Source,
        bounds: (u64, u64),
        shares: fn(&Self) -> &Shares,
        spare: impl Fn(&Self, Over) -> Option<Serial>,
        evict: impl Fn(&mut Self, Serial),
    ) -> Result<(), Over> {
        let (whole, each) = bounds;
        for evicted in 0..EVICTIONS_MAX {
            let Some(over) = over(shares(self), source, whole, each) else { break };
            match spare(self, over) {
                Some(spare) => evict(self, spare),
                None if evicted == 0 => return Err(over),
                None => break,
            }
        }
        Ok(())
    }

    /// Makes room for one more client.
    ///
    /// # Errors
    /// Nothing can give way.
    pub(super) fn room_for_client(
        &mut self,
        source: Source,
        session: SessionId,
    ) -> Result<(), Refusal> {
        let bounds = (self.policy().clients_max, self.policy().clients_per_source_max);
        let spare = |registry: &Self, over| match over {
            // The newest of all: clients that were linked long ago have no connection and are well,
            // so one that floods the table behind an address of many pushes out what it has just
            // made.
            Over::Share(holder) => registry.index.client_shares.newest(holder),
            Over::Whole => registry.spare_client(source),
        };
        let evict = |registry: &mut Self, spare| {
            registry.forget_client(spare, Cause::MadeRoom, Some(session));
            registry.settle();
        };
        let made = self.make_room(source, bounds, |it| &it.index.client_shares, spare, evict);
        made.map_err(|over| over.refusal(Refusal::ClientsFull))
    }

    /// The client that gives way when the registry is full: one of the source that has the most, so
    /// that a flood is its own loss. Nothing else may decide: two hostile ends cut honest clients
    /// off, and neighbours that make room leave honest ones without a partner.
    fn spare_client(&self, source: Source) -> Option<Serial> {
        let shares = &self.index.client_shares;
        let of_most = |spare| shares.newest(shares.largest(spare, Some(source))?);
        of_most(Spare::Lone)
            .or_else(|| of_most(Spare::Silent))
            .or_else(|| shares.newest(Holder::Source(source)))
    }

    /// Makes room for one more wait of a socket that no chain knows: the oldest goes, for what it
    /// waits for has not come for the longest time.
    ///
    /// # Errors
    /// Nothing can give way.
    pub(super) fn room_for_caller(&mut self, source: Source) -> Result<(), Refusal> {
        let bounds = (self.policy().repairs_max, self.policy().repairs_per_source_max);
        let spare =
            |registry: &Self, over| oldest(&registry.index.caller_shares, over, Some(source));
        let evict = |registry: &mut Self, spare| {
            registry.give_up(AskRef::Caller(spare), Ended::MadeRoom);
        };
        let made = self.make_room(source, bounds, |it| &it.index.caller_shares, spare, evict);
        made.map_err(|over| over.refusal(Refusal::RepairsFull))
    }

    /// Makes room for one more EMNet entry; whether there is any. The oldest goes: an entry is
    /// asked for soon after it was made, or never.
    pub(super) fn room_for_peer(&mut self, source: Source) -> bool {
        let bounds = (self.policy().peers_max, self.policy().peers_per_source_max);
        let spare = |registry: &Self, over| oldest(&registry.index.peer_shares, over, Some(source));
        self.make_room(source, bounds, |it| &it.index.peer_shares, spare, Self::evict).is_ok()
    }

    /// Has answers go until there are no more than may be: always the oldest of the source that
    /// has the most, so that none pushes out those of others.
    pub(super) fn trim_answers(&mut self) {
        while self.index.answer_shares.len() > self.policy().repairs_max
            && let Some(spare) = oldest(&self.index.answer_shares, Over::Whole, None)
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

/// What gives way in a table without clients.
fn oldest(shares: &Shares, over: Over, newcomer: Option<Source>) -> Option<Serial> {
    let holder = match over {
        Over::Share(holder) => holder,
        Over::Whole => shares.largest(Spare::Silent, newcomer)?,
    };
    shares.oldest(holder)
}

#[cfg(test)]
mod tests;
