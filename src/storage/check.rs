//! The check of a data directory that no process uses. It changes nothing.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use super::{
    LogError, LogStore, LogSummary, StorageError,
    disk::{Disk as _, RealDisk},
    files,
    guard::{contradiction, older_vote, other_store},
    identity::{self, ClusterId, DirLock, Identity},
    image::{self, Found, ImageStore as _, SledStore, tree},
    snapshot::{self, Survey},
    wal::OfflineLog,
};
use crate::{
    ids::StoreId,
    raft::{LogId, SnapshotMeta},
    runtime,
};

/// The contents of a data directory. [`fmt::Display`] prints a line for each part.
#[derive(Debug)]
pub struct CheckReport {
    /// Whose it is.
    pub identity: Identity,
    /// The raft log, or why it is refused; `None` before the first start has made one.
    pub log: Result<Option<LogSummary>, LogError>,
    /// The image of the registry.
    pub image: Finding,
    /// The newest snapshot that is whole; or what is wrong with the newest, if none is.
    pub snapshot: Finding,
    /// The store that the raft log makes of the directory.
    log_store: Option<StoreId>,
}

/// The result of a check in one place.
#[derive(Debug)]
pub enum Finding {
    /// Nothing.
    Absent,
    /// Something that is whole.
    Intact {
        /// The file or directory.
        path: PathBuf,
        /// The entries that it covers.
        at: SnapshotMeta,
        /// The number of records.
        records: u64,
    },
    /// Something that is not.
    Damaged {
        /// The file or directory.
        path: PathBuf,
        /// The fault.
        what: String,
    },
}

impl CheckReport {
    /// Returns whether anything is damaged. It may still be healed at the next start.
    pub fn is_damaged(&self) -> bool {
        let damaged = |finding: &Finding| matches!(finding, Finding::Damaged { .. });
        let apart = self.gap().is_some() || self.older_vote().is_some();
        let apart = apart || self.foreign_log().is_some();
        self.log.is_err() || damaged(&self.image) || damaged(&self.snapshot) || apart
    }

    /// Returns the fault of the raft log, if identity, image or snapshot know of another store.
    fn foreign_log(&self) -> Option<String> {
        let known = [&self.image, &self.snapshot].into_iter().filter_map(Finding::at);
        other_store(self.identity, known, self.log_store)
    }

    /// Returns the fault of the last vote, if it is older than an entry that is here.
    fn older_vote(&self) -> Option<String> {
        if self.foreign_log().is_some() {
            return None; // it says nothing of this instance
        }
        let log = self.log.as_ref().ok()?.as_ref()?;
        let vote = log.vote.map_or(0, |vote| vote.leader_id.term);
        let newest = self.image.applied().max(self.snapshot.applied()).max(log.last);
        older_vote(vote, newest)
    }

    /// Returns the last entry that was purged from the log, if neither image nor snapshot covers
    /// it.
    fn gap(&self) -> Option<u64> {
        if self.foreign_log().is_some() {
            return None;
        }
        let purged = self.log.as_ref().ok()?.as_ref()?.purged?;
        (!self.covers(purged.index)).then_some(purged.index)
    }

    /// Returns whether image or snapshot reach to this entry.
    pub(super) fn covers(&self, index: u64) -> bool {
        let covered = self.image.applied().max(self.snapshot.applied());
        covered.is_some_and(|entry| entry.index >= index)
    }
}

impl Finding {
    /// Refuses a part of another history than the log. A log of another instance proves nothing
    /// about it.
    fn against(self, identity: Identity, log: Option<&OfflineLog>) -> Self {
        let (Self::Intact { path, at, .. }, Some(log)) = (&self, log) else { return self };
        if other_store(identity, [at], Some(log.store())).is_some() {
            return self;
        }
        let last = at.last_log_id;
        match last.and_then(|last| contradiction(last, log.id_at(last.index))) {
            Some(what) => Self::Damaged { path: path.clone(), what },
            None => self,
        }
    }

    /// Returns the entries that it covers, if it is whole.
    fn at(&self) -> Option<&SnapshotMeta> {
        match self {
            Self::Intact { at, .. } => Some(at),
            Self::Absent | Self::Damaged { .. } => None,
        }
    }

    /// Returns the last entry that it covers.
    fn applied(&self) -> Option<LogId> {
        self.at()?.last_log_id
    }
}

impl fmt::Display for CheckReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Identity { cluster, node, initialised, .. } = self.identity;
        let used = if initialised { "" } else { ", never used" };
        writeln!(f, "identity: cluster {cluster}, node {}{used}", node.0)?;
        match &self.log {
            Ok(Some(log)) => writeln!(f, "raft log: {log}")?,
            Ok(None) => writeln!(f, "raft log: none yet")?,
            Err(error) => writeln!(f, "raft log: {error}")?,
        }
        writeln!(f, "image:    {}", self.image)?;
        write!(f, "snapshot: {}", self.snapshot)?;
        if let Some(what) = self.foreign_log() {
            write!(f, "\nstore:    {what}; else {}", identity::WAY_OUT)?;
        }
        if let Some(purged) = self.gap() {
            let way_out = identity::WAY_OUT;
            write!(
                f,
                "\ngap:      the raft log begins after entry {purged}, and nothing connects with \
                 it; {way_out}"
            )?;
        }
        if let Some(what) = self.older_vote() {
            write!(f, "\nvote:     {what}; {}", identity::WAY_OUT)?;
        }
        Ok(())
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absent => f.write_str("none"),
            Self::Intact { path, at, records } => {
                write!(f, "{}: whole, {records} records, ", path.display())?;
                match at.last_log_id {
                    Some(entry) => write!(f, "through entry {}", entry.index),
                    None => f.write_str("before the first entry"),
                }
            }
            Self::Damaged { path, what } => write!(f, "{}: {what}", path.display()),
        }
    }
}

