//! The raft log on disk: entries in segments, and beside them one small file with the vote, what
//! was purged, and the list of segments.
//!
//! Raft is safe only if neither log nor vote ever goes back. So nothing is acknowledged before it
//! is synced, and a log that may have lost something acknowledged is not opened at all:
//!
//! - Every header and every body has its own checksum, and every header carries that of the one
//!   before it ([`frame`]). A damaged length cannot pass for the end of the log.
//! - What was synced is known from two sides: each frame says how far the segment was durable
//!   when it was written, and the state file says how far it is durable now ([`state`]). Only what
//!   neither vouches for is taken for the torn end of a write that a crash interrupted, and is cut.
//! - The state is kept twice, so that a torn or damaged copy takes back neither vote nor list.
//! - Segments are made durable before they are listed, and listed before they are used; they leave
//!   the list before they are removed ([`writer`]).
//!
//! Entries that raft revokes stay where they are; a *restart* frame behind them says where the log
//! goes on. Purging removes whole segments only.
//!
//! The bytes, and what to do when a log is refused, are in `proto-docs/storage-log.md`. What this
//! module deliberately lacks: repair in place (a raft log has no spare copy; the other instances
//! have), compression, and a record of what is committed (after a start raft finds out again).

mod frame;
mod ids;
mod job;
mod log;
mod offline;
mod read;
mod recover;
mod segment;
mod state;
#[cfg(test)]
mod tests;
mod writer;

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};

pub(super) use ids::LogIds;
pub(super) use job::{Append, Done, Flushed, Job, Shared, thread_ended};
pub(super) use log::Encoded;
pub(super) use offline::OfflineLog;
pub(super) use recover::has_begun;

use self::{
    frame::{Id, SEGMENT_HEADER_BYTES, SegmentHeader},
    recover::{Recovered, log_exists, recover},
    segment::{Segment, parse_segment_name},
    state::{NEW_STATE_NAME, STATE_NAME, State, StateFile},
    writer::Writer,
};
use super::{
    disk::{Access, Disk},
    fault::{DiskFault, FaultReporter},
    files,
    pulse::Pulse,
    worker::{self, Queue, Running},
};
use crate::{
    clock,
    ids::StoreId,
    metrics::Metrics,
    raft::{LogId, Vote},
    runtime,
};

/// Why a log cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// Something that was acknowledged is gone or changed, or the files are not this instance's.
    #[error(
        "{} at byte {offset}: {what}. The raft log is left untouched, because opening it could \
         take back answers to clients and other instances. If a file was moved or replaced, put it \
         back. Otherwise move the data directory aside and join the cluster again under a new \
         node id; a single instance is restored from its backup",
        path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where in it.
        offset: u64,
        /// The fault.
        what: String,
    },
    /// The disk did not do what it was asked.
    #[error(transparent)]
    Io(#[from] DiskFault),
}

impl LogError {
    fn damaged(path: &Path, offset: u64, what: impl Into<String>) -> Self {
        Self::Damaged { path: path.to_owned(), offset, what: what.into() }
    }
}

/// Where a log is, and what it reports to.
#[derive(Clone, Debug)]
pub struct LogOptions {
    /// The log's own directory.
    pub dir: PathBuf,
    /// The cluster that the instance belongs to; a log of another one is refused.
    pub cluster_id: [u8; 16],
    /// The instance has had a log before: a missing one is not made again.
    pub expect_existing: bool,
    /// Where syncs and bytes are counted.
    pub metrics: Metrics,
    /// Where the first failed write is reported.
    pub faults: FaultReporter,
}

/// The contents of an intact log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogSummary {
    /// The vote given last.
    pub vote: Option<Vote>,
    /// The last entry purged.
    pub purged: Option<LogId>,
    /// Index of the first entry, if there is one.
    pub first: Option<u64>,
    /// The last entry, or the last purged one if there is none.
    pub last: Option<LogId>,
    /// Segments in the log.
    pub segments: usize,
    /// Bytes in the log's segments.
    pub bytes: u64,
    /// Bytes of an interrupted write at the end, never acknowledged; cut off at the next start.
    pub torn_bytes: u64,
    /// One of the two copies of the state must be written again, which the next start does.
    pub one_state_copy_stale: bool,
}

impl fmt::Display for LogSummary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.first, self.last) {
            (Some(first), Some(last)) => write!(f, "whole, entries {first} to {}", last.index)?,
            (None, Some(last)) => write!(f, "whole, no entries after {}", last.index)?,
            (_, None) => f.write_str("whole, no entries")?,
        }
        if let Some(last) = self.last {
            write!(f, " of term {}", last.committed_leader_id().term)?;
        }
        write!(f, ", {} bytes in {} segments", self.bytes, self.segments)?;
        if self.torn_bytes > 0 {
            write!(f, "; {} bytes of an interrupted write will be cut off", self.torn_bytes)?;
        }
        if self.one_state_copy_stale {
            f.write_str("; one of the two copies of its state will be written again")?;
        }
        Ok(())
    }
}

/// Sizes that tests make small.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sizes {
    /// A segment this long is followed by another: small enough to purge in steps.
    pub(super) segment_bytes: u64,
    /// Segments at most, 16 GiB: the log is purged every few thousand entries, so this many mean
    /// that purging has ceased. It bounds open files as well, and fits a slot of the state.
    pub(super) segments: usize,
    /// A frame ends once its entries have this many bytes; it is read back in one piece.
    pub(super) frame_bytes: usize,
    /// A write ends once it has this many bytes of entries.
    pub(super) drain_bytes: usize,
    /// Entries kept in memory; also how many may wait for their sync.
    pub(super) tail_entries: usize,
    /// Bytes of entries kept in memory; also how many may wait for their sync.
    pub(super) tail_bytes: usize,
    /// Bytes of a segment between two remembered frames: 16 KiB of memory for 64 MiB.
    pub(super) mark_bytes: u64,
    /// Bytes of one entry, far above what a proposal can reach.
    pub(super) entry_bytes: usize,
    /// Bytes of entries that one step of a bounded read returns.
    pub(super) read_bytes: usize,
}

