//! The source of the registry when a process starts. `proto-docs/storage-image.md`
//! has the table; in words: the image if it is whole and the raft log goes on where it ends, else
//! the snapshot under the same condition, else nothing at all if the log still has its first
//! entry. openraft then applies the rest of the log. If no source connects with the log, entries
//! that were acknowledged are gone, and the start is refused.
//!
//! Nothing is moved or written before the choice is made: a start that is refused leaves the
//! directory as it was.

use std::{panic::resume_unwind, path::PathBuf, thread};

use super::{
    DataDir, LogGuard, StorageError,
    guard::{contradiction, older_vote, other_store},
    identity,
    image::{Found, ImageStore, Intact, OpenImage},
    snapshot::{self, SnapshotDir, SnapshotFile, Survey},
};
use crate::{
    raft::{LogId, SnapshotMeta},
    registry::Registry,
};

/// The two ends of the raft log, as it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogEnds {
    /// The last entry that was purged; everything after it is there.
    pub purged: Option<LogId>,
    /// The last entry; the purged one if the log is empty.
    pub last: Option<LogId>,
}

/// A registry to begin with.
#[derive(Debug)]
pub(super) struct Restored {
    /// The registry.
    pub(super) registry: Registry,
    /// Its log position.
    pub(super) at: SnapshotMeta,
    /// The image it came from; without one a new image must be written.
    pub(super) image: Option<Box<dyn OpenImage>>,
    /// The snapshots.
    pub(super) snapshots: SnapshotDir,
}

/// Everything that may serve as a source.
struct Sources {
    image: Option<Intact>,
    /// The fault of the image, if it is there and not whole.
    image_fault: Option<String>,
    snapshot: Option<SnapshotFile>,
    snapshot_faults: Vec<(PathBuf, String)>,
}

/// Chooses a source, heals what can be healed, and says so in the log. Without a store, no image is
/// looked for.
pub(super) fn restore(
    dir: &DataDir,
    log: LogEnds,
    images: Option<&dyn ImageStore>,
    guard: &LogGuard,
) -> Result<Restored, StorageError> {
    let sources = find(dir, images)?;
    refuse_contradictions(dir, log, guard, &sources)?;
    let offered = sources.snapshot.clone();
    let snapshot_faults = sources.snapshot_faults.clone();
    let (registry, at, image) = choose(dir, log, images, sources)?;
    for (path, fault) in snapshot_faults {
        let aside = snapshot::set_aside(&**dir.disk(), &path)?;
        tracing::warn!(path = %path.display(), %fault, moved_to = %aside.display(),
            "a snapshot is damaged; a new one will be written");
    }
    let ahead = index(at.last_log_id) > index(log.last);
    if ahead {
        accept_short_log(dir, log, &at)?;
    }
    // openraft must not see a snapshot that ends before the log begins; it has a new one built
    // instead. A log that ends before the registry will begin again where the registry stands.
    let begins = if ahead { index(at.last_log_id) } else { index(log.purged) };
    let connects = |file: &SnapshotFile| index(file.meta().last_log_id) >= begins;
    let snapshots = SnapshotDir::open(dir, offered.filter(connects))?;
    if begins.is_some() && snapshots.current().is_none() {
        tracing::warn!("no snapshot connects with the raft log; a new one will be written");
    }
    if let Some(images) = images {
        images.remove_superseded()?;
    }
    Ok(Restored { registry, at, image, snapshots })
}

fn find(dir: &DataDir, images: Option<&dyn ImageStore>) -> Result<Sources, StorageError> {
    let path = dir.registry_dir();
    let open = || images.map_or(Ok(Found::Absent), ImageStore::open);
    let survey = || snapshot::survey(&**dir.disk(), dir.path(), dir.cluster_id());
    let (found, survey) = thread::scope(|scope| {
        let survey = scope.spawn(survey);
        (open(), survey.join())
    });
    let Survey { intact, damaged } = survey.unwrap_or_else(|panic| resume_unwind(panic))?;
    let (image, image_fault) = match found? {
        Found::Absent => (None, None),
        Found::Intact(intact) => (Some(*intact), None),
        Found::Damaged(fault) => (None, Some(fault)),
        Found::Hung => {
            // sled still has its hands on the files, so this process cannot go on.
            let aside = images.map_or(Ok(path.clone()), ImageStore::set_aside)?;
            return Err(StorageError::Damaged {
                path,
                what: format!("sled did not open it in time; it is now {}", aside.display()),
                way_out: "start again: the image is rebuilt from the snapshot and the raft log",
            });
        }
    };
    Ok(Sources { image, image_fault, snapshot: intact, snapshot_faults: damaged })
}

