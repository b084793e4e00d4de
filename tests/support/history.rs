//! Everything that clients were told, held against itself with every new word.
//!
//! A link exists here from the moment that either side was told of it. Only a repair that this test
//! asked for may end one. So everything else that is told to a client, ever, must agree.

#![allow(dead_code, reason = "each test program uses its own part")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
    sync::{Mutex, MutexGuard},
    time::{Duration, Instant},
};

use emnetchain::clock;

use super::{
    random::Random,
    support::{Member, told},
};

/// What clients were told.
#[derive(Debug, Default)]
pub(crate) struct History(Mutex<Words>);

/// A link that ended with its middle, and its two sides.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Gap {
    /// The client before the one that left.
    pub(crate) before: Member,
    /// The client after it.
    pub(crate) after: Member,
}

/// A repair that both sides were told of.
#[derive(Clone, Debug)]
pub(crate) struct Repair {
    /// What each side sent: the id and its own socket.
    pub(crate) requests: [(String, String); 2],
    /// Clients whose links it made, if the sockets were clients'.
    pub(crate) members: Vec<Member>,
}

#[derive(Debug, Default)]
struct Words {
    /// How often clients were told anything.
    count: u64,
    /// Every socket that was ever announced.
    announced: BTreeSet<String>,
    /// Socket by partner, in both directions.
    partners: BTreeMap<String, String>,
    /// The client that no other is before.
    first: Option<u16>,
    /// When each client announced itself first, and was first told anything.
    lives: BTreeMap<u16, (u64, Option<u64>)>,
    /// Clients that were told all they waited for.
    settled: BTreeSet<u16>,
    /// Clients that a worker is asking for or about.
    busy: BTreeSet<u16>,
    /// Settled clients that were told something since [`History::take_fresh`].
    fresh: BTreeSet<u16>,
    /// Clients of which a request went astray. It may still arrive, so that we would not know what
    /// to expect if they left.
    doubtful: BTreeSet<u16>,
    /// How many clients left.
    gone: usize,
    repairs: Vec<Repair>,
    /// Everything that was told, in this order.
    journal: Vec<Word>,
}

/// That a socket was told its partner.
#[derive(Debug)]
struct Word {
    at: Instant,
    socket: String,
    partner: String,
    request: String,
}

impl Words {
    /// What was told to and of these, a line for each word.
    fn story(&self, sockets: &[&str]) -> String {
        let mut story = String::new();
        let concerns = |socket: &String| sockets.contains(&socket.as_str());
        let words = self.journal.iter();
        for word in words.filter(|word| concerns(&word.socket) || concerns(&word.partner)) {
            let Word { at, socket, partner, request } = word;
            let seconds = (*at - self.journal[0].at).as_secs_f64();
            let _ = write!(story, "\n{seconds:.3} s: {socket} was told {partner}, by {request}");
        }
        story
    }
}

impl History {
    fn words(&self) -> MutexGuard<'_, Words> {
        // A thread that panicked with it has failed the test already; the others need not repeat
        // that.
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// How often clients were told anything.
    pub(crate) fn count(&self) -> u64 {
        self.words().count
    }

    /// The longest time since then in which no client was told anything.
    pub(crate) fn longest_silence(&self, since: Instant) -> Duration {
        let words = self.words();
        let told = words.journal.iter().map(|word| word.at).filter(|at| *at > since);
        let ends = told.clone().chain([clock::now()]);
        let silences = [since].into_iter().chain(told).zip(ends).map(|(from, to)| to - from);
        silences.max().expect("it has an end")
    }

    /// A client is about to announce its sockets.
    pub(crate) fn announce(&self, member: Member) {
        let mut words = self.words();
        let now = words.count;
        words.announced.extend([member.head(), member.tail()]);
        words.lives.insert(member.0, (now, None));
        words.busy.insert(member.0);
    }

    /// A stranger is about to name its socket.
    pub(crate) fn announce_stranger(&self, socket: &str) {
        self.words().announced.insert(socket.to_owned());
    }

    /// A socket was told its partner.
    pub(crate) fn told(&self, socket: &str, partner: &str, request: &str) {
        let mut words = self.words();
        let [socket_, partner_, request] = [socket, partner, request].map(str::to_owned);
        words.journal.push(Word { at: clock::now(), socket: socket_, partner: partner_, request });
        words.count += 1;
        let now = words.count;
        assert!(words.announced.contains(partner), "{socket} was told {partner}: no client's");
        assert_ne!(owner(socket), owner(partner), "{socket} was linked to its own client");
        for (one, other) in [(socket, partner), (partner, socket)] {
            let known = words.partners.insert(one.to_owned(), other.to_owned());
            if let Some(known) = known.filter(|known| known != other) {
                let story = words.story(&[socket, partner, &known]);
                panic!("{socket} was told {partner}, but {one} had {known} before{story}");
            }
        }
        let heard = words.lives.get_mut(&owner(socket));
        if let Some((_, heard)) = heard.filter(|_| !is_stranger(socket)) {
            heard.get_or_insert(now);
        }
    }

    /// What was told to and of these, a line for each word.
    pub(crate) fn story(&self, sockets: &[&str]) -> String {
        self.words().story(sockets)
    }

    /// A request for this socket went astray.
    pub(crate) fn doubt(&self, socket: &str) {
        if !is_stranger(socket) {
            self.words().doubtful.insert(owner(socket));
        }
    }

    /// What a client must be told if it asks again, word for word.
    pub(crate) fn expected(&self, member: Member) -> String {
        let words = self.words();
        let part = |name, socket: String| words.partners.get(&socket).map(|ip| told(name, ip));
        let parts = [part("tail", member.tail()), part("head", member.head())];
        parts.into_iter().flatten().collect()
    }

