//! What becomes of a chain when many are lost at once, or when two ends in one hostile hand cut it:
//! the registry alone, in log time. Printed are how long the dearest entry takes to apply, how long
//! a client that lives waits for its partner, and for how long it is cut off (rules 5 to 8 of
//! `proto-docs/chains.md`). Each scenario ends with the path that it must end with.

#![expect(clippy::print_stdout, reason = "progress is printed as it is made")]

#[path = "../tests/support/chance.rs"]
#[expect(dead_code, unreachable_pub, clippy::print_stderr, reason = "it is made for tests")]
mod chance;
#[path = "service/report.rs"]
#[expect(dead_code, reason = "the other benchmark uses all of it")]
mod report;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use chance::Chance;
use clap::Parser;
use emnetchain::{
    clock,
    ids::{
        ChainName, HeadAddr, Incarnation, InstanceId, OrphanAddr, Part, RepairId, SessionId,
        Socket, Source, TailAddr, Timestamp,
    },
    limits,
    registry::{Client, Command, Effect, Message, Place, Proposal, Registry},
};
use report::{Table, whole};

const INSTANCE: InstanceId = InstanceId(1);
const INCARNATION: Incarnation = Incarnation(1);

/// How often time is stamped, in milliseconds of the log.
const TICK_MS: u64 = 100;

/// How long a scenario may take until all are told, in milliseconds of the log.
const PATIENCE_MS: u64 = 120_000;

/// Measures what many losses at once, and hostile ends, cost the others.
#[derive(Debug, Parser)]
struct Options {
    /// Clients between the two hostile ends.
    #[arg(long, value_delimiter = ',', default_value = "60000,1000000")]
    hostile: Vec<u32>,
    /// Clients of the chain that loses many.
    #[arg(long, default_value_t = 100_000)]
    clients: u32,
    /// cargo passes this to every benchmark.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    let options = Options::parse();
    let mut chance = Chance::new();
    let mut table = Table::new(&[
        "scenario",
        "clients",
        "dearest entry, µs",
        "longest wait, s",
        "cut off at most, s",
        "wrong",
    ]);
    let mut wrong = 0;
    let mut show = |name: &str, clients: u32, seen: &Seen| {
        println!("{name}, {clients} clients: done");
        wrong += seen.wrong.len();
        seen.wrong.iter().for_each(|what| println!("  WRONG: {what}"));
        table.row(vec![
            name.to_owned(),
            whole(f64::from(clients)),
            whole(seen.dearest.as_secs_f64() * 1e6),
            format!("{:.1}", seen.longest_wait_ms as f64 / 1e3),
            format!("{:.1}", seen.longest_cut_ms as f64 / 1e3),
            seen.wrong.len().to_string(),
        ]);
    };
    for clients in options.hostile {
        let [cut, repaired, back] = hostile_ends(clients);
        show("two hostile ends cut the chain", clients, &cut);
        show("a repair within what is cut off", clients, &repaired);
        show("what was cut off comes back", clients, &back);
    }
    for percent in [30, 90] {
        let seen = mass_loss(options.clients, percent, &mut chance);
        show(&format!("{percent} % are lost at once"), options.clients, &seen);
    }
    show("the tip dies as a newcomer arrives", 60_000, &dead_tip(60_000));
    show("neighbours notice after 4 s and 16 s", 60_000, &slow_neighbour(60_000, false));
    show("the same while a newcomer waits", 60_000, &slow_neighbour(60_000, true));
    table.print();
    println!("{}", if wrong == 0 { "all ended as they must" } else { "SOME ENDED WRONGLY" });
    ExitCode::from(u8::from(wrong > 0))
}

/// What a scenario showed.
#[derive(Default)]
struct Seen {
    dearest: Duration,
    longest_wait_ms: u64,
    longest_cut_ms: u64,
    wrong: Vec<String>,
}

/// A client by its number, and one of its sockets.
type Side = (u32, Part);

