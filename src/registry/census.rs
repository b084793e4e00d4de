//! The largest chains in figures, for monitoring. There may be millions of chains, and clients name
//! them, so only a few are told apart.

use super::Registry;
use crate::ids::ChainName;

/// The chains in figures.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Census {
    /// The largest chains, the largest first.
    pub largest: Vec<(ChainName, ChainTotals)>,
    /// All other chains together; `None` if there are none.
    pub others: Option<ChainTotals>,
}

/// The contents of a chain, in numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ChainTotals {
    /// Clients, including those that are cut off.
    pub clients: u64,
    /// Clients that are cut off from the path.
    pub cut_off: u64,
    /// Sockets that ask.
    pub asks: u64,
    /// Links between neighbours in the path.
    pub links: u64,
    /// Neighbours in the path that are not linked, and should be.
    pub broken_links: u64,
}

/// In which order chains are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order<'a> {
    /// Those with neighbours that are not linked, the most of them first.
    Gaps,
    /// Those whose names begin like this, by name.
    Name {
        /// The beginning of the names.
        prefix: &'a str,
    },
    /// The largest first.
    Size,
}

impl ChainTotals {
    /// Returns the sum of two.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            clients: self.clients + other.clients,
            cut_off: self.cut_off + other.cut_off,
            asks: self.asks + other.asks,
            links: self.links + other.links,
            broken_links: self.broken_links + other.broken_links,
        }
    }

    /// Returns the rest without `part`.
    fn minus(self, part: Self) -> Self {
        Self {
            clients: self.clients - part.clients,
            cut_off: self.cut_off - part.cut_off,
            asks: self.asks - part.asks,
            links: self.links - part.links,
            broken_links: self.broken_links - part.broken_links,
        }
    }
}

impl Registry {
    /// Returns the `named_max` largest chains, and what all others have together. Takes time in
    /// proportion to `named_max`.
    pub fn census(&self, named_max: usize) -> Census {
        let largest = self.chains(Order::Size, named_max);
        let named = largest.iter().fold(ChainTotals::default(), |sum, (_, chain)| sum.plus(*chain));
        let all = ChainTotals {
            clients: self.index.clients(),
            cut_off: self.index.cut_off,
            asks: self.index.asks,
            links: self.index.links,
            broken_links: self.index.gaps,
        };
        let others = (self.index.chains.len() > named_max).then(|| all.minus(named));
        Census { largest, others }
    }

    /// Returns the first chains in some order.
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

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use super::*;
    use crate::{
        ids::{
            HeadAddr, Incarnation, InstanceId, OrphanAddr, RepairId, SessionId, Socket, Source,
            TailAddr, Timestamp,
        },
        registry::{Command, Proposal},
    };

    const SOURCE: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));

    fn session(connection: u64) -> SessionId {
        SessionId { instance: InstanceId(1), incarnation: Incarnation(0), connection }
    }

    fn socket(name: usize, client: u16, port: u16) -> Socket {
        Socket::parse(&format!("10.{name}.0.{client}:{port}")).unwrap()
    }

    fn apply(registry: &mut Registry, command: Command) {
        registry.apply(&Proposal { at: Timestamp(0), batch: None, commands: vec![command] });
    }

    /// Chains of these lengths, named by their places.
    fn chains(lengths: &[u16]) -> Registry {
        let mut registry = Registry::default();
        for (name, length) in lengths.iter().enumerate() {
            for client in 0..*length {
                let connect = Command::Connect {
                    session: session((name as u64) << 16 | u64::from(client)),
                    source: Source::of(SOURCE),
                    chain: ChainName(name.to_string().into()),
                    head: HeadAddr(socket(name, client, HEAD)),
                    tail: TailAddr(socket(name, client, TAIL)),
                };
                apply(&mut registry, connect);
            }
        }
        registry
    }

    const HEAD: u16 = 1;
    const TAIL: u16 = 2;

    /// A client says that the neighbour of one of its sockets is gone.
    fn lose(registry: &mut Registry, name: usize, client: u16, port: u16) {
        let connection = u64::from(port) << 32 | (name as u64) << 16 | u64::from(client);
        let reconnect = Command::Reconnect {
            session: session(connection),
            source: Source::of(SOURCE),
            id: RepairId(connection.to_string().into()),
            orphan: OrphanAddr(socket(name, client, port)),
        };
        apply(registry, reconnect);
    }

    #[test]
    fn the_largest_are_named_and_the_sum_is_whole() {
        let registry = chains(&[2, 5, 1, 5, 3]);
        let census = registry.census(3);
        let names: Vec<_> = census.largest.iter().map(|(name, _)| &*name.0).collect();
        assert_eq!(names, ["1", "3", "4"], "among equals the first name");
        let five = ChainTotals { clients: 5, asks: 1, links: 4, ..ChainTotals::default() };
        assert_eq!(census.largest[0].1, five);
        let others = census.others.unwrap();
        assert_eq!(others, ChainTotals { clients: 3, asks: 2, links: 1, ..ChainTotals::default() });
        let all = census.largest.iter().fold(others, |sum, (_, chain)| sum.plus(*chain));
        let totals = registry.totals();
        assert_eq!((all.clients, all.asks, all.links), (totals.clients, totals.asks, totals.links));
        assert_eq!(registry.census(5).others, None);
    }

    #[test]
    fn broken_links_are_counted_for_each_chain_and_for_all() {
        let mut registry = chains(&[9, 7]);
        lose(&mut registry, 0, 1, HEAD);
        lose(&mut registry, 1, 1, HEAD);
        lose(&mut registry, 1, 4, HEAD);
        let census = registry.census(1);
        // Of nine clients two ask: the one that lost its neighbour, and the newest.
        let largest = ChainTotals { clients: 9, cut_off: 0, asks: 2, links: 7, broken_links: 1 };
        let others = ChainTotals { clients: 7, cut_off: 0, asks: 3, links: 4, broken_links: 2 };
        assert_eq!((census.largest[0].1, census.others), (largest, Some(others)));
        let sum = ChainTotals { clients: 16, cut_off: 0, asks: 5, links: 11, broken_links: 3 };
        assert_eq!(largest.plus(others), sum);
        let totals = registry.totals();
        assert_eq!((totals.links, totals.broken_links), (11, 3));
        assert_eq!((totals.clients, totals.chains), (16, 2));
    }

    #[test]
    fn clients_that_are_cut_off_are_counted_with_the_others_and_alone() {
        let mut registry = chains(&[4, 2]);
        lose(&mut registry, 0, 0, HEAD);
        lose(&mut registry, 0, 2, TAIL);
        let expected = ChainTotals { clients: 4, cut_off: 1, asks: 1, links: 2, broken_links: 0 };
        assert_eq!(registry.census(1).largest[0].1, expected);
        let totals = registry.totals();
        assert_eq!((totals.clients, totals.cut_off, totals.links), (6, 1, 3));
    }

    #[test]
    fn registries_are_equal_if_their_records_are() {
        let mut registry = chains(&[3]);
        assert!(registry == chains(&[3]) && registry != chains(&[4]));
        lose(&mut registry, 0, 0, HEAD);
        assert!(registry != chains(&[3]) && registry == registry.clone());
    }
}