    /// Whether no other client was told that none is before it.
    pub(crate) fn may_be_first(&self, member: Member) -> bool {
        self.words().first.is_none_or(|first| first == member.0)
    }

    /// A client was told that no other is before it.
    pub(crate) fn is_first(&self, member: Member) {
        let mut words = self.words();
        let first = *words.first.get_or_insert(member.0);
        if member.0 != first {
            let sockets = [member, Member(first)].map(|member| [member.head(), member.tail()]);
            let story =
                words.story(&sockets.as_flattened().iter().map(String::as_str).collect::<Vec<_>>());
            panic!("clients {first} and {} are told that no other is before them{story}", member.0);
        }
    }

    /// A client was told all it waited for.
    pub(crate) fn settle(&self, member: Member) {
        let mut words = self.words();
        words.settled.insert(member.0);
        words.fresh.insert(member.0);
        words.busy.remove(&member.0);
    }

    /// Takes a settled client that no worker is busy with; [`Self::release`] gives it back.
    pub(crate) fn take_any(&self, random: &mut Random) -> Option<Member> {
        let mut words = self.words();
        let free: Vec<u16> = words.settled.difference(&words.busy).copied().collect();
        let member = *random.pick(&free)?;
        words.busy.insert(member);
        Some(Member(member))
    }

    /// Takes all that were told something since the last time and that no worker is busy with.
    pub(crate) fn take_fresh(&self) -> Vec<Member> {
        let mut words = self.words();
        let words = &mut *words;
        let free: Vec<u16> = words.fresh.difference(&words.busy).copied().collect();
        words.busy.extend(&free);
        words.fresh.clear();
        free.into_iter().filter(|member| words.settled.contains(member)).map(Member).collect()
    }

    /// No worker is busy with these any more.
    pub(crate) fn release(&self, members: &[Member]) {
        let mut words = self.words();
        for member in members {
            words.busy.remove(&member.0);
        }
    }

    /// Ends the life of a client between two others, all of them settled; its links are gone, and
    /// the two are taken.
    pub(crate) fn take_gap(&self, random: &mut Random) -> Option<Gap> {
        let mut words = self.words();
        let free: Vec<u16> = words.settled.difference(&words.busy).copied().collect();
        let gone = Member(*random.pick(&free)?);
        let before = words.partners.get(&gone.tail()).map(|socket| Member(owner(socket)))?;
        let after = words.partners.get(&gone.head()).map(|socket| Member(owner(socket)))?;
        if ![before, after].iter().all(|neighbour| free.contains(&neighbour.0)) {
            return None;
        }
        if [before, gone, after].iter().any(|member| words.doubtful.contains(&member.0)) {
            return None;
        }
        words.busy.extend([before.0, after.0]);
        words.settled.remove(&gone.0);
        words.fresh.remove(&gone.0);
        words.gone += 1;
        for socket in [gone.head(), gone.tail(), before.head(), after.tail()] {
            words.partners.remove(&socket);
        }
        Some(Gap { before, after })
    }

    /// Both sides of a repair were told.
    pub(crate) fn repaired(&self, repair: Repair) {
        let mut words = self.words();
        for member in &repair.members {
            words.busy.remove(&member.0);
            words.fresh.insert(member.0);
        }
        words.repairs.push(repair);
    }

    /// How many repairs both sides were told of.
    pub(crate) fn repairs(&self) -> usize {
        self.words().repairs.len()
    }

    /// Takes a repair that still holds, and its clients.
    pub(crate) fn take_repair(&self, random: &mut Random) -> Option<Repair> {
        let mut words = self.words();
        let repair = random.pick(&words.repairs)?.clone();
        let free =
            |member: &Member| words.settled.contains(&member.0) && !words.busy.contains(&member.0);
        let [(_, one), (_, other)] = &repair.requests;
        if words.partners.get(one) != Some(other) || !repair.members.iter().all(free) {
            return None;
        }
        words.busy.extend(repair.members.iter().map(|member| member.0));
        Some(repair)
    }

    /// All clients that must be in the chain.
    pub(crate) fn settled(&self) -> Vec<Member> {
        self.words().settled.iter().copied().map(Member).collect()
    }

    /// How many clients left.
    pub(crate) fn gone(&self) -> usize {
        self.words().gone
    }

    /// Asserts that the links are one path over all these clients, in the order of their arrival.
    pub(crate) fn assert_one_path(&self, members: usize) {
        let words = self.words();
        let ends: Vec<u16> = (words.settled.iter().copied())
            .filter(|number| !words.partners.contains_key(&Member(*number).tail()))
            .collect();
        assert_eq!(ends.len(), 1, "beginnings of the chain: {ends:?}");
        let mut path = ends;
        while let Some(next) = words.partners.get(&Member(path[path.len() - 1]).head()) {
            path.push(owner(next));
            assert!(path.len() <= members, "the chain goes in a circle");
        }
        assert_eq!(path.len(), members, "the chain is in pieces");
        let mut earliest_heard = u64::MAX;
        for number in path.iter().rev() {
            let (announced, heard) = words.lives[number];
            assert!(
                announced <= earliest_heard,
                "client {number} stands before one that was told something before it came"
            );
            earliest_heard = earliest_heard.min(heard.unwrap_or(u64::MAX));
        }
    }
}

/// The number of the client with this socket, as [`Member`] deals them out.
fn owner(socket: &str) -> u16 {
    let (_, port) = socket.rsplit_once(':').expect("ip:port");
    (port.parse::<u16>().expect("a port") - 1024) / 2
}

/// Whether the socket is in no chain.
fn is_stranger(socket: &str) -> bool {
    !socket.starts_with("127.0.0.1:")
}
