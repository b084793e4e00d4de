//! The identity of a data directory. Two processes must never work on one directory, and a
//! directory must never serve another node or cluster than the one that filled it: raft counts on
//! every vote and entry that a node has acknowledged, and a node that forgot them must not come
//! back under its old name.
//!
//! So the directory is locked for the life of the process, and `identity.json` is written before
//! anything else. It says at first that the directory is not yet *initialised*; once log and image
//! were opened for the first time that is corrected. From then on a directory without its raft
//! log is refused, because it has lost votes. The file carries a checksum of its own.
//!
//! A directory without any vote, entry or snapshot has promised nothing, and belongs to no cluster
//! yet: at each start it takes the cluster that the present settings name. Else one that was once
//! started with a wrong list would stay in that list's cluster; and a list that was made shorter
//! would found a second cluster under the id of the first.

use std::{
    fmt, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::{Deserialize, Serialize};

use super::{
    LogStore, SnapshotInbox, StorageError,
    disk::{Access, Disk, DiskLock, RealDisk},
    fault::DiskFault,
    files,
    image::{Found, ImageStore},
    pulse::Pulses,
    watched::WatchedDisk,
};
use crate::{
    ids::{InstanceId, StoreId},
    runtime,
};

/// The layout of the data directory that this version reads and writes.
const FORMAT: u32 = 2;

/// The layout of version 0.2.0, which no later version reads.
const FORMAT_OF_0_2: u32 = 1;

/// The operator's way out with a directory of version 0.2.0.
const CARRY_OVER: &str = "its clients are carried over by a backup: run `EMNetChain backup \
                          --data-dir DIR FILE` of version 0.2.0, then `EMNetChain restore FILE \
                          --data-dir NEW` of this version";

/// The operator's way out with a directory of a later version.
const NEWER: &str = "install a newer EMNetChain";

const LOCK_FILE: &str = "LOCK";
const IDENTITY_FILE: &str = "identity.json";
const RAFT_DIR: &str = "raft";
const REGISTRY_DIR: &str = "registry";
const SNAPSHOT_DIR: &str = "snapshot";

/// The operator's way out when a directory cannot be trusted any more.
pub(super) const WAY_OUT: &str = "restore a backup into a new data directory, or start with \
                                  an empty one (in a cluster: join it under a new node id)";

/// 128 bits that no other cluster has: random, or derived from the list of its first members.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ClusterId(pub u128);

impl ClusterId {
    /// Returns the id of a new cluster.
    pub(super) fn random() -> Result<Self, io::Error> {
        runtime::random().map(Self)
    }

    /// Returns the id that follows from a text: the same for all that begin with the same one
    /// (FNV-1a).
    pub fn derived_from(text: &str) -> Self {
        const OFFSET: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
        const PRIME: u128 = 0x0000_0000_0100_0000_0000_0000_0000_013b;
        let step = |hash: u128, byte: &u8| (hash ^ u128::from(*byte)).wrapping_mul(PRIME);
        Self(text.as_bytes().iter().fold(OFFSET, step))
    }
}

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// Whose the directory is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The cluster.
    pub cluster: ClusterId,
    /// The seal of raft log and image, so that neither can be another directory's: the cluster that
    /// the directory was made for.
    pub seal: ClusterId,
    /// The node.
    pub node: InstanceId,
    /// Whether log and image have been opened once.
    pub initialised: bool,
    /// The store that the raft log made of the directory when it was initialised, so that the log
    /// of another directory is refused; `None` before that.
    pub store: Option<StoreId>,
}

impl Identity {
    /// Returns the id that the raft log carries.
    pub(super) fn log_id(&self) -> [u8; 16] {
        self.seal.0.to_be_bytes()
    }
}

/// A locked data directory, known to be this node's.
#[derive(Debug)]
pub struct DataDir {
    disk: Arc<dyn Disk>,
    path: PathBuf,
    identity: Identity,
    lock: DirLock,
    pulses: Pulses,
}