/// A chain, and what its clients ask and are told.
struct World {
    registry: Registry,
    now_ms: u64,
    sessions: u64,
    /// The asking client of each session, and since when.
    asks: BTreeMap<u64, (Side, u64)>,
    /// Partners told since the scenario began.
    told: BTreeMap<Side, Socket>,
    dead: BTreeSet<u32>,
    /// Living clients that are cut off, since when.
    cut: BTreeMap<u32, u64>,
    seen: Seen,
}

impl World {
    /// A chain of clients, each linked with its neighbours; the last one waits.
    fn new(clients: u32) -> Self {
        let mut world = Self {
            registry: Registry::default(),
            now_ms: 1,
            sessions: 0,
            asks: BTreeMap::new(),
            told: BTreeMap::new(),
            dead: BTreeSet::new(),
            cut: BTreeMap::new(),
            seen: Seen::default(),
        };
        world.apply(vec![Command::Start { instance: INSTANCE, incarnation: INCARNATION }]);
        let numbers: Vec<u32> = (0..clients).collect();
        for numbers in numbers.chunks(limits::ENTRY_COMMANDS_MAX) {
            let joins = numbers.iter().map(|number| world.connect(*number)).collect();
            world.apply(joins);
        }
        world.told.clear();
        world.seen = Seen::default();
        world
    }

    /// A client is gone, and so are its sessions.
    fn lose(&mut self, number: u32) {
        let its = |(_, ((of, _), _)): &(&u64, &(Side, u64))| *of == number;
        let sessions: BTreeSet<u64> = self.asks.iter().filter(its).map(|(id, _)| *id).collect();
        self.asks.retain(|_, ((of, _), _)| *of != number);
        self.dead.insert(number);
        let ends = |connection| Command::Disconnect { session: session(connection) };
        self.apply(sessions.into_iter().map(ends).collect());
    }

    fn connect(&mut self, number: u32) -> Command {
        self.sessions += 1;
        self.asks.insert(self.sessions, ((number, Part::Head), self.now_ms));
        Command::Connect {
            session: session(self.sessions),
            source: source(number),
            chain: ChainName::default(),
            head: HeadAddr(socket((number, Part::Head))),
            tail: TailAddr(socket((number, Part::Tail))),
        }
    }

    fn reconnect(&mut self, side: Side) -> Command {
        self.sessions += 1;
        self.asks.insert(self.sessions, (side, self.now_ms));
        Command::Reconnect {
            session: session(self.sessions),
            source: source(side.0),
            id: RepairId(Arc::from(format!("{}", self.sessions))),
            orphan: OrphanAddr(socket(side)),
        }
    }

    /// Applies one entry, and notes what is told.
    fn apply(&mut self, commands: Vec<Command>) {
        let proposal = Proposal { at: Timestamp(self.now_ms), batch: None, commands };
        let begun = clock::now();
        let applied = self.registry.apply(&proposal);
        let changed = self.registry.take_changed();
        let took = clock::now() - begun;
        drop(changed);
        self.seen.dearest = self.seen.dearest.max(took);
        for effect in applied.effects {
            let Effect::Tell { session, message, .. } = effect else { continue };
            let Some(&((number, asked), since)) = self.asks.get(&session.connection) else {
                continue;
            };
            let (part, ip) = match message {
                Message::Link { part, ip } => (part, ip),
                Message::Repair { ip } => (asked, ip),
                Message::PeerAdded { .. } | Message::PeerFound { .. } | Message::PeerFailed => {
                    continue;
                }
            };
            self.told.insert((number, part), ip);
            if part == asked {
                self.asks.remove(&session.connection);
                let waited = self.now_ms - since;
                self.seen.longest_wait_ms = self.seen.longest_wait_ms.max(waited);
            }
        }
    }

    /// Looks for how long clients that live are cut off.
    fn note_cut(&mut self) {
        if self.registry.totals().cut_off == 0 {
            return self.cut.clear();
        }
        let is_cut = |serial: &_| self.registry.cut_of(*serial).is_some();
        let records = self.registry.image().records.iter();
        let cut = records.map(|(serial, _)| serial).filter(is_cut);
        let cut = cut.filter_map(|serial| self.registry.client(serial)).map(number_of);
        let living = cut.filter(|number| !self.dead.contains(number));
        let since = |number| *self.cut.get(&number).unwrap_or(&self.now_ms);
        self.cut = living.map(|number| (number, since(number))).collect();
        let longest = self.cut.values().map(|since| self.now_ms - since).max();
        self.seen.longest_cut_ms = self.seen.longest_cut_ms.max(longest.unwrap_or_default());
    }

