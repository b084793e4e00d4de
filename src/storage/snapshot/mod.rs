//! Snapshots: whole registries in files of our own, without sled.
//!
//! The raft log is purged only behind a snapshot that is durable here, so that snapshot and log
//! together always hold everything. A snapshot is written under a draft name, synced, and
//! renamed to `snapshot/<index of its last entry>.snap`; only then are older ones removed. One
//! that is found damaged is kept aside as `.bad` (at most one), and a new one is written.

mod format;
#[cfg(test)]
mod fuzz;
mod inbox;
mod v2;

pub(super) use format::{Contents, Header};
pub(super) use inbox::wait_for;
pub use inbox::{SnapshotDraft, SnapshotInbox};

use std::{
    io::{self, BufReader, BufWriter, Write as _},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use self::inbox::SENT_AGAIN;
use super::{
    StorageError,
    disk::{Access, Disk, DiskFile},
    error::Unusable,
    fault::DiskFault,
    files::{self, Cursor},
    identity::{self, ClusterId, DataDir},
};
use crate::{
    raft::SnapshotMeta,
    registry::{Image, Record, Registry, Serial, Table},
};

/// Bytes that are gathered for one write.
const WRITE_BYTES: usize = 64 * 1024;

/// A snapshot on disk. The handle keeps the bytes readable even when a newer snapshot has taken
/// the file's place meanwhile.
#[derive(Clone, Debug)]
pub struct SnapshotFile {
    path: PathBuf,
    file: Arc<dyn DiskFile>,
    cluster: ClusterId,
    meta: SnapshotMeta,
    records: u64,
    bytes: u64,
}

impl SnapshotFile {
    /// Opens a file that holds a snapshot, be it one of ours or one just received, and checks all
    /// of it.
    fn open(disk: &dyn Disk, path: &Path, cluster: ClusterId) -> Result<Self, Unusable> {
        let file = disk.open(path, Access::Read)?;
        let bytes = file.size()?;
        let found = format::read(&mut in_sequence(&*file)?, Some(cluster), drop)?;
        let path = path.to_path_buf();
        Ok(Self { path, file, cluster, meta: found.header.at, records: found.records, bytes })
    }

    /// Reads the registry. A caller that only wants to know that the snapshot is whole is spared
    /// the memory for it.
    pub(super) fn load(&self) -> Result<Registry, Unusable> {
        load(&*self.file, Some(self.cluster)).map(|loaded| loaded.registry)
    }

    /// Reads the registry, which was found whole before.
    ///
    /// # Errors
    /// If it is not whole any more, or cannot be read.
    pub(super) fn restore(&self) -> Result<Registry, StorageError> {
        self.load().map_err(|unusable| unusable.refusal(&self.path, identity::WAY_OUT))
    }

    /// Returns where it lay when it was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Fills a buffer with its bytes from an offset.
    ///
    /// # Errors
    /// If the file ends before, or the disk fails.
    pub fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_at(buffer, offset).map_err(io::Error::other)
    }

    /// Returns when it was written, in seconds since 1970; 0 if the disk does not say.
    pub(super) fn written_at(&self) -> u64 {
        self.file.modified().unwrap_or(0)
    }

    /// Returns the entries that it covers.
    pub fn meta(&self) -> &SnapshotMeta {
        &self.meta
    }

    /// Returns the number of records.
    pub fn records(&self) -> u64 {
        self.records
    }

    /// Returns its length in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

/// A registry out of a file.
#[derive(Debug)]
pub(super) struct Loaded {
    /// The registry.
    pub(super) registry: Registry,
    /// The last entry that it covers, and the members at that entry.
    pub(super) at: SnapshotMeta,
    /// The checksum over the whole file.
    pub(super) check: u32,
}

/// Reads a registry, from a file of this cluster or of any.
pub(super) fn load(file: &dyn DiskFile, cluster: Option<ClusterId>) -> Result<Loaded, Unusable> {
    let mut records = Table::default();
    let found = format::read(&mut in_sequence(file)?, cluster, |some| {
        records.append(some.into_iter().collect());
    })?;
    let image = Image { meta: found.header.meta, records };
    let registry =
        Registry::from_image(image).map_err(|error| Unusable::Damaged(error.to_string()))?;
    Ok(Loaded { registry, at: found.header.at, check: found.check })
}

/// Reads all of a file of any cluster, checks its checksums, and hands its records over on the way,
/// many at a time. They count for nothing if an error follows.
pub(super) fn verify(
    file: &dyn DiskFile,
    take: impl FnMut(Vec<(Serial, Record)>),
) -> Result<Contents, Unusable> {
    format::read(&mut in_sequence(file)?, None, take)
}

fn in_sequence(file: &dyn DiskFile) -> Result<BufReader<Cursor<'_>>, DiskFault> {
    Ok(BufReader::new(Cursor::new(file)?))
}

/// Writes a registry into an empty file, which is not synced yet; returns the checksum over it.
pub(super) fn fill(
    file: &dyn DiskFile,
    header: &Header,
    records: &Table<Record>,
) -> Result<u32, DiskFault> {
    let mut out = BufWriter::with_capacity(WRITE_BYTES, Cursor::new(file)?);
    format::write(&mut out, header, records)
        .and_then(|check| out.flush().map(|()| check))
        .map_err(files::failed("write", file.path()))
}

