//! Snapshots that arrive from other instances. Their bytes go into a draft that is checked as a
//! whole before raft sees it. A draft that did not become a snapshot is removed, at the latest at
//! the next start.

use std::{
    fmt, io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use super::SnapshotFile;
use crate::{
    ids::InstanceId,
    runtime::spawn_blocking,
    storage::{
        StorageError,
        disk::{Disk, DiskFile},
        files,
        identity::ClusterId,
    },
};

/// The way out of a damaged snapshot from a sender.
pub(super) const SENT_AGAIN: &str = "it is of no use; the sender will try again";

/// The place where snapshots of other instances arrive.
#[derive(Clone, Debug)]
pub struct SnapshotInbox {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    cluster: ClusterId,
    /// Counts the drafts, so that each has a name of its own.
    count: Arc<AtomicU64>,
}

impl SnapshotInbox {
    pub(in crate::storage) fn new(disk: Arc<dyn Disk>, dir: PathBuf, cluster: ClusterId) -> Self {
        Self { disk, dir, cluster, count: Arc::default() }
    }

    /// Returns the directory of snapshots.
    pub(in crate::storage) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Begins a draft for a snapshot that `peer` sends. It lies where it can be renamed into
    /// place.
    ///
    /// # Errors
    /// If the disk fails.
    pub async fn begin(&self, peer: InstanceId) -> io::Result<SnapshotDraft> {
        let number = self.count.fetch_add(1, Ordering::Relaxed);
        let path = self.dir.join(format!("from-{}-{number}.new", peer.0));
        let inbox = self.clone();
        self.in_background(move || {
            let file = inbox.disk.create(&path).map_err(io::Error::other)?;
            Ok(SnapshotDraft { inbox, path, file, bytes: 0, synced: 0 })
        })
        .await
    }

    /// Runs work on a file on a thread that may block.
    async fn in_background<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        wait_for(&*self.disk, &self.dir).await;
        spawn_blocking(work).await?
    }
}

/// A snapshot that is arriving. The file is removed with it, unless it was renamed meanwhile.
pub struct SnapshotDraft {
    inbox: SnapshotInbox,
    path: PathBuf,
    file: Arc<dyn DiskFile>,
    bytes: u64,
    synced: u64,
}

impl SnapshotDraft {
    /// Takes the next bytes.
    ///
    /// # Errors
    /// If the disk fails or is full.
    pub async fn write(mut self, chunk: Vec<u8>) -> io::Result<Self> {
        let inbox = self.inbox.clone();
        let written = inbox.in_background(move || {
            self.file.write_at(&chunk, self.bytes).map_err(io::Error::other)?;
            self.bytes += chunk.len() as u64;
            if self.bytes - self.synced >= files::SYNC_BYTES {
                self.file.sync().map_err(io::Error::other)?;
                self.synced = self.bytes;
            }
            Ok(self)
        });
        written.await
    }

    /// Checks all of it; what is damaged must not reach openraft. The draft must be kept until
    /// openraft has done with the file.
    ///
    /// # Errors
    /// If it is damaged, another cluster's, or cannot be read.
    pub async fn check(&self) -> Result<SnapshotFile, StorageError> {
        let (inbox, path) = (self.inbox.clone(), self.path.clone());
        let checked = spawn_blocking(move || {
            let opened = SnapshotFile::open(&*inbox.disk, &path, inbox.cluster);
            opened.map_err(|unusable| unusable.refusal(&path, SENT_AGAIN))
        });
        checked.await.map_err(files::failed("check", &self.path))?
    }
}

impl Drop for SnapshotDraft {
    fn drop(&mut self) {
        // It is gone already if it became the snapshot; what cannot be removed now is removed at
        // the next start.
        let _ = self.inbox.disk.remove(&self.path);
    }
}

impl fmt::Debug for SnapshotDraft {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SnapshotDraft").field("path", &self.path).finish_non_exhaustive()
    }
}

/// Waits for as long as a simulated disk wants to be waited for before it is written.
pub(in crate::storage) async fn wait_for(disk: &dyn Disk, dir: &Path) {
    if let Some(pause) = disk.pause(dir) {
        pause.await;
    }
}
