//! The data that an instance keeps on disk, and its way back from them.
//!
//! ```text
//! LOCK             held by the process that works here
//! identity.json    cluster id, node id, format; see `identity`
//! raft/            the raft log and the vote: the truth
//! snapshot/        one whole registry in a checksummed file; the log is purged only behind it
//! registry/        the image of the registry in sled, written behind, for a quick start
//! ```
//!
//! The rule is one: *an entry is in the raft log, on disk, before it is acknowledged; and it stays
//! there until a snapshot file that holds its outcome is on disk.* The image is a convenience. If
//! it is lost or damaged it is rebuilt, with a warning; if a snapshot is damaged a new one is
//! written from the image. What cannot be rebuilt is refused ([`StorageError::Damaged`], exit code
//! 78), and nothing is ever silently older than what was acknowledged. When a write or a sync
//! fails, the instance stops ([`fault`], exit code 74).
//!
//! # Order of opening
//!
//! 1. [`DataDir::open`] locks the directory and makes sure whose it is. It refuses a directory
//!    that has lost its raft log, so it must come before the log creates one.
//! 2. The raft log is opened in [`DataDir::raft_dir`]; it gives its [`LogEnds`]. On the first
//!    start it must have created at least one file there, because an empty `raft/` counts as lost
//!    afterwards.
//! 3. [`StateMachine::open`] restores the registry, starts to write its image, and marks the
//!    directory as initialised.
//! 4. A task begins to receive from the channel of effects, for
//! 5. `openraft::Raft::new` applies what is left of the log before it returns.
//!
//! At the end: shut raft down, which drops the state machine; then [`ImageProgress::ended`] tells
//! when the last write into `registry/` is done. Skipping that wait loses nothing.

pub mod fault;

mod backup;
mod check;
mod disk;
mod error;
mod files;
mod guard;
mod identity;
mod image;
mod log_store;
mod points;
mod pulse;
mod restore;
mod snapshot;
mod start;
mod state_machine;
mod wal;
mod watched;
mod worker;

#[cfg(test)]
#[path = "../../tests/support/sim_disk/mod.rs"]
pub(crate) mod sim_disk;
#[cfg(test)]
mod tests;

pub use backup::{Backup, BackupDraft, backup};
pub use check::{CheckReport, Finding, check};
pub use disk::{Access, Disk, DiskFile, DiskLock, RealDisk};
pub use error::StorageError;
pub use guard::LogGuard;
pub use identity::{ClusterId, DataDir, Identity};
pub use image::{Found, ImageProgress, ImageStore, Intact, OpenImage, RunningDigest, digest};
pub use log_store::{LogError, LogOptions, LogReader, LogStore, LogSummary};
pub use points::{Digests, Point};
pub use pulse::{Beat, Pulse, Pulses};
pub use restore::{Restoration, restore};
pub use snapshot::{SnapshotDraft, SnapshotFile, SnapshotInbox};
pub use start::LogEnds;
pub use state_machine::{RegistryView, SnapshotBuilder, StateMachine, StateMachineOptions};

use std::{path::Path, sync::Arc};

use tokio::sync::mpsc;

use crate::{
    ids::InstanceId,
    metrics::Metrics,
    registry::{Applied, Rules},
};
use fault::FaultReporter;

/// Everything that an instance keeps on disk, opened and checked.
#[derive(Debug)]
pub struct Stores {
    /// The raft log.
    pub log: LogStore,
    /// The registry under openraft.
    pub machine: StateMachine,
    /// The registry as others see it.
    pub view: RegistryView,
    /// The progress of the image on disk.
    pub image: ImageProgress,
    /// The pulses of the threads that work with the disk.
    pub pulses: Pulses,
    /// The cluster that the directory belongs to.
    pub cluster: ClusterId,
    /// Checks what leaders send against what was applied here.
    pub guard: LogGuard,
    /// The place where snapshots of other instances arrive.
    pub inbox: SnapshotInbox,
}

impl Stores {
    /// Opens the data directory of `node`, in the order told above. What entries bring about will
    /// come out of `effects`' other end. A new directory becomes that of the given cluster, or of a
    /// new one.
    ///
    /// # Errors
    /// If the directory is in use, another node's, damaged beyond healing, or cannot be read.
    pub fn open(
        path: &Path,
        node: InstanceId,
        cluster: Option<ClusterId>,
        effects: mpsc::Sender<Applied>,
        metrics: &Metrics,
        faults: &FaultReporter,
    ) -> Result<Self, StorageError> {
        Self::open_on(Arc::new(RealDisk), path, node, cluster, effects, metrics, faults)
    }

    /// Does the same on another disk, such as that of a simulation.
    ///
    /// # Errors
    /// The same.
    pub fn open_on(
        disk: Arc<dyn Disk>,
        path: &Path,
        node: InstanceId,
        cluster: Option<ClusterId>,
        effects: mpsc::Sender<Applied>,
        metrics: &Metrics,
        faults: &FaultReporter,
    ) -> Result<Self, StorageError> {
        let mut dir = DataDir::open_on(Arc::clone(&disk), path, node, cluster)?;
        let options = LogOptions {
            dir: dir.raft_dir(),
            cluster_id: dir.seal().0.to_be_bytes(),
            expect_existing: !dir.is_new(),
            metrics: metrics.clone(),
            faults: faults.clone(),
        };
        let log = LogStore::open_on(disk, options, wal::Sizes::default())?;
        let ends = LogEnds { purged: log.purged(), last: log.last() };
        let guard = log.guard();
        let options = StateMachineOptions::new(effects, metrics.clone(), faults.clone())
            .guarding(guard.clone());
        let (machine, view, image) = StateMachine::open(&mut dir, ends, options)?;
        let (cluster, inbox) = (dir.cluster_id(), dir.inbox());
        let pulses = Pulses { log: log.pulse(), ..dir.pulses().clone() };
        Ok(Self { log, machine, view, image, pulses, cluster, guard, inbox })
    }

    /// Makes sure that they are of the cluster that an operator has named, if any.
    ///
    /// # Errors
    /// If they are another cluster's.
    pub fn of_cluster(self, named: Option<ClusterId>, path: &Path) -> Result<Self, StorageError> {
        match named.filter(|named| *named != self.cluster) {
            Some(named) => Err(StorageError::Foreign {
                path: path.to_path_buf(),
                found: format!("cluster {}", self.cluster),
                expected: format!("cluster {named}"),
            }),
            None => Ok(self),
        }
    }

    /// Makes the instance older than its program: it knows no newer rules than these.
    ///
    /// # Errors
    /// If newer ones are in force.
    pub fn limited_to(mut self, newest: Rules) -> Result<Self, StorageError> {
        let refused = |newer| StorageError::Newer { path: self.inbox.dir().to_path_buf(), newer };
        self.machine.limit_rules(newest).map_err(refused)?;
        Ok(self)
    }
}
