//! Draws sequences of commands from a seed. Few clients, sockets, ids and sources, so that they
//! collide; the weights decide whether the sequence looks like life or like malice.

use std::{collections::BTreeSet, net::IpAddr, sync::Arc};

use emnetchain::{
    ids::{
        ChainName, HeadAddr, Incarnation, InstanceId, OrphanAddr, PeerId, RepairId, SessionId,
        Socket, Source, TailAddr,
    },
    registry::{Command, Effect, Policy, Then},
};

/// One command, and how it reaches the registry.
#[derive(Clone, Debug)]
pub(crate) struct Step {
    /// How much log time passes before it.
    pub(crate) wait_ms: u64,
    /// How far the leader's stamp is behind the registry's time, which then counts.
    pub(crate) behind_ms: u64,
    /// What happens.
    pub(crate) command: Command,
    /// Whether a replica is rebuilt from the image before it.
    pub(crate) rebuild: bool,
}

/// How likely each kind of step is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Weights {
    connect: u64,
    reconnect: u64,
    stranger: u64,
    half_close: u64,
    delivered: u64,
    disconnect: u64,
    start: u64,
    peer: u64,
    tick: u64,
    policy: u64,
    /// A client dies, and both its neighbours report it at once.
    death: u64,
    /// Two neighbours report each other, once or twice.
    flap: u64,
    /// Of 100 requests, how many mix up sockets, sources, chains and spellings.
    mixed: u64,
    /// Whether the first policy has tight bounds and short times.
    tight: bool,
    /// Whether the first policy has room for a few of everything.
    crowd: bool,
    /// How many clients join before anything else happens.
    joined: u64,
}

/// What honest clients and an honest operator do.
pub(crate) const LIFE: Weights = Weights {
    connect: 34,
    reconnect: 20,
    stranger: 5,
    half_close: 9,
    delivered: 12,
    disconnect: 12,
    start: 3,
    peer: 1,
    tick: 6,
    policy: 0,
    death: 0,
    flap: 0,
    mixed: 1,
    tight: false,
    crowd: false,
    joined: 0,
};

/// Everything at once.
pub(crate) const WILD: Weights = Weights {
    connect: 20,
    reconnect: 22,
    stranger: 14,
    half_close: 12,
    delivered: 8,
    disconnect: 8,
    start: 4,
    peer: 3,
    tick: 6,
    policy: 2,
    death: 0,
    flap: 0,
    mixed: 35,
    tight: false,
    crowd: false,
    joined: 0,
};

/// Bounds are hit and times run out.
pub(crate) const TIGHT: Weights =
    Weights { tight: true, mixed: 10, peer: 8, tick: 14, policy: 4, ..WILD };

/// A longer chain, of which parts are cut off, return and are cut off again: neighbours report each
/// other, both ends of a run are in one hand, clients keep silent and come back.
pub(crate) const RUNS: Weights = Weights {
    connect: 16,
    reconnect: 46,
    stranger: 3,
    half_close: 5,
    delivered: 4,
    disconnect: 16,
    start: 2,
    peer: 0,
    tick: 8,
    policy: 0,
    death: 14,
    flap: 0,
    mixed: 4,
    tight: false,
    crowd: false,
    joined: 8,
};

/// Neighbours that lose each other again and again, with others beside them that do.
pub(crate) const DOUBTS: Weights =
    Weights { reconnect: 24, disconnect: 20, death: 6, flap: 20, mixed: 8, ..RUNS };

/// More clients, strangers and entries than there is room for, from sources of which some are in
/// one network; parts of the chain are cut off, or silent without a partner.
pub(crate) const CROWD: Weights = Weights {
    connect: 34,
    reconnect: 26,
    stranger: 16,
    half_close: 4,
    delivered: 4,
    disconnect: 12,
    start: 2,
    peer: 12,
    tick: 6,
    policy: 1,
    death: 24,
    flap: 0,
    mixed: 8,
    tight: false,
    crowd: true,
    joined: 14,
};

/// SplitMix64: the whole sequence follows from its seed.
#[derive(Clone, Debug)]
pub(crate) struct Random(pub(crate) u64);

