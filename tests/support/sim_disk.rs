//! A disk in memory that loses what was not synced, fails, is slow, hangs, or comes back older than
//! it was, as its owner says. It can also be made to lie about its syncs: that is the canary which
//! proves that tests of power cuts can fail.
//!
//! The unit tests of the storage and the simulator share this file.

#![allow(dead_code, reason = "each of the two uses its own part")]

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::{Path, PathBuf},
    sync::{Arc, Condvar, Mutex, MutexGuard, Weak},
    time::Duration,
};

use emnetchain::storage::{
    Access, ClusterId, Disk, DiskFile, DiskLock, ImageStore, fault::DiskFault,
};
use futures_util::future::BoxFuture;
use tokio::sync::Notify;

use super::sim_image::{self, Images};

/// What survives of one write that was not synced is decided for so many bytes at a time: fewer
/// than a sector, so that small writes are torn as well, and the log's state within its first
/// fields.
const SECTOR_BYTES: usize = 16;

/// How long a sync of a thread hangs at most.
const HANG_MAX: Duration = Duration::from_secs(20);

/// A small random generator (splitmix64), so that a seed replays a test.
#[derive(Clone, Debug)]
pub(crate) struct Rng(pub(crate) u64);

impl Rng {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound.max(1)
    }

    pub(crate) fn coin(&mut self) -> bool {
        self.below(2) == 0
    }
}

/// How the disk misbehaves. Operations that change something are counted from 1.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Faults {
    /// This operation fails, those after it would not.
    pub(crate) fail_at: Option<u64>,
    /// From this operation on all fail. A write that fails may have got half way.
    pub(crate) fail_from: Option<u64>,
    /// From this operation on the machine is off: nothing is changed any more.
    pub(crate) dead_from: Option<u64>,
    /// Everything that needs room fails.
    pub(crate) full: bool,
    /// Files cannot be removed.
    pub(crate) removes_fail: bool,
    /// Syncing a file does nothing.
    pub(crate) file_sync_lies: bool,
    /// Syncing a directory does nothing.
    pub(crate) dir_sync_lies: bool,
    /// Syncs block their thread until this is taken back. For threads; see [`Pace`] for tasks.
    pub(crate) syncs_wait: bool,
}

/// How long a task is kept waiting before each batch of writes into a directory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Pace {
    /// Not at all.
    #[default]
    Quick,
    /// For so many milliseconds, drawn between these two.
    Slow(u64, u64),
    /// Until another pace is set.
    Hangs,
}

/// What survives a power cut of what was not synced.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Survives {
    Nothing,
    Everything,
    Sectors,
}

/// A handle on the disk; clones are the same disk.
#[derive(Clone, Debug)]
pub(crate) struct SimDisk(Arc<Inner>);

#[derive(Debug)]
pub(super) struct Inner {
    sim: Mutex<Sim>,
    changed: Condvar,
    pace_changed: Notify,
}

impl Inner {
    pub(super) fn sim(&self) -> MutexGuard<'_, Sim> {
        self.sim.lock().unwrap()
    }
}

#[derive(Clone, Debug)]
pub(super) struct Sim {
    rng: Rng,
    dirs: BTreeSet<PathBuf>,
    names: BTreeMap<PathBuf, usize>,
    durable_names: BTreeMap<PathBuf, usize>,
    pending_names: Vec<Renaming>,
    files: Vec<SimBytes>,
    pub(super) images: Images,
    locks: BTreeMap<PathBuf, Weak<()>>,
    faults: Faults,
    /// By the last name of a directory: `raft`, `snapshot`, `registry`.
    paces: BTreeMap<String, Pace>,
    operations: u64,
    file_syncs: u64,
}

#[derive(Clone, Debug, Default)]
struct SimBytes {
    now: Vec<u8>,
    durable: Vec<u8>,
    pending: Vec<Change>,
}

#[derive(Clone, Debug)]
enum Change {
    Write { offset: usize, bytes: Vec<u8> },
    SetSize(usize),
}

impl Change {
    fn apply(&self, to: &mut Vec<u8>) {
        match self {
            Self::Write { offset, bytes } => {
                to.resize(to.len().max(self.end()), 0);
                to[*offset..self.end()].copy_from_slice(bytes);
            }
            Self::SetSize(size) => to.resize(*size, 0),
        }
    }

    /// The least length of the file afterwards.
    fn end(&self) -> usize {
        match self {
            Self::Write { offset, bytes } => offset + bytes.len(),
            Self::SetSize(size) => *size,
        }
    }

    /// What a write leaves that fails half way.
    fn half(mut self) -> Self {
        if let Self::Write { bytes, .. } = &mut self {
            bytes.truncate(bytes.len() / 2);
        }
        self
    }

