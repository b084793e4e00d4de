//! Everything that is looked up, derived from the records. A record's [`Key`]s are a function of
//! the record alone; when a record changes, the keys that differ are moved, so an index can not
//! drift from the records and can be rebuilt from them at any time.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use super::{
    Answer, Ask, AskRef, Caller, Client, Image, Line, Peer, Policy, Record, Request, Serial,
    Standing,
};
use crate::ids::{ChainName, Endpoint, Part, PeerId, RepairId, SessionId, Timestamp, is_local};

/// One entry of the index on behalf of one record.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Key {
    Socket(Endpoint, Part),
    Member(ChainName),
    Ask(ChainName, Part),
    Loose(ChainName),
    Session(SessionId, AskRef),
    Waiting(RepairId, AskRef),
    Caller(IpAddr, Endpoint),
    Owner(IpAddr),
    Answer(RepairId, Endpoint, IpAddr),
    Offer(AskRef, AskRef),
    Peer(PeerId),
    Timer(Timestamp, Timer),
}

/// What a deadline is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Timer {
    /// An ask is given up.
    Ask(AskRef),
    /// A record is forgotten.
    Forget(Serial),
    /// The silent clients after the head of this one are presumed dead.
    Gather(Serial),
}

/// The path of one chain.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Chain {
    /// Its clients in order.
    pub(super) members: BTreeSet<Serial>,
    /// The asking sockets in path order: a client's tail comes before its head.
    pub(super) asks: BTreeSet<(Serial, Part)>,
    /// The clients whose heads are not linked; the last one is always among them.
    pub(super) loose: BTreeSet<Serial>,
}

/// Chains by how much there is of something in them, the most first.
pub(super) type Ranking = BTreeSet<(Reverse<u64>, ChainName)>;

/// What one source address has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Holdings {
    /// Clients it owns.
    pub(super) clients: u64,
    /// Repair ids that it waits for and no chain knows.
    pub(super) callers: u64,
}

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
    pub(super) answers: BTreeMap<(RepairId, Endpoint, IpAddr), Serial>,
    /// The answers from the oldest to the newest.
    pub(super) answers_by_age: BTreeSet<Serial>,
    /// Asks whose address is on the way to a half-closed partner, and that partner.
    pub(super) offers: BTreeMap<AskRef, AskRef>,
    /// When the silent clients after the head of this one are presumed dead.
    pub(super) gathers: BTreeMap<Serial, Timestamp>,
    pub(super) peers: BTreeMap<PeerId, Serial>,
    pub(super) sources: BTreeMap<IpAddr, Holdings>,
    pub(super) timers: BTreeSet<(Timestamp, Timer)>,
    pub(super) clients: u64,
    pub(super) members: u64,
    pub(super) loose: u64,
    /// Asks of clients.
    pub(super) asks: u64,
    /// Places whose surroundings changed since they were last settled.
    pub(super) unsettled: BTreeSet<(ChainName, Serial)>,
    /// Asks that can be matched with more or with less than when they were last settled, though
    /// their places and ids are the same.
    pub(super) unsettled_asks: BTreeSet<AskRef>,
    /// Repair ids whose waiters changed since they were last settled.
    pub(super) unsettled_ids: BTreeSet<RepairId>,
}

