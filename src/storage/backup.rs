//! The registry as one file, which a new cluster can be founded with. The file is a snapshot like
//! those in `snapshot/`, checksums and all. A running instance hands one out ([`BackupDraft`] takes
//! it); that of a stopped one is gathered here.
//!
//! Of a stopped instance *every* entry of the raft log goes into it, also those of which this
//! instance does not know whether a majority had them. One that a client was answered for may be
//! among them: after the loss of a majority there is none left to ask. If none had been answered
//! for, applying it is what raft would have been free to do as well.

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    LogStore, StorageError,
    check::{self, ImageCopy},
    disk::{Access, Disk as _, DiskFile, RealDisk},
    error::Unusable,
    files,
    guard::{contradiction, other_store},
    identity,
    image::{Found, Intact},
    snapshot::{self, Contents, Survey},
    state_machine::{apply_to, check_entry},
};
use crate::{
    platform,
    raft::SnapshotMeta,
    registry::{Record, Registry, Rules, Totals},
};

/// The contents of a backup. [`fmt::Display`] prints them on one line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backup {
    /// The last entry that it covers.
    pub applied: Option<u64>,
    /// The number of clients, including those that are cut off.
    pub clients: u64,
    /// The number of links.
    pub links: u64,
    /// The checksum over all of it.
    pub check: u32,
}

impl Backup {
    pub(super) fn new(registry: &Registry, at: &SnapshotMeta, check: u32) -> Self {
        let applied = at.last_log_id.map(|last| last.index);
        let Totals { clients, links, .. } = registry.totals();
        Self { applied, clients, links, check }
    }

    /// Reads a whole file, checks its checksums, and counts what it holds, record by record: it may
    /// be larger than memory.
    fn survey(file: &dyn DiskFile) -> Result<Self, Unusable> {
        let (mut clients, mut links) = (0, 0);
        let Contents { header, check, .. } = snapshot::verify(file, |records| {
            for (_, record) in records {
                if let Record::Client(client) = record {
                    clients += 1;
                    // A link belongs to the earlier of the two.
                    links += u64::from(client.head_side.is_linked());
                }
            }
        })?;
        let applied = header.at.last_log_id.map(|last| last.index);
        Ok(Self { applied, clients, links, check })
    }
}

impl fmt::Display for Backup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.applied {
            Some(entry) => write!(f, "entries through {entry}, ")?,
            None => f.write_str("no entries, ")?,
        }
        let Self { clients, links, check, .. } = self;
        write!(f, "{clients} clients, {links} links, checksum {check:08x}")
    }
}

/// A backup that is arriving. It gets its name when all of it is there, checked and on the disk;
/// until then, and if that never comes, there is a file under another name, which goes with this.
#[derive(Debug)]
pub struct BackupDraft {
    to: PathBuf,
    path: PathBuf,
    file: Arc<dyn DiskFile>,
    bytes: u64,
}

impl BackupDraft {
    /// Begins a file that becomes `to`.
    ///
    /// # Errors
    /// If `to` is there already, or the disk fails.
    pub fn create(to: &Path) -> Result<Self, StorageError> {
        refuse_existing(to)?;
        let mut name = to.as_os_str().to_owned();
        name.push(format!(".{}.new", std::process::id()));
        let path = PathBuf::from(name);
        let file = files::create_new(&RealDisk, &path)?;
        Ok(Self { to: to.to_path_buf(), path, file, bytes: 0 })
    }

    /// Takes the next bytes.
    ///
    /// # Errors
    /// If the disk fails or is full.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), StorageError> {
        self.file.write_at(bytes, self.bytes)?;
        self.bytes += bytes.len() as u64;
        Ok(())
    }

    /// Makes the file durable, checks all of it as it is read back, and gives it its name.
    ///
    /// # Errors
    /// If it is not whole, a file of that name was made meanwhile, or the disk fails.
    pub fn finish(self) -> Result<Backup, StorageError> {
        self.file.sync()?;
        let file = RealDisk.open(&self.path, Access::Read)?;
        let way_out = "it was damaged on the way and is not kept; repeat the command";
        let found = Backup::survey(&*file).map_err(|bad| bad.refusal(&self.to, way_out))?;
        rename_new(&self.path, &self.to)?;
        Ok(found)
    }
}

