//! I7: survivors that all ask become one path, in their old order, once the gather window passed.

use std::collections::BTreeMap;

use emnetchain::{
    ids::{
        ChainName, HeadAddr, Incarnation, InstanceId, OrphanAddr, Part, RepairId, SessionId,
        Socket, TailAddr,
    },
    registry::{
        Client, Command, Effect, Line, Message, Proposal, Record, Registry, Request, Serial, Side,
        Standing,
    },
};

use crate::generate::{Generator, LIFE, Random};

/// A registry, and what its sessions were told.
#[derive(Default)]
struct World {
    registry: Registry,
    connections: u64,
    asked: BTreeMap<SessionId, (Client, Part)>,
    told: BTreeMap<Socket, Socket>,
}

impl World {
    fn apply(&mut self, wait_ms: u64, command: Command) -> Vec<Effect> {
        let at = self.registry.now().plus_ms(wait_ms);
        let proposal = Proposal { at, batch: None, commands: vec![command] };
        let effects = self.registry.apply(&proposal).effects;
        for effect in &effects {
            let Effect::Tell { session, message, .. } = effect else { continue };
            let Some((client, asked)) = self.asked.get(session) else { continue };
            let (part, ip) = match message {
                Message::Link { part, ip } => (*part, ip),
                Message::Repair { ip } => (*asked, ip),
                Message::PeerAdded { .. } | Message::PeerFound { .. } | Message::PeerFailed => {
                    continue;
                }
            };
            self.told.insert(client.socket(part).clone(), ip.clone());
        }
        effects
    }

    /// Connections of a third instance, so that they are none of the generator's.
    fn session(&mut self) -> SessionId {
        self.connections += 1;
        let (instance, incarnation) = (InstanceId(3), Incarnation(0));
        SessionId { instance, incarnation, connection: self.connections }
    }

    /// The socket asks: as it did before, or else with an id of its own.
    fn ask(&mut self, client: &Client, part: Part, id: u64) {
        let (session, socket) = (self.session(), client.socket(part).clone());
        self.asked.insert(session, (client.clone(), part));
        let (source, orphan) = (client.source, OrphanAddr(socket));
        let (chain, head, tail) = (client.chain.clone(), client.head.clone(), client.tail.clone());
        let own = || Request::Reconnect(RepairId(format!("own {id}").into()));
        match client.side(part).ask().map_or_else(own, |ask| ask.request.clone()) {
            Request::Connect => {
                self.apply(0, Command::Connect { session, source, chain, head, tail })
            }
            Request::Reconnect(id) => {
                self.apply(0, Command::Reconnect { session, source, id, orphan })
            }
        };
    }

    fn path(&self, chain: &ChainName) -> Vec<(Serial, Client)> {
        let records = self.registry.image().records.iter();
        let clients = records.filter_map(|(serial, record)| match record {
            Record::Client(client) => Some((serial, client.clone())),
            Record::Caller(_) | Record::Answer(_) | Record::Peer(_) => None,
        });
        clients.filter(|(_, c)| c.chain == *chain && c.standing == Standing::Member).collect()
    }

    /// Whatever was offered arrives, and what is due is done.
    fn come_to_rest(&mut self, chain: &ChainName) {
        loop {
            let path = self.path(chain);
            let asks = path.iter().flat_map(|(_, c)| [c.tail_side.ask(), c.head_side.ask()]);
            let strangers = self.registry.image().records.iter().filter_map(|(_, r)| match r {
                Record::Caller(caller) => Some(&caller.ask),
                Record::Client(_) | Record::Answer(_) | Record::Peer(_) => None,
            });
            let offered = asks
                .flatten()
                .chain(strangers)
                .find(|ask| matches!(ask.line, Line::Offered(_)))
                .map(|ask| ask.session);
            let Some(session) = offered else { break };
            self.apply(0, Command::Delivered { session });
        }
        self.apply(0, Command::Tick);
    }
}

fn shuffle<T>(random: &mut Random, items: &mut [T]) {
    for n in (1..items.len()).rev() {
        items.swap(n, random.below(n as u64 + 1) as usize);
    }
}

