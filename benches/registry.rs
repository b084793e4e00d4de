//! The registry alone, without disk, network or replicas: how long it applies one command, and
//! whether that depends on how many clients it knows. Commands come in entries as full as the
//! proposer makes them, and the digest follows the changed records after each as in the storage.

#![expect(clippy::print_stdout, reason = "progress is printed as it is made")]

#[path = "service/report.rs"]
#[expect(dead_code, reason = "the other benchmark uses all of it")]
mod report;

use std::{
    collections::BTreeMap,
    hint::black_box,
    net::{IpAddr, Ipv4Addr},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use clap::Parser;
use emnetchain::{
    clock,
    ids::{
        ChainName, HeadAddr, Incarnation, InstanceId, OrphanAddr, RepairId, SessionId, Socket,
        Source, TailAddr, Timestamp,
    },
    limits,
    registry::{BatchId, Command, Effect, Policy, Proposal, Registry},
    storage::RunningDigest,
};
use report::{Table, median, whole};

const INSTANCE: InstanceId = InstanceId(1);
const INCARNATION: Incarnation = Incarnation(1);
const HEAD_PORT: u16 = 1000;
const TAIL_PORT: u16 = 2000;
const ORPHAN_PORT: u16 = 3000;

/// Operations of each job, at every size of the registry.
const SAMPLE: u32 = 2000;

/// Measures the registry.
#[derive(Debug, Parser)]
#[command(name = "registry")]
struct Options {
    /// How many clients the chain has when the jobs are measured, rising.
    #[arg(long, value_delimiter = ',', default_values_t = [10_000, 100_000, 1_000_000])]
    sizes: Vec<u32>,
    /// How often everything is measured.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Does not keep the digest, which shows what it costs.
    #[arg(long)]
    without_digest: bool,
    /// Passed by `cargo bench`.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    let options = Options::parse();
    let mut results = BTreeMap::<(u32, Job), Vec<Timing>>::new();
    for round in 1..=options.rounds {
        println!("round {round}");
        let mut bench = Bench::new(options.without_digest);
        for size in &options.sizes {
            let (before, known) = (resident_bytes(), bench.joined);
            bench.grow(*size);
            if let (1, Some(before), Some(now)) = (round, before, resident_bytes()) {
                let each = now.saturating_sub(before) / u64::from(size - known).max(1);
                println!("{size} clients: {each} bytes for each one more");
            }
            for job in Job::ALL {
                results.entry((*size, job)).or_default().push(bench.measure(job));
            }
        }
    }
    let mut table = Table::new(&["clients", "job", "commands", "ns each", "per s", "wrong"]);
    for ((size, job), timings) in &results {
        let ns = median(timings.iter().map(Timing::ns_each).collect());
        table.row(vec![
            whole(f64::from(*size)),
            job.name().to_owned(),
            whole(f64::from(timings[0].operations)),
            whole(ns),
            whole(1e9 / ns),
            timings.iter().map(|timing| timing.wrong).sum::<usize>().to_string(),
        ]);
    }
    table.print();
    let all_right = results.values().flatten().all(|timing| timing.wrong == 0);
    println!("{}", if all_right { "all effects were right" } else { "SOME EFFECTS WERE WRONG" });
    ExitCode::from(u8::from(!all_right))
}

/// What is measured, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Job {
    /// Newcomers, each of which is linked with the tip.
    Join,
    /// The same while a reader holds a copy of the image, as a snapshot does.
    JoinUnderCopy,
    /// Clients that come back and are told again.
    Resume,
    /// Pairs of sockets that no chain knows, by a common id.
    Pair,
    /// Neighbours of a client that is gone, linked across the gap.
    Mend,
    /// The copy itself, per client.
    Copy,
    /// A registry from its image, per client.
    Rebuild,
    /// Newcomers, for each of which another client makes room, for the registry is full.
    Room,
}

