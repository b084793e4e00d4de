//! A part of one chain, for its readers. A chain may have millions of clients, so no reader is
//! shown all of them at once; what needs an eye, the gaps, is told for the whole chain.

use std::ops::Bound;

use super::{Caller, ChainTotals, Client, Record, Registry, Serial};
use crate::ids::{ChainName, Endpoint, Part, Timestamp};

/// How many gaps a window tells of.
const GAPS_MAX: usize = 200;

/// Where a window is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Around this client.
    Around(Serial),
    /// Ends before this place.
    Before(Serial),
    /// Begins at this place.
    From(Serial),
}

/// A part of one chain.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Window {
    /// How much there is in the whole chain.
    pub totals: ChainTotals,
    /// The oldest and the newest client, if there is any.
    pub ends: Option<(Serial, Serial)>,
    /// The clients whose heads are not linked with the next client, the oldest first: as many as
    /// are worth telling.
    pub gaps: Vec<Serial>,
    /// Whether there are clients before it, and after it.
    pub beyond: (bool, bool),
    /// The clients in it, the oldest first.
    pub clients: Vec<Serial>,
}

impl Registry {
    /// A window of at most `max` clients; `None` if there is no such chain. Takes time in
    /// proportion to `max`.
    pub fn window(&self, chain: &ChainName, place: Place, max: usize) -> Option<Window> {
        let chain = self.index.chains.get(chain)?;
        let ends = (*chain.members.first()?, *chain.members.last()?);
        let before = |at: Serial, count: usize| {
            let mut clients: Vec<_> =
                chain.members.range(..at).rev().take(count).copied().collect();
            clients.reverse();
            clients
        };
        let from = |at: Serial, count: usize| chain.members.range(at..).take(count).copied();
        let clients = match place {
            Place::Around(at) => {
                let mut clients = before(at, max / 2);
                clients.extend(from(at, max - clients.len()));
                clients
            }
            Place::Before(at) => before(at, max),
            Place::From(at) => from(at, max).collect(),
        };
        let beyond = (
            clients.first().is_some_and(|first| *first > ends.0),
            clients.last().is_some_and(|last| *last < ends.1),
        );
        let gaps = chain.loose.iter().filter(|serial| **serial != ends.1).take(GAPS_MAX).copied();
        Some(Window {
            totals: chain.totals(),
            ends: Some(ends),
            gaps: gaps.collect(),
            beyond,
            clients,
        })
    }

    /// The client that owns a socket, and which of its sockets it is.
    pub fn find(&self, socket: Endpoint) -> Option<(Serial, Part)> {
        self.index.sockets.get(&socket).copied()
    }

    /// A client by its serial.
    pub fn client(&self, serial: Serial) -> Option<&Client> {
        match self.image.records.get(serial)? {
            Record::Client(client) => Some(client),
            Record::Caller(_) | Record::Answer(_) | Record::Peer(_) => None,
        }
    }

    /// The neighbour in the path that a client's socket faces.
    pub fn neighbour(&self, serial: Serial, part: Part) -> Option<Serial> {
        let chain = &self.client(serial)?.chain;
        self.index.chains.get(chain)?.neighbour(serial, part)
    }

    /// The client that an asking socket will be linked with when the silent ones between them are
    /// taken out, and when that is.
    pub fn gathering(&self, serial: Serial, part: Part) -> Option<(Serial, Timestamp)> {
        let chain = self.index.chains.get(&self.client(serial)?.chain)?;
        let at = (serial, part);
        chain.asks.get(&at)?;
        let facing = match part {
            Part::Head => chain.asks.range((Bound::Excluded(at), Bound::Unbounded)).next(),
            Part::Tail => chain.asks.range(..at).next_back(),
        };
        let (facing, _) = facing.filter(|(_, facing)| *facing == part.opposite())?;
        let left = serial.min(*facing);
        self.index.gathers.get(&left).map(|at| (*facing, *at))
    }