/// Holds the lock on a data directory; each task that may still write into it keeps a clone.
#[derive(Clone, Debug)]
pub(super) struct DirLock(#[expect(dead_code, reason = "its drop counts")] DiskLock);

impl DataDir {
    /// Locks the directory, creates it if need be, and makes sure that it belongs to `node`. One
    /// that holds nothing becomes that of the given cluster, or of a new one.
    ///
    /// # Errors
    /// [`StorageError::Locked`] while another process holds it, [`StorageError::Foreign`] if it
    /// is another node's, [`StorageError::Damaged`] if it has lost its identity or its raft log.
    pub fn open(
        path: &Path,
        node: InstanceId,
        cluster: Option<ClusterId>,
    ) -> Result<Self, StorageError> {
        Self::open_on(Arc::new(RealDisk), path, node, cluster)
    }

    /// Does the same on another disk.
    pub(super) fn open_on(
        disk: Arc<dyn Disk>,
        path: &Path,
        node: InstanceId,
        cluster: Option<ClusterId>,
    ) -> Result<Self, StorageError> {
        let named = |fault| DiskFault { operation: "create the data directory", ..fault };
        disk.create_dir(path).map_err(named)?;
        let lock = DirLock::take(&*disk, path)?;
        let identity = match read_identity(&*disk, path)? {
            Some(identity) if identity.node == node => adopt(&*disk, path, identity, cluster)?,
            Some(identity) => identity,
            None => found_identity(&*disk, path, node, cluster)?,
        };
        if identity.node != node {
            return Err(StorageError::Foreign {
                path: path.join(IDENTITY_FILE),
                found: format!("node {}", identity.node.0),
                expected: format!("node {}", node.0),
            });
        }
        let (path, pulses) = (path.to_path_buf(), Pulses::default());
        let dir = Self { disk, path, identity, lock, pulses };
        if identity.initialised && dir.disk.names(&dir.raft_dir())?.is_empty() {
            return Err(StorageError::Damaged {
                path: dir.raft_dir(),
                what: "the raft log is missing, and its votes with it".into(),
                way_out: WAY_OUT,
            });
        }
        Ok(dir)
    }

    /// Returns the directory itself.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the disk that it is on.
    pub(super) fn disk(&self) -> &Arc<dyn Disk> {
        &self.disk
    }

    /// Returns the pulses of the threads that work in the directory.
    pub fn pulses(&self) -> &Pulses {
        &self.pulses
    }

    /// Returns the disk that it is on, for snapshots.
    pub(super) fn snapshot_disk(&self) -> Arc<dyn Disk> {
        Arc::new(WatchedDisk::new(Arc::clone(&self.disk), self.pulses.snapshot.clone()))
    }

    /// Returns the place of the registry's image.
    pub(super) fn image_store(&self) -> Arc<dyn ImageStore> {
        self.disk.image_store(&self.registry_dir(), self.seal())
    }

    /// Returns the place where snapshots of other instances arrive.
    pub fn inbox(&self) -> SnapshotInbox {
        SnapshotInbox::new(self.snapshot_disk(), self.snapshot_dir(), self.cluster_id())
    }

    /// Whose the directory is.
    pub(super) fn identity(&self) -> Identity {
        self.identity
    }

    /// Returns the cluster that the directory belongs to.
    pub fn cluster_id(&self) -> ClusterId {
        self.identity.cluster
    }

    /// Returns the seal of raft log and image; see [`Identity::seal`].
    pub(super) fn seal(&self) -> ClusterId {
        self.identity.seal
    }

    /// Returns the node that the directory belongs to.
    pub fn node_id(&self) -> InstanceId {
        self.identity.node
    }

    /// Returns whether nothing was ever stored here: the first start, or one that was cut short.
    pub fn is_new(&self) -> bool {
        !self.identity.initialised
    }

    /// Returns where the raft log lives.
    pub fn raft_dir(&self) -> PathBuf {
        raft_dir(&self.path)
    }

    /// Returns where the image of the registry lives.
    pub fn registry_dir(&self) -> PathBuf {
        registry_dir(&self.path)
    }

    /// Returns where snapshots live.
    pub fn snapshot_dir(&self) -> PathBuf {
        snapshot_dir(&self.path)
    }

    /// Returns a share of the lock for a thread that may outlive this value.
    pub(super) fn lock(&self) -> DirLock {
        self.lock.clone()
    }

    /// Notes that log and image exist, and which store the log is: from now on their absence is a
    /// loss, and another log is refused.
    pub(super) fn mark_initialised(&mut self, store: Option<StoreId>) -> Result<(), StorageError> {
        let store = self.identity.store.or(store);
        let initialised = Identity { initialised: true, store, ..self.identity };
        if initialised != self.identity {
            self.identity = initialised;
            write_identity(&*self.disk, &self.path, self.identity)?;
        }
        Ok(())
    }
}

impl DirLock {
    /// Locks a directory against all other processes.
    pub(super) fn take(disk: &dyn Disk, directory: &Path) -> Result<Self, StorageError> {
        Self::locked(disk.lock(&directory.join(LOCK_FILE), Access::Write)?, directory)
    }

    /// Locks a directory without making anything in it; `None` if it was never locked.
    pub(super) fn take_existing(
        disk: &dyn Disk,
        directory: &Path,
    ) -> Result<Option<Self>, StorageError> {
        match disk.lock(&directory.join(LOCK_FILE), Access::Read) {
            Ok(lock) => Self::locked(lock, directory).map(Some),
            Err(fault) if fault.source.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(fault) => Err(fault.into()),
        }
    }

    fn locked(lock: Option<DiskLock>, directory: &Path) -> Result<Self, StorageError> {
        let held = || StorageError::Locked { directory: directory.to_path_buf() };
        lock.map(Self).ok_or_else(held)
    }
}

/// Returns where the raft log lives in a data directory.
pub(super) fn raft_dir(path: &Path) -> PathBuf {
    path.join(RAFT_DIR)
}

/// Returns where the image lives in a data directory.
pub(super) fn registry_dir(path: &Path) -> PathBuf {
    path.join(REGISTRY_DIR)
}

/// Returns where the snapshots live in a data directory.
pub(super) fn snapshot_dir(path: &Path) -> PathBuf {
    path.join(SNAPSHOT_DIR)
}

/// Founds the identity of an empty directory.
fn found_identity(
    disk: &dyn Disk,
    path: &Path,
    node: InstanceId,
    cluster: Option<ClusterId>,
) -> Result<Identity, StorageError> {
    for name in [RAFT_DIR, REGISTRY_DIR, SNAPSHOT_DIR] {
        if !disk.names(&path.join(name))?.is_empty() {
            return Err(StorageError::Damaged {
                path: path.join(IDENTITY_FILE),
                what: format!("the file is missing, though {name}/ holds data"),
                way_out: WAY_OUT,
            });
        }
    }
    let cluster = chosen(cluster, path)?;
    let identity = Identity { cluster, seal: cluster, node, initialised: false, store: None };
    write_identity(disk, path, identity)?;
    Ok(identity)
}

/// Has a directory in which nothing was ever stored follow the present settings.
fn adopt(
    disk: &dyn Disk,
    path: &Path,
    identity: Identity,
    cluster: Option<ClusterId>,
) -> Result<Identity, StorageError> {
    if cluster == Some(identity.cluster) || !is_blank(disk, path, identity)? {
        return Ok(identity);
    }
    let identity = Identity { cluster: chosen(cluster, path)?, ..identity };
    write_identity(disk, path, identity)?;
    Ok(identity)
}

fn chosen(cluster: Option<ClusterId>, path: &Path) -> Result<ClusterId, StorageError> {
    let random = || ClusterId::random().map_err(files::failed("draw a cluster id for", path));
    Ok(cluster.map_or_else(random, Ok)?)
}

/// Returns whether nothing was ever stored in a directory: no vote, no entry, no image of one, no
/// snapshot.
fn is_blank(disk: &dyn Disk, path: &Path, identity: Identity) -> Result<bool, StorageError> {
    let raft = raft_dir(path);
    // What is wrong with a log or an image is told when it is opened to be written.
    let has_no_log = match disk.names(&raft)?.is_empty() {
        true => !identity.initialised,
        false => LogStore::is_blank(disk, &raft, identity.log_id()).unwrap_or(false),
    };
    if !has_no_log || !disk.names(&snapshot_dir(path))?.is_empty() {
        return Ok(false);
    }
    Ok(match disk.image_store(&registry_dir(path), identity.seal).open() {
        Ok(Found::Absent) => true,
        Ok(Found::Intact(image)) => image.at.last_log_id.is_none(),
        // What is in an image was in the log before. So an image beside this directory's own log,
        // in which there is nothing, was never finished.
        Ok(Found::Damaged(_)) => {
            let log = LogStore::open_offline(disk, &raft, identity.log_id());
            log.is_ok_and(|log| identity.store == Some(log.store()))
        }
        Ok(Found::Hung) | Err(_) => false,
    })
}

/// The identity as it stands in the file.
#[derive(Serialize, Deserialize)]
struct IdentityFile {
    format: u32,
    cluster: String,
    /// If it is not the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    seal: Option<String>,
    node: u64,
    initialised: bool,
    /// Once it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    store: Option<String>,
    check: String,
}

impl IdentityFile {
    /// Returns the checksum over everything else.
    fn expected_check(&self) -> String {
        let mut text =
            format!("{} {} {} {}", self.format, self.cluster, self.node, self.initialised);
        for id in [&self.seal, &self.store].into_iter().flatten() {
            text = format!("{text} {id}");
        }
        format!("{:08x}", crc32fast::hash(text.as_bytes()))
    }
}

/// Reads the identity of a directory; `None` if the file does not exist.
pub(super) fn read_identity(
    disk: &dyn Disk,
    directory: &Path,
) -> Result<Option<Identity>, StorageError> {
    let path = directory.join(IDENTITY_FILE);
    let Some(bytes) = files::read(disk, &path)? else { return Ok(None) };
    parse_identity(&bytes).map(Some).map_err(|(what, way_out)| StorageError::Damaged {
        path,
        what,
        way_out,
    })
}

/// Reads the identity, or says what is wrong with it and what can be done.
fn parse_identity(bytes: &[u8]) -> Result<Identity, (String, &'static str)> {
    let damaged = |what: String| (what, WAY_OUT);
    let file: IdentityFile =
        serde_json::from_slice(bytes).map_err(|error| damaged(format!("not readable: {error}")))?;
    if file.check != file.expected_check() {
        return Err(damaged("its checksum does not match".into()));
    }
    let format = file.format;
    if format == FORMAT_OF_0_2 {
        let what = "a data directory of version 0.2.0, which this version does not read";
        return Err((what.into(), CARRY_OVER));
    }
    if format != FORMAT {
        let what = format!("format {format}, where this version knows format {FORMAT}");
        return Err((what, NEWER));
    }
    let id = |text: &String| {
        let parsed = u128::from_str_radix(text, 16);
        parsed.map_err(|error| damaged(format!("`{text}` is not an id: {error}")))
    };
    Ok(Identity {
        cluster: ClusterId(id(&file.cluster)?),
        seal: ClusterId(id(file.seal.as_ref().unwrap_or(&file.cluster))?),
        node: InstanceId(file.node),
        initialised: file.initialised,
        store: file.store.as_ref().map(id).transpose()?.map(StoreId),
    })
}

/// Says whose a directory is.
pub(super) fn write_identity(
    disk: &dyn Disk,
    directory: &Path,
    identity: Identity,
) -> Result<(), StorageError> {
    let mut file = IdentityFile {
        format: FORMAT,
        cluster: identity.cluster.to_string(),
        seal: (identity.seal != identity.cluster).then(|| identity.seal.to_string()),
        node: identity.node.0,
        initialised: identity.initialised,
        store: identity.store.map(|store| store.to_string()),
        check: String::new(),
    };
    file.check = file.expected_check();
    let mut text = serde_json::to_vec_pretty(&file).expect("plain fields encode into memory");
    text.push(b'\n');
    Ok(files::write_atomically(disk, &directory.join(IDENTITY_FILE), &text)?)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::platform::files::mode;

    const NODE: InstanceId = InstanceId(3);

    #[test]
    fn a_directory_keeps_its_identity() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("deep/data");
        let cluster = ClusterId(7);
        let first = DataDir::open(&path, NODE, Some(cluster)).unwrap();
        assert!(first.is_new());
        drop(first);
        let again = DataDir::open(&path, NODE, Some(cluster)).unwrap();
        assert_eq!((again.cluster_id(), again.node_id(), again.is_new()), (cluster, NODE, true));
        assert_eq!(mode(&path), 0o700);
        for name in [LOCK_FILE, IDENTITY_FILE] {
            assert_eq!(mode(&path.join(name)), 0o600, "{name}");
        }
    }

    #[test]
    fn a_new_directory_is_sealed_for_its_own_cluster() {
        let temp = tempfile::tempdir().unwrap();
        let dir = DataDir::open(temp.path(), NODE, None).unwrap();
        assert_eq!(dir.seal(), dir.cluster_id());
    }

    #[test]
    fn a_second_process_and_another_node_are_refused() {
        let temp = tempfile::tempdir().unwrap();
        let held = DataDir::open(temp.path(), NODE, None).unwrap();
        let error = DataDir::open(temp.path(), NODE, None).unwrap_err();
        assert!(matches!(&error, StorageError::Locked { .. }), "{error}");
        assert!(error.to_string().contains("another process"), "{error}");
        assert!(error.to_string().contains(&temp.path().display().to_string()), "{error}");
        drop(held);
        let error = DataDir::open(temp.path(), InstanceId(4), None).unwrap_err();
        assert!(matches!(error, StorageError::Foreign { .. }), "{error}");
        assert_eq!(error.exit_code(), 78);
    }

    #[test]
    fn a_directory_that_lost_its_raft_log_is_refused() {
        let temp = tempfile::tempdir().unwrap();
        let mut dir = DataDir::open(temp.path(), NODE, None).unwrap();
        fs::create_dir(dir.raft_dir()).unwrap();
        fs::write(dir.raft_dir().join("log"), "entries").unwrap();
        dir.mark_initialised(None).unwrap();
        drop(dir);
        assert!(!DataDir::open(temp.path(), NODE, None).unwrap().is_new());
        fs::remove_dir_all(temp.path().join(RAFT_DIR)).unwrap();
        let error = DataDir::open(temp.path(), NODE, None).unwrap_err();
        assert!(error.to_string().contains("the raft log is missing"), "{error}");
    }

    #[test]
    fn data_without_an_identity_is_refused() {
        let temp = tempfile::tempdir().unwrap();
        fs::create_dir(temp.path().join(SNAPSHOT_DIR)).unwrap();
        fs::write(temp.path().join(SNAPSHOT_DIR).join("1.snap"), "x").unwrap();
        let error = DataDir::open(temp.path(), NODE, None).unwrap_err();
        assert!(matches!(error, StorageError::Damaged { .. }), "{error}");
    }

    #[test]
    fn no_flipped_bit_of_the_identity_goes_unseen() {
        let temp = tempfile::tempdir().unwrap();
        drop(DataDir::open(temp.path(), NODE, None).unwrap());
        let path = temp.path().join(IDENTITY_FILE);
        let good = fs::read(&path).unwrap();
        let identity = parse_identity(&good).unwrap();
        for bit in 0..good.len() * 8 {
            let mut bytes = good.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            if let Ok(read) = parse_identity(&bytes) {
                assert_eq!(read, identity, "bit {bit} changed the identity unseen");
            }
        }
        for length in 0..good.len() - 2 {
            assert!(parse_identity(&good[..length]).is_err(), "cut to {length} bytes");
        }
    }
}