/// Returns the name of a snapshot in its data directory.
pub(super) fn path_of(directory: &Path, at: &SnapshotMeta) -> PathBuf {
    let index = at.last_log_id.map_or(0, |last| last.index);
    directory.join(format!("{index:020}.snap"))
}

/// The contents of the snapshot directory.
#[derive(Debug, Default)]
pub(super) struct Survey {
    /// The newest snapshot that is whole.
    pub(super) intact: Option<SnapshotFile>,
    /// Newer ones that are not, and why.
    pub(super) damaged: Vec<(PathBuf, String)>,
}

/// Reads the snapshots of a data directory, the newest first, until one is whole.
pub(super) fn survey(
    disk: &dyn Disk,
    data_dir: &Path,
    cluster: ClusterId,
) -> Result<Survey, StorageError> {
    let mut survey = Survey::default();
    let mut paths = files::list(disk, &identity::snapshot_dir(data_dir))?;
    paths.retain(|path| is_snapshot(path));
    while let Some(path) = paths.pop() {
        match SnapshotFile::open(disk, &path, cluster) {
            Ok(intact) => {
                survey.intact = Some(intact);
                break;
            }
            Err(unusable) => {
                let what = unusable.damage(&path)?;
                survey.damaged.push((path, what));
            }
        }
    }
    Ok(survey)
}

/// The directory of snapshots; clones share what they know of it.
#[derive(Clone, Debug)]
pub(super) struct SnapshotDir {
    disk: Arc<dyn Disk>,
    path: PathBuf,
    cluster: ClusterId,
    /// The newest durable snapshot. Held while files change places.
    current: Arc<Mutex<Option<SnapshotFile>>>,
}

impl SnapshotDir {
    /// Takes the directory into use, with the snapshot to offer. Drafts that a crash left behind
    /// are removed.
    pub(super) fn open(dir: &DataDir, current: Option<SnapshotFile>) -> Result<Self, DiskFault> {
        let (disk, path) = (dir.snapshot_disk(), dir.snapshot_dir());
        disk.create_dir(&path)?;
        disk.sync_dir(dir.path())?;
        for leftover in files::list(&*disk, &path)? {
            if leftover.extension().is_some_and(|extension| extension == "new") {
                disk.remove(&leftover)?;
            }
        }
        Ok(Self { disk, path, cluster: dir.cluster_id(), current: Arc::new(Mutex::new(current)) })
    }

    /// Waits for as long as a simulated disk wants to be waited for before it is written.
    pub(super) async fn wait(&self) {
        wait_for(&*self.disk, &self.path).await;
    }

    /// Returns the newest durable snapshot.
    pub(super) fn current(&self) -> Option<SnapshotFile> {
        self.guard().clone()
    }

    /// Writes a snapshot of a registry and makes it durable. If a newer one was installed
    /// meanwhile, that one is given back instead.
    pub(super) fn write(
        &self,
        at: &SnapshotMeta,
        image: &Image,
    ) -> Result<SnapshotFile, DiskFault> {
        let draft = files::draft_of(&path_of(&self.path, at));
        let file = files::create_draft(&*self.disk, &draft)?;
        let header = Header { cluster: self.cluster, at: at.clone(), meta: image.meta.clone() };
        fill(&*file, &header, &image.records)?;
        let records = u64::try_from(image.records.len()).expect("a table's length fits 64 bits");
        let bytes = file.size()?;
        let (cluster, meta) = (self.cluster, at.clone());
        self.publish(SnapshotFile { path: draft, file, cluster, meta, records, bytes })
    }

    /// Makes a snapshot that was received (or is one of ours) the current one.
    pub(super) fn adopt(&self, received: &SnapshotFile) -> Result<Registry, StorageError> {
        let path = &received.path;
        let registry = received.load().map_err(|unusable| unusable.refusal(path, SENT_AGAIN))?;
        self.publish(received.clone())?;
        Ok(registry)
    }

    /// Gives a finished draft its name, makes that durable, and removes what it supersedes.
    fn publish(&self, draft: SnapshotFile) -> Result<SnapshotFile, DiskFault> {
        let mut current = self.guard();
        let covered = draft.meta.last_log_id;
        if let Some(newer) = current.as_ref().filter(|is| is.meta.last_log_id > covered) {
            self.disk.remove(&draft.path)?;
            return Ok(newer.clone());
        }
        let path = path_of(&self.path, &draft.meta);
        // The contents first: the log is purged behind a file of this name, even a damaged one.
        draft.file.sync()?;
        if draft.path != path {
            files::rename(&*self.disk, &draft.path, &path)?;
        }
        let published = SnapshotFile { path: path.clone(), ..draft };
        *current = Some(published.clone());
        for other in files::list(&*self.disk, &self.path)? {
            if is_snapshot(&other) && other < path {
                self.disk.remove(&other)?;
            }
        }
        Ok(published)
    }

    /// The slot is whole at any time, so a thread that panicked with it in hand broke
    /// nothing.
    fn guard(&self) -> MutexGuard<'_, Option<SnapshotFile>> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Moves a damaged snapshot out of the way, for a person to look into; one is kept.
pub(super) fn set_aside(disk: &dyn Disk, path: &Path) -> Result<PathBuf, DiskFault> {
    for old in files::list(disk, files::parent(path))? {
        if old.extension().is_some_and(|extension| extension == "bad") {
            disk.remove(&old)?;
        }
    }
    let aside = path.with_extension("snap.bad");
    files::rename(disk, path, &aside)?;
    Ok(aside)
}

fn is_snapshot(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "snap")
}