impl Random {
    /// Any number below `bound`.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }

    /// True in `of` of 100 cases.
    pub(crate) fn percent(&mut self, of: u64) -> bool {
        self.below(100) < of
    }

    fn pick<T: Clone>(&mut self, of: &[T]) -> T {
        of[self.below(of.len() as u64) as usize].clone()
    }
}

/// Draws the steps of one sequence; it hears the effects, so that it knows which sessions live.
#[derive(Debug)]
pub(crate) struct Generator {
    random: Random,
    weights: Weights,
    left: u64,
    people: u64,
    lives: [u64; 2],
    connections: u64,
    open: Vec<SessionId>,
    offered: Vec<SessionId>,
    first: bool,
    joining: std::ops::Range<u64>,
    /// The dead, as numbers of persons.
    dead: BTreeSet<u64>,
    /// The sockets whose loss is reported next.
    reports: Vec<u64>,
}

impl Generator {
    /// The generator of one seed.
    pub(crate) fn new(seed: u64, weights: Weights) -> Self {
        let mut random = Random(seed);
        let left = 5 + random.below(6) + if random.percent(10) { random.below(30) } else { 0 };
        let (left, people) = match weights.joined {
            0 => (left, 2 + random.below(if left > 12 { 5 } else { 3 })),
            joined => {
                let people = 4 + random.below(joined - 3);
                (people + left + random.below(8), people)
            }
        };
        Self {
            random,
            weights,
            left,
            people,
            lives: [0; 2],
            connections: 0,
            open: Vec::new(),
            offered: Vec::new(),
            first: true,
            joining: if weights.joined > 0 { 0..people } else { 0..0 },
            dead: BTreeSet::new(),
            reports: Vec::new(),
        }
    }

    /// Takes note of what sessions were told.
    pub(crate) fn hear(&mut self, effects: &[Effect]) {
        for effect in effects {
            let closed = match effect {
                Effect::Tell { session, then: Then::Confirm, .. } => {
                    self.offered.push(*session);
                    false
                }
                Effect::Tell { then, .. } => *then == Then::Close,
                Effect::Release { .. } => true,
                Effect::Refuse { .. } => false,
            };
            if closed {
                self.forget(effect.session());
            }
        }
    }

    fn forget(&mut self, session: SessionId) {
        self.open.retain(|open| *open != session);
        self.offered.retain(|open| *open != session);
    }

    /// The next step, until the sequence is long enough.
    pub(crate) fn step(&mut self) -> Option<Step> {
        self.left = self.left.checked_sub(1)?;
        let wait_ms = match self.random.below(100) {
            0..65 => 0,
            65..80 => self.random.below(6_000),
            80..90 => self.random.pick(&[1_000, 4_999, 5_000, 10_000]),
            90..97 => self.random.below(20_000),
            97..99 => self.random.below(1_300_000),
            _ => self.random.below(4 * 24 * 3_600_000),
        };
        let command = self.command();
        let late = wait_ms == 0 && self.random.percent(4);
        let behind_ms = if late { 1 + self.random.below(20_000) } else { 0 };
        Some(Step { wait_ms, behind_ms, command, rebuild: self.random.percent(8) })
    }

    fn command(&mut self) -> Command {
        if std::mem::take(&mut self.first) && (self.weights.tight || self.weights.crowd) {
            return Command::SetPolicy(self.policy());
        }
        if let Some(person) = self.joining.next() {
            return self.join(person);
        }
        if let Some(socket) = self.reports.pop() {
            return self.report(socket);
        }
        let w = self.weights;
        let kinds = [
            w.connect,
            w.reconnect,
            w.stranger,
            w.half_close,
            w.delivered,
            w.disconnect,
            w.start,
            w.peer,
            w.tick,
            w.policy,
            w.death,
            w.flap,
        ];
        let mut drawn = self.random.below(kinds.iter().sum());
        let kind = kinds.iter().position(|weight| {
            let here = drawn < *weight;
            drawn = drawn.saturating_sub(*weight);
            here
        });
        match kind {
            Some(0) => self.connect(),
            Some(1) => self.reconnect(),
            Some(2) => self.stranger(),
            Some(3) => self.half_close(),
            Some(4) => self.delivered(),
            Some(5) => self.disconnect(),
            Some(6) => self.start(),
            Some(7) => self.peer(),
            Some(9) => Command::SetPolicy(self.policy()),
            Some(10) => self.death(),
            Some(11) => self.flap(),
            Some(_) | None => Command::Tick,
        }
    }