impl Default for Sizes {
    fn default() -> Self {
        Self {
            segment_bytes: 64 << 20,
            segments: 256,
            frame_bytes: 1 << 20,
            drain_bytes: 16 << 20,
            tail_entries: 64 << 10,
            tail_bytes: 64 << 20,
            mark_bytes: 64 << 10,
            entry_bytes: 16 << 20,
            read_bytes: 4 << 20,
        }
    }
}

/// An open log and its writer; dropping it writes what is queued and ends the writer.
#[derive(Debug)]
pub(super) struct Wal {
    pub(super) shared: Arc<Shared>,
    /// Drawn at random when the log was made.
    pub(super) store: StoreId,
    /// The pulse of the writer.
    pub(super) pulse: Pulse,
    queue: Option<Queue<Job>>,
    running: Running,
}

impl Wal {
    /// Opens the log, or makes it. Opening writes nothing, so it succeeds on a full disk.
    pub(super) fn open(
        disk: Arc<dyn Disk>,
        options: LogOptions,
        sizes: Sizes,
    ) -> Result<Self, LogError> {
        let LogOptions { dir, cluster_id, expect_existing, metrics, faults } = options;
        if !log_exists(&*disk, &dir)? {
            if expect_existing {
                let what = "this instance has had a raft log and it is gone";
                return Err(LogError::damaged(&dir, 0, what));
            }
            create(&*disk, &dir, cluster_id, Beginning::default())?;
        }
        let recovered = recover(&*disk, &dir, &cluster_id, Access::Write, sizes)?;
        let Recovered { state, state_file, seal, log, repairs } = recovered;
        // A killed process may have left in the kernel's cache what we have just read; from now
        // on it counts as durable.
        log.current().file.sync()?;
        state_file.sync()?;
        disk.sync_dir(&dir)?;
        if repairs.torn_bytes > 0 {
            let (bytes, next) = (repairs.torn_bytes, log.end());
            tracing::warn!(bytes, next, "cut an interrupted write off the end of the raft log");
            metrics.log_torn_bytes.inc_by(bytes);
        }
        if repairs.one_slot_stale {
            // A kill soon after a vote leaves this: the second copy is made a moment later.
            tracing::debug!("one of the two copies of the raft log's state is damaged or stale");
        }
        metrics.log_bytes.set(i64::try_from(log.bytes()).unwrap_or(i64::MAX));
        let shared = Arc::new(Shared::new(log, seal));
        let store = StoreId(u128::from_be_bytes(state.store));
        let pulse = Pulse::default();
        let writer = Writer {
            disk,
            dir: dir.clone(),
            shared: Arc::clone(&shared),
            state,
            state_file,
            repairs: Some(repairs),
            sizes,
            metrics,
            faults,
            pulse: pulse.clone(),
            failed: None,
            idle_since: clock::now(),
            seen: clock::now(),
            buffer: Vec::new(),
        };
        let fault = files::failed("start the thread that writes", &dir);
        let (queue, running) = worker::start(writer, fault)?;
        Ok(Self { shared, store, pulse, queue: Some(queue), running })
    }

    /// Queues a job. If the writer has ended, the job is dropped, which answers it with an error.
    pub(super) fn send(&self, job: Job) {
        if let Some(queue) = &self.queue {
            // What cannot be sent is dropped here.
            let _ = queue.send(job);
        }
    }
}

impl Drop for Wal {
    fn drop(&mut self) {
        self.queue = None;
        if let Some(thread) = self.running.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that writes the raft log has panicked");
        }
    }
}

/// Where a new log begins.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Beginning {
    /// The vote that counts as given.
    pub(super) vote: Option<Vote>,
    /// The entry that counts as the last one purged.
    pub(super) purged: Option<LogId>,
}

/// Makes an empty log and returns the store that was drawn for it. The state gets its final name
/// last: until then it is an interrupted creation, which the next start repeats.
pub(super) fn create(
    disk: &dyn Disk,
    dir: &Path,
    cluster: Id,
    beginning: Beginning,
) -> Result<StoreId, LogError> {
    let Beginning { vote, purged } = beginning;
    let first = purged.map_or(0, |purged| purged.index + 1);
    disk.create_dir(dir)?;
    for name in disk.names(dir)?.iter().filter(|name| parse_segment_name(name).is_some()) {
        disk.remove(&dir.join(name))?;
    }
    disk.sync_dir(dir)?;
    let store = runtime::random().map_err(files::failed("draw a random id for", dir))?;
    let store = store.to_be_bytes();
    let state = State {
        generation: 1,
        cluster,
        store,
        vote,
        purged,
        segments: vec![first],
        dropped: Vec::new(),
        durable: SEGMENT_HEADER_BYTES as u64,
    };
    StateFile::create(disk, dir, &state)?;
    disk.sync_dir(dir)?;
    Segment::create(disk, dir, &SegmentHeader { cluster, store, first, chain: 0 })?;
    disk.rename(&dir.join(NEW_STATE_NAME), &dir.join(STATE_NAME))?;
    disk.sync_dir(dir)?;
    Ok(StoreId(u128::from_be_bytes(store)))
}
