//! The disk of one instance, over all its lives: a simulated disk under the real storage, and what
//! the instance was told is durable on it, in log and vote. What was told must never be missing.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard},
};

use emnetchain::{
    raft::{LogId, Vote},
    storage,
};

use crate::{
    chance::Chance,
    planted::Planted,
    sim_disk::{Faults, Pace, Rng, SimDisk, Survives},
};

/// Where the data directory is.
pub(crate) const ROOT: &str = "/data";

/// The directories that a disk can be slow in.
pub(crate) const DIRS: [&str; 3] = ["raft", "snapshot", "registry"];

/// A disk whose syncs take no longer is a good one.
const GOOD_MS: u64 = 30;

/// How long syncs take if nothing is wrong.
const USUAL: Pace = Pace::Slow(0, 3);

/// Raft's log and vote, as far as they were said to be durable.
#[derive(Clone, Debug, Default)]
pub(crate) struct Durable {
    pub(crate) vote: Option<Vote>,
    pub(crate) purged: Option<LogId>,
    pub(crate) entries: BTreeMap<u64, LogId>,
}

impl Durable {
    /// Whether the entry is here, or was until it was purged.
    fn has(&self, id: LogId) -> bool {
        let purged = self.purged.is_some_and(|purged| purged.index >= id.index);
        purged || self.entries.get(&id.index) == Some(&id)
    }

    pub(crate) fn append(&mut self, ids: &[LogId]) {
        self.entries.extend(ids.iter().map(|id| (id.index, *id)));
    }

    pub(crate) fn truncate(&mut self, last: Option<LogId>) {
        self.entries.split_off(&last.map_or(0, |last| last.index + 1));
    }

    pub(crate) fn purge(&mut self, id: LogId) {
        self.entries = self.entries.split_off(&(id.index + 1));
        self.purged = self.purged.max(Some(id));
    }

    /// Whether what is found on the disk has all of this.
    pub(crate) fn is_in(&self, found: &Self) -> Result<(), String> {
        if let Some(lost) = self.entries.values().find(|id| !found.has(**id)) {
            return Err(format!("S6: what was durable survives a crash: {lost} is gone"));
        }
        if found.vote < self.vote {
            let (was, is) = (self.vote, found.vote);
            return Err(format!("S14: a vote never goes back: {was:?} was given, {is:?} is left"));
        }
        Ok(())
    }
}

/// The disk; it outlives the lives of its instance.
pub(crate) struct Disk(Mutex<State>);

struct State {
    chance: Chance,
    /// Counts the crashes; only the present life may write.
    life: u64,
    disk: SimDisk,
    paces: BTreeMap<&'static str, Pace>,
    durable: Durable,
    /// A copy that was made some time ago, for a planted mistake.
    copy: Option<SimDisk>,
    /// A failure was ordered: the instance may end by itself.
    fails: bool,
    planted: Planted,
}

