//! The largest chains in figures, for whoever watches them. There may be millions of chains, and
//! clients name them, so only a few are told apart.

use std::cmp::Reverse;

use super::{Registry, index::Chain};
use crate::ids::ChainName;

/// The chains in figures.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Census {
    /// The largest chains, the largest first.
    pub largest: Vec<(ChainName, ChainTotals)>,
    /// All other chains together; `None` if there are none.
    pub others: Option<ChainTotals>,
}

/// How much there is in a chain.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ChainTotals {
    /// Clients in the path; those taken out are not counted.
    pub clients: u64,
    /// Sockets that ask.
    pub asks: u64,
    /// Links in force.
    pub links: u64,
    /// Neighbours that are not linked.
    pub broken_links: u64,
}

impl ChainTotals {
    /// What two have together.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            clients: self.clients + other.clients,
            asks: self.asks + other.asks,
            links: self.links + other.links,
            broken_links: self.broken_links + other.broken_links,
        }
    }
}

impl Registry {
    /// The `named_max` largest chains, and what all others have together. Takes time in proportion
    /// to the number of chains, not of clients.
    pub fn census(&self, named_max: usize) -> Census {
        let mut chains: Vec<_> = self.index.chains.iter().collect();
        let rank =
            |(name, chain): &(&ChainName, &Chain)| (Reverse(chain.members.len()), (*name).clone());
        let others = if chains.len() > named_max {
            chains.select_nth_unstable_by_key(named_max, rank);
            let others = chains.split_off(named_max);
            Some(
                others
                    .iter()
                    .map(|(_, chain)| chain.totals())
                    .fold(<_>::default(), ChainTotals::plus),
            )
        } else {
            None
        };
        chains.sort_unstable_by_key(rank);
        let largest = chains.into_iter().map(|(name, chain)| (name.clone(), chain.totals()));
        Census { largest: largest.collect(), others }
    }
}

impl Chain {
    fn totals(&self) -> ChainTotals {
        let (members, links) = (self.members.len() as u64, self.links as u64);
        ChainTotals {
            clients: members,
            asks: self.asks.len() as u64,
            links,
            broken_links: members.saturating_sub(1 + links),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        ids::{HeadAddr, Incarnation, InstanceId, SessionId, Socket, TailAddr, Timestamp},
        registry::{Command, Proposal},
    };

    /// Chains of these lengths, named by their places.
    fn chains(lengths: &[u16]) -> Registry {
        let mut registry = Registry::default();
        let (instance, incarnation) = (InstanceId(1), Incarnation(0));
        for (name, length) in lengths.iter().enumerate() {
            for client in 0..*length {
                let socket = |port| Socket::parse(&format!("10.{name}.0.{client}:{port}")).unwrap();
                let connection = (name as u64) << 16 | u64::from(client);
                let connect = Command::Connect {
                    session: SessionId { instance, incarnation, connection },
                    source: "10.0.0.1".parse().unwrap(),
                    chain: ChainName(name.to_string().into()),
                    head: HeadAddr(socket(1)),
                    tail: TailAddr(socket(2)),
                };
                let commands = vec![connect];
                registry.apply(&Proposal { at: Timestamp(0), batch: None, commands });
            }
        }
        registry
    }

    #[test]
    fn the_largest_are_named_and_the_sum_is_whole() {
        let registry = chains(&[2, 5, 1, 5, 3]);
        let census = registry.census(3);
        let names: Vec<_> = census.largest.iter().map(|(name, _)| &*name.0).collect();
        assert_eq!(names, ["1", "3", "4"], "among equals the first name");
        let five = ChainTotals { clients: 5, asks: 1, links: 4, broken_links: 0 };
        assert_eq!(census.largest[0].1, five);
        let others = census.others.unwrap();
        assert_eq!(others, ChainTotals { clients: 3, asks: 2, links: 1, broken_links: 0 });
        let all = census.largest.iter().fold(others, |sum, (_, chain)| sum.plus(*chain));
        let totals = registry.totals();
        assert_eq!((all.clients, all.asks, all.links), (totals.clients, totals.asks, totals.links));
        assert_eq!(registry.census(5).others, None);
    }
}