    /// The waits of a socket that no chain knows.
    pub fn callers(&self, socket: Endpoint) -> Vec<&Caller> {
        let waits = self.index.callers.range((socket, Serial(0))..);
        let waits = waits.take_while(|(of, _)| *of == socket);
        let records = waits.filter_map(|(_, serial)| self.image.records.get(*serial));
        let callers = records.filter_map(|record| match record {
            Record::Caller(caller) => Some(caller),
            Record::Client(_) | Record::Answer(_) | Record::Peer(_) => None,
        });
        callers.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        ids::{
            HeadAddr, Incarnation, InstanceId, OrphanAddr, RepairId, SessionId, Socket, TailAddr,
        },
        registry::{Command, Proposal},
    };

    #[test]
    fn two_that_ask_past_a_silent_one_are_told_until_when() {
        let mut registry = Registry::default();
        let socket = |client: u64, port| Socket::parse(&format!("10.0.0.{client}:{port}")).unwrap();
        let source = "10.0.0.9".parse().unwrap();
        let mut connection = 0;
        let mut apply = |at, command: &dyn Fn(SessionId) -> Command| {
            connection += 1;
            let (instance, incarnation) = (InstanceId(1), Incarnation(0));
            let session = SessionId { instance, incarnation, connection };
            let commands = vec![command(session)];
            registry.apply(&Proposal { at: Timestamp(at), batch: None, commands });
        };
        for client in 1..=5 {
            apply(0, &|session| Command::Connect {
                session,
                source,
                chain: ChainName::default(),
                head: HeadAddr(socket(client, 1)),
                tail: TailAddr(socket(client, 2)),
            });
        }
        for (at, orphan) in [(10, socket(1, 1)), (20, socket(5, 2))] {
            apply(at, &|session| Command::Reconnect {
                session,
                source,
                id: RepairId(at.to_string().into()),
                orphan: OrphanAddr(orphan.clone()),
            });
        }
        // The second and the fourth were lost, and the third between them is silent.
        let place = |client, port| registry.find(socket(client, port).endpoint()).unwrap();
        let ((first, head), (last, tail)) = (place(1, 1), place(5, 2));
        let until = Timestamp(20 + registry.policy().gather_ms);
        assert_eq!(registry.gathering(first, head), Some((last, until)));
        assert_eq!(registry.gathering(last, tail), Some((first, until)));
        let (silent, tail) = place(3, 2);
        assert_eq!(registry.gathering(silent, tail), None);
        let shown = registry.window(&ChainName::default(), Place::From(Serial(0)), 9).unwrap();
        assert_eq!((shown.clients.len(), shown.gaps), (3, vec![first, silent]));
    }

    #[test]
    fn a_window_is_cut_from_the_chain_around_before_or_from_a_place() {
        let mut registry = Registry::default();
        for client in 1..=7_u16 {
            let (instance, incarnation) = (InstanceId(1), Incarnation(0));
            let socket = |port| Socket::parse(&format!("10.0.0.{client}:{port}")).unwrap();
            let connect = Command::Connect {
                session: SessionId { instance, incarnation, connection: client.into() },
                source: "10.0.0.9".parse().unwrap(),
                chain: ChainName::default(),
                head: HeadAddr(socket(1)),
                tail: TailAddr(socket(2)),
            };
            let commands = vec![connect];
            registry.apply(&Proposal { at: Timestamp(0), batch: None, commands });
        }
        let window = |place, max| registry.window(&ChainName::default(), place, max).unwrap();
        let all = window(Place::From(Serial(0)), 99).clients;
        assert_eq!(all.len(), 7);
        for (at, serial) in all.iter().enumerate() {
            for max in 0..9 {
                let begin = at - (max / 2).min(at);
                let cut = |begin: usize, end: usize| &all[begin..end.clamp(begin, 7)];
                for (place, expected) in [
                    (Place::Around(*serial), cut(begin, begin + max)),
                    (Place::Before(*serial), cut(at - max.min(at), at)),
                    (Place::From(*serial), cut(at, at + max)),
                ] {
                    let found = window(place, max);
                    assert_eq!(found.clients, expected, "{place:?} {max}");
                    assert_eq!(found.ends, Some((all[0], all[6])));
                    let beyond = (
                        expected.first().is_some_and(|first| *first != all[0]),
                        expected.last().is_some_and(|last| *last != all[6]),
                    );
                    assert_eq!(found.beyond, beyond, "{place:?} {max}");
                }
            }
        }
    }
}
