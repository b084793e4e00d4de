//! Those that have a place and may have to give it up, by age and by holder: what one source or
//! site takes too much of is its own loss. Every rule for making room among connections goes by
//! this.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
};

use crate::{
    ids::{Holder, Source},
    limits::LOCAL_PLACES,
};

/// The order in which they came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Arrival(u64);

/// The rank of a holder in giving a place up: the one that has the most comes last, and of equals
/// the one that has had one for the longest time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Weight {
    places: usize,
    members: usize,
    oldest: Reverse<Arrival>,
}

impl Weight {
    /// That of a holder, if it has any members.
    fn of(holder: Holder, arrivals: &BTreeSet<Arrival>) -> Option<Self> {
        let members = arrivals.len();
        let places = if holder.is_local() { members / LOCAL_PLACES } else { members };
        Some(Self { places, members, oldest: Reverse(*arrivals.first()?) })
    }
}

/// Members, each of a source.
#[derive(Debug)]
pub(crate) struct Crowd<T> {
    members: BTreeMap<Arrival, (Source, T)>,
    by_holder: BTreeMap<Holder, BTreeSet<Arrival>>,
    by_weight: BTreeSet<(Weight, Holder)>,
    arrivals: u64,
}

impl<T> Default for Crowd<T> {
    fn default() -> Self {
        Self {
            members: BTreeMap::new(),
            by_holder: BTreeMap::new(),
            by_weight: BTreeSet::new(),
            arrivals: 0,
        }
    }
}

impl<T> Crowd<T> {
    /// Returns the number of places taken.
    pub(crate) fn len(&self) -> usize {
        self.members.len()
    }

    /// Returns the number of places of a holder.
    pub(crate) fn len_of(&self, holder: Holder) -> usize {
        self.by_holder.get(&holder).map_or(0, BTreeSet::len)
    }

    /// Returns whether one is still here.
    pub(crate) fn has(&self, arrival: Arrival) -> bool {
        self.members.contains_key(&arrival)
    }

    /// Takes one in, as the latest.
    pub(crate) fn enter(&mut self, source: Source, member: T) -> Arrival {
        self.arrivals += 1;
        let arrival = Arrival(self.arrivals);
        self.change(source, |arrivals| arrivals.insert(arrival));
        self.members.insert(arrival, (source, member));
        arrival
    }

    /// Lets one go; `None` if it is gone.
    pub(crate) fn leave(&mut self, arrival: Arrival) -> Option<(Source, T)> {
        let (source, member) = self.members.remove(&arrival)?;
        self.change(source, |arrivals| arrivals.remove(&arrival));
        Some((source, member))
    }

    /// Lets go those that do not stay.
    pub(crate) fn retain(&mut self, stays: impl Fn(&T) -> bool) {
        let all = self.members.iter();
        let going: Vec<_> =
            all.filter(|(_, (_, member))| !stays(member)).map(|(it, _)| *it).collect();
        for arrival in going {
            self.leave(arrival);
        }
    }

    /// Returns the oldest of a holder.
    pub(crate) fn oldest(&self, holder: Holder) -> Option<Arrival> {
        self.by_holder.get(&holder)?.first().copied()
    }

    /// Returns the oldest of the holder that has the most.
    pub(crate) fn oldest_of_largest(&self) -> Option<Arrival> {
        let (weight, _) = self.by_weight.last()?;
        Some(weight.oldest.0)
    }

    fn change(&mut self, source: Source, change: impl Fn(&mut BTreeSet<Arrival>) -> bool) {
        for holder in source.holders() {
            let arrivals = self.by_holder.entry(holder).or_default();
            if let Some(before) = Weight::of(holder, arrivals) {
                self.by_weight.remove(&(before, holder));
            }
            change(arrivals);
            match Weight::of(holder, arrivals) {
                Some(now) => drop(self.by_weight.insert((now, holder))),
                None => drop(self.by_holder.remove(&holder)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(address: &str) -> Source {
        Source::of(address.parse().unwrap())
    }

    /// Has this number make room, and returns their addresses.
    fn gone(crowd: &mut Crowd<String>, count: usize) -> Vec<String> {
        let next = |_| crowd.leave(crowd.oldest_of_largest()?).map(|(_, member)| member);
        (0..count).map_while(next).collect()
    }

    fn crowd(addresses: &[&str]) -> Crowd<String> {
        let mut crowd = Crowd::default();
        for address in addresses {
            crowd.enter(of(address), (*address).to_owned());
        }
        crowd
    }

    #[test]
    fn the_oldest_of_the_largest_goes_and_of_equals_the_oldest() {
        let [a, b, c] = ["203.0.113.1", "203.0.113.2", "203.0.113.3"];
        let mut all = crowd(&[a, b, c, c, c, b]);
        assert_eq!(gone(&mut all, 9), [c, b, c, a, c, b]);
        assert!(all.len() == 0 && all.by_holder.is_empty() && all.by_weight.is_empty());
    }

    #[test]
    fn a_site_is_one_however_many_sources_it_has() {
        let sites = ["2001:db8:7:1::1", "2001:db8:7:2::1", "2001:db8:7:3::1"];
        let mut all =
            crowd(&[&["203.0.113.1", "203.0.113.1", "2001:db8:8::1"], &sites[..]].concat());
        assert_eq!(gone(&mut all, 2), [sites[0], "203.0.113.1"]);
        assert_eq!(
            all.oldest(Holder::Network(of(sites[0]).network())),
            all.oldest(Holder::Source(of(sites[1])))
        );
    }

    #[test]
    fn local_sources_have_places_that_others_do_not_get() {
        let (local, public) = (["127.0.0.1"; LOCAL_PLACES], ["203.0.113.1"; 2]);
        let mut all = crowd(&[&local[..], &public].concat());
        assert_eq!(gone(&mut all, 3), [public[0], local[0], public[1]]);
    }
}
