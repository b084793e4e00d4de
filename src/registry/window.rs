//! A part of one chain, for people to look at. A chain may have millions of clients, so a part
//! of its path is shown; what needs an eye, the gaps and the runs that are cut off, is told for the
//! whole chain.

use super::{
    Caller, ChainTotals, Client, Cut, Record, Registry, Serial, index::Timer, path::Chain,
};
use crate::ids::{ChainName, Endpoint, Part, Timestamp};

/// The most gaps, and the most runs that are cut off, in a window.
const GAPS_MAX: usize = 200;

/// The most clients without a link at their heads that are checked for gaps.
const LOOSE_MAX: usize = 10 * GAPS_MAX;

/// Where a window is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// At the beginning of the path.
    Start,
    /// Around this client, in its run.
    Around(Serial),
    /// Ends before this place.
    Before(Serial),
    /// Begins at this place, or after it if no client is there.
    From(Serial),
    /// Begins after this place.
    After(Serial),
}

/// A part of one chain.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Window {
    /// The contents of the whole chain, in numbers.
    pub totals: ChainTotals,
    /// The first and the last client of the run that is shown, if there is any.
    pub ends: Option<(Serial, Serial)>,
    /// The clients of the path whose heads are not linked with the next client, and should be: as
    /// many as are worth telling.
    pub gaps: Vec<Serial>,
    /// Runs that are cut off: as many as are worth telling.
    pub cut_off: Vec<CutOff>,
    /// Whether there are clients before it, and after it.
    pub beyond: (bool, bool),
    /// The clients in it, in the order of the run.
    pub clients: Vec<Serial>,
}

/// A run that is cut off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CutOff {
    /// Its first client.
    pub first: Serial,
    /// Its last client.
    pub last: Serial,
    /// The number of clients.
    pub clients: u64,
    /// Since when, and why.
    pub cut: Cut,
}

impl Registry {
    /// Returns a window of at most `max` clients; `None` if there is no such chain. Takes time in
    /// proportion to `max`.
    pub fn window(&self, chain: &ChainName, place: Place, max: usize) -> Option<Window> {
        let chain = self.index.chains.get(chain)?;
        let walk = |from: Option<Serial>, part: Part, count: usize| {
            let next = |at: &Serial| chain.neighbour(*at, part);
            std::iter::successors(from, next).take(count).collect::<Vec<_>>()
        };
        let before = |at: Serial, count: usize| {
            let mut clients = walk(chain.neighbour(at, Part::Tail), Part::Tail, count);
            clients.reverse();
            clients
        };
        let from = |at: Serial, count: usize| {
            let here = chain.clients.contains(at).then_some(at);
            walk(here.or_else(|| chain.neighbour(at, Part::Head)), Part::Head, count)
        };
        let path = chain.path_ends();
        let clients = match place {
            Place::Start => walk(path.map(|(first, _)| first), Part::Head, max),
            Place::Around(at) => {
                let mut clients = before(at, max / 2);
                clients.extend(from(at, max - clients.len()));
                clients
            }
            Place::Before(at) => before(at, max),
            Place::From(at) => from(at, max),
            Place::After(at) => walk(chain.neighbour(at, Part::Head), Part::Head, max),
        };
        let ends = match clients.first() {
            Some(first) => chain.ends(*first),
            None => path,
        };
        let beyond = |end: Option<&Serial>, part| {
            end.is_some_and(|end| chain.neighbour(*end, part).is_some())
        };
        Some(Window {
            totals: chain.totals(),
            ends,
            gaps: self.gaps(chain),
            cut_off: self.runs_cut_off(chain),
            beyond: (beyond(clients.first(), Part::Tail), beyond(clients.last(), Part::Head)),
            clients,
        })
    }