    /// What a power cut leaves of it.
    fn apply_some(&self, to: &mut Vec<u8>, rng: &mut Rng) {
        match self {
            Self::Write { offset, bytes } => {
                for (number, sector) in bytes.chunks(SECTOR_BYTES).enumerate() {
                    if rng.coin() {
                        let offset = offset + number * SECTOR_BYTES;
                        Self::Write { offset, bytes: sector.to_vec() }.apply(to);
                    }
                }
            }
            Self::SetSize(_) if rng.coin() => self.apply(to),
            Self::SetSize(_) => {}
        }
    }
}

/// A change in a directory: a file loses one name and gets another.
#[derive(Clone, Debug)]
struct Renaming {
    from: Option<PathBuf>,
    to: Option<(PathBuf, usize)>,
}

impl Renaming {
    fn apply(&self, names: &mut BTreeMap<PathBuf, usize>) {
        if let Some(from) = &self.from {
            names.remove(from);
        }
        if let Some((to, file)) = &self.to {
            names.insert(to.clone(), *file);
        }
    }

    fn is_in(&self, dir: &Path) -> bool {
        let path = self.from.as_ref().or(self.to.as_ref().map(|(to, _)| to));
        path.and_then(|path| path.parent()) == Some(dir)
    }
}

impl SimDisk {
    /// An empty disk whose chance follows from a seed.
    pub(crate) fn new(seed: u64) -> Self {
        Self::from_sim(Sim {
            rng: Rng(seed),
            dirs: BTreeSet::new(),
            names: BTreeMap::new(),
            durable_names: BTreeMap::new(),
            pending_names: Vec::new(),
            files: Vec::new(),
            images: Images::default(),
            locks: BTreeMap::new(),
            faults: Faults::default(),
            paces: BTreeMap::new(),
            operations: 0,
            file_syncs: 0,
        })
    }

    fn from_sim(sim: Sim) -> Self {
        let (sim, changed, pace_changed) = (Mutex::new(sim), Condvar::new(), Notify::new());
        Self(Arc::new(Inner { sim, changed, pace_changed }))
    }

    /// A handle to hand over; it is the same disk.
    pub(crate) fn share(&self) -> Arc<dyn Disk> {
        Arc::new(self.clone())
    }

    fn sim(&self) -> MutexGuard<'_, Sim> {
        self.0.sim()
    }

    pub(crate) fn set_faults(&self, faults: Faults) {
        self.sim().faults = faults;
        self.0.changed.notify_all();
    }

    /// Sets the pace of the directories with this last name.
    pub(crate) fn set_pace(&self, dir: &str, pace: Pace) {
        self.sim().paces.insert(dir.to_owned(), pace);
        self.0.pace_changed.notify_waiters();
    }

    /// How many operations changed something so far, or were to.
    pub(crate) fn operations(&self) -> u64 {
        self.sim().operations
    }

    pub(crate) fn file_syncs(&self) -> u64 {
        self.sim().file_syncs
    }

    /// Whether [`Faults::dead_from`] has come.
    pub(crate) fn is_off(&self) -> bool {
        let sim = self.sim();
        sim.faults.dead_from.is_some_and(|from| sim.operations >= from)
    }

    /// The names of all files, without their directory.
    pub(crate) fn all_names(&self) -> Vec<String> {
        let name = |path: &PathBuf| path.file_name().unwrap().to_string_lossy().into_owned();
        self.sim().names.keys().map(name).collect()
    }

    /// A copy of all that is on the disk now. Put in its place later, it is the disk of a volume
    /// that was restored.
    pub(crate) fn copy(&self) -> Self {
        self.begin_again(self.sim().clone())
    }

    /// The disk as the next process finds it after this one was killed: the kernel has kept what
    /// was not synced. What still runs of the old process does not reach it.
    pub(crate) fn after_kill(&self) -> Self {
        let after = self.copy();
        self.turn_off();
        after
    }

    /// The disk as the machine finds it after its power came back. What still runs of the old
    /// process does not reach it.
    pub(crate) fn after_power_cut(&self, survives: Survives, rng: &mut Rng) -> Self {
        let mut after = self.sim().clone();
        let mut names = after.durable_names.clone();
        for renaming in &after.pending_names {
            match survives {
                Survives::Nothing => {}
                Survives::Sectors if rng.coin() => {}
                Survives::Everything | Survives::Sectors => renaming.apply(&mut names),
            }
        }
        (after.names, after.durable_names) = (names.clone(), names);
        after.pending_names.clear();
        for file in &mut after.files {
            let mut bytes = std::mem::take(&mut file.durable);
            for change in file.pending.drain(..) {
                match survives {
                    Survives::Nothing => {}
                    Survives::Everything => change.apply(&mut bytes),
                    Survives::Sectors => change.apply_some(&mut bytes, rng),
                }
            }
            (file.now, file.durable) = (bytes.clone(), bytes);
        }
        after.images.cut_power(survives, rng);
        let after = self.begin_again(after);
        self.turn_off();
        after
    }

    fn begin_again(&self, sim: Sim) -> Self {
        let (locks, operations, file_syncs) = (BTreeMap::new(), 0, 0);
        let faults = Faults::default();
        Self::from_sim(Sim { locks, operations, file_syncs, faults, ..sim })
    }

    fn turn_off(&self) {
        self.set_faults(Faults { dead_from: Some(0), ..Faults::default() });
        self.sim().paces.clear();
        self.0.pace_changed.notify_waiters();
    }

    /// The image comes back as it was some flushes ago, as sled may do to us.
    pub(crate) fn image_goes_back(&self, flushes: usize) {
        self.sim().images.go_back(flushes);
    }

    /// The image is damaged.
    pub(crate) fn image_is_damaged(&self) {
        self.sim().images.damage();
    }
}

