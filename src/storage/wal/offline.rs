//! A log that no process writes: read, and left as it is.

use std::path::Path;

use super::{
    LogError, LogSummary, Sizes,
    frame::Id,
    recover::{Recovered, log_exists, recover},
};
use crate::{
    ids::StoreId,
    raft::{Entry, LogId},
    storage::{
        disk::{Access, Disk},
        fault::DiskFault,
    },
};

/// An intact log, held against everything that a start would hold it against.
#[derive(Debug)]
pub(in crate::storage) struct OfflineLog {
    recovered: Recovered,
    sizes: Sizes,
}

impl OfflineLog {
    /// Reads a log.
    ///
    /// # Errors
    /// If a start would refuse it, or there is none.
    pub(in crate::storage) fn open(
        disk: &dyn Disk,
        dir: &Path,
        cluster_id: Id,
    ) -> Result<Self, LogError> {
        if !log_exists(disk, dir)? {
            return Err(LogError::damaged(dir, 0, "there is no raft log"));
        }
        let sizes = Sizes::default();
        Ok(Self { recovered: recover(disk, dir, &cluster_id, Access::Read, sizes)?, sizes })
    }

    /// Returns the store that it makes of its directory.
    pub(in crate::storage) fn store(&self) -> StoreId {
        StoreId(u128::from_be_bytes(self.recovered.state.store))
    }

    /// Returns its contents.
    pub(in crate::storage) fn summary(&self) -> LogSummary {
        let Recovered { log, repairs, .. } = &self.recovered;
        LogSummary {
            first: (log.first() < log.end()).then_some(log.first()),
            segments: log.segments.len(),
            bytes: log.bytes(),
            torn_bytes: repairs.torn_bytes,
            one_state_copy_stale: repairs.one_slot_stale,
            vote: log.vote,
            purged: log.purged,
            last: log.last,
        }
    }

    /// Returns the id of the entry at an index, if the log holds it or purged it last.
    pub(in crate::storage) fn id_at(&self, index: u64) -> Option<LogId> {
        self.recovered.log.id_at(index)
    }

    /// Hands over the entries from an index on, the oldest first.
    ///
    /// # Errors
    /// If the disk does not answer.
    pub(in crate::storage) fn for_each(
        &self,
        mut from: u64,
        mut take: impl FnMut(Entry),
    ) -> Result<(), DiskFault> {
        let Recovered { log, seal, .. } = &self.recovered;
        loop {
            let entries = log.plan(from, u64::MAX).read(seal, self.sizes.read_bytes)?;
            let Some(last) = entries.last() else { return Ok(()) };
            from = last.log_id.index + 1;
            entries.into_iter().for_each(&mut take);
        }
    }
}