    fn join(&mut self, person: u64) -> Command {
        Command::Connect {
            session: self.session(),
            source: Source::of(self.source_of(person)),
            chain: ChainName::default(),
            head: HeadAddr(self.socket(person * 2 + 1)),
            tail: TailAddr(self.socket(person * 2)),
        }
    }

    fn connect(&mut self) -> Command {
        let person = self.random.below(self.people);
        let session = self.session();
        let (mut head, mut tail) = (person * 2 + 1, person * 2);
        let (mut source, mut chain) = (self.source_of(person), "");
        if self.random.percent(self.weights.mixed) {
            match self.random.below(5) {
                0 => head = self.random.below(self.people) * 2 + 1,
                1 => tail = self.random.below(self.people) * 2,
                2 => std::mem::swap(&mut head, &mut tail),
                3 => source = self.any_source(),
                _ => chain = "blue",
            }
        }
        Command::Connect {
            session,
            source: Source::of(source),
            chain: ChainName(Arc::from(chain)),
            head: HeadAddr(self.socket(head)),
            tail: TailAddr(self.socket(tail)),
        }
    }

    fn reconnect(&mut self) -> Command {
        let person = self.random.below(self.people);
        let source = match self.random.percent(self.weights.mixed / 2) {
            true => self.any_source(),
            false => self.source_of(person),
        };
        let part = self.random.below(2);
        let socket = self.socket(person * 2 + part);
        self.request(source, socket)
    }

    /// A client between two others dies. A run in which that happens again and again has pieces
    /// that lie apart in the order of joining, which random reports seldom bring about.
    fn death(&mut self) -> Command {
        let person = self.random.below(self.people);
        let living = |other: &u64| !self.dead.contains(other);
        let (Some(left), Some(right)) =
            ((0..person).rfind(living), (person + 1..self.people).find(living))
        else {
            return Command::Tick;
        };
        self.dead.insert(person);
        self.reports = vec![left * 2 + 1, right * 2];
        if self.random.percent(50) {
            self.reports.reverse();
        }
        self.reports.pop().map_or(Command::Tick, |socket| self.report(socket))
    }

    fn flap(&mut self) -> Command {
        let left = self.random.below(self.people - 1);
        let both = [left * 2 + 1, left * 2 + 2];
        self.reports = both.repeat(1 + self.random.below(2) as usize);
        self.reports.pop().map_or(Command::Tick, |socket| self.report(socket))
    }

    fn report(&mut self, socket: u64) -> Command {
        let (source, socket) = (self.source_of(socket / 2), self.socket(socket));
        self.request(source, socket)
    }

    fn stranger(&mut self) -> Command {
        let source = self.any_source();
        let number = 100 + self.random.below(3);
        let socket = self.socket(number);
        self.request(source, socket)
    }

    fn request(&mut self, source: IpAddr, socket: Socket) -> Command {
        let id = RepairId(Arc::from(["1", "2", "3", "4", "5"][self.random.below(5) as usize]));
        Command::Reconnect {
            session: self.session(),
            source: Source::of(source),
            id,
            orphan: OrphanAddr(socket),
        }
    }

    fn half_close(&mut self) -> Command {
        match self.any_open() {
            Some(session) => Command::HalfClose { session },
            None => Command::Tick,
        }
    }

    fn delivered(&mut self) -> Command {
        let lost = self.random.percent(self.weights.mixed / 4);
        let session = if lost { self.any_open() } else { self.offered.pop() };
        session.map_or(Command::Tick, |session| Command::Delivered { session })
    }

    fn disconnect(&mut self) -> Command {
        let session = match self.random.percent(30) {
            true => self.offered.last().copied(),
            false => self.any_open(),
        };
        let Some(session) = session else { return Command::Tick };
        self.forget(session);
        Command::Disconnect { session }
    }

