//! Everything that is looked up, derived from the records. A record's [`Key`]s are a function of
//! the record alone; when a record changes, the keys that differ are moved, so an index can not
//! drift from the records and can be rebuilt from them at any time.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
};

use super::{
    AskRef, Image, Policy, Record, Serial,
    keys::{Key, index_keys},
    path::Chain,
    shares::{Shares, Spare},
};
use crate::ids::{ChainName, Endpoint, Part, PeerId, RepairId, SessionId, Source, Timestamp};

/// The subject of a deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Timer {
    /// An ask is given up.
    Ask(AskRef),
    /// A record is forgotten.
    Forget(Serial),
    /// The silent clients after the head of this one are cut off.
    Gather(Serial),
    /// The asking tail of this one has no asking head before it: it counts as first, or the run
    /// that is cut off is split before it.
    Front(Serial),
    /// An ask may be paired by its id with a socket that it does not face.
    Free(AskRef),
}

/// The weight of a chain in rankings and in totals.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Ranks {
    clients: u64,
    cut_off: u64,
    gaps: u64,
    links: u64,
}

/// Chains by how much there is of something in them, the most first.
pub(super) type Ranking = BTreeSet<(Reverse<u64>, ChainName)>;

/// All look-ups.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Index {
    pub(super) sockets: BTreeMap<Endpoint, (Serial, Part)>,
    pub(super) chains: BTreeMap<ChainName, Chain>,
    /// All chains by their clients.
    pub(super) by_size: Ranking,
    /// The chains with neighbours that are not linked, by how many.
    pub(super) by_gaps: Ranking,
    pub(super) sessions: BTreeSet<(SessionId, AskRef)>,
    pub(super) waiting: BTreeSet<(RepairId, AskRef)>,
    /// Sockets that no chain knows, and their waits.
    pub(super) callers: BTreeSet<(Endpoint, Serial)>,
    pub(super) answers: BTreeMap<(RepairId, Endpoint, Source), Serial>,
    /// Asks whose address is on the way to a half-closed partner, and that partner.
    pub(super) offers: BTreeMap<AskRef, AskRef>,
    /// The windows that are open, and when each ends.
    pub(super) windows: BTreeMap<Timer, Timestamp>,
    /// The asks that an id may pair, each with the chain of its client.
    pub(super) free: BTreeSet<(RepairId, Option<ChainName>, AskRef)>,
    pub(super) peers: BTreeMap<PeerId, Serial>,
    /// The clients by their owners.
    pub(super) client_shares: Shares,
    /// The waits of sockets that no chain knows, by their owners.
    pub(super) caller_shares: Shares,
    /// The answers by those that may ask again.
    pub(super) answer_shares: Shares,
    /// The EMNet entries by those that gave them.
    pub(super) peer_shares: Shares,
    pub(super) timers: BTreeSet<(Timestamp, Timer)>,
    /// Clients that are cut off.
    pub(super) cut_off: u64,
    /// Neighbours in paths that are not linked, and should be.
    pub(super) gaps: u64,
    /// Links between clients of paths.
    pub(super) links: u64,
    /// Asks of clients.
    pub(super) asks: u64,
    /// Places whose surroundings changed since they were last settled.
    pub(super) unsettled: BTreeSet<(ChainName, Serial)>,
    /// Asks that began or ceased to have part in an offer since they were last settled.
    pub(super) unsettled_offers: BTreeSet<AskRef>,
    /// Asks that can be matched with more or with less than when they were last settled.
    pub(super) unsettled_asks: BTreeSet<AskRef>,
    /// The chains that changed since they were last ranked, and what they counted for then.
    unranked: BTreeMap<ChainName, Ranks>,
}

