//! I7: survivors that all ask become one path once the gather window has passed.

use std::collections::{BTreeMap, BTreeSet};

use emnetchain::{
    ids::{
        ChainName, Endpoint, HeadAddr, Incarnation, InstanceId, OrphanAddr, Part, RepairId,
        SessionId, Socket, Source, TailAddr,
    },
    registry::{
        Client, Command, Effect, Line, Message, Past, Place, Policy, Proposal, Registry, Request,
        Serial, Side,
    },
};

use crate::generate::{Generator, Random, Weights};

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

    /// The socket asks: by CONNECT if it did before, or else with an id of its own.
    fn ask(&mut self, client: &Client, part: Part, id: u64) {
        let (session, socket) = (self.session(), client.socket(part).clone());
        self.asked.insert(session, (client.clone(), part));
        let (source, orphan) = (client.source, OrphanAddr(socket));
        let (chain, head, tail) = (client.chain.clone(), client.head.clone(), client.tail.clone());
        let id = RepairId(format!("own {id}").into());
        match client.side(part).ask().map(|ask| &ask.request) {
            Some(Request::Connect) => {
                self.apply(0, Command::Connect { session, source, chain, head, tail })
            }
            Some(Request::Reconnect(_)) | None => {
                self.apply(0, Command::Reconnect { session, source, id, orphan })
            }
        };
    }

    fn clients(&self, chain: &ChainName) -> Vec<Client> {
        let records = self.registry.image().records.iter();
        let clients = records.filter_map(|(_, record)| record.client().cloned());
        clients.filter(|client| client.chain == *chain).collect()
    }

    fn path(&self, chain: &ChainName) -> Vec<Client> {
        let window = self.registry.window(chain, Place::Start, usize::MAX).unwrap_or_default();
        let clients = window.clients.into_iter();
        clients.map(|serial| self.registry.client(serial).expect("it is shown").clone()).collect()
    }

    /// Every offer arrives, and what is due is done.
    fn come_to_rest(&mut self, chain: &ChainName) {
        loop {
            let clients = self.clients(chain);
            let asks = clients.iter().flat_map(|c| [c.tail_side.ask(), c.head_side.ask()]);
            let records = self.registry.image().records.iter();
            let strangers = records.filter_map(|(_, record)| Some(&record.caller()?.ask));
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

/// After any sequence, some clients of the chain die. The others ask for any partner that they
/// lost, until they are told of a living one: all of them are one path soon, and nothing moves
/// after that.
pub(crate) fn survivors_become_one_path(seed: u64, weights: Weights) {
    let mut world = World::default();
    let mut generator = Generator::new(seed, weights);
    while let Some(step) = generator.step() {
        let effects = world.apply(step.wait_ms, step.command);
        generator.hear(&effects);
    }
    world.apply(0, Command::SetPolicy(Policy::default()));
    let chain = ChainName::default();
    world.come_to_rest(&chain);
    let mut random = Random(seed ^ 0x5eed);
    let all = world.clients(&chain);
    let living: BTreeSet<Endpoint> =
        all.iter().filter(|_| random.percent(70)).map(|c| c.head.0.endpoint()).collect();
    for client in all.iter().filter(|client| !living.contains(&client.head.0.endpoint())) {
        for ask in [client.tail_side.ask(), client.head_side.ask()].into_iter().flatten() {
            world.apply(0, Command::Disconnect { session: ask.session });
        }
    }
    let records = world.registry.image().records.iter();
    let strangers = records.filter_map(|(_, record)| Some(record.caller()?.ask.session));
    for session in strangers.collect::<Vec<_>>() {
        world.apply(0, Command::Disconnect { session });
    }
    let mut rounds = 0;
    while rounds == 0 || !world.is_one_path(&chain, &living) {
        rounds += 1;
        let picture = world.picture(&chain, &living);
        assert!(rounds < 8, "seed {seed}: the living are one path\n{picture}");
        let mut asks = world.lost_sockets(&chain, &living);
        shuffle(&mut random, &mut asks);
        for (n, (client, part)) in asks.into_iter().enumerate() {
            // It may have been told meanwhile, and so may its side of another session.
            let serial = world.registry.find(client.socket(part).endpoint());
            let now = serial.and_then(|(serial, _)| world.registry.client(serial)).cloned();
            if now.is_some_and(|now| now.side(part) == client.side(part)) {
                world.ask(&client, part, rounds * 1_000 + n as u64);
            }
        }
        world.come_to_rest(&chain);
        world.apply(world.registry.policy().gather_ms, Command::Tick);
        world.come_to_rest(&chain);
    }
    let path = world.path(&chain);
    let effects = world.apply(4 * world.registry.policy().gather_ms, Command::Tick);
    let still: Vec<_> = effects.iter().filter(|e| matches!(e, Effect::Tell { .. })).collect();
    assert!(still.is_empty(), "seed {seed}: it is at rest, but {still:?}");
    let heads = |path: &[Client]| {
        let heads = path.iter().map(|client| client.head.0.endpoint());
        heads.filter(|head| living.contains(head)).collect::<Vec<_>>()
    };
    // A single one may have asked as long as it may.
    let mut before = heads(&path);
    before.retain(|head| world.registry.find(*head).is_some());
    assert_eq!(before, heads(&world.path(&chain)), "seed {seed}: it is at rest");
    world.registry.check().unwrap_or_else(|violation| panic!("seed {seed}: {violation}"));
}

impl World {
    /// Whether the living are linked from the first to the last of them.
    fn is_one_path(&self, chain: &ChainName, living: &BTreeSet<Endpoint>) -> bool {
        let known = |client: &Client| living.contains(&client.head.0.endpoint());
        let (path, all) = (self.path(chain), self.clients(chain));
        let alive = all.iter().filter(|client| known(client)).count();
        let places: Vec<usize> = (0..path.len()).filter(|n| known(&path[*n])).collect();
        let next_to = |two: &[usize]| two[0] + 1 == two[1] && path[two[0]].head_side.is_linked();
        places.len() == alive && places.windows(2).all(next_to)
    }

    /// The runs for people: dead clients in brackets, `?` asks, `=` is linked, `p` is paired, `!`
    /// was reported and `.` is open.
    fn picture(&self, chain: &ChainName, living: &BTreeSet<Endpoint>) -> String {
        let window = self.registry.window(chain, Place::Start, usize::MAX).unwrap_or_default();
        let sign = |side: &Side| match side {
            Side::Asking(_) => '?',
            Side::Linked { .. } => '=',
            Side::Paired { .. } => 'p',
            Side::Open(Past::Reported { .. }) => '!',
            Side::Open(_) => '.',
        };
        let picture = |serial: Option<Serial>| {
            let next = |serial: &Serial| self.registry.neighbour(*serial, Part::Head);
            let clients = std::iter::successors(serial, next);
            let clients = clients.filter_map(|serial| self.registry.client(serial)).map(|client| {
                let head = client.head.0.endpoint();
                let name = match living.contains(&head) {
                    true => format!("{head}"),
                    false => format!("[{head}]"),
                };
                format!("{}{name}{} ", sign(&client.tail_side), sign(&client.head_side))
            });
            clients.collect::<String>()
        };
        let cut_off = window.cut_off.iter().map(|run| picture(Some(run.first)));
        let cut_off: Vec<String> = cut_off.collect();
        format!("path {}\ncut off {cut_off:#?}", picture(window.clients.first().copied()))
    }

    /// The sockets of the living that have no living neighbour and do not ask, or asked an instance
    /// that is gone.
    fn lost_sockets(&self, chain: &ChainName, living: &BTreeSet<Endpoint>) -> Vec<(Client, Part)> {
        let mut lost = Vec::new();
        let clients = self.clients(chain).into_iter();
        for client in clients.filter(|client| living.contains(&client.head.0.endpoint())) {
            let serial = self.registry.find(client.head.0.endpoint()).expect("a client").0;
            for part in [Part::Tail, Part::Head] {
                let neighbour = self.registry.neighbour(serial, part);
                let neighbour = neighbour.and_then(|serial| self.registry.client(serial));
                let is_lost = match client.side(part) {
                    Side::Open(_) => true,
                    Side::Asking(ask) => ask.line == Line::Detached,
                    Side::Paired { .. } => true, // by an id of the sequence
                    Side::Linked { .. } => {
                        !neighbour.is_some_and(|it| living.contains(&it.head.0.endpoint()))
                    }
                };
                lost.extend(is_lost.then(|| (client.clone(), part)));
            }
        }
        lost
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
        let source = Source::of("10.0.0.1".parse().expect("an address"));
        let (head, tail) = (HeadAddr(socket(n, 2)), TailAddr(socket(n, 1)));
        world.apply(0, Command::Connect { session, source, chain, head, tail });
    }
    let clients = world.path(&ChainName::default());
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
