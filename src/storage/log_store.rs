//! The raft log as openraft sees it; [`super::wal`] has its form on disk.
//!
//! `append` returns as soon as the entries are readable, and openraft hears through a callback
//! when they are durable. It waits only if the disk is so far behind that the entries not yet
//! synced fill their share of memory. The vote, truncating and purging return once durable.

use std::{
    collections::VecDeque,
    fmt::Debug,
    io,
    ops::{Bound, RangeBounds},
    path::Path,
    sync::Arc,
};

use futures_util::stream::{self, Stream};
use openraft::{
    LogState, OptionalSend, RaftLogReader,
    storage::{IOFlushed, RaftLogStorage},
};
use tokio::sync::oneshot;

pub use super::wal::{LogError, LogOptions, LogSummary};
use super::{
    disk::{Disk, RealDisk},
    fault::{DataFault, DiskFault, FaultReporter},
    guard::LogGuard,
    pulse::Pulse,
    wal::{
        self, Append, Beginning, Done, Encoded, Flushed, Job, LogIds, OfflineLog, Shared, Sizes,
        Wal,
    },
};
use crate::{
    codec,
    ids::StoreId,
    raft::{Entry, LogId, TypeConfig, Vote},
    runtime::spawn_blocking,
};

/// The raft log and the vote of one instance.
#[derive(Debug)]
pub struct LogStore {
    wal: Wal,
    reader: LogReader,
    guard: LogGuard,
}

/// Reads the log beside its writer; cheap to clone.
#[derive(Clone, Debug)]
pub struct LogReader {
    shared: Arc<Shared>,
    faults: FaultReporter,
    sizes: Sizes,
}

impl LogStore {
    /// Opens the log in its directory, or makes it there.
    ///
    /// # Errors
    /// [`LogError::Damaged`] if anything that was acknowledged may be missing, or if the files
    /// belong to someone else; [`LogError::Io`] if the disk does not answer.
    pub fn open(options: LogOptions) -> Result<Self, LogError> {
        Self::open_on(Arc::new(RealDisk), options, Sizes::default())
    }

    /// Reads a log without touching it, as [`Self::open`] would.
    ///
    /// # Errors
    /// The same; also if there is no log.
    pub fn check(dir: &Path, cluster_id: [u8; 16]) -> Result<LogSummary, LogError> {
        Self::check_on(&RealDisk, dir, cluster_id)
    }

    /// Does the same on another disk, such as that of a simulation.
    ///
    /// # Errors
    /// The same.
    pub fn check_on(
        disk: &dyn Disk,
        dir: &Path,
        cluster_id: [u8; 16],
    ) -> Result<LogSummary, LogError> {
        Ok(Self::open_offline(disk, dir, cluster_id)?.summary())
    }

    /// Returns whether nothing was ever stored in a log that is there.
    pub(super) fn is_blank(
        disk: &dyn Disk,
        dir: &Path,
        cluster_id: [u8; 16],
    ) -> Result<bool, LogError> {
        // Each start asks, and a log that was ever used has a vote: only others are read.
        if wal::has_begun(disk, dir)? {
            return Ok(false);
        }
        Ok(Self::check_on(disk, dir, cluster_id)?.last.is_none())
    }

    /// Opens a log to read it, and leaves it as it is.
    pub(super) fn open_offline(
        disk: &dyn Disk,
        dir: &Path,
        cluster_id: [u8; 16],
    ) -> Result<OfflineLog, LogError> {
        OfflineLog::open(disk, dir, cluster_id)
    }

    /// Makes a log that begins behind `purged`, with this vote given; returns its store.
    pub(super) fn found(
        disk: &dyn Disk,
        dir: &Path,
        cluster_id: [u8; 16],
        vote: Vote,
        purged: Option<LogId>,
    ) -> Result<StoreId, LogError> {
        wal::create(disk, dir, cluster_id, Beginning { vote: Some(vote), purged })
    }