impl Drop for BackupDraft {
    fn drop(&mut self) {
        // It is gone already if it got its name; what cannot be removed is no backup by its name.
        drop(RealDisk.remove(&self.path));
    }
}

/// Refuses a name that is taken.
fn refuse_existing(path: &Path) -> Result<(), StorageError> {
    match fs::symlink_metadata(path) {
        Ok(_) => Err(files::is_there(path)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(files::failed("read", path)(error).into()),
    }
}

/// Renames to a name that is free, and makes it durable.
fn rename_new(from: &Path, to: &Path) -> Result<(), StorageError> {
    match platform::files::rename_new(from, to) {
        Ok(true) => {}
        // Some file systems, those of a network above all, cannot do both in one.
        Ok(false) => {
            refuse_existing(to)?;
            RealDisk.rename(from, to)?;
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            return Err(files::is_there(to));
        }
        Err(error) => return Err(files::failed("rename", from)(error).into()),
    }
    Ok(RealDisk.sync_dir(files::parent(to))?)
}

/// Writes the registry of a stopped instance into a new file, and changes nothing in its data
/// directory.
///
/// # Errors
/// If a process uses the directory, its registry cannot be restored, or the file is there already.
pub fn backup(data_dir: &Path, to: &Path) -> Result<Backup, StorageError> {
    let (_lock, identity) = check::hold(data_dir)?;
    let file = files::create_new(&RealDisk, to)?;
    let write = || {
        let (registry, at) = gather(data_dir, identity)?;
        let image = registry.image();
        let header = snapshot::Header {
            cluster: identity.cluster,
            at: at.clone(),
            meta: image.meta.clone(),
        };
        let check = snapshot::fill(&*file, &header, &image.records)?;
        file.sync()?;
        RealDisk.sync_dir(files::parent(to))?;
        Ok(Backup::new(&registry, &at, check))
    };
    write().inspect_err(|_| drop(RealDisk.remove(to)))
}

/// Returns the registry as image or snapshot have it, whichever is newer, and then the log.
fn gather(
    data_dir: &Path,
    identity: identity::Identity,
) -> Result<(Registry, SnapshotMeta), StorageError> {
    let log_dir = identity::raft_dir(data_dir);
    let log = LogStore::open_offline(&RealDisk, &log_dir, identity.log_id())?;
    let (mut registry, mut at) = match ImageCopy::open(data_dir, identity.seal)?.found {
        Found::Intact(intact) => {
            let Intact { registry, at, .. } = *intact;
            (registry, at)
        }
        Found::Absent | Found::Damaged(_) | Found::Hung => <_>::default(),
    };
    let Survey { intact, .. } = snapshot::survey(&RealDisk, data_dir, identity.cluster)?;
    if let Some(file) = intact.filter(|file| file.meta().last_log_id > at.last_log_id) {
        registry = file.restore()?;
        at = file.meta().clone();
    }
    let wrong = || at.last_log_id.and_then(|at| contradiction(at, log.id_at(at.index)));
    if let Some(what) = other_store(identity, [&at], Some(log.store())).or_else(wrong) {
        let (path, way_out) = (data_dir.to_path_buf(), identity::WAY_OUT);
        return Err(StorageError::Damaged { path, what, way_out });
    }
    let purged = log.summary().purged.map(|purged| purged.index);
    if at.last_log_id.map(|last| last.index) < purged {
        return Err(StorageError::Damaged {
            path: log_dir,
            what: format!(
                "it begins after entry {}, and neither image nor snapshot reach so far",
                purged.unwrap_or_default()
            ),
            way_out: identity::WAY_OUT,
        });
    }
    let next = at.last_log_id.map_or(0, |last| last.index + 1);
    let mut newer = None;
    log.for_each(next, |entry| {
        newer = newer.or_else(|| check_entry(&entry, Rules::NEWEST).err());
        if newer.is_none() {
            // No receiver is there to be told.
            apply_to(&mut registry, &mut at, entry);
            registry.take_changed();
        }
    })?;
    match newer {
        Some(newer) => Err(StorageError::Newer { path: log_dir, newer }),
        None => Ok((registry, at)),
    }
}