/// Nothing that was applied is ever revoked, and no vote is taken back. So where image, snapshot
/// and log tell different stories, one of them is of another history, or is an older copy that was
/// put back.
fn refuse_contradictions(
    dir: &DataDir,
    log: LogEnds,
    guard: &LogGuard,
    sources: &Sources,
) -> Result<(), StorageError> {
    let metas = [
        sources.image.as_ref().map(|image| &image.at),
        sources.snapshot.as_ref().map(SnapshotFile::meta),
    ];
    let refuse = |path: PathBuf, what: String| {
        Err(StorageError::Damaged { path, what, way_out: identity::WAY_OUT })
    };
    if let Some(what) = other_store(dir.identity(), metas.into_iter().flatten(), guard.store()) {
        return refuse(dir.raft_dir(), what);
    }
    let [image, snapshot] = metas.map(|at| at.and_then(|at| at.last_log_id));
    for (path, at) in [(dir.registry_dir(), image), (dir.snapshot_dir(), snapshot)] {
        let wrong = at.and_then(|at| contradiction(at, guard.in_log(at.index)));
        if let Some(what) = wrong {
            return refuse(path, what);
        }
    }
    let newest = image.max(snapshot).max(log.last);
    match guard.vote_term().and_then(|vote| older_vote(vote, newest)) {
        Some(what) => refuse(dir.raft_dir(), what),
        None => Ok(()),
    }
}

/// An entry may be committed, and applied, while it is on the disks of others only; then a
/// power cut leaves a registry that is ahead of its own log, and openraft mends that. But a voter
/// alone applies nothing that is not in its own log: there the log has lost entries.
fn accept_short_log(dir: &DataDir, log: LogEnds, at: &SnapshotMeta) -> Result<(), StorageError> {
    let (applied, last) = (index(at.last_log_id), index(log.last));
    let applied = applied.unwrap_or_default();
    if at.last_membership.voter_ids().eq([dir.node_id().0]) {
        let what =
            format!("the raft log ends at entry {last:?}, though entry {applied} was applied");
        return Err(StorageError::Damaged {
            path: dir.raft_dir(),
            what,
            way_out: identity::WAY_OUT,
        });
    }
    tracing::warn!(applied, ?last, "the raft log ends before the registry; it begins again there");
    Ok(())
}

type Chosen = (Registry, SnapshotMeta, Option<Box<dyn OpenImage>>);

fn choose(
    dir: &DataDir,
    log: LogEnds,
    images: Option<&dyn ImageStore>,
    sources: Sources,
) -> Result<Chosen, StorageError> {
    let Sources { mut image, image_fault, snapshot, snapshot_faults } = sources;
    let refusal = || refuse(dir, log, image_fault.as_deref(), &snapshot_faults);
    let purged = index(log.purged);
    let image_at = image.as_ref().map(|intact| index(intact.at.last_log_id));
    let snapshot_at = snapshot.as_ref().map(|file| index(file.meta().last_log_id));
    let best = image_at.max(snapshot_at);
    if log.purged.is_some() && best.is_none_or(|at| at < purged) {
        return Err(refusal());
    }
    if let Some(intact) = image.take_if(|_| image_at == best) {
        return Ok((intact.registry, intact.at, Some(intact.image)));
    }
    let (restored, at) = match &snapshot {
        Some(file) => (file.restore()?, file.meta().clone()),
        None => (Registry::default(), SnapshotMeta::default()),
    };
    // The image will be replaced; sled must let go of its files first.
    drop(image);
    let registry = dir.registry_dir();
    if let Some((fault, images)) = image_fault.zip(images) {
        let aside = images.set_aside()?;
        tracing::warn!(path = %registry.display(), %fault, moved_to = %aside.display(),
            "the image is damaged and is rebuilt");
    } else if image_at.is_some() {
        tracing::info!("the image is behind the snapshot; it is rebuilt");
    } else if !dir.is_new() {
        tracing::warn!(path = %registry.display(), "the image is missing; it is rebuilt");
    }
    match &snapshot {
        Some(file) => {
            tracing::warn!(path = %file.path().display(), "the registry comes from a snapshot");
        }
        None if dir.is_new() => {}
        None => tracing::warn!("no image, no snapshot: the raft log is applied from its beginning"),
    }
    Ok((restored, at, None))
}

/// Neither image nor snapshot connects with the log.
fn refuse(
    dir: &DataDir,
    log: LogEnds,
    image_fault: Option<&str>,
    snapshot_faults: &[(PathBuf, String)],
) -> StorageError {
    let image = image_fault.unwrap_or("missing or too old");
    let mut what = format!(
        "the raft log begins after entry {}, and nothing connects with it: {}: {image}",
        index(log.purged).unwrap_or_default(),
        dir.registry_dir().display(),
    );
    for (path, fault) in snapshot_faults {
        what.push_str(&format!("; {}: {fault}", path.display()));
    }
    if snapshot_faults.is_empty() {
        what.push_str(&format!("; {}: missing or too old", dir.snapshot_dir().display()));
    }
    StorageError::Damaged { path: dir.path().to_path_buf(), what, way_out: identity::WAY_OUT }
}

fn index(log_id: Option<LogId>) -> Option<u64> {
    log_id.map(|log_id| log_id.index)
}
