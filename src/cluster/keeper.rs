//! Housekeeping without a client: deadlines that pass, and a log that is kept short.

use std::time::Duration;

use openraft::{Raft, async_runtime::WatchReceiver};
use tokio::sync::watch;

use super::{
    clock,
    proposer::{WriteError, Writer},
    writer::LocalWriter,
};
use crate::{
    ids::Timestamp,
    limits::{LOG_ENTRIES_KEPT, SNAPSHOT_AFTER_ENTRIES, SNAPSHOT_AFTER_LOG_BYTES},
    metrics::Metrics,
    raft::TypeConfig,
    registry::Command,
    storage::StateMachine,
};

/// Pause of a leader after a tick could not be written.
const RETRY: Duration = Duration::from_millis(100);

/// Interval between looks at the length of the log.
const LOG_CHECK: Duration = Duration::from_secs(1);

/// The bounds of the log's length, in entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogBounds {
    /// Entries after which a snapshot is made.
    pub snapshot_after_entries: u64,
    /// Entries that are kept behind it, for members that lag a little.
    pub entries_kept: u64,
}

impl Default for LogBounds {
    fn default() -> Self {
        Self { snapshot_after_entries: SNAPSHOT_AFTER_ENTRIES, entries_kept: LOG_ENTRIES_KEPT }
    }
}

impl LogBounds {
    /// Returns whether a log with `entries` behind the last snapshot, and `bytes`, is long, or
    /// large in comparison with that snapshot.
    fn are_reached(self, entries: u64, bytes: u64, snapshot_bytes: u64) -> bool {
        // A large registry is written out only when the log has grown by as much.
        let long = entries >= self.snapshot_after_entries && bytes >= snapshot_bytes;
        let large = bytes >= SNAPSHOT_AFTER_LOG_BYTES.max(2 * snapshot_bytes) && entries > 0;
        long || large
    }
}

/// Counts the time in which this process runs, of which log time is made.
///
/// # Errors
/// Never; it runs until it is dropped.
pub async fn count_time(writer: LocalWriter) -> Result<(), WriteError> {
    loop {
        tokio::time::sleep(clock::LOOK_EVERY).await;
        writer.count_time();
    }
}

/// Writes a [`Command::Tick`] whenever the registry's next deadline passes and this instance leads.
///
/// # Errors
/// If raft has stopped.
pub async fn keep_time(
    writer: LocalWriter,
    mut deadlines: watch::Receiver<Option<Timestamp>>,
) -> Result<(), WriteError> {
    loop {
        let deadline = *deadlines.borrow_and_update();
        let now = writer.log_time();
        let wait = match (deadline, now) {
            (None, _) => None,
            (Some(deadline), Some(now)) => Some(Duration::from_millis(deadline.ms_since(now))),
            (Some(_), None) => Some(RETRY),
        };
        let due = async {
            match wait {
                Some(wait) => tokio::time::sleep(wait).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = due => {}
            changed = deadlines.changed() => match changed {
                Ok(()) => continue,
                Err(_) => return Err(WriteError::Stopped("the state machine is gone".to_owned())),
            },
        }
        // Time in which this process did not run has passed for the sleep and not for the log.
        if writer.log_time() < deadline {
            continue;
        }
        match writer.write(None, vec![Command::Tick]).await {
            Ok(_) => {}
            Err(WriteError::Again(_)) => tokio::time::sleep(RETRY).await,
            Err(error @ WriteError::Stopped(_)) => return Err(error),
        }
    }
}

/// Has a snapshot made whenever the log behind the last one has grown long, or large in comparison
/// with the last snapshot; openraft then cuts the log.
///
/// # Errors
/// If raft has stopped.
pub async fn keep_log_short(
    raft: Raft<TypeConfig, StateMachine>,
    bounds: LogBounds,
    metrics: Metrics,
) -> Result<(), WriteError> {
    let mut progress = raft.metrics();
    let mut asked_at = None;
    loop {
        tokio::time::sleep(LOG_CHECK).await;
        let (applied, covered) = {
            let now = progress.borrow_and_update();
            let index = |id: &Option<crate::raft::LogId>| id.as_ref().map_or(0, |id| id.index);
            (index(&now.last_applied), index(&now.snapshot))
        };
        let bytes = u64::try_from(metrics.log_bytes.get()).unwrap_or(0);
        let snapshot_bytes = u64::try_from(metrics.snapshot_bytes.get()).unwrap_or(0);
        let entries = applied.saturating_sub(covered);
        if bounds.are_reached(entries, bytes, snapshot_bytes) && asked_at != Some(covered) {
            asked_at = Some(covered);
            let stopped =
                |error: openraft::errors::Fatal<_>| WriteError::Stopped(error.to_string());
            raft.trigger().snapshot().await.map_err(stopped)?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_is_made_of_a_long_log_and_of_one_that_is_large_beside_the_last() {
        let bounds = LogBounds { snapshot_after_entries: 20, entries_kept: 10 };
        const LARGE: u64 = SNAPSHOT_AFTER_LOG_BYTES;
        for (entries, bytes, snapshot_bytes, expected) in [
            (19, 500, 0, false),
            (20, 500, 0, true),
            (20, 500, 500, true),
            (20, 499, 500, false),
            (19, LARGE - 1, 0, false),
            (19, LARGE, 0, true),
            (1, LARGE, 0, true),
            (0, LARGE, 0, false),
            (1, LARGE, LARGE / 2, true),
            (1, LARGE + 1, LARGE / 2 + 1, false),
            (1, LARGE + 2, LARGE / 2 + 1, true),
            (0, 0, 0, false),
        ] {
            let reached = bounds.are_reached(entries, bytes, snapshot_bytes);
            assert_eq!(reached, expected, "{entries} {bytes} {snapshot_bytes}");
        }
    }
}
