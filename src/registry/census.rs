//! The largest chains in figures, for monitoring. There may be millions of chains, and clients name
//! them, so only a few are told apart.

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

/// In which order chains are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order<'a> {
    /// Those with neighbours that are not linked, the most of them first.
    Gaps,
    /// Those whose names begin like this, by name.
    Name {
        /// How the names begin.
        prefix: &'a str,
    },
    /// The largest first.
    Size,
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

    /// What is left without a part of it.
    fn minus(self, part: Self) -> Self {
        Self {
            clients: self.clients - part.clients,
            asks: self.asks - part.asks,
            links: self.links - part.links,
            broken_links: self.broken_links - part.broken_links,
        }
    }
}

impl Registry {
    /// The `named_max` largest chains, and what all others have together. Takes time in proportion
    /// to `named_max`.
    pub fn census(&self, named_max: usize) -> Census {
        let largest = self.chains(Order::Size, named_max);
        let named = largest.iter().fold(ChainTotals::default(), |sum, (_, chain)| sum.plus(*chain));
        let all = ChainTotals {
            clients: self.index.members,
            asks: self.index.asks,
            links: self.index.members - self.index.loose,
            broken_links: self.index.loose - self.index.chains.len() as u64,
        };
        let others = (self.index.chains.len() > named_max).then(|| all.minus(named));
        Census { largest, others }
    }

    /// The first chains in some order.
    pub fn chains(&self, order: Order<'_>, max: usize) -> Vec<(ChainName, ChainTotals)> {
        let totals = |name: &ChainName| {
            self.index.chains.get(name).map(|chain| (name.clone(), chain.totals()))
        };
        match order {
            Order::Gaps => {
                self.index.by_gaps.iter().filter_map(|(_, n)| totals(n)).take(max).collect()
            }
            Order::Name { prefix } => {
                let first = ChainName(prefix.into());
                let from = self.index.chains.range(first..);
                from.take_while(|(name, _)| name.0.starts_with(prefix))
                    .map(|(name, chain)| (name.clone(), chain.totals()))
                    .take(max)
                    .collect()
            }
            Order::Size => {
                self.index.by_size.iter().filter_map(|(_, n)| totals(n)).take(max).collect()
            }
        }
    }
}

impl Chain {
    pub(super) fn totals(&self) -> ChainTotals {
        ChainTotals {
            clients: self.len(),
            asks: self.asks.len() as u64,
            links: self.len() - self.loose.len() as u64,
            broken_links: self.gaps(),
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
