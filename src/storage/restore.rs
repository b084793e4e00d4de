//! A new data directory from a backup: the beginning of a new cluster, with one voter.
//!
//! The new cluster has an id and a history of its own, so that instances of the old one cannot
//! join it by mistake and undo what was restored; the old numbers count as removed. A backup of
//! version 0.2.0 is read as well. The restoration counts as one more entry of the log, in a
//! new term: it makes this instance the only member, and ends all sessions of the old instances.
//! Their clients have the resume grace to come back, from the moment that the new one serves.
//!
//! `identity.json` is written last. A directory whose restoration was interrupted has data and no
//! identity, and is refused.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, io,
    path::{Path, PathBuf},
};

use openraft::{type_config::alias::CommittedLeaderIdOf, vote::RaftLeaderId as _};

use super::{
    Backup, ClusterId, Identity, LogStore, StorageError,
    disk::{Access, Disk, RealDisk},
    files,
    identity::{self, DirLock},
    snapshot::{self, Loaded},
};
use crate::{
    ids::{HistoryId, InstanceId, StoreId},
    raft::{LogId, Member, Membership, SnapshotMeta, TypeConfig, Vote},
    registry::{Command, Image, Proposal, Registry},
};

/// The result of a restore. [`fmt::Display`] prints it on one line.
#[derive(Clone, Debug)]
pub struct Restoration {
    /// The new data directory.
    pub data_dir: PathBuf,
    /// Whose it is.
    pub identity: Identity,
    /// The contents of the backup.
    pub backup: Backup,
}

impl fmt::Display for Restoration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { data_dir, identity, backup } = self;
        let Identity { cluster, node, .. } = identity;
        write!(f, "{}: cluster {cluster}, node {}, {backup}", data_dir.display(), node.0)
    }
}

/// Founds a new cluster with the registry of a backup, in a data directory that is empty or does
/// not exist. `node` will be its only member, which others reach as `member` says.
///
/// # Errors
/// If the backup is damaged, the directory holds anything, or the disk fails.
pub fn restore(
    from: &Path,
    data_dir: &Path,
    node: InstanceId,
    member: Member,
) -> Result<Restoration, StorageError> {
    let Loaded { mut registry, at, check } = read(&RealDisk, from)?;
    let backup = Backup::new(&registry, &at, check);
    end_sessions(&mut registry);
    registry.leave_history();
    let random = || ClusterId::random().map_err(files::failed("draw an id for", data_dir));
    let (cluster, history) = (random()?, HistoryId(random()?.0));
    let identity = Identity { cluster, seal: cluster, node, initialised: true, store: None };
    let identity = found(&RealDisk, data_dir, identity, at.last_log_id, member, |store, at| {
        let index = at.last_log_id.map_or(0, |entry| entry.index);
        registry.members_changed(index, [(node, Some(store))]);
        let mut image = registry.image().clone();
        image.meta.history = Some(history);
        image
    })?;
    Ok(Restoration { data_dir: data_dir.to_path_buf(), identity, backup })
}

fn read(disk: &dyn Disk, path: &Path) -> Result<Loaded, StorageError> {
    let file = disk.open(path, Access::Read).map_err(|fault| {
        if fault.source.kind() != io::ErrorKind::NotFound {
            return StorageError::from(fault);
        }
        let what = "there is no such file; name a backup";
        StorageError::Unfit { path: path.to_path_buf(), what }
    })?;
    let way_out = "nothing is restored from it; name another backup";
    snapshot::load(&*file, None).map_err(|unusable| unusable.refusal(path, way_out))
}

/// Returns the entry that stands for the restoration, and the vote of the term that it begins.
fn next_entry(last: Option<LogId>, node: InstanceId) -> (LogId, Vote) {
    let term = last.map_or(0, |last| last.committed_leader_id().term) + 1;
    let index = last.map_or(0, |last| last.index + 1);
    let leader = CommittedLeaderIdOf::<TypeConfig>::new(term, node.0);
    (LogId::new(leader, index), Vote::new(term, node.0))
}

/// Returns the members that the entry makes: one voter.
fn founding(entry: LogId, node: InstanceId, member: Member) -> SnapshotMeta {
    let entry = Some(entry);
    let voters = vec![BTreeSet::from([node.0])];
    let members = openraft::Membership::new(voters, BTreeMap::from([(node.0, member)]));
    let members = members.expect("its one voter is a node");
    let last_membership = Membership::new(entry, members);
    SnapshotMeta { last_log_id: entry, last_membership }
}

/// Begins a new life of every instance, so that no session of an old one is waited for.
fn end_sessions(registry: &mut Registry) {
    let known = registry.image().meta.instances.iter();
    let commands = known.map(|(instance, known)| Command::Start {
        instance: *instance,
        incarnation: known.incarnation.next(),
    });
    let commands = commands.collect();
    registry.apply(&Proposal { at: registry.now(), batch: None, commands });
}

/// Makes a data directory whose raft log begins behind an entry after `last`, which makes this
/// member the only one, and that holds the registry of that entry. Returns whose it is.
fn found(
    disk: &dyn Disk,
    dir: &Path,
    identity: Identity,
    last: Option<LogId>,
    member: Member,
    registry: impl FnOnce(StoreId, &SnapshotMeta) -> Image,
) -> Result<Identity, StorageError> {
    let not_empty = || {
        let what = "is not empty, and nothing is overwritten; name a new directory by --data-dir";
        StorageError::Unfit { path: dir.to_path_buf(), what }
    };
    match disk.names(dir) {
        // A new file system has a directory of its own in its root.
        Ok(names) if names.iter().all(|name| name == "lost+found") => disk.create_dir(dir)?,
        Err(fault) if fault.source.kind() != io::ErrorKind::NotADirectory => {
            return Err(fault.into());
        }
        Ok(_) | Err(_) => return Err(not_empty()),
    }
    let _lock = DirLock::take(disk, dir)?;
    let (entry, vote) = next_entry(last, identity.node);
    let store =
        LogStore::found(disk, &identity::raft_dir(dir), identity.log_id(), vote, Some(entry))?;
    let at = &founding(entry, identity.node, Member { store: Some(store), ..member });
    let image = registry(store, at);
    let snapshots = identity::snapshot_dir(dir);
    disk.create_dir(&snapshots)?;
    let file = files::create_new(disk, &snapshot::path_of(&snapshots, at))?;
    let header =
        snapshot::Header { cluster: identity.cluster, at: at.clone(), meta: image.meta.clone() };
    snapshot::fill(&*file, &header, &image.records)?;
    file.sync()?;
    disk.sync_dir(&snapshots)?;
    disk.sync_dir(dir)?;
    let identity = Identity { store: Some(store), ..identity };
    identity::write_identity(disk, dir, identity)?;
    Ok(identity)
}