/// Kinds of operations, for the faults that strike only some.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    NeedsRoom,
    Remove,
    Other,
}

impl Sim {
    fn rename(&mut self, renaming: Renaming) {
        renaming.apply(&mut self.names);
        self.pending_names.push(renaming);
    }

    fn machine_is_on(&self) -> bool {
        self.faults.dead_from.is_none_or(|from| self.operations < from)
    }

    /// Counts an operation; an error if it is to fail.
    pub(super) fn begin(
        &mut self,
        kind: Kind,
        operation: &'static str,
        path: &Path,
    ) -> Result<(), DiskFault> {
        self.operations += 1;
        let now = self.operations;
        let errno = if !self.machine_is_on()
            || self.faults.fail_at == Some(now)
            || self.faults.fail_from.is_some_and(|from| now >= from)
        {
            libc::EIO
        } else if self.faults.full && kind == Kind::NeedsRoom {
            libc::ENOSPC
        } else if self.faults.removes_fail && kind == Kind::Remove {
            libc::EACCES
        } else {
            return Ok(());
        };
        Err(fault(operation, path, errno))
    }
}

pub(super) fn fault(operation: &'static str, path: &Path, errno: i32) -> DiskFault {
    let source = io::Error::from_raw_os_error(errno);
    DiskFault { operation, path: path.to_owned(), source }
}

impl Disk for SimDisk {
    fn names(&self, dir: &Path) -> Result<Vec<String>, DiskFault> {
        let sim = self.sim();
        let inside = sim.names.keys().filter(|path| path.parent() == Some(dir));
        let name = |path: &Path| path.file_name().unwrap().to_string_lossy().into_owned();
        Ok(inside.map(|path| name(path)).collect())
    }

    fn create_dir(&self, dir: &Path) -> Result<(), DiskFault> {
        let mut sim = self.sim();
        if !sim.dirs.contains(dir) {
            sim.begin(Kind::NeedsRoom, "create", dir)?;
            sim.dirs.extend(dir.ancestors().map(Path::to_path_buf));
        }
        Ok(())
    }

    fn create(&self, path: &Path) -> Result<Arc<dyn DiskFile>, DiskFault> {
        let mut sim = self.sim();
        sim.begin(Kind::NeedsRoom, "create", path)?;
        if sim.names.contains_key(path) {
            return Err(fault("create", path, libc::EEXIST));
        }
        if !path.parent().is_some_and(|dir| sim.dirs.contains(dir)) {
            return Err(fault("create", path, libc::ENOENT));
        }
        let number = sim.files.len();
        sim.files.push(SimBytes::default());
        sim.rename(Renaming { from: None, to: Some((path.to_owned(), number)) });
        Ok(Arc::new(SimFile { disk: Arc::clone(&self.0), path: path.to_owned(), number }))
    }