    /// Lets time pass, stamped as the leader does.
    fn pass(&mut self, ms: u64) {
        let end = self.now_ms + ms;
        while self.now_ms < end {
            self.now_ms = end.min(self.now_ms + TICK_MS);
            self.apply(vec![Command::Tick]);
            self.note_cut();
        }
    }

    /// The numbers of the clients of the path, from its first client to its tip.
    fn path(&self) -> Vec<u32> {
        let window = self.registry.window(&ChainName::default(), Place::Start, 1);
        let first = window.and_then(|window| window.clients.first().copied());
        let next = |serial: &_| self.registry.neighbour(*serial, Part::Head);
        let clients = std::iter::successors(first, next);
        clients.filter_map(|serial| self.registry.client(serial)).map(number_of).collect()
    }

    fn expect(&mut self, what: &str, is_so: bool) {
        if !is_so {
            self.seen.wrong.push(what.to_owned());
        }
    }

    /// Waits until all of these sockets are told a partner, and no client is cut off.
    fn settle(&mut self, sides: &BTreeSet<Side>) {
        let end = self.now_ms + PATIENCE_MS;
        while self.now_ms < end && !sides.iter().all(|side| self.told.contains_key(side)) {
            self.pass(TICK_MS);
        }
        let untold = sides.iter().filter(|side| !self.told.contains_key(side)).count();
        self.expect(&format!("all are told, and {untold} are not"), untold == 0);
    }
}

/// One hand joins before and after all others, and says that its neighbours are gone.
fn hostile_ends(honest: u32) -> [Seen; 3] {
    let mut world = World::new(honest + 2);
    let last = honest + 1;
    let gather = world.registry.policy().gather_ms;
    let lies = vec![world.reconnect((0, Part::Head)), world.reconnect((last, Part::Tail))];
    world.apply(lies);
    world.pass(gather);
    let cut = world.registry.totals().cut_off;
    world.expect(&format!("all are cut off, and {cut} are"), cut == u64::from(honest));
    let first = std::mem::take(&mut world.seen);

    let gone = honest / 2;
    world.lose(gone);
    let asks =
        vec![world.reconnect((gone - 1, Part::Head)), world.reconnect((gone + 1, Part::Tail))];
    world.apply(asks);
    let told = world.told.get(&(gone - 1, Part::Head)).cloned();
    world.expect("neighbours are linked", told == Some(socket((gone + 1, Part::Tail))));
    let second = std::mem::take(&mut world.seen);

    let back = vec![world.reconnect((1, Part::Tail))];
    world.apply(back);
    world.settle(&BTreeSet::new());
    let path = world.path();
    let expected: Vec<u32> =
        [0, last].into_iter().chain((1..=honest).filter(|number| *number != gone)).collect();
    world.expect("they come back as they were", path == expected);
    [first, second, world.seen]
}

/// Many are lost at once, and those that are left ask for each lost neighbour within four seconds.
fn mass_loss(clients: u32, percent: u64, chance: &mut Chance) -> Seen {
    let mut world = World::new(clients);
    let lost: Vec<bool> = (0..clients).map(|_| chance.percent(percent)).collect();
    let left: Vec<u32> = (0..clients).filter(|number| !lost[*number as usize]).collect();
    (0..clients).filter(|number| lost[*number as usize]).for_each(|number| world.lose(number));
    let mut asking = Vec::new();
    for number in &left {
        let (before, after) = (number.checked_sub(1), *number as usize + 1);
        asking.extend(before.filter(|it| lost[*it as usize]).map(|_| (*number, Part::Tail)));
        asking.extend(lost.get(after).filter(|it| **it).map(|_| (*number, Part::Head)));
    }
    chance.shuffle(&mut asking);
    let steps = 4000 / TICK_MS as usize;
    let each = asking.len().div_ceil(steps).max(1);
    for part in asking.chunks(each) {
        for entry in part.chunks(limits::ENTRY_COMMANDS_MAX) {
            let commands = entry.iter().map(|side| world.reconnect(*side)).collect();
            world.apply(commands);
        }
        world.pass(TICK_MS);
    }
    // The first one has no one to wait for, and the tip waits for a newcomer.
    let ends = [(left[0], Part::Tail), (left[left.len() - 1], Part::Head)];
    let waiting = asking.into_iter().filter(|side| !ends.contains(side)).collect();
    world.settle(&waiting);
    let path: Vec<u32> = world.path().into_iter().filter(|it| !lost[*it as usize]).collect();
    world.expect("one path in the old order", path == left);
    world.seen
}