    fn start(&mut self) -> Command {
        let n = self.random.below(2) as usize;
        self.lives[n] += 1;
        let instance = InstanceId(n as u64 + 1);
        self.open.retain(|session| session.instance != instance);
        self.offered.retain(|session| session.instance != instance);
        Command::Start { instance, incarnation: Incarnation(self.lives[n]) }
    }

    fn peer(&mut self) -> Command {
        let id = PeerId(self.random.pick(&[0, 1, 2, 999_999]));
        let session = self.fresh();
        match self.random.percent(60) {
            true => Command::AddPeer {
                session,
                source: Source::of(self.any_source()),
                address: format!("{}", self.left),
                candidate: id,
            },
            false => Command::AskIp { session, id },
        }
    }

    fn policy(&mut self) -> Policy {
        let crowd = self.weights.crowd;
        let r = &mut self.random;
        if crowd {
            return Policy {
                gather_ms: r.pick(&[0, 2_000, 5_000]),
                clients_max: 2 + r.below(9),
                clients_per_source_max: 1 + r.below(4),
                repairs_max: 1 + r.below(4),
                repairs_per_source_max: 1 + r.below(2),
                peers_max: 1 + r.below(4),
                peers_per_source_max: 1 + r.below(2),
                ..Policy::default()
            };
        }
        Policy {
            resume_grace_ms: r.pick(&[0, 3_000, 10_000]),
            gather_ms: r.pick(&[0, 2_000, 5_000]),
            ask_ms_max: r.pick(&[1_000, 6_000, 60_000, 86_400_000]),
            retention_ms: r.pick(&[0, 500, 5_000, 600_000]),
            client_retention_ms: r.pick(&[0, 4_000, 30_000, 86_400_000]),
            clients_max: r.pick(&[1, 3, 5, 100]),
            clients_per_source_max: r.pick(&[0, 1, 2, 100]),
            repairs_max: r.pick(&[0, 1, 2, 3, 100]),
            repairs_per_source_max: r.pick(&[0, 1, 2, 100]),
            peers_max: r.pick(&[0, 1, 2, 100]),
            peers_per_source_max: r.pick(&[0, 1, 2, 100]),
        }
    }

    fn session(&mut self) -> SessionId {
        let session = self.fresh();
        self.open.push(session);
        session
    }

    fn fresh(&mut self) -> SessionId {
        let n = self.random.below(2) as usize;
        self.connections += 1;
        SessionId {
            instance: InstanceId(n as u64 + 1),
            incarnation: Incarnation(self.lives[n]),
            connection: self.connections,
        }
    }

    fn any_open(&mut self) -> Option<SessionId> {
        (!self.open.is_empty()).then(|| self.random.pick(&self.open))
    }

    /// The source of a person: two local ones, which have no bound of their own, and a public one;
    /// in a crowd a local one, two public ones, and five of one IPv6 /48.
    fn source_of(&self, person: u64) -> IpAddr {
        let few = ["10.0.0.1", "192.0.2.1", "10.0.0.2"];
        let many = [
            "2001:db8::1",
            "192.0.2.1",
            "2001:db8:0:1::1",
            "2001:db8:0:2::1",
            "10.0.0.1",
            "2001:db8:0:3::1",
            "2001:db8:0:4::1",
            "198.51.100.1",
        ];
        let sources = if self.weights.crowd { &many[..] } else { &few[..] };
        sources[(person % sources.len() as u64) as usize].parse().expect("an address")
    }

    fn any_source(&mut self) -> IpAddr {
        let person = self.random.below(if self.weights.crowd { 8 } else { 3 });
        self.source_of(person)
    }

    /// A socket; now and then in another spelling.
    fn socket(&mut self, number: u64) -> Socket {
        let (ip, port) = (format!("198.51.100.{}", number / 2), 1000 + number);
        let text = match self.random.percent(self.weights.mixed / 3) {
            true => format!("[::ffff:{ip}]:{port}"),
            false => format!("{ip}:{port}"),
        };
        Socket::parse(&text).expect("a socket")
    }
}