impl Index {
    /// Returns the index of `image`, with the places of asking heads to be settled once more, which
    /// sets their gather timers and changes nothing else.
    pub(super) fn build(image: &Image) -> Self {
        let mut index = Self::default();
        // The largest two are sorted as wholes: quicker than one by one, and denser in memory.
        let (mut sockets, mut timers, mut runs) = (Vec::new(), Vec::new(), Vec::new());
        for (serial, record) in image.records.iter() {
            for key in index_keys(serial, record, &image.meta.policy) {
                if let Key::Socket(endpoint, part) = key {
                    sockets.push((endpoint, (serial, part)));
                } else if let Key::Timer(at, timer) = key {
                    timers.push((at, timer));
                } else if let Key::Next(..) = key {
                    // A run is put together when all its sections are there.
                    runs.push((serial, key));
                } else {
                    index.add(serial, &key);
                }
            }
        }
        runs.iter().for_each(|(serial, key)| index.add(*serial, key));
        index.sockets = sockets.into_iter().collect();
        index.timers = timers.into_iter().collect();
        let names: Vec<ChainName> = index.chains.keys().cloned().collect();
        for name in names {
            index.rank(&name, Ranks::default());
        }
        // A registry at rest is settled; only the windows are to be opened again.
        index.unsettled_asks = index.waiting.iter().map(|(_, at)| *at).collect();
        for (name, chain) in &index.chains {
            index.unsettled.extend(chain.asks.iter().map(|(serial, _)| (name.clone(), *serial)));
        }
        index
    }

    /// Follows the change of one record; `None` stands for "not there".
    pub(super) fn update(
        &mut self,
        serial: Serial,
        old: Option<&Record>,
        new: Option<&Record>,
        policy: &Policy,
    ) {
        let keys = |record: Option<&Record>| {
            record.map(|record| index_keys(serial, record, policy)).unwrap_or_default()
        };
        self.replace(serial, &keys(old), &keys(new));
    }

    fn replace(&mut self, serial: Serial, old: &[Key], new: &[Key]) {
        // A client stays in its chain, and so does a section.
        let chain = old.iter().chain(new).find_map(|key| match key {
            Key::Member(chain) | Key::Section(chain) => Some(chain),
            Key::Socket(..)
            | Key::Ask(..)
            | Key::Doubt(..)
            | Key::Loose(_)
            | Key::Marked(_)
            | Key::First(..)
            | Key::Last(..)
            | Key::Next(..)
            | Key::Session(..)
            | Key::Waiting(..)
            | Key::Caller(..)
            | Key::Owner(..)
            | Key::Answer(..)
            | Key::Offer(..)
            | Key::Peer(..)
            | Key::Timer(..) => None,
        });
        if let Some(name) = chain
            && !self.unranked.contains_key(name)
        {
            self.unranked.insert(name.clone(), self.ranks(name));
        }
        // What was added last goes first: a section leaves its run before it goes.
        for key in old.iter().rev().filter(|key| !new.contains(key)) {
            self.remove(serial, key);
            self.unsettle(serial, key);
        }
        for key in new.iter().filter(|key| !old.contains(key)) {
            self.add(serial, key);
            self.unsettle(serial, key);
        }
    }

    /// Ranks the chains that changed. Once for all that a command brought about: what a chain
    /// counts for is found out by walks through its sections.
    pub(super) fn rank_changed(&mut self) {
        for (name, before) in std::mem::take(&mut self.unranked) {
            self.rank(&name, before);
        }
    }

    /// Returns the weight of a chain in each ranking and in the totals; nothing if it is not there.
    fn ranks(&self, name: &ChainName) -> Ranks {
        let chain = self.chains.get(name);
        let ranks = |chain: &Chain| Ranks {
            clients: chain.len(),
            cut_off: chain.cut_off(),
            gaps: chain.gaps(),
            links: chain.links(),
        };
        chain.map(ranks).unwrap_or_default()
    }

