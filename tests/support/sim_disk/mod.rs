//! A disk in memory that loses what was not synced, fails, is slow, hangs, or comes back older than
//! it was, as its owner says. It can also be made to lie about its syncs: that is the canary which
//! proves that tests of power cuts can fail.
//!
//! The unit tests of the storage and the simulator share this file.

#![allow(dead_code, reason = "each of the two uses its own part")]

mod disk;
mod image;
mod state;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::{Arc, Condvar, Mutex, MutexGuard},
};

use emnetchain::storage::Disk;
use tokio::sync::Notify;

use self::{image::Images, state::Sim};

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
    /// For a number of milliseconds, drawn between these two.
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
struct Inner {
    sim: Mutex<Sim>,
    changed: Condvar,
    pace_changed: Notify,
}

impl Inner {
    fn sim(&self) -> MutexGuard<'_, Sim> {
        self.sim.lock().unwrap()
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

    /// The bytes of all files, by their names.
    pub(crate) fn bytes(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let sim = self.sim();
        let bytes = |(path, file): (&PathBuf, &usize)| (path.clone(), sim.files[*file].now.clone());
        sim.names.iter().map(bytes).collect()
    }

    /// A copy of all that is on the disk now. Put in its place later, it is the disk of a volume
    /// that was restored.
    pub(crate) fn copy(&self) -> Self {
        self.begin_again(self.sim().clone())
    }

    /// A copy of what a power cut at this moment would surely leave.
    pub(crate) fn durable_copy(&self) -> Self {
        let mut sim = self.sim().clone();
        sim.cut_power(Survives::Nothing, &mut Rng(0));
        self.begin_again(sim)
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
        after.cut_power(survives, rng);
        let after = self.begin_again(after);
        self.turn_off();
        after
    }

    fn begin_again(&self, sim: Sim) -> Self {
        let (locks, operations, file_syncs) = (BTreeMap::new(), 0, 0);
        let (faults, paces) = (Faults::default(), BTreeMap::new());
        Self::from_sim(Sim { locks, operations, file_syncs, faults, paces, ..sim })
    }

    fn turn_off(&self) {
        self.set_faults(Faults { dead_from: Some(0), ..Faults::default() });
        self.sim().paces.clear();
        self.0.pace_changed.notify_waiters();
    }

    /// Puts the files of another disk whose paths begin like this in the place of those here, as an
    /// operator does that copies a part of a directory back.
    pub(crate) fn take_files(&self, other: &Self, begin: &str) {
        let theirs = other.bytes();
        let theirs = theirs.into_iter().filter(|(path, _)| path.starts_with(begin));
        self.sim().replace_files(begin, theirs);
    }

    /// Puts the images of another disk in the place of those here.
    pub(crate) fn take_images(&self, other: &Self) {
        let theirs = other.sim().images.clone();
        self.sim().images = theirs;
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