impl Index {
    /// The index of `image`, with the places of asking heads to be settled once more, which sets
    /// their gather timers and changes nothing else.
    pub(super) fn build(image: &Image) -> Self {
        let mut index = Self::default();
        // The largest two are sorted as wholes: quicker than one by one, and denser in memory.
        let (mut sockets, mut timers) = (Vec::new(), Vec::new());
        for (serial, record) in image.records.iter() {
            for key in index_keys(serial, record, &image.meta.policy) {
                if let Key::Socket(endpoint, part) = key {
                    sockets.push((endpoint, (serial, part)));
                } else if let Key::Timer(at, timer) = key {
                    timers.push((at, timer));
                } else {
                    index.add(serial, &key);
                }
            }
        }
        index.sockets = sockets.into_iter().collect();
        index.timers = timers.into_iter().collect();
        for (name, chain) in &index.chains {
            index.by_size.insert((Reverse(chain.len()), name.clone()));
            if chain.gaps() > 0 {
                index.by_gaps.insert((Reverse(chain.gaps()), name.clone()));
            }
        }
        // A registry at rest is settled.
        index.unsettled_asks = index.offers.iter().flat_map(|(to, from)| [*to, *from]).collect();
        for (name, chain) in &index.chains {
            let heads = chain.asks.iter().filter(|(_, part)| *part == Part::Head);
            index.unsettled.extend(heads.map(|(serial, _)| (name.clone(), *serial)));
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
        // A client stays in its chain.
        let chain = old.iter().chain(new).find_map(|key| match key {
            Key::Member(chain) => Some(chain),
            Key::Socket(..)
            | Key::Ask(..)
            | Key::Loose(_)
            | Key::Session(..)
            | Key::Waiting(..)
            | Key::Caller(..)
            | Key::Owner(_)
            | Key::Answer(..)
            | Key::Offer(..)
            | Key::Peer(_)
            | Key::Timer(..) => None,
        });
        let before = chain.map(|name| self.ranks(name));
        for key in old.iter().filter(|key| !new.contains(key)) {
            self.remove(serial, key);
            self.unsettle(serial, key);
        }
        for key in new.iter().filter(|key| !old.contains(key)) {
            self.add(serial, key);
            self.unsettle(serial, key);
        }
        if let (Some(name), Some(before)) = (chain, before) {
            self.rank(name, before);
        }
    }

    /// How much a chain counts in each ranking; nothing in those that it is not in.
    fn ranks(&self, name: &ChainName) -> [u64; 2] {
        self.chains.get(name).map(|chain| [chain.len(), chain.gaps()]).unwrap_or_default()
    }

    /// Follows a chain that counted for `before`.
    fn rank(&mut self, name: &ChainName, before: [u64; 2]) {
        let now = self.ranks(name);
        let rankings = [&mut self.by_size, &mut self.by_gaps];
        for ((ranking, before), now) in rankings.into_iter().zip(before).zip(now) {
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
            Key::Member(chain) | Key::Ask(chain, _) | Key::Loose(chain) => {
                self.unsettled.insert((chain.clone(), serial));
            }
            Key::Waiting(id, _) => {
                self.unsettled_ids.insert(id.clone());
            }
            Key::Offer(to, from) => self.unsettled_asks.extend([*to, *from]),
            Key::Socket(..)
            | Key::Session(..)
            | Key::Caller(..)
            | Key::Owner(_)
            | Key::Answer(..)
            | Key::Peer(_)
            | Key::Timer(..) => {}
        }
    }

    fn add(&mut self, serial: Serial, key: &Key) {
        match key {
            Key::Socket(endpoint, part) => {
                self.sockets.insert(*endpoint, (serial, *part));
            }
            Key::Member(chain) => {
                self.chain_mut(chain).members.insert(serial);
                self.members += 1;
            }
            Key::Ask(chain, part) => {
                self.chain_mut(chain).asks.insert((serial, *part));
                self.asks += 1;
            }
            Key::Loose(chain) => {
                self.chain_mut(chain).loose.insert(serial);
                self.loose += 1;
            }
            Key::Session(session, ask) => {
                self.sessions.insert((*session, *ask));
            }
            Key::Waiting(id, ask) => {
                self.waiting.insert((id.clone(), *ask));
            }
            Key::Caller(source, socket) => {
                self.sources.entry(*source).or_default().callers += 1;
                self.callers.insert((*socket, serial));
            }
            Key::Owner(source) => {
                self.sources.entry(*source).or_default().clients += 1;
                self.clients += 1;
            }
            Key::Answer(id, socket, source) => {
                self.answers.insert((id.clone(), *socket, *source), serial);
                self.answers_by_age.insert(serial);
            }
            Key::Offer(to, from) => {
                self.offers.insert(*to, *from);
            }
            Key::Peer(id) => {
                self.peers.insert(*id, serial);
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
                self.chain_mut(chain).members.remove(&serial);
                self.members -= 1;
            }
            Key::Ask(chain, part) => {
                self.chain_mut(chain).asks.remove(&(serial, *part));
                self.asks -= 1;
            }
            Key::Loose(chain) => {
                self.chain_mut(chain).loose.remove(&serial);
                self.loose -= 1;
            }
            Key::Session(session, ask) => {
                self.sessions.remove(&(*session, *ask));
            }
            Key::Waiting(id, ask) => {
                self.waiting.remove(&(id.clone(), *ask));
            }
            Key::Caller(source, socket) => {
                self.release_source(*source, |held| held.callers -= 1);
                self.callers.remove(&(*socket, serial));
            }
            Key::Owner(source) => {
                self.release_source(*source, |held| held.clients -= 1);
                self.clients -= 1;
            }
            Key::Answer(id, socket, source) => {
                self.answers.remove(&(id.clone(), *socket, *source));
                self.answers_by_age.remove(&serial);
            }
            Key::Offer(to, _) => {
                self.offers.remove(to);
            }
            Key::Peer(id) => {
                self.peers.remove(id);
            }
            Key::Timer(at, timer) => {
                self.timers.remove(&(*at, *timer));
            }
        }
    }

    fn chain_mut(&mut self, chain: &ChainName) -> &mut Chain {
        self.chains.entry(chain.clone()).or_default()
    }

    fn release_source(&mut self, source: IpAddr, take: impl FnOnce(&mut Holdings)) {
        let held = self.sources.entry(source).or_default();
        take(held);
        if *held == Holdings::default() {
            self.sources.remove(&source);
        }
    }

    /// Sets or clears the time at which the silent clients after `left` are presumed dead.
    pub(super) fn gather_at(&mut self, left: Serial, deadline: Option<Timestamp>) {
        let previous = match deadline {
            Some(at) => self.gathers.insert(left, at),
            None => self.gathers.remove(&left),
        };
        if let Some(at) = previous {
            self.timers.remove(&(at, Timer::Gather(left)));
        }
        if let Some(at) = deadline {
            self.timers.insert((at, Timer::Gather(left)));
        }
    }

    /// The asks that a session holds.
    pub(super) fn asks_of(&self, session: SessionId) -> Vec<AskRef> {
        self.sessions
            .range((session, LOWEST)..)
            .take_while(|(of, _)| *of == session)
            .map(|(_, ask)| *ask)
            .collect()
    }

    /// Whether a session holds any ask.
    pub(super) fn holds_asks(&self, session: SessionId) -> bool {
        self.sessions.range((session, LOWEST)..).next().is_some_and(|(of, _)| *of == session)
    }

    /// The asks that wait with a repair id.
    pub(super) fn asks_with(&self, id: &RepairId) -> Vec<AskRef> {
        self.waiting
            .range((id.clone(), LOWEST)..)
            .take_while(|(of, _)| of == id)
            .map(|(_, ask)| *ask)
            .collect()
    }

    /// What is counted against a source address: `None` for the operator's own networks.
    pub(super) fn holdings(&self, source: IpAddr) -> Option<Holdings> {
        (!is_local(source)).then(|| self.sources.get(&source).copied().unwrap_or_default())
    }
}

impl Chain {
    /// How many clients are in the path.
    pub(super) fn len(&self) -> u64 {
        self.members.len() as u64
    }