impl Job {
    const ALL: [Self; 8] = [
        Self::Join,
        Self::JoinUnderCopy,
        Self::Resume,
        Self::Pair,
        Self::Mend,
        Self::Copy,
        Self::Rebuild,
        Self::Room,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Join => "join and link",
            Self::JoinUnderCopy => "join and link, image copied",
            Self::Resume => "come back",
            Self::Pair => "repair by id alone",
            Self::Mend => "repair of a gap",
            Self::Copy => "copy the image (per client)",
            Self::Rebuild => "rebuild (per client)",
            Self::Room => "join and link, registry full",
        }
    }
}

/// How long some operations took, and how many effects were missing or too many.
struct Timing {
    operations: u32,
    took: Duration,
    wrong: usize,
}

impl Timing {
    fn ns_each(&self) -> f64 {
        self.took.as_nanos() as f64 / f64::from(self.operations)
    }
}

struct Bench {
    registry: Registry,
    /// Clients that joined so far, which are numbered in their order.
    joined: u32,
    /// Clients up to this number may have been taken out by [`Job::Mend`].
    mended: u32,
    orphans: u32,
    sessions: u64,
    batches: u64,
    digest: Option<RunningDigest>,
}

impl Bench {
    fn new(without_digest: bool) -> Self {
        let mut registry = Registry::default();
        registry.apply(&Proposal {
            at: Timestamp(1),
            batch: None,
            commands: vec![Command::Start { instance: INSTANCE, incarnation: INCARNATION }],
        });
        let digest = (!without_digest).then(|| RunningDigest::of(registry.image()));
        Self { registry, joined: 0, mended: 0, orphans: 0, sessions: 0, batches: 0, digest }
    }

    /// Lets clients join until there are `size`.
    fn grow(&mut self, size: u32) {
        while self.joined < size {
            let end = size.min(self.joined + limits::ENTRY_COMMANDS_MAX as u32);
            let entry = (self.joined..end).map(|number| self.connect(number)).collect();
            self.apply(entry);
            self.joined = end;
        }
    }

    fn measure(&mut self, job: Job) -> Timing {
        match job {
            Job::Join => self.join(),
            Job::JoinUnderCopy => {
                let copy = self.registry.image().clone();
                let timing = self.join();
                drop(copy);
                timing
            }
            Job::Resume => {
                let first = self.mended;
                let step = ((self.joined - first) / (SAMPLE + 2)).max(1);
                let known = (1..=SAMPLE).map(|n| first + n * step);
                let commands = known.map(|number| self.connect(number)).collect();
                self.timed(commands, 2)
            }
            Job::Pair => {
                let numbers = self.orphans..self.orphans + SAMPLE;
                self.orphans += SAMPLE;
                let commands = numbers
                    .map(|n| self.reconnect(&format!("pair-{}", n / 2), n, ORPHAN_PORT))
                    .collect();
                self.timed(commands, 1)
            }
            Job::Mend => self.mend(),
            Job::Copy => {
                let begun = clock::now();
                let copy = black_box(self.registry.image().clone());
                let took = clock::now() - begun;
                Timing { operations: self.joined, took, wrong: copy.records.is_empty().into() }
            }
            Job::Rebuild => {
                let image = self.registry.image().clone();
                let begun = clock::now();
                let rebuilt = black_box(Registry::from_image(image));
                let took = clock::now() - begun;
                Timing { operations: self.joined, took, wrong: rebuilt.is_err().into() }
            }
            Job::Room => {
                let clients_max = self.registry.totals().clients;
                self.set_policy(Policy { clients_max, ..Policy::default() });
                let mut timing = self.join();
                timing.wrong += usize::from(self.registry.totals().clients != clients_max);
                self.set_policy(Policy::default());
                timing
            }
        }
    }

    fn set_policy(&mut self, policy: Policy) {
        self.apply(vec![Command::SetPolicy(policy)]);
    }

