//! The promises of the storage, tried with hand-made records: each test keeps the registry as it
//! was after every entry, and all that comes back from disk must be one of these.

mod backup;
mod crash;
mod damage;
mod fixtures;
mod golden;
mod guard;
mod hangs;
mod machine;
mod power;
mod round_trip;
mod snapshots;

use std::{
    collections::BTreeMap,
    fs,
    net::{IpAddr, Ipv4Addr},
    path::Path,
    sync::Arc,
};

use openraft::{type_config::alias::CommittedLeaderIdOf, vote::RaftLeaderId as _};
use tempfile::TempDir;

use super::{
    DataDir, ImageProgress, LogEnds, LogGuard, StorageError,
    fault::{self, FaultReporter, FaultWatch},
    image::{self, ImageQueue, ImageStore as _, SledStore, Step, Work},
    snapshot::SnapshotDir,
    start::{self, Restored},
};
use crate::{
    ids::{
        ChainName, HeadAddr, Incarnation, InstanceId, PeerId, RepairId, SessionId, Socket, Source,
        TailAddr, Timestamp,
    },
    metrics::Metrics,
    raft::{LogId, SnapshotMeta, TypeConfig},
    registry::{
        Answer, Ask, Caller, Client, Image, Line, Past, Peer, Record, Request, Serial, Side,
    },
};

const NODE: InstanceId = InstanceId(1);

/// Small numbers from a printed seed (splitmix64).
struct Random(u64);

