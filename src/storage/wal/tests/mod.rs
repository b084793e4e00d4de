//! The promises of the log, tried on a real file system and on a disk that loses and fails.

mod contract;
mod damage;
mod faults;
mod fuzz;
mod model;
mod power;

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use futures_util::StreamExt;
use openraft::{
    EntryPayload, RaftLogReader,
    storage::{IOFlushed, RaftLogStorage},
    type_config::{TypeConfigExt, alias::OneshotReceiverOf},
};

use super::{LogError, LogOptions, OfflineLog, Sizes};
use crate::{
    ids::{Incarnation, InstanceId, PeerId, SessionId, Timestamp},
    metrics::Metrics,
    raft::{Entry, LogId, TypeConfig, Vote},
    registry::{Command, Proposal},
    storage::{
        Disk, LogStore,
        fault::{self, FaultWatch},
    },
};

const CLUSTER: [u8; 16] = *b"the test cluster";

/// So small that a few dozen entries fill segments, leave the tail, and take several frames.
const SMALL: Sizes = Sizes {
    segment_bytes: 3000,
    segments: 64,
    frame_bytes: 300,
    drain_bytes: 1500,
    tail_entries: 6,
    tail_bytes: 2000,
    mark_bytes: 500,
    entry_bytes: 4000,
    read_bytes: 700,
};

fn options(dir: &Path, expect_existing: bool) -> (LogOptions, FaultWatch) {
    let (faults, watch) = fault::channel();
    let dir = dir.to_owned();
    let metrics = Metrics::new();
    (LogOptions { dir, cluster_id: CLUSTER, expect_existing, metrics, faults }, watch)
}

fn open(disk: Arc<dyn Disk>, dir: &Path, expect_existing: bool) -> Result<LogStore, LogError> {
    LogStore::open_on(disk, options(dir, expect_existing).0, SMALL)
}

/// Returns the log's directory on a simulated disk.
fn sim_dir() -> PathBuf {
    PathBuf::from("/data/raft")
}

fn log_id(term: u64, index: u64) -> LogId {
    LogId::new(crate::raft::LeaderId { term, node_id: 1 }, index)
}

/// Returns an entry whose contents depend on all three numbers.
fn entry(term: u64, index: u64, bytes: usize) -> Entry {
    let session =
        SessionId { instance: InstanceId(1), incarnation: Incarnation(term), connection: index };
    let address = "x".repeat(bytes);
    let candidate = PeerId(0);
    let source = crate::ids::Source::of([10, 0, 0, 1].into());
    let command = Command::AddPeer { session, source, address, candidate };
    let proposal = Proposal { at: Timestamp(index), batch: None, commands: vec![command] };
    Entry { log_id: log_id(term, index), payload: EntryPayload::Normal(proposal) }
}

type Answer = OneshotReceiverOf<TypeConfig, io::Result<()>>;

/// Appends; the answer comes when the entries are durable.
async fn append_later(store: &mut LogStore, entries: Vec<Entry>) -> io::Result<Answer> {
    let (sender, answer) = TypeConfig::oneshot();
    store.append(entries, IOFlushed::signal(sender)).await?;
    Ok(answer)
}

async fn append(store: &mut LogStore, entries: Vec<Entry>) -> io::Result<()> {
    let answer = soon(append_later(store, entries)).await?;
    soon(answer).await.expect("every callback is completed")
}

/// Waits for what must come; a minute is for ever here, even on a busy machine.
async fn soon<T>(what: impl Future<Output = T>) -> T {
    let bound = std::time::Duration::from_secs(60);
    tokio::time::timeout(bound, what).await.expect("it came within a minute")
}

/// The expected contents of a log.
#[derive(Clone, Debug, Default, PartialEq)]
struct Model {
    vote: Option<Vote>,
    purged: Option<LogId>,
    entries: Vec<Entry>,
}

impl Model {
    fn end(&self) -> u64 {
        self.last().map_or(0, |last| last.index + 1)
    }

    fn last(&self) -> Option<LogId> {
        self.entries.last().map(|entry| entry.log_id).or(self.purged)
    }

    fn truncate(&mut self, end: u64) {
        self.entries.retain(|entry| entry.log_id.index < end);
    }

    fn purge(&mut self, upto: LogId) {
        self.entries.retain(|entry| entry.log_id.index > upto.index);
        self.purged = Some(upto);
    }

    /// Returns the contents of a store.
    async fn of(store: &mut LogStore) -> io::Result<Self> {
        let mut reader = store.get_log_reader().await;
        let entries = reader.try_get_log_entries(..).await?;
        let state = store.get_log_state().await?;
        let model =
            Self { vote: reader.read_vote().await?, purged: state.last_purged_log_id, entries };
        assert_eq!(state.last_log_id, model.last());
        assert_eq!((store.last(), store.purged()), (model.last(), model.purged));
        Ok(model)
    }

    /// Returns the same contents, read in all the other ways as well.
    async fn of_every_way(store: &mut LogStore) -> io::Result<Self> {
        let model = Self::of(store).await?;
        let mut reader = store.get_log_reader().await;
        let streamed: Vec<_> = reader.entries_stream(0..model.end()).await.collect().await;
        assert_eq!(streamed.into_iter().collect::<io::Result<Vec<_>>>()?, model.entries);
        for (number, entry) in model.entries.iter().enumerate() {
            let index = entry.log_id.index;
            let one = reader.try_get_log_entries(index..=index).await?;
            assert_eq!(one, std::slice::from_ref(entry));
            let some = reader.limited_get_log_entries(index, model.end()).await?;
            assert!(!some.is_empty());
            assert_eq!(some, model.entries[number..number + some.len()]);
        }
        Ok(model)
    }
}