    /// Follows a chain that counted for `before`.
    fn rank(&mut self, name: &ChainName, before: Ranks) {
        let now = self.ranks(name);
        self.cut_off = self.cut_off - before.cut_off + now.cut_off;
        self.gaps = self.gaps - before.gaps + now.gaps;
        self.links = self.links - before.links + now.links;
        let rankings = [
            (&mut self.by_size, before.clients, now.clients),
            (&mut self.by_gaps, before.gaps, now.gaps),
        ];
        for (ranking, before, now) in rankings {
            if before != now {
                ranking.remove(&(Reverse(before), name.clone()));
                if now > 0 {
                    ranking.insert((Reverse(now), name.clone()));
                }
            }
        }
    }

    /// Notes what has to be settled again because this key came or went.
    fn unsettle(&mut self, serial: Serial, key: &Key) {
        match key {
            Key::Member(chain) | Key::Ask(chain, _) | Key::Loose(chain) | Key::Marked(chain) => {
                self.unsettled.insert((chain.clone(), serial));
            }
            Key::Waiting(_, at, _) => {
                self.unsettled_asks.insert(*at);
            }
            Key::Offer(to, from) => self.unsettled_offers.extend([*to, *from]),
            // What cuts and joins runs says which places it concerns.
            Key::Section(_) | Key::First(..) | Key::Last(..) | Key::Next(..) => {}
            Key::Socket(..)
            | Key::Doubt(..)
            | Key::Session(..)
            | Key::Caller(..)
            | Key::Owner(..)
            | Key::Answer(..)
            | Key::Peer(..)
            | Key::Timer(..) => {}
        }
    }

    fn add(&mut self, serial: Serial, key: &Key) {
        match key {
            Key::Socket(endpoint, part) => {
                self.sockets.insert(*endpoint, (serial, *part));
            }
            Key::Member(chain) => {
                self.change_chain(chain, serial, |chain| chain.clients.insert(serial));
            }
            Key::Ask(chain, part) => {
                self.change_chain(chain, serial, |chain| {
                    chain.set_asks(serial, *part, true);
                });
                self.asks += 1;
            }
            Key::Doubt(chain, _) => self.chain_mut(chain).doubts += 1,
            Key::Loose(chain) => {
                self.change_chain(chain, serial, |chain| chain.loose.insert(serial));
            }
            Key::Marked(chain) => {
                self.change_chain(chain, serial, |chain| chain.marked.insert(serial));
            }
            Key::Section(chain) => self.chain_mut(chain).sections.insert(serial),
            Key::First(chain, first) => self.chain_mut(chain).sections.set_first(serial, *first),
            Key::Last(chain, last) => {
                let chain = self.chain_mut(chain);
                chain.sections.set_last(serial, *last);
                chain.sum_section(serial);
            }
            Key::Next(chain, next) => self.chain_mut(chain).sections.link(serial, *next),
            Key::Session(session, ask) => {
                self.sessions.insert((*session, *ask));
            }
            Key::Waiting(id, ask, _) => {
                self.waiting.insert((id.clone(), *ask));
            }
            Key::Caller(source, socket) => {
                self.caller_shares.insert(*source, Spare::Aging, serial);
                self.callers.insert((*socket, serial));
            }
            Key::Owner(source, spare) => self.client_shares.insert(*source, *spare, serial),
            Key::Answer(id, socket, source) => {
                self.answers.insert((id.clone(), *socket, *source), serial);
                self.answer_shares.insert(*source, Spare::Aging, serial);
            }
            Key::Offer(to, from) => {
                self.offers.insert(*to, *from);
            }
            Key::Peer(id, source) => {
                self.peers.insert(*id, serial);
                self.peer_shares.insert(*source, Spare::Aging, serial);
            }
            Key::Timer(at, timer) => {
                self.timers.insert((*at, *timer));
            }
        }
    }