/// After any sequence, some clients of the chain die, and the others report which they lost.
pub(crate) fn survivors_become_one_path(seed: u64) {
    let mut world = World::default();
    let mut generator = Generator::new(seed, LIFE);
    while let Some(step) = generator.step() {
        let effects = world.apply(step.wait_ms, step.command);
        generator.hear(&effects);
    }
    let chain = ChainName::default();
    world.come_to_rest(&chain);
    let mut random = Random(seed ^ 0x5eed);
    let mut path = world.path(&chain);
    let dead: Vec<Socket> =
        path.iter().filter(|_| random.percent(30)).map(|(_, c)| c.head.0.clone()).collect();
    for (_, client) in path.iter().filter(|(_, client)| dead.contains(&client.head.0)) {
        for ask in [client.tail_side.ask(), client.head_side.ask()].into_iter().flatten() {
            world.apply(0, Command::Disconnect { session: ask.session });
        }
    }
    // What the survivors asked a dead instance, they ask again.
    let is_dead = |client: &Client| dead.contains(&client.head.0);
    let mut asks = Vec::new();
    for (n, (_, client)) in path.iter().enumerate().filter(|(_, (_, client))| !is_dead(client)) {
        let resumed = |side: &Side| {
            side.ask()
                .is_some_and(|ask| ask.line == Line::Detached && ask.request == Request::Connect)
        };
        let resumes = resumed(&client.tail_side) || resumed(&client.head_side);
        let before = n.checked_sub(1).and_then(|n| path.get(n));
        for (part, neighbour) in [(Part::Tail, before), (Part::Head, path.get(n + 1))] {
            let lost = match client.side(part) {
                Side::Linked { .. } => neighbour.is_none_or(|(_, neighbour)| is_dead(neighbour)),
                Side::Asking(ask) => ask.line == Line::Detached,
                Side::Open => !resumes,
                Side::Paired { .. } => true,
            };
            asks.extend(lost.then(|| (client.clone(), part)));
        }
    }
    shuffle(&mut random, &mut asks);
    for (id, (client, part)) in asks.iter().enumerate() {
        // A client that came back by CONNECT may have been told of a living partner meanwhile.
        let dead_tails = path.iter().filter(|(_, c)| is_dead(c)).map(|(_, c)| &c.tail.0);
        let lost = |ip: &Socket| dead.contains(ip) || dead_tails.clone().any(|tail| tail == ip);
        if world.told.get(client.socket(*part)).is_none_or(lost) {
            world.ask(client, *part, id as u64);
        }
    }
    world.come_to_rest(&chain);
    let gather_ms = world.registry.policy().gather_ms;
    world.apply(gather_ms, Command::Tick);
    world.come_to_rest(&chain);
    path.retain(|(_, client)| !is_dead(client));
    let now = world.path(&chain);
    let first = path.first().and_then(|(serial, _)| now.iter().position(|(s, _)| s == serial));
    let now = now.get(first.unwrap_or_default()..).unwrap_or_default();
    for (n, (serial, _)) in path.iter().enumerate() {
        let (place, client) = now.get(n).unwrap_or_else(|| panic!("seed {seed}: {n} is missing"));
        assert_eq!(place, serial, "seed {seed}: the survivors keep their order");
        if n + 1 < path.len() {
            assert!(client.head_side.is_linked(), "seed {seed}: no gap after {n}");
        }
    }
}

/// A chain of 200, of which 30 % are killed at once; what counts is what the survivors were told.
pub(crate) fn a_third_is_killed_at_once(seed: u64) {
    const LENGTH: usize = 200;
    let mut random = Random(seed);
    let mut world = World::default();
    let socket = |n: usize, port| {
        Socket::parse(&format!("198.51.{}.{}:{port}", n / 256, n % 256)).expect("a socket")
    };
    for n in 0..LENGTH {
        let (session, chain) = (world.session(), ChainName::default());
        let source = "10.0.0.1".parse().expect("an address");
        let (head, tail) = (HeadAddr(socket(n, 2)), TailAddr(socket(n, 1)));
        world.apply(0, Command::Connect { session, source, chain, head, tail });
    }
    let clients: Vec<Client> =
        world.path(&ChainName::default()).into_iter().map(|(_, client)| client).collect();
    let alive: Vec<bool> = clients.iter().map(|_| !random.percent(30)).collect();
    // Only the newest client is still connected.
    if !alive[LENGTH - 1] {
        let session = SessionId { connection: LENGTH as u64, ..world.session() };
        world.apply(0, Command::Disconnect { session });
    }
    let mut asks = Vec::new();
    for n in (0..LENGTH).filter(|n| alive[*n]) {
        asks.extend((n > 0 && !alive[n - 1]).then_some((n, Part::Tail)));
        asks.extend((n + 1 < LENGTH && !alive[n + 1]).then_some((n, Part::Head)));
    }
    shuffle(&mut random, &mut asks);
    for (n, part) in asks {
        let id = random.below(1 << 40);
        world.ask(&clients[n], part, id);
    }
    world.apply(world.registry.policy().gather_ms, Command::Tick);
    let survivors: Vec<usize> = (0..LENGTH).filter(|n| alive[*n]).collect();
    for pair in survivors.windows(2) {
        let (head, tail) = (socket(pair[0], 2), socket(pair[1], 1));
        if pair[0] + 1 == pair[1] {
            assert!(!world.told.contains_key(&head), "seed {seed}: a living link was touched");
            continue;
        }
        assert_eq!(world.told.get(&head), Some(&tail), "seed {seed}: head of {}", pair[0]);
        assert_eq!(world.told.get(&tail), Some(&head), "seed {seed}: tail of {}", pair[1]);
    }
    let gaps = survivors.windows(2).filter(|pair| pair[0] + 1 < pair[1]).count();
    assert_eq!(world.told.len(), 2 * gaps, "seed {seed}: no other is told anything");
    world.registry.check().unwrap_or_else(|violation| panic!("seed {seed}: {violation}"));
}