    fn open(&self, path: &Path, _: Access) -> Result<Arc<dyn DiskFile>, DiskFault> {
        let sim = self.sim();
        let number = *sim.names.get(path).ok_or_else(|| fault("open", path, libc::ENOENT))?;
        Ok(Arc::new(SimFile { disk: Arc::clone(&self.0), path: path.to_owned(), number }))
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<(), DiskFault> {
        let mut sim = self.sim();
        sim.begin(Kind::Other, "rename", from)?;
        assert_eq!(from.parent(), to.parent(), "no file changes its directory");
        let number = *sim.names.get(from).ok_or_else(|| fault("rename", from, libc::ENOENT))?;
        let to = Some((to.to_owned(), number));
        sim.rename(Renaming { from: Some(from.to_owned()), to });
        Ok(())
    }

    fn remove(&self, path: &Path) -> Result<(), DiskFault> {
        let mut sim = self.sim();
        if sim.names.contains_key(path) {
            sim.begin(Kind::Remove, "remove", path)?;
            sim.rename(Renaming { from: Some(path.to_owned()), to: None });
        }
        Ok(())
    }

    fn sync_dir(&self, dir: &Path) -> Result<(), DiskFault> {
        let mut sim = self.sim();
        sim.begin(Kind::Other, "sync", dir)?;
        if !sim.faults.dir_sync_lies {
            let pending = std::mem::take(&mut sim.pending_names);
            let (synced, pending) = pending.into_iter().partition(|renaming| renaming.is_in(dir));
            sim.pending_names = pending;
            let synced: Vec<Renaming> = synced;
            synced.iter().for_each(|renaming| renaming.apply(&mut sim.durable_names));
        }
        Ok(())
    }

    fn lock(&self, path: &Path, access: Access) -> Result<Option<DiskLock>, DiskFault> {
        let mut sim = self.sim();
        match sim.locks.get(path) {
            None if access == Access::Read => return Err(fault("open", path, libc::ENOENT)),
            Some(lock) if lock.strong_count() > 0 => return Ok(None),
            None | Some(_) => {}
        }
        let lock = Arc::new(());
        sim.locks.insert(path.to_owned(), Arc::downgrade(&lock));
        Ok(Some(lock))
    }

    fn image_store(&self, path: &Path, cluster: ClusterId) -> Arc<dyn ImageStore> {
        sim_image::store(Arc::clone(&self.0), path, cluster)
    }

    fn pause(&self, dir: &Path) -> Option<BoxFuture<'static, ()>> {
        let (disk, dir) = (Arc::clone(&self.0), dir.file_name()?.to_string_lossy().into_owned());
        Some(Box::pin(async move {
            loop {
                let changed = disk.pace_changed.notified();
                let pace = disk.sim().paces.get(&dir).copied().unwrap_or_default();
                match pace {
                    Pace::Quick => return,
                    Pace::Slow(least, most) => {
                        let more = disk.sim().rng.below(most - least + 1);
                        return tokio::time::sleep(Duration::from_millis(least + more)).await;
                    }
                    Pace::Hangs => changed.await,
                }
            }
        }))
    }
}

#[derive(Debug)]
struct SimFile {
    disk: Arc<Inner>,
    path: PathBuf,
    number: usize,
}

impl SimFile {
    fn change(&self, change: Change) -> Result<(), DiskFault> {
        let mut sim = self.disk.sim();
        let kind = if change.end() > sim.files[self.number].now.len() {
            Kind::NeedsRoom
        } else {
            Kind::Other
        };
        let begun = sim.begin(kind, "write", &self.path);
        // A write that fails may have got half way, and so may the one that the power cut hits.
        let is_hit = sim.faults.dead_from == Some(sim.operations);
        let change = if begun.is_ok() {
            change
        } else if is_hit || sim.machine_is_on() {
            change.half()
        } else {
            return begun;
        };
        let file = &mut sim.files[self.number];
        change.apply(&mut file.now);
        file.pending.push(change);
        begun
    }
}

impl DiskFile for SimFile {
    fn path(&self) -> &Path {
        &self.path
    }

    fn size(&self) -> Result<u64, DiskFault> {
        Ok(self.disk.sim().files[self.number].now.len() as u64)
    }

    fn modified(&self) -> Result<u64, DiskFault> {
        Ok(0)
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<(), DiskFault> {
        let sim = self.disk.sim();
        let start = usize::try_from(offset).unwrap();
        let there = sim.files[self.number].now.get(start..start + buffer.len());
        let cut_short = || DiskFault {
            operation: "read",
            path: self.path.clone(),
            source: io::ErrorKind::UnexpectedEof.into(),
        };
        buffer.copy_from_slice(there.ok_or_else(cut_short)?);
        Ok(())
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> Result<(), DiskFault> {
        let offset = usize::try_from(offset).unwrap();
        self.change(Change::Write { offset, bytes: bytes.to_vec() })
    }

    fn set_size(&self, size: u64) -> Result<(), DiskFault> {
        self.change(Change::SetSize(usize::try_from(size).unwrap()))
    }

    fn sync(&self) -> Result<(), DiskFault> {
        let sim = self.disk.sim();
        // Bounded, so that a test that fails in the meantime can end.
        let wait = self.disk.changed.wait_timeout_while(sim, HANG_MAX, |sim| sim.faults.syncs_wait);
        let mut sim = wait.unwrap().0;
        sim.begin(Kind::Other, "sync", &self.path)?;
        sim.file_syncs += 1;
        if !sim.faults.file_sync_lies {
            let file = &mut sim.files[self.number];
            for change in std::mem::take(&mut file.pending) {
                change.apply(&mut file.durable);
            }
        }
        Ok(())
    }
}