    fn join(&mut self) -> Timing {
        let numbers = self.joined..self.joined + SAMPLE;
        self.joined += SAMPLE;
        let commands = numbers.map(|number| self.connect(number)).collect();
        self.timed(commands, 2)
    }

    /// Every fourth client is gone; its neighbours ask for each other under one id.
    fn mend(&mut self) -> Timing {
        let first = self.mended + 2;
        self.mended += 2 * SAMPLE + 2;
        let lost = (0..SAMPLE / 2).map(|n| first + 4 * n);
        let commands = lost
            .flat_map(|gone| {
                let id = format!("gap-{gone}");
                [self.reconnect(&id, gone - 1, HEAD_PORT), self.reconnect(&id, gone + 1, TAIL_PORT)]
            })
            .collect();
        self.timed(commands, 1)
    }

    /// Applies `commands`, each of which must make the registry tell `tells_each` sessions.
    fn timed(&mut self, commands: Vec<Command>, tells_each: usize) -> Timing {
        let operations = u32::try_from(commands.len()).expect("a sample is far smaller");
        let (mut took, mut tells) = (Duration::ZERO, 0);
        let mut commands = commands.into_iter().peekable();
        while commands.peek().is_some() {
            let entry = commands.by_ref().take(limits::ENTRY_COMMANDS_MAX).collect();
            let (entry_took, entry_tells) = self.apply(entry);
            took += entry_took;
            tells += entry_tells;
        }
        let wrong = tells.abs_diff(operations as usize * tells_each);
        Timing { operations, took, wrong }
    }

    /// Applies one entry: how long it took, and how many sessions are told.
    fn apply(&mut self, commands: Vec<Command>) -> (Duration, usize) {
        self.batches += 1;
        let batch = BatchId { instance: INSTANCE, incarnation: INCARNATION, number: self.batches };
        let at = Timestamp(self.batches);
        let proposal = Proposal { at, batch: Some(batch), commands };
        let begun = clock::now();
        let applied = self.registry.apply(&proposal);
        let before = self.registry.take_changed();
        if let Some(digest) = &mut self.digest {
            digest.follow(&before, self.registry.image());
            black_box(digest.digest(&self.registry.image().meta));
        }
        drop(black_box(before));
        let took = clock::now() - begun;
        let told = applied.effects.iter().filter(|effect| matches!(effect, Effect::Tell { .. }));
        (took, told.count())
    }

    fn connect(&mut self, number: u32) -> Command {
        Command::Connect {
            session: self.session(),
            source: Source::of(IpAddr::V4(Ipv4Addr::LOCALHOST)),
            chain: ChainName::default(),
            head: HeadAddr(socket(number, HEAD_PORT)),
            tail: TailAddr(socket(number, TAIL_PORT)),
        }
    }

    fn reconnect(&mut self, id: &str, number: u32, port: u16) -> Command {
        Command::Reconnect {
            session: self.session(),
            source: Source::of(IpAddr::V4(Ipv4Addr::LOCALHOST)),
            id: RepairId(Arc::from(id)),
            orphan: OrphanAddr(socket(number, port)),
        }
    }

    fn session(&mut self) -> SessionId {
        self.sessions += 1;
        SessionId { instance: INSTANCE, incarnation: INCARNATION, connection: self.sessions }
    }
}

/// What the process has in memory, as Linux tells.
fn resident_bytes() -> Option<u64> {
    let pages = std::fs::read_to_string("/proc/self/statm").ok()?;
    Some(4096 * pages.split(' ').nth(1)?.parse::<u64>().ok()?)
}

/// A socket of client or orphan `number`, which its address spells.
fn socket(number: u32, port: u16) -> Socket {
    let [_, x, y, z] = number.to_be_bytes();
    Socket::parse(&format!("10.{x}.{y}.{z}:{port}")).expect("it is an IPv4 socket")
}
