//! The shares of a table: the entries of each source, and of each network of sources, in
//! the order in which they make room (see [`super::room`]).

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::RangeInclusive,
};

use super::Serial;
use crate::ids::{Holder, Source};

/// The rank of an entry in making room for another one: of those of one holder, a client that was
/// reported or is new, else a silent one, else any.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Spare {
    /// Every entry that is no client. Its oldest goes; of clients it is the newest.
    Aging,
    /// A client that asks, most likely over a connection that lives.
    Asks,
    /// A client that is silent.
    Silent,
    /// A client that is silent, and whose partners, one or two, reported it to be gone.
    Reported,
    /// A client that is silent and never had a partner.
    New,
}

/// Networks by how much they have, and by the age of what they would give: each is found by the
/// entry that would go. An address decides nothing, so none is made up to have others go.
type Ranking = BTreeSet<(u32, Serial)>;

/// Where a network stands in the two rankings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Ranks {
    most: Option<(u32, Serial)>,
    most_new: Option<(u32, Serial)>,
}

/// The number of entries of a holder.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Held {
    all: u32,
    /// Those of clients that are silent and never had a partner.
    new: u32,
    /// Where it stands now, if it is a network: every change of an entry would look that up again.
    ranks: Ranks,
}

/// The entries of one table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Shares {
    entries: BTreeSet<(Holder, Spare, Serial)>,
    held: BTreeMap<Holder, Held>,
    /// The networks by all that they have.
    most: Ranking,
    /// The networks by their clients that are silent and never had a partner.
    most_new: Ranking,
    len: u64,
}

impl Shares {
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    pub(super) fn insert(&mut self, source: Source, spare: Spare, serial: Serial) {
        self.len += 1;
        for holder in source.holders() {
            self.entries.insert((holder, spare, serial));
            let held = self.held.entry(holder).or_default();
            held.all += 1;
            held.new += u32::from(spare == Spare::New);
        }
        self.rank(network_of(source));
    }

    pub(super) fn remove(&mut self, source: Source, spare: Spare, serial: Serial) {
        self.len -= 1;
        for holder in source.holders() {
            self.entries.remove(&(holder, spare, serial));
            let held = self.held.entry(holder).or_default();
            held.all -= 1;
            held.new -= u32::from(spare == Spare::New);
        }
        self.rank(network_of(source));
        for holder in source.holders() {
            if self.of(holder) == 0 {
                self.held.remove(&holder);
            }
        }
    }

    /// Ranks a network by what it has now.
    fn rank(&mut self, network: Holder) {
        let last = self.last(network);
        let spare = last.and_then(|last| self.spare_or(network, last));
        let held = self.held.entry(network).or_default();
        let now = Ranks {
            most: spare.map(|spare| (held.all, spare)),
            most_new: last.filter(|_| held.new > 0).map(|(_, newest)| (held.new, newest)),
        };
        let before = std::mem::replace(&mut held.ranks, now);
        for (ranking, before, now) in [
            (&mut self.most, before.most, now.most),
            (&mut self.most_new, before.most_new, now.most_new),
        ] {
            if before != now {
                before.inspect(|rank| _ = ranking.remove(rank));
                ranking.extend(now);
            }
        }
    }

    fn ranks(&self, source: Source) -> Ranks {
        self.held.get(&network_of(source)).map(|held| held.ranks).unwrap_or_default()
    }

    /// Returns the last entry of a holder.
    fn last(&self, holder: Holder) -> Option<(Spare, Serial)> {
        let (_, spare, serial) = self.entries.range(range_of(holder)).next_back()?;
        Some((*spare, *serial))
    }

    /// Returns the number of entries of a holder.
    pub(super) fn of(&self, holder: Holder) -> u64 {
        self.held.get(&holder).map(|held| held.all.into()).unwrap_or_default()
    }

    /// Returns the entry of a holder that makes room: the newest of its clients that make it the
    /// most readily, or, in a table without clients, its oldest.
    pub(super) fn spare(&self, holder: Holder) -> Option<Serial> {
        self.spare_or(holder, self.last(holder)?)
    }

    fn spare_or(&self, holder: Holder, (spare, last): (Spare, Serial)) -> Option<Serial> {
        match spare {
            Spare::Aging => self.entries.range(range_of(holder)).next().map(|first| first.2),
            Spare::Asks | Spare::Silent | Spare::Reported => Some(last),
            // One that was reported goes as readily as a new one, so the newer of the two goes.
            Spare::New => {
                let reported = (holder, Spare::Reported, Serial(0))..(holder, spare, Serial(0));
                let reported = self.entries.range(reported).next_back();
                Some(reported.map_or(last, |(_, _, reported)| last.max(*reported)))
            }
        }
    }

    /// Returns the client that makes room of the network that has the most; of equal ones of that
    /// of the newcomer, or else of the one whose client is the newest. The `tip` that the newcomer
    /// comes behind is passed over as long as another one has as many.
    pub(super) fn newest_of_most(&self, newcomer: Source, tip: Option<Serial>) -> Option<Serial> {
        let own = self.ranks(newcomer).most;
        let (most, last) = self.most.last()?;
        let is_other = |(_, spare): &(u32, Serial)| Some(*spare) != tip;
        let mut newest = self.most.range((*most, Serial(0))..).rev();
        pick(&self.most, own.filter(is_other), newest.find(|rank| is_other(rank))).or(Some(*last))
    }

    /// Returns the newest client that is silent and never had a partner, of the network that has
    /// the most such ones; of equal ones of that of the newcomer, or else of the one whose client
    /// is the newest.
    pub(super) fn newest_of_most_new(&self, newcomer: Source) -> Option<Serial> {
        pick(&self.most_new, self.ranks(newcomer).most_new, self.most_new.last())
    }

    /// Returns the entry that makes room in a table without clients: the oldest of the network that
    /// has the most; of equal ones of that of the newcomer, if there is one, or else the oldest of
    /// all of theirs.
    pub(super) fn oldest_of_most(&self, newcomer: Option<Source>) -> Option<Serial> {
        let own = newcomer.and_then(|newcomer| self.ranks(newcomer).most);
        let (most, _) = self.most.last()?;
        pick(&self.most, own, self.most.range((*most, Serial(0))..).next())
    }
}

/// Returns the offer of the newcomer's own network, if that is among those that have the most, or
/// else the offer of this other one.
fn pick(
    ranking: &Ranking,
    own: Option<(u32, Serial)>,
    other: Option<&(u32, Serial)>,
) -> Option<Serial> {
    let (most, _) = ranking.last()?;
    let own = own.filter(|(has, _)| has == most);
    own.or(other.copied()).map(|(_, spare)| spare)
}

fn network_of(source: Source) -> Holder {
    source.site().map_or(Holder::Source(source), Holder::Network)
}

fn range_of(holder: Holder) -> RangeInclusive<(Holder, Spare, Serial)> {
    (holder, Spare::Aging, Serial(0))..=(holder, Spare::New, Serial(u64::MAX))
}