    /// Returns the clients of the path before broken links, as many as are worth telling.
    fn gaps(&self, chain: &Chain) -> Vec<Serial> {
        let is_gap = |serial: &Serial| {
            let after = chain.neighbour(*serial, Part::Head);
            after.is_some_and(|after| !chain.marked.contains(after)) && chain.is_path(*serial)
        };
        chain.loose.iter().take(LOOSE_MAX).filter(is_gap).take(GAPS_MAX).collect()
    }

    fn runs_cut_off(&self, chain: &Chain) -> Vec<CutOff> {
        let fronts = chain.sections.fronts().take(GAPS_MAX + 1);
        let run = |front| {
            let cut = self.section(front)?.cut?;
            let (first, last) = chain.ends(chain.sections.range(front).0)?;
            Some(CutOff { first, last, clients: chain.sections.run(front).clients, cut })
        };
        fronts.filter_map(run).take(GAPS_MAX).collect()
    }

    /// Returns the client that owns a socket, and which of its sockets it is.
    pub fn find(&self, socket: Endpoint) -> Option<(Serial, Part)> {
        self.index.sockets.get(&socket).copied()
    }

    /// Returns a client by its serial.
    pub fn client(&self, serial: Serial) -> Option<&Client> {
        self.image.records.get(serial)?.client()
    }

    /// Returns the neighbour in its run that a client's socket faces.
    pub fn neighbour(&self, serial: Serial, part: Part) -> Option<Serial> {
        let chain = &self.client(serial)?.chain;
        self.index.chains.get(chain)?.neighbour(serial, part)
    }

    /// Returns whether a client is in the path of its chain.
    pub fn is_path(&self, serial: Serial) -> bool {
        let client = self.client(serial);
        let chain = client.and_then(|client| self.index.chains.get(&client.chain));
        chain.is_some_and(|chain| chain.is_path(serial))
    }

    /// Returns the client that an asking socket will be linked with when the silent ones between
    /// them are cut off, and when that is.
    pub fn gathering(&self, serial: Serial, part: Part) -> Option<(Serial, Timestamp)> {
        let chain = self.index.chains.get(&self.client(serial)?.chain)?;
        chain.asks.get(&(serial, part))?;
        let facing = chain.across((serial, part))?;
        let left = if part == Part::Head { serial } else { facing };
        self.index.windows.get(&Timer::Gather(left)).map(|at| (facing, *at))
    }

    /// Returns when an asking tail, before which no head asks, counts as first, or brings its run
    /// back.
    pub fn waits_as_first(&self, serial: Serial) -> Option<Timestamp> {
        self.index.windows.get(&Timer::Front(serial)).copied()
    }

    /// Returns the waits of a socket that no chain knows.
    pub fn callers(&self, socket: Endpoint) -> Vec<&Caller> {
        let waits = self.index.callers.range((socket, Serial(0))..);
        let waits = waits.take_while(|(of, _)| *of == socket);
        let records = waits.filter_map(|(_, serial)| self.image.records.get(*serial));
        records.filter_map(Record::caller).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        ids::{
            HeadAddr, Incarnation, InstanceId, OrphanAddr, RepairId, SessionId, Socket, Source,
            TailAddr,
        },
        registry::{Command, Proposal},
    };

    #[test]
    fn two_that_ask_past_a_silent_one_are_told_until_when() {
        let mut registry = Registry::default();
        let socket = |client: u64, port| Socket::parse(&format!("10.0.0.{client}:{port}")).unwrap();
        let source = Source::of("10.0.0.9".parse().unwrap());
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
        assert_eq!((shown.clients.len(), shown.gaps.len()), (5, 2));
        let _ = silent;
    }

    #[test]
    fn a_window_is_cut_from_the_chain_around_before_or_from_a_place() {
        let mut registry = Registry::default();
        for client in 1..=7_u16 {
            let (instance, incarnation) = (InstanceId(1), Incarnation(0));
            let socket = |port| Socket::parse(&format!("10.0.0.{client}:{port}")).unwrap();
            let connect = Command::Connect {
                session: SessionId { instance, incarnation, connection: client.into() },
                source: Source::of("10.0.0.9".parse().unwrap()),
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