impl Disk {
    pub(crate) fn new(mut chance: Chance, planted: Planted) -> Arc<Self> {
        let disk = SimDisk::new(chance.next());
        Arc::new(Self(Mutex::new(State {
            chance,
            life: 0,
            disk,
            paces: DIRS.map(|dir| (dir, USUAL)).into(),
            durable: Durable::default(),
            copy: None,
            fails: false,
            planted,
        })))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    /// How the syncs into a directory go from now on; `None` as usual.
    pub(crate) fn set_pace(&self, dir: &'static str, pace: Option<Pace>) {
        let mut state = self.lock();
        let pace = pace.unwrap_or(USUAL);
        state.disk.set_pace(dir, pace);
        state.paces.insert(dir, pace);
    }

    /// Whether it is neither slow nor hung, and does not fail.
    pub(crate) fn is_good(&self) -> bool {
        let state = self.lock();
        let good = |pace: &Pace| match pace {
            Pace::Quick => true,
            Pace::Slow(_, most) => *most <= GOOD_MS,
            Pace::Hangs => false,
        };
        !state.fails && state.paces.values().all(good)
    }

    /// The next change of anything on it but one of the next few fails.
    pub(crate) fn fail_soon(&self) {
        let mut state = self.lock();
        let at = state.disk.operations() + state.chance.between(1, 30);
        state.disk.set_faults(Faults { fail_at: Some(at), ..state.lies() });
        state.fails = true;
    }

    /// Whether a failure was ordered in this life.
    pub(crate) fn fails(&self) -> bool {
        self.lock().fails
    }

    /// The image comes back older than it was, or damaged.
    pub(crate) fn spoil_image(&self) {
        let mut state = self.lock();
        let flushes = state.chance.below(12);
        match state.chance.percent(80) {
            true => state.disk.image_goes_back(flushes),
            false => state.disk.image_is_damaged(),
        }
    }

    /// Whether an entry was said to be durable.
    pub(crate) fn is_durable(&self, id: LogId) -> bool {
        self.lock().durable.has(id)
    }

    /// What was said to be durable.
    pub(crate) fn durable(&self) -> Durable {
        self.lock().durable.clone()
    }

    /// Takes note of what is durable now, unless the life is over.
    pub(crate) fn note(&self, life: u64, change: impl FnOnce(&mut Durable)) {
        let mut state = self.lock();
        if state.life == life {
            change(&mut state.durable);
        }
    }

    /// The process is killed, or the power is cut: then what was not synced is lost, or some of it.
    pub(crate) fn crash(&self) {
        let mut guard = self.lock();
        let state = &mut *guard;
        state.life += 1;
        state.fails = false;
        let mut rng = Rng(state.chance.next());
        let disk = match state.chance.below(4) {
            0 => state.disk.after_kill(),
            1 => state.disk.after_power_cut(Survives::Nothing, &mut rng),
            2 => state.disk.after_power_cut(Survives::Everything, &mut rng),
            _ => state.disk.after_power_cut(Survives::Sectors, &mut rng),
        };
        state.disk = disk;
        match state.planted {
            Planted::LogPurgedTooEarly if state.chance.percent(70) => state.lose_snapshots(),
            Planted::OldCopyTaken => match state.copy.take() {
                Some(copy) => state.disk = copy,
                None => state.copy = Some(state.disk.copy()),
            },
            Planted::WipedDiskTaken if !state.durable.entries.is_empty() => {
                state.disk = SimDisk::new(1);
            }
            _ => {}
        }
    }

    /// The disk is lost, and an empty one is in its place. Only of an instance that is down.
    pub(crate) fn lose(&self) {
        let mut state = self.lock();
        state.disk = SimDisk::new(state.chance.next());
        state.durable = Durable::default();
    }

    /// Makes a copy of all that is on the disk.
    pub(crate) fn keep_copy(&self) {
        let mut state = self.lock();
        state.copy = Some(state.disk.copy());
    }

    /// Puts the copy in the place of the disk. Only of an instance that is down.
    pub(crate) fn put_copy_back(&self) {
        let mut state = self.lock();
        state.disk = state.copy.take().expect("a copy was made");
        state.durable = Durable::default();
    }

    /// Begins a life: its number, and the disk.
    pub(crate) fn open(&self) -> (u64, Arc<dyn storage::Disk>) {
        let state = self.lock();
        state.disk.set_faults(state.lies());
        for (dir, pace) in &state.paces {
            state.disk.set_pace(dir, *pace);
        }
        (state.life, state.disk.share())
    }
}

impl State {
    /// What a planted mistake makes of syncs.
    fn lies(&self) -> Faults {
        Faults {
            file_sync_lies: self.planted == Planted::SyncRemoved,
            dir_sync_lies: self.planted == Planted::NamesNotSynced,
            ..Faults::default()
        }
    }

    /// A planted mistake: the log was purged before what it was purged for was durable.
    fn lose_snapshots(&mut self) {
        let disk = self.disk.share();
        let dir = PathBuf::from(ROOT).join("snapshot");
        for name in disk.names(&dir).unwrap() {
            disk.remove(&dir.join(Path::new(&name))).unwrap();
        }
        self.disk.image_goes_back(usize::MAX);
        self.disk.image_is_damaged();
    }
}