/// The last client dies, a newcomer joins behind it, and its neighbour notices two seconds later.
fn dead_tip(clients: u32) -> Seen {
    let mut world = World::new(clients);
    let tip = clients - 1;
    world.lose(tip);
    let newcomer = vec![world.connect(clients)];
    world.apply(newcomer);
    world.pass(2000);
    let notices = vec![world.reconnect((tip - 1, Part::Head))];
    world.apply(notices);
    world.settle(&BTreeSet::from([(tip - 1, Part::Head), (clients, Part::Tail)]));
    let told = world.told.get(&(tip - 1, Part::Head)).cloned();
    world.expect("the newcomer is its partner", told == Some(socket((clients, Part::Tail))));
    let path = world.path();
    let is_whole =
        path.iter().copied().filter(|it| *it != tip).eq((0..=clients).filter(|it| *it != tip));
    world.expect("one path in the old order", is_whole);
    world.seen
}

/// A client in the middle dies; one neighbour notices after 4 s, the other one after 16 s. A
/// newcomer may wait meanwhile behind a tip that died as well.
fn slow_neighbour(clients: u32, newcomer_waits: bool) -> Seen {
    let mut world = World::new(clients);
    let gone = clients / 2;
    let mut waiting = BTreeSet::from([(gone - 1, Part::Head), (gone + 1, Part::Tail)]);
    world.lose(gone);
    if newcomer_waits {
        world.lose(clients - 1);
        let newcomer = vec![world.connect(clients)];
        world.apply(newcomer);
        waiting.insert((clients, Part::Tail));
    }
    world.pass(4000);
    let early = vec![world.reconnect((gone - 1, Part::Head))];
    world.apply(early);
    world.pass(12_000);
    let mut late = vec![world.reconnect((gone + 1, Part::Tail))];
    if newcomer_waits {
        late.push(world.reconnect((clients - 2, Part::Head)));
    }
    world.apply(late);
    world.settle(&waiting);
    world.pass(20_000);
    let dead = [Some(gone), newcomer_waits.then_some(clients - 1)];
    let mut path = world.path();
    path.retain(|it| !dead.contains(&Some(*it)));
    path.sort_unstable();
    let last = if newcomer_waits { clients } else { clients - 1 };
    let living = (0..=last).filter(|it| !dead.contains(&Some(*it)));
    world.expect("no client that lives is lost", path.into_iter().eq(living));
    world.seen
}

fn session(connection: u64) -> SessionId {
    SessionId { instance: INSTANCE, incarnation: INCARNATION, connection }
}

/// The socket of a client, whose number its address spells.
fn socket((number, part): Side) -> Socket {
    let [_, x, y, z] = number.to_be_bytes();
    let port = match part {
        Part::Head => 1000,
        Part::Tail => 2000,
    };
    Socket::parse(&format!("10.{x}.{y}.{z}:{port}")).expect("it is an IPv4 socket")
}

fn source(number: u32) -> Source {
    Source::of(socket((number, Part::Head)).endpoint().ip)
}

fn number_of(client: &Client) -> u32 {
    match client.head.0.endpoint().ip {
        IpAddr::V4(ip) => u32::from(ip) & 0x00ff_ffff,
        IpAddr::V6(_) => unreachable!("all addresses are IPv4"),
    }
}