/// Checks identity, raft log, image and snapshots of a data directory.
///
/// The directory is locked meanwhile, so no process writes into it. sled cannot open files without
/// writing to them (it repairs what it takes for a torn tail), so a copy of the image is opened, in
/// the system's directory for temporary files.
///
/// # Errors
/// If a process uses the directory, it has no identity, is another cluster's, or cannot be read.
pub fn check(data_dir: &Path) -> Result<CheckReport, StorageError> {
    let (_lock, identity) = hold(data_dir)?;
    let log = check_log(data_dir, identity)?;
    let of_log = log.as_ref().ok().and_then(Option::as_ref);
    Ok(CheckReport {
        identity,
        image: check_image(data_dir, identity.seal)?.against(identity, of_log),
        snapshot: check_snapshot(data_dir, identity.cluster)?.against(identity, of_log),
        log_store: of_log.map(OfflineLog::store),
        log: log.map(|log| log.map(|log| log.summary())),
    })
}

/// Locks a data directory that is there, and says whose it is.
pub(super) fn hold(data_dir: &Path) -> Result<(Option<DirLock>, Identity), StorageError> {
    let lock = DirLock::take_existing(&RealDisk, data_dir)?;
    let identity =
        identity::read_identity(&RealDisk, data_dir)?.ok_or_else(|| StorageError::Damaged {
            path: data_dir.to_path_buf(),
            what: "no identity.json: this is no data directory, or it has lost its identity".into(),
            way_out: identity::WAY_OUT,
        })?;
    Ok((lock, identity))
}

fn check_log(
    data_dir: &Path,
    identity: Identity,
) -> Result<Result<Option<OfflineLog>, LogError>, StorageError> {
    let dir = identity::raft_dir(data_dir);
    if !identity.initialised && RealDisk.names(&dir)?.is_empty() {
        return Ok(Ok(None));
    }
    match LogStore::open_offline(&RealDisk, &dir, identity.log_id()) {
        Ok(log) => Ok(Ok(Some(log))),
        Err(LogError::Io(fault)) => Err(fault.into()),
        Err(damaged @ LogError::Damaged { .. }) => Ok(Err(damaged)),
    }
}

fn check_image(data_dir: &Path, cluster: ClusterId) -> Result<Finding, StorageError> {
    let path = identity::registry_dir(data_dir);
    let copy = ImageCopy::open(data_dir, cluster)?;
    Ok(match copy.found {
        Found::Absent => Finding::Absent,
        Found::Intact(intact) => {
            Finding::Intact { path, at: intact.at, records: intact.image.records() }
        }
        Found::Damaged(what) => Finding::Damaged { path, what },
        Found::Hung => Finding::Damaged { path, what: "sled did not open it in time".into() },
    })
}

/// A copy of the image, opened; it is gone when this is dropped.
pub(super) struct ImageCopy {
    /// The result of the check. Before the directory, because sled must let go of its files first.
    pub(super) found: Found,
    _scratch: Scratch,
}

impl ImageCopy {
    pub(super) fn open(data_dir: &Path, cluster: ClusterId) -> Result<Self, StorageError> {
        let path = identity::registry_dir(data_dir);
        let scratch = Scratch::new()?;
        let copy = scratch.0.join("registry");
        if path.exists() {
            tree::copy(&path, &copy)?;
        }
        let found = SledStore::new(&copy, cluster, image::Options::default()).open();
        Ok(Self { found: found.map_err(|error| in_place(error, &path))?, _scratch: scratch })
    }
}

/// Names the original where an error names the copy.
fn in_place(error: StorageError, original: &Path) -> StorageError {
    match error {
        StorageError::Foreign { found, expected, .. } => {
            StorageError::Foreign { path: original.to_path_buf(), found, expected }
        }
        error @ (StorageError::Locked { .. }
        | StorageError::Damaged { .. }
        | StorageError::Newer { .. }
        | StorageError::Unfit { .. }
        | StorageError::Log(_)
        | StorageError::Io(_)) => error,
    }
}

fn check_snapshot(data_dir: &Path, cluster: ClusterId) -> Result<Finding, StorageError> {
    let Survey { intact, damaged } = snapshot::survey(&RealDisk, data_dir, cluster)?;
    Ok(match (intact, damaged.into_iter().next()) {
        (_, Some((path, what))) => Finding::Damaged { path, what },
        (Some(file), None) => Finding::Intact {
            path: file.path().to_path_buf(),
            at: file.meta().clone(),
            records: file.records(),
        },
        (None, None) => Finding::Absent,
    })
}

/// A directory that is gone when this is dropped.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Result<Self, StorageError> {
        let base = std::env::temp_dir();
        let random = runtime::random().map_err(files::failed("draw a name in", &base))?;
        let path = base.join(format!("emnetchain-check-{random:032x}"));
        RealDisk.create_dir(&path)?;
        Ok(Self(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(fault) = tree::remove(&self.0) {
            tracing::warn!(%fault, "a temporary copy is left behind");
        }
    }
}