    /// Returns the last entry purged.
    pub fn purged(&self) -> Option<LogId> {
        self.reader.shared.lock().purged
    }

    /// Returns the last entry, or the last purged one if there is none.
    pub fn last(&self) -> Option<LogId> {
        self.reader.shared.lock().last
    }

    /// The vote given last.
    #[cfg(test)]
    pub(super) fn vote(&self) -> Option<Vote> {
        self.reader.shared.lock().vote
    }

    /// Returns the store that this log makes of its directory.
    pub fn store(&self) -> StoreId {
        self.wal.store
    }

    /// Returns the pulse of the thread that writes the log.
    pub fn pulse(&self) -> Pulse {
        self.wal.pulse.clone()
    }

    pub(super) fn open_on(
        disk: Arc<dyn Disk>,
        options: LogOptions,
        sizes: Sizes,
    ) -> Result<Self, LogError> {
        let faults = options.faults.clone();
        let wal = Wal::open(disk, options, sizes)?;
        let guard = LogGuard::new(Arc::clone(&wal.shared), wal.store, faults.clone());
        let reader = LogReader { shared: Arc::clone(&wal.shared), faults, sizes };
        Ok(Self { wal, reader, guard })
    }

    /// Returns the guard of this log, to be shared with the state machine that applies its entries.
    pub fn guard(&self) -> LogGuard {
        self.guard.clone()
    }

    /// Reports what contradicts an applied entry; the instance ends.
    fn refuse(&self, fault: DataFault) -> io::Error {
        tracing::error!(%fault, "the raft log refuses an operation");
        self.reader.faults.report(fault)
    }

    /// Has a job carried out, and waits until it is durable.
    async fn carry_out(&self, job: impl FnOnce(Done) -> Job) -> io::Result<()> {
        let (done, result) = oneshot::channel();
        self.wal.send(job(done));
        result.await.unwrap_or_else(|_| Err(wal::thread_ended()))
    }

    /// Waits until entries may be added to those that are not synced yet.
    async fn room(&self) -> io::Result<()> {
        loop {
            {
                let log = self.reader.shared.lock();
                if log.broken {
                    return Err(wal::thread_ended());
                }
                if log.has_room() {
                    return Ok(());
                }
            }
            // Only one append waits at a time, so a ring before this is not lost.
            self.reader.shared.room.notified().await;
        }
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = LogReader;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, io::Error> {
        let log = self.reader.shared.lock();
        Ok(LogState { last_purged_log_id: log.purged, last_log_id: log.last })
    }

    async fn get_log_reader(&mut self) -> Self::LogReader {
        self.reader.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        self.carry_out(|done| Job::Vote(*vote, done)).await
    }

    async fn append<I>(
        &mut self,
        entries: I,
        callback: IOFlushed<TypeConfig>,
    ) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let flushed = Flushed::new(callback);
        let encoded = encode(entries, self.reader.sizes.entry_bytes)?;
        self.room().await?;
        let Some((first_id, last)) = encoded.span else {
            let first = self.reader.shared.lock().end();
            self.wal.send(Job::Append(Append { first, entries: Vec::new(), flushed }));
            return Ok(());
        };
        let first = first_id.index;
        self.guard.check_append(first_id).map_err(|fault| self.refuse(fault))?;
        let (end, may_begin_here) = {
            let log = self.reader.shared.lock();
            (log.end(), log.may_begin_anywhere())
        };
        if first != end && !may_begin_here {
            let text = format!("entries from {first} on do not follow a log that ends at {end}");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        if first != end {
            self.carry_out(|done| Job::Begin(first, done)).await?;
        }
        self.reader.shared.lock().append(&encoded.entries, &encoded.ids, last);
        self.wal.send(Job::Append(Append { first, entries: encoded.entries, flushed }));
        Ok(())
    }

    async fn truncate_after(&mut self, last_log_id: Option<LogId>) -> Result<(), io::Error> {
        self.guard.check_truncation(last_log_id).map_err(|fault| self.refuse(fault))?;
        self.carry_out(|done| Job::Truncate(last_log_id, done)).await
    }

    async fn purge(&mut self, log_id: LogId) -> Result<(), io::Error> {
        self.guard.check_purge(log_id).map_err(|fault| self.refuse(fault))?;
        self.carry_out(|done| Job::Purge(log_id, done)).await
    }
}

impl LogReader {
    /// Entries from a range, the oldest first; at least one if there is any, and no more once
    /// `bytes_max` bytes are reached.
    async fn read(&self, from: u64, to: u64, bytes_max: usize) -> io::Result<Vec<Entry>> {
        let plan = self.shared.lock().plan(from, to);
        let read = if plan.needs_disk() {
            let shared = Arc::clone(&self.shared);
            let reading = spawn_blocking(move || plan.read(&shared.seal, bytes_max));
            reading.await?
        } else {
            plan.read(&self.shared.seal, bytes_max)
        };
        read.map_err(|fault: DiskFault| self.faults.report(fault))
    }
}

impl RaftLogReader<TypeConfig> for LogReader {
    async fn try_get_log_entries<RB>(&mut self, range: RB) -> Result<Vec<Entry>, io::Error>
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let (from, to) = bounds(&range);
        self.read(from, to, usize::MAX).await
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        Ok(self.shared.lock().vote)
    }

