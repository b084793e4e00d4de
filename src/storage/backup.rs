//! The registry of a stopped instance as one file, which a new cluster can be founded with. The
//! file is a snapshot like those in `snapshot/`, checksums and all.
//!
//! *Every* entry of the raft log goes into it, also those of which this instance does not know
//! whether a majority had them. One that a client was answered for may be among them: after the
//! loss of a majority nobody is left to ask. If none had been answered for, applying it is what
//! raft would have been free to do as well.

use std::{fmt, path::Path};

use super::{
    LogStore, StorageError,
    check::{self, ImageCopy},
    files, identity,
    image::{Found, Intact},
    snapshot::{self, Survey},
    state_machine::apply_to,
};
use crate::{
    raft::SnapshotMeta,
    registry::{Registry, Totals},
};

/// What a backup holds. [`fmt::Display`] prints it on one line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backup {
    /// The last entry that it covers.
    pub applied: Option<u64>,
    /// How much of everything there is.
    pub totals: Totals,
    /// The checksum over all of it.
    pub check: u32,
}

impl Backup {
    pub(super) fn new(registry: &Registry, at: &SnapshotMeta, check: u32) -> Self {
        let applied = at.last_log_id.map(|last| last.index);
        Self { applied, totals: registry.totals(), check }
    }
}

impl fmt::Display for Backup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.applied {
            Some(entry) => write!(f, "entries through {entry}, ")?,
            None => f.write_str("no entries, ")?,
        }
        let Totals { clients, links, .. } = self.totals;
        write!(f, "{clients} clients, {links} links, checksum {:08x}", self.check)
    }
}

/// Writes the registry of a stopped instance into a new file, and changes nothing in its data
/// directory.
///
/// # Errors
/// If a process uses the directory, its registry cannot be restored, or the file is there already.
pub fn backup(data_dir: &Path, to: &Path) -> Result<Backup, StorageError> {
    let (_lock, identity) = check::hold(data_dir)?;
    let file = files::create_new_file(to)?;
    let write = || {
        let (registry, at) = gather(data_dir, identity.cluster)?;
        let image = registry.image();
        let header = snapshot::Header {
            cluster: identity.cluster,
            at: at.clone(),
            meta: image.meta.clone(),
        };
        let check = snapshot::fill(&file, to, &header, &image.records)?;
        file.sync_all().map_err(files::failed("sync", to))?;
        files::sync_dir(files::parent(to))?;
        Ok(Backup::new(&registry, &at, check))
    };
    write().inspect_err(|_| drop(files::remove(to)))
}

/// The registry as image or snapshot have it, whichever is newer, and then the log.
fn gather(
    data_dir: &Path,
    cluster: identity::ClusterId,
) -> Result<(Registry, SnapshotMeta), StorageError> {
    let log_dir = identity::raft_dir(data_dir);
    let log = LogStore::open_offline(&log_dir, cluster.0.to_be_bytes())?;
    let (mut registry, mut at) = match ImageCopy::open(data_dir, cluster)?.found {
        Found::Intact(intact) => {
            let Intact { registry, at, .. } = *intact;
            (registry, at)
        }
        Found::Absent | Found::Damaged(_) | Found::Hung => <_>::default(),
    };
    let Survey { intact, .. } = snapshot::survey(data_dir, cluster)?;
    if let Some(file) = intact.filter(|file| file.meta().last_log_id > at.last_log_id) {
        registry = file.restore()?;
        at = file.meta().clone();
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
    log.for_each(next, |entry| {
        // Nobody is there to be told.
        apply_to(&mut registry, &mut at, entry);
        registry.take_changed();
    })?;
    Ok((registry, at))
}
