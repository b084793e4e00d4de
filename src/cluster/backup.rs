//! The registry as one file, taken while the cluster serves: a snapshot that this instance makes
//! now. First it waits until it has applied all that was committed anywhere, so every answer that a
//! client was answered before it was asked is in the file. Writers do not wait for any of it.

use std::time::Duration;

use tokio::time::timeout;

use super::{Cluster, ClusterError};
use crate::{raft::TypeConfig, storage::SnapshotFile};

/// Longest wait for a leader, and until its committed entries are applied here.
const CATCH_UP_MAX: Duration = Duration::from_secs(10);

/// Longest time for writing the file.
const WRITE_MAX: Duration = Duration::from_secs(300);

/// Pause before raft is asked again; it does not hear while it makes a snapshot.
const ASK_AGAIN: Duration = Duration::from_millis(500);

/// Why there is no backup.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// It is unknown what was answered.
    #[error(
        "this instance does not know all that was answered: the cluster has no leader, or this \
         instance lags far behind it; ask when a majority of the voters runs, or stop the instance \
         and back up its data directory by --data-dir"
    )]
    Behind,
    /// No instance can say that it would be right.
    #[error("{0}; until then ask another instance for a backup")]
    Unfit(String),
    /// The file was not written in time.
    #[error("the snapshot was not written in time; the disk of this instance may be too slow")]
    Late,
    /// Raft has stopped.
    #[error(transparent)]
    Cluster(#[from] ClusterError),
}

impl Cluster {
    /// Makes a snapshot that holds all that any client was answered before.
    ///
    /// # Errors
    /// If this instance does not hear of a leader, differs from other replicas, or cannot write the
    /// snapshot in time.
    pub async fn backup(&self) -> Result<SnapshotFile, BackupError> {
        if let Some(why) = self.accord().borrow().trouble() {
            return Err(BackupError::Unfit(why));
        }
        let caught_up = timeout(CATCH_UP_MAX, self.catch_up()).await;
        let entry = caught_up.map_err(|_| BackupError::Behind)??;
        let written = timeout(WRITE_MAX, self.snapshot_of(entry)).await;
        Ok(written.map_err(|_| BackupError::Late)??)
    }

    /// Returns a snapshot that covers this entry, which is applied here.
    async fn snapshot_of(&self, entry: u64) -> Result<SnapshotFile, ClusterError> {
        loop {
            let stopped = |error: &dyn std::fmt::Display| ClusterError::Raft(error.to_string());
            let newest = self.raft.get_snapshot().await.map_err(|error| stopped(&error))?;
            let covers = |at: Option<u64>| at >= Some(entry);
            if let Some(newest) = newest
                && covers(newest.meta.last_log_id.map(|last| last.index))
            {
                return Ok(newest.snapshot);
            }
            let asked = self.raft.trigger().snapshot().await;
            asked.map_err(|error| stopped(&error))?;
            let raft = self.raft.wait(Some(ASK_AGAIN));
            let is_written = |now: &openraft::RaftMetrics<TypeConfig>| {
                covers(now.snapshot.as_ref().map(|last| last.index))
            };
            // If raft has stopped, the next question tells.
            drop(raft.metrics(is_written, "a backup's snapshot").await);
        }
    }
}