    async fn limited_get_log_entries(
        &mut self,
        start: u64,
        end: u64,
    ) -> Result<Vec<Entry>, io::Error> {
        self.read(start, end, self.sizes.read_bytes).await
    }

    /// In steps, so that catching up after a start does not hold the whole log in memory.
    async fn entries_stream<RB>(
        &mut self,
        range: RB,
    ) -> impl Stream<Item = Result<Entry, io::Error>> + OptionalSend
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let (from, to) = bounds(&range);
        let start = (self.clone(), from, VecDeque::new());
        let steps = stream::try_unfold(start, move |(reader, mut from, mut ready)| async move {
            if ready.is_empty() && from < to {
                ready = VecDeque::from(reader.read(from, to, reader.sizes.read_bytes).await?);
                from = ready.back().map_or(to, |last: &Entry| last.log_id.index + 1);
            }
            Ok(ready.pop_front().map(|entry| (entry, (reader, from, ready))))
        });
        Box::pin(steps)
    }
}

/// Entries as they will stand on disk.
struct EncodedEntries {
    entries: Vec<Encoded>,
    ids: LogIds,
    /// The ids of the first and the last, if there are any.
    span: Option<(LogId, LogId)>,
}

fn encode(
    entries: impl IntoIterator<Item = Entry>,
    bytes_max: usize,
) -> io::Result<EncodedEntries> {
    let invalid = |text: String| io::Error::new(io::ErrorKind::InvalidInput, text);
    let mut encoded = EncodedEntries { entries: Vec::new(), ids: LogIds::default(), span: None };
    for entry in entries {
        let index = entry.log_id.index;
        let first = encoded.span.map_or(entry.log_id, |(first, _)| first);
        if index != first.index + encoded.entries.len() as u64 {
            return Err(invalid(format!("entry {index} does not follow the one before it")));
        }
        let bytes = codec::encode(&entry);
        if bytes.len() > bytes_max {
            return Err(invalid(format!("entry {index} has {} bytes", bytes.len())));
        }
        encoded.entries.push(Encoded::from(bytes));
        encoded.ids.push(entry.log_id);
        encoded.span = Some((first, entry.log_id));
    }
    Ok(encoded)
}

/// Returns a range as `from..to`.
fn bounds(range: &impl RangeBounds<u64>) -> (u64, u64) {
    let from = match range.start_bound() {
        Bound::Included(from) => *from,
        Bound::Excluded(before) => before.saturating_add(1),
        Bound::Unbounded => 0,
    };
    let to = match range.end_bound() {
        Bound::Included(last) => last.saturating_add(1),
        Bound::Excluded(to) => *to,
        Bound::Unbounded => u64::MAX,
    };
    (from, to)
}