impl Random {
    /// The seed is `EMNETCHAIN_SEED` if it is set.
    #[expect(clippy::print_stdout, reason = "the test harness shows it when a test fails")]
    fn new(test: &str) -> Self {
        let seed = match std::env::var("EMNETCHAIN_SEED") {
            Ok(text) => text.parse().unwrap(),
            Err(_) => getrandom::u64().unwrap(),
        };
        println!("replay with EMNETCHAIN_SEED={seed} cargo test --lib {test}");
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

/// A registry that is changed entry by entry, and all that it ever was.
struct Model {
    random: Random,
    image: Image,
    at: SnapshotMeta,
    /// The registry after each entry; `None` is before the first.
    history: BTreeMap<Option<u64>, Image>,
}

impl Model {
    fn new(random: Random) -> Self {
        let image = Image::default();
        let history = BTreeMap::from([(None, image.clone())]);
        Self { random, image, at: SnapshotMeta::default(), history }
    }

    /// One more entry, that adds, changes and removes a few records.
    fn step(&mut self) -> Step {
        let index = self.at.last_log_id.map_or(0, |last| last.index + 1);
        let mut changes = Vec::new();
        for _ in 0..self.random.below(6) {
            let fresh = self.image.meta.next_serial;
            let (serial, record) = match self.random.below(4) {
                0 if fresh.0 > 0 => (Serial(self.random.below(fresh.0)), None),
                1 if fresh.0 > 0 => {
                    (Serial(self.random.below(fresh.0)), Some(record(&mut self.random)))
                }
                _ => {
                    self.image.meta.next_serial.0 += 1;
                    (fresh, Some(record(&mut self.random)))
                }
            };
            match &record {
                Some(record) => drop(self.image.records.insert(serial, record.clone())),
                None => drop(self.image.records.remove(serial)),
            }
            changes.push((serial, record));
        }
        self.image.meta.now = Timestamp(index * 10);
        self.at.last_log_id = Some(log_id(index));
        self.history.insert(Some(index), self.image.clone());
        Step { applied: log_id(index), membership: None, changes, meta: self.image.meta.clone() }
    }

    /// The restored registry must be the one after that entry.
    #[track_caller]
    fn assert_was(&self, restored: &Restored, context: &str) {
        let index = restored.at.last_log_id.map(|last| last.index);
        let was = self.history.get(&index);
        // No assert_eq: two whole registries are too much to read.
        assert!(was == Some(restored.registry.image()), "{context}: wrong at entry {index:?}");
    }
}

fn log_id(index: u64) -> LogId {
    LogId::new(CommittedLeaderIdOf::<TypeConfig>::new(1, NODE.0), index)
}

fn ends(purged: Option<u64>, last: u64) -> LogEnds {
    LogEnds { purged: purged.map(log_id), last: Some(log_id(last)) }
}

/// Returns an EMNet entry with this number of bytes of address.
fn peer(bytes: usize, until: Timestamp) -> Peer {
    Peer {
        id: PeerId(7),
        source: Source::of([192, 0, 2, 1].into()),
        address: "p".repeat(bytes),
        until,
        #[cfg(feature = "rules-3")]
        made_by: None,
    }
}

/// Any record.
fn record(random: &mut Random) -> Record {
    let socket = |random: &mut Random| {
        let [a, b, c, ..] = random.next().to_be_bytes();
        Socket::parse(&format!("10.{a}.{b}.{c}:{}", 1 + random.below(65535))).unwrap()
    };
    let source = Source::of(IpAddr::V4(Ipv4Addr::from(random.next() as u32)));
    let until = Timestamp(random.below(1 << 40));
    // No two asks have one id, because they would be paired.
    let id = "r".repeat(1 + random.below(480) as usize) + &random.next().to_string();
    let id = RepairId(id.into());
    let session = SessionId {
        instance: InstanceId(random.below(5)),
        incarnation: Incarnation(random.below(9)),
        connection: random.next(),
    };
    let request =
        if random.below(2) == 0 { Request::Connect } else { Request::Reconnect(id.clone()) };
    let ask = Ask {
        session,
        number: Serial(0),
        since: Timestamp(1),
        until,
        request,
        line: Line::HalfClosed,
        past: Past::New,
    };
    match random.below(4) {
        0 => Record::Peer(peer(200, until)),
        1 => Record::Answer(Answer {
            id,
            socket: socket(random).endpoint(),
            source,
            partner: socket(random),
            until,
        }),
        2 => Record::Caller(Caller { socket: socket(random), source, ask }),
        _ => Record::Client(Client {
            chain: ChainName("c".into()),
            head: HeadAddr(socket(random)),
            tail: TailAddr(socket(random)),
            source,
            joined: until,
            refreshed: until,
            session,
            is_marked: false,
            head_side: Side::Asking(Box::new(ask)),
            tail_side: Side::Paired { partner: socket(random).into(), since: until },
        }),
    }
}

/// Returns a data directory with something in `raft/`, as if the log were open.
fn new_dir() -> (TempDir, DataDir) {
    let temp = tempfile::tempdir().unwrap();
    let dir = DataDir::open(temp.path(), NODE, None).unwrap();
    fs::create_dir(dir.raft_dir()).unwrap();
    fs::write(dir.raft_dir().join("log"), "entries").unwrap();
    (temp, dir)
}

/// A writer at work, without a state machine above it.
struct Writing {
    queue: ImageQueue,
    progress: ImageProgress,
    faults: FaultWatch,
}

impl Writing {
    /// Begins where a start leaves off, as [`super::StateMachine::open`] does.
    fn begin(dir: &DataDir, restored: Restored, options: image::Options) -> Self {
        let (reporter, faults): (FaultReporter, FaultWatch) = fault::channel();
        let Restored { registry, at, image, .. } = restored;
        let fresh = image.is_none();
        let store = Arc::new(sled_store(dir, options));
        let meta = registry.image().meta.clone();
        let start = image::Start { store, image, at: at.clone(), meta };
        let (queue, progress) = image::spawn(dir, start, &Metrics::new(), &reporter).unwrap();
        if fresh {
            queue.send_first(Work::Replace { image: registry.image().clone(), at });
        }
        Self { queue, progress, faults }
    }

    /// Hands work over to a writer that keeps up.
    async fn send(&mut self, work: Work) -> std::io::Result<()> {
        self.queue.send(work, || unreachable!("the writer keeps up")).await
    }

    /// Ends the writer and waits until it is done.
    async fn end(self) {
        let Self { queue, mut progress, faults } = self;
        drop(queue);
        soon(progress.ended()).await;
        assert!(faults.current().is_none(), "{:?}", faults.current());
    }
}

/// Waits for what must come; a minute is for ever here, even on a busy machine.
async fn soon<T>(what: impl Future<Output = T>) -> T {
    let bound = std::time::Duration::from_secs(60);
    tokio::time::timeout(bound, what).await.expect("it came within a minute")
}

/// Returns the image of a directory, kept in sled.
fn sled_store(dir: &DataDir, options: image::Options) -> SledStore {
    SledStore::new(&dir.registry_dir(), dir.seal(), options)
}

/// Starts from what the directory holds.
fn restore(dir: &DataDir, log: LogEnds) -> Result<Restored, StorageError> {
    let store = sled_store(dir, image::Options::default());
    start::restore(dir, log, Some(&store), &LogGuard::default())
}

/// Returns a directory with an image of `entries` entries, and a snapshot of the first `covered`.
async fn filled(random: Random, entries: u64, covered: u64) -> (TempDir, Model) {
    let (temp, mut dir) = new_dir();
    let mut model = Model::new(random);
    let mut writing =
        Writing::begin(&dir, restore(&dir, LogEnds::default()).unwrap(), image::Options::default());
    for index in 0..entries {
        let step = model.step();
        writing.send(Work::Step(step)).await.unwrap();
        if index == covered {
            let snapshots = SnapshotDir::open(&dir, None).unwrap();
            snapshots.write(&model.at, &model.image).unwrap();
        }
    }
    writing.end().await;
    dir.mark_initialised(None).unwrap();
    (temp, model)
}

/// Returns a copy of a data directory that can be damaged.
fn copy_of(path: &Path) -> TempDir {
    let copy = tempfile::tempdir().unwrap();
    image::tree::copy(path, copy.path()).unwrap();
    copy
}