    fn remove(&mut self, serial: Serial, key: &Key) {
        match key {
            Key::Socket(endpoint, _) => {
                self.sockets.remove(endpoint);
            }
            Key::Member(chain) => {
                self.change_chain(chain, serial, |chain| chain.clients.remove(serial));
            }
            Key::Ask(chain, part) => {
                self.change_chain(chain, serial, |chain| {
                    chain.set_asks(serial, *part, false);
                });
                self.asks -= 1;
            }
            Key::Doubt(chain, _) => self.chain_mut(chain).doubts -= 1,
            Key::Loose(chain) => {
                self.change_chain(chain, serial, |chain| chain.loose.remove(serial));
            }
            Key::Marked(chain) => {
                self.change_chain(chain, serial, |chain| chain.marked.remove(serial));
            }
            Key::Section(chain) => self.chain_mut(chain).sections.remove(serial),
            Key::First(chain, first) => self.chain_mut(chain).sections.forget_first(*first),
            Key::Last(..) => {} // another one takes its place, or the section goes
            Key::Next(chain, _) => self.chain_mut(chain).sections.unlink(serial),
            Key::Session(session, ask) => {
                self.sessions.remove(&(*session, *ask));
            }
            Key::Waiting(id, ask, chain) => {
                self.waiting.remove(&(id.clone(), *ask));
                self.free.remove(&(id.clone(), chain.clone(), *ask));
            }
            Key::Caller(source, socket) => {
                self.caller_shares.remove(*source, Spare::Aging, serial);
                self.callers.remove(&(*socket, serial));
            }
            Key::Owner(source, spare) => self.client_shares.remove(*source, *spare, serial),
            Key::Answer(id, socket, source) => {
                self.answers.remove(&(id.clone(), *socket, *source));
                self.answer_shares.remove(*source, Spare::Aging, serial);
            }
            Key::Offer(to, _) => {
                self.offers.remove(to);
            }
            Key::Peer(id, source) => {
                self.peers.remove(id);
                self.peer_shares.remove(*source, Spare::Aging, serial);
            }
            Key::Timer(at, timer) => {
                self.timers.remove(&(*at, *timer));
            }
        }
    }

    fn chain_mut(&mut self, chain: &ChainName) -> &mut Chain {
        self.chains.entry(chain.clone()).or_default()
    }

    /// Changes what a chain has at a serial.
    fn change_chain(&mut self, chain: &ChainName, serial: Serial, change: impl FnOnce(&mut Chain)) {
        self.chain_mut(chain).change_at(serial, change);
    }

    /// Opens a window that ends at `deadline`, or closes it.
    pub(super) fn set_window(&mut self, window: Timer, deadline: Option<Timestamp>) {
        let previous = match deadline {
            Some(at) => self.windows.insert(window, at),
            None => self.windows.remove(&window),
        };
        if previous == deadline {
            return;
        }
        if let Some(at) = previous {
            self.timers.remove(&(at, window));
        }
        if let Some(at) = deadline {
            self.timers.insert((at, window));
        }
    }

    /// Returns the asks that a session holds.
    pub(super) fn asks_of(&self, session: SessionId) -> Vec<AskRef> {
        self.sessions
            .range((session, LOWEST)..)
            .take_while(|(of, _)| *of == session)
            .map(|(_, ask)| *ask)
            .collect()
    }

    /// Returns whether a session holds any ask.
    pub(super) fn holds_asks(&self, session: SessionId) -> bool {
        self.sessions.range((session, LOWEST)..).next().is_some_and(|(of, _)| *of == session)
    }

    /// Returns the asks that wait with a repair id.
    pub(super) fn asks_with(&self, id: &RepairId) -> impl Iterator<Item = AskRef> + '_ {
        let of_id = id.clone();
        let waiting = self.waiting.range((id.clone(), LOWEST)..);
        waiting.take_while(move |(of, _)| *of == of_id).map(|(_, ask)| *ask)
    }

    /// Returns the number of clients, over all chains.
    pub(super) fn clients(&self) -> u64 {
        self.client_shares.len()
    }
}

/// The first [`AskRef`] in order.
pub(super) const LOWEST: AskRef = AskRef::Side(Serial(0), Part::Tail);