    /// How many neighbours are not linked.
    pub(super) fn gaps(&self) -> u64 {
        (self.loose.len() as u64).saturating_sub(1)
    }

    /// The neighbour that a client's socket faces.
    pub(super) fn neighbour(&self, serial: Serial, part: Part) -> Option<Serial> {
        match part {
            Part::Tail => self.members.range(..serial).next_back().copied(),
            Part::Head => self.members.range(Serial(serial.0 + 1)..).next().copied(),
        }
    }
}

/// The first [`AskRef`] in order.
pub(super) const LOWEST: AskRef = AskRef::Side(Serial(0), Part::Tail);

fn index_keys(serial: Serial, record: &Record, policy: &Policy) -> Vec<Key> {
    match record {
        Record::Client(client) => client_keys(serial, client, policy),
        Record::Caller(caller) => caller_keys(serial, caller),
        Record::Answer(Answer { id, socket, source, until, .. }) => vec![
            Key::Answer(id.clone(), *socket, *source),
            Key::Timer(*until, Timer::Forget(serial)),
        ],
        Record::Peer(Peer { id, until, .. }) => {
            vec![Key::Peer(*id), Key::Timer(*until, Timer::Forget(serial))]
        }
    }
}

fn client_keys(serial: Serial, client: &Client, policy: &Policy) -> Vec<Key> {
    let mut keys = Vec::with_capacity(12);
    keys.push(Key::Owner(client.source));
    let member = client.standing == Standing::Member;
    if member {
        keys.push(Key::Member(client.chain.clone()));
        if !client.head_side.is_linked() {
            keys.push(Key::Loose(client.chain.clone()));
        }
    }
    let mut asks = false;
    for part in [Part::Tail, Part::Head] {
        keys.push(Key::Socket(client.socket(part).endpoint(), part));
        if let Some(ask) = client.side(part).ask() {
            asks = true;
            keys.push(Key::Ask(client.chain.clone(), part));
            push_ask_keys(&mut keys, AskRef::Side(serial, part), ask);
        }
    }
    let (retention, for_ever) = match client.standing {
        Standing::Out => (policy.retention_ms, false),
        Standing::Member => (policy.client_retention_ms, policy.client_retention_ms == 0),
    };
    if !asks && !for_ever {
        keys.push(Key::Timer(client.refreshed.plus_ms(retention), Timer::Forget(serial)));
    }
    keys
}

fn caller_keys(serial: Serial, caller: &Caller) -> Vec<Key> {
    let mut keys = vec![Key::Caller(caller.source, caller.socket.endpoint())];
    push_ask_keys(&mut keys, AskRef::Caller(serial), &caller.ask);
    keys
}

fn push_ask_keys(keys: &mut Vec<Key>, at: AskRef, ask: &Ask) {
    keys.push(Key::Session(ask.session, at));
    keys.push(Key::Timer(ask.until, Timer::Ask(at)));
    if let Request::Reconnect(id) = &ask.request {
        keys.push(Key::Waiting(id.clone(), at));
    }
    if let Line::Offered(to) = ask.line {
        keys.push(Key::Offer(to, at));
    }
}
