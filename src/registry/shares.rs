//! Who holds how much of a table: the entries of each source, and of each network of sources, in
//! the order in which they make room (see [`super::room`]).

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::RangeInclusive,
};

use super::Serial;
use crate::ids::{Holder, Network, Source};

/// How readily an entry makes room for another one: what comes last goes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Spare {
    /// A client that asks, most likely over a connection that lives.
    Asks,
    /// A client that is silent; or whatever is no client.
    Silent,
    /// A client that is silent and never had a partner, or was reported to be gone.
    Lone,
}

impl Spare {
    const ALL: [Self; 3] = [Self::Asks, Self::Silent, Self::Lone];
}

/// How many entries a holder has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Held {
    all: u32,
    /// Those of silent clients, lone ones among them.
    silent: u32,
    lone: u32,
}

impl Held {
    /// Those that make room as readily as that, or more so.
    fn at_least(&mut self, spare: Spare) -> &mut u32 {
        match spare {
            Spare::Asks => &mut self.all,
            Spare::Silent => &mut self.silent,
            Spare::Lone => &mut self.lone,
        }
    }
}

/// The entries of one table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Shares {
    entries: BTreeSet<(Holder, Spare, Serial)>,
    held: BTreeMap<Holder, Held>,
    /// The networks by how much of each kind they could give.
    most: BTreeMap<Spare, BTreeSet<(u32, Network)>>,
    len: u64,
}

impl Shares {
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    pub(super) fn insert(&mut self, source: Source, spare: Spare, serial: Serial) {
        self.len += 1;
        self.count(source, spare, |count| *count += 1);
        self.entries.extend(source.holders().map(|holder| (holder, spare, serial)));
    }

    pub(super) fn remove(&mut self, source: Source, spare: Spare, serial: Serial) {
        self.len -= 1;
        self.count(source, spare, |count| *count -= 1);
        for holder in source.holders() {
            self.entries.remove(&(holder, spare, serial));
        }
    }

    fn count(&mut self, source: Source, spare: Spare, change: impl Fn(&mut u32)) {
        let network = source.network();
        for holder in source.holders() {
            let held = self.held.entry(holder).or_default();
            let is_network = source.site().is_none_or(|site| holder == Holder::Network(site));
            for kind in Spare::ALL.into_iter().filter(|kind| *kind <= spare) {
                let count = held.at_least(kind);
                let before = *count;
                change(count);
                if is_network && kind > Spare::Asks {
                    let ranking = self.most.entry(kind).or_default();
                    ranking.remove(&(before, network));
                    ranking.extend((*count > 0).then_some((*count, network)));
                    if ranking.is_empty() {
                        self.most.remove(&kind);
                    }
                }
            }
            if held.all == 0 {
                self.held.remove(&holder);
            }
        }
    }

    /// How many entries a holder has.
    pub(super) fn of(&self, holder: Holder) -> u64 {
        self.held.get(&holder).map(|held| held.all.into()).unwrap_or_default()
    }

    /// The newest of the entries of a holder that make room the most readily.
    pub(super) fn newest(&self, holder: Holder) -> Option<Serial> {
        let mut entries = self.entries.range(range_of(holder));
        entries.next_back().map(|(_, _, serial)| *serial)
    }

    /// The oldest of the entries of a holder, in a table without clients.
    pub(super) fn oldest(&self, holder: Holder) -> Option<Serial> {
        let mut entries = self.entries.range(range_of(holder));
        entries.next().map(|(_, _, serial)| *serial)
    }

    /// The network that could give the most entries that make room as readily as that, or more so.
    /// Of equal ones it is that of the newcomer, if there is one, or else the last in the order of
    /// addresses.
    pub(super) fn largest(&self, spare: Spare, newcomer: Option<Source>) -> Option<Holder> {
        let ranking = self.most.get(&spare)?;
        let (most, last) = ranking.last()?;
        let own = newcomer.map(Source::network).filter(|own| ranking.contains(&(*most, *own)));
        let network = own.unwrap_or(*last);
        Some(network.only_source().map_or(Holder::Network(network), Holder::Source))
    }
}

fn range_of(holder: Holder) -> RangeInclusive<(Holder, Spare, Serial)> {
    (holder, Spare::Asks, Serial(0))..=(holder, Spare::Lone, Serial(u64::MAX))
}
