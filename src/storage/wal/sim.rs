//! A disk in memory that loses what was not synced, fails when told to, and can be made to lie
//! about its syncs: that last one is the canary which proves that the power-cut tests can fail.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    sync::{Arc, Condvar, Mutex, MutexGuard},
    time::Duration,
};

use super::disk::{Access, Disk, DiskFile};
use crate::storage::fault::DiskFault;

/// What survives of one write that was not synced is decided for so many bytes at a time: fewer
/// than a sector, so that small writes are torn as well.
const SECTOR_BYTES: usize = 64;

/// A small random generator (splitmix64), so that a seed replays a test.
#[derive(Clone, Debug)]
pub(super) struct Rng(pub(super) u64);

impl Rng {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`.
    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound.max(1)
    }

    pub(super) fn coin(&mut self) -> bool {
        self.below(2) == 0
    }
}

/// How the disk misbehaves. Operations that change something are counted from 1.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Faults {
    /// This operation fails, those after it would not.
    pub(super) fail_at: Option<u64>,
    /// From this operation on the machine is off.
    pub(super) dead_from: Option<u64>,
    /// Everything that needs room fails.
    pub(super) full: bool,
    /// Files cannot be removed.
    pub(super) removes_fail: bool,
    /// Syncing a file does nothing.
    pub(super) file_sync_lies: bool,
    /// Syncing a directory does nothing.
    pub(super) dir_sync_lies: bool,
    /// Syncs wait until this is taken back.
    pub(super) syncs_wait: bool,
}

/// What survives a power cut of what was not synced.
#[derive(Clone, Copy, Debug)]
pub(super) enum Survives {
    Nothing,
    Everything,
    Sectors,
}

/// How long a sync hangs at most.
const HANG_MAX: Duration = Duration::from_secs(20);

#[derive(Debug)]
pub(super) struct SimDisk(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    sim: Mutex<Sim>,
    changed: Condvar,
}

#[derive(Clone, Debug, Default)]
struct Sim {
    names: BTreeMap<PathBuf, usize>,
    durable_names: BTreeMap<PathBuf, usize>,
    pending_names: Vec<Renaming>,
    files: Vec<SimBytes>,
    faults: Faults,
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
}

impl SimDisk {
    pub(super) fn new() -> Self {
        Self::from_sim(Sim::default())
    }

    fn from_sim(sim: Sim) -> Self {
        Self(Arc::new(Inner { sim: Mutex::new(sim), changed: Condvar::new() }))
    }

    /// A handle to hand over; it is the same disk.
    pub(super) fn share(&self) -> Arc<dyn Disk> {
        Arc::new(Self(Arc::clone(&self.0)))
    }

    fn sim(&self) -> MutexGuard<'_, Sim> {
        self.0.sim.lock().unwrap()
    }

    pub(super) fn set_faults(&self, faults: Faults) {
        self.sim().faults = faults;
        self.0.changed.notify_all();
    }

    /// How many operations changed something so far, or were to.
    pub(super) fn operations(&self) -> u64 {
        self.sim().operations
    }

    pub(super) fn file_syncs(&self) -> u64 {
        self.sim().file_syncs
    }

    /// The names of all files, without their directory.
    pub(super) fn all_names(&self) -> Vec<String> {
        let name = |path: &PathBuf| path.file_name().unwrap().to_string_lossy().into_owned();
        self.sim().names.keys().map(name).collect()
    }

    /// The disk as the machine finds it after its power came back.
    pub(super) fn after_power_cut(&self, survives: Survives, rng: &mut Rng) -> Self {
        let before = self.sim();
        let mut names = before.durable_names.clone();
        for renaming in &before.pending_names {
            match survives {
                Survives::Nothing => {}
                Survives::Sectors if rng.coin() => {}
                Survives::Everything | Survives::Sectors => renaming.apply(&mut names),
            }
        }
        let mut after = Sim { names: names.clone(), durable_names: names, ..Sim::default() };
        for file in &before.files {
            let mut bytes = file.durable.clone();
            for change in &file.pending {
                match survives {
                    Survives::Nothing => {}
                    Survives::Everything => change.apply(&mut bytes),
                    Survives::Sectors => change.apply_some(&mut bytes, rng),
                }
            }
            let (now, durable) = (bytes.clone(), bytes);
            after.files.push(SimBytes { now, durable, pending: Vec::new() });
        }
        Self::from_sim(after)
    }
}

/// Kinds of operations, for the faults that strike only some.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    NeedsRoom,
    Remove,
    Other,
}

impl Sim {
    fn rename(&mut self, renaming: Renaming) {
        renaming.apply(&mut self.names);
        self.pending_names.push(renaming);
    }

    /// Counts an operation; an error if it is to fail.
    fn begin(&mut self, kind: Kind, operation: &'static str, path: &Path) -> Result<(), DiskFault> {
        self.operations += 1;
        let now = self.operations;
        let errno = if self.faults.dead_from.is_some_and(|from| now >= from)
            || self.faults.fail_at == Some(now)
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

fn fault(operation: &'static str, path: &Path, errno: i32) -> DiskFault {
    let source = io::Error::from_raw_os_error(errno);
    DiskFault { operation, path: path.to_owned(), source }
}

impl Disk for SimDisk {
    fn names(&self, dir: &Path) -> Result<Vec<String>, DiskFault> {
        let sim = self.sim();
        let inside = sim.names.keys().filter(|path| path.parent() == Some(dir));
        Ok(inside.map(|path| path.file_name().unwrap().to_string_lossy().into_owned()).collect())
    }

    fn create_dir(&self, _: &Path) -> Result<(), DiskFault> {
        Ok(())
    }

    fn create(&self, path: &Path) -> Result<Arc<dyn DiskFile>, DiskFault> {
        let mut sim = self.sim();
        sim.begin(Kind::NeedsRoom, "create", path)?;
        if sim.names.contains_key(path) {
            return Err(fault("create", path, libc::EEXIST));
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
        let number = *sim.names.get(from).ok_or_else(|| fault("rename", from, libc::ENOENT))?;
        let to = Some((to.to_owned(), number));
        sim.rename(Renaming { from: Some(from.to_owned()), to });
        Ok(())
    }

    fn remove(&self, path: &Path) -> Result<(), DiskFault> {
        let mut sim = self.sim();
        sim.begin(Kind::Remove, "remove", path)?;
        sim.rename(Renaming { from: Some(path.to_owned()), to: None });
        Ok(())
    }

    fn sync_dir(&self, dir: &Path) -> Result<(), DiskFault> {
        let mut sim = self.sim();
        sim.begin(Kind::Other, "sync", dir)?;
        if !sim.faults.dir_sync_lies {
            sim.durable_names = sim.names.clone();
            sim.pending_names.clear();
        }
        Ok(())
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
        let mut sim = self.disk.sim.lock().unwrap();
        let kind = if change.end() > sim.files[self.number].now.len() {
            Kind::NeedsRoom
        } else {
            Kind::Other
        };
        let begun = sim.begin(kind, "write", &self.path);
        let machine_is_on = sim.faults.dead_from.is_none_or(|from| sim.operations <= from);
        let file = &mut sim.files[self.number];
        // A write that fails may have got half way.
        let change = if begun.is_ok() {
            change
        } else if machine_is_on {
            change.half()
        } else {
            return begun;
        };
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
        Ok(self.disk.sim.lock().unwrap().files[self.number].now.len() as u64)
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<(), DiskFault> {
        let sim = self.disk.sim.lock().unwrap();
        let start = usize::try_from(offset).unwrap();
        let there = sim.files[self.number].now.get(start..start + buffer.len());
        buffer.copy_from_slice(there.ok_or_else(|| fault("read", &self.path, libc::EIO))?);
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
        let mut sim = self.disk.sim.lock().unwrap();
        // Bounded, so that a test that fails in the meantime can end.
        let wait = self.disk.changed.wait_timeout_while(sim, HANG_MAX, |sim| sim.faults.syncs_wait);
        sim = wait.unwrap().0;
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
