//! The registry under openraft: entries that are committed are applied here, in order.
//!
//! The registry is in memory. What an entry changes goes to the image's writer at the end of the
//! entry, what it brought about goes to the task that carries effects out, and both channels are
//! bounded: an instance that cannot keep up applies more slowly and holds nothing back in memory.
//! No lock is held while it waits.
//!
//! Entries are applied in their order, without a gap. One that was applied before is skipped; one
//! that contradicts what was applied ends the instance ([`LogGuard`]).

use std::{
    io,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use futures_util::{Stream, StreamExt as _};
use openraft::{
    EntryPayload, RaftSnapshotBuilder,
    storage::{EntryResponder, RaftStateMachine, Snapshot},
    type_config::alias::SnapshotOf,
};
use tokio::sync::{mpsc, watch};

use super::{
    DataDir, LogEnds, StorageError,
    fault::FaultReporter,
    guard::LogGuard,
    image::{self, ImageProgress, ImageQueue, Step, Work},
    points::{Digests, Point, Points},
    snapshot::{SnapshotDir, SnapshotFile},
    start::{self, Restored},
};
use crate::{
    clock,
    codec::Newer,
    ids::{InstanceId, Timestamp},
    limits::HISTORY_EVENTS,
    metrics::Metrics,
    raft::{Entry, LogId, Membership, SnapshotMeta, TypeConfig},
    registry::{Applied, Command, History, Image, Look, Registry, Rules, Verdict},
    runtime::spawn_blocking,
};

/// The parts that a state machine works with.
#[derive(Clone, Debug)]
pub struct StateMachineOptions {
    /// Takes what each entry brought about, in order. A task must receive from the moment openraft
    /// starts, because it applies what is left of the log before it comes back.
    pub effects: mpsc::Sender<Applied>,
    /// The service's metrics.
    pub metrics: Metrics,
    /// Told when the disk fails, and when an entry is refused.
    pub faults: FaultReporter,
    /// The newest rules that this instance applies: [`Rules::NEWEST`], unless a test makes an
    /// instance older than its program.
    pub newest_rules: Rules,
    /// Whether an image is kept.
    has_image: bool,
    /// Shared with the log whose entries are applied.
    guard: LogGuard,
}

impl StateMachineOptions {
    /// Returns the service's options.
    pub fn new(effects: mpsc::Sender<Applied>, metrics: Metrics, faults: FaultReporter) -> Self {
        let (newest_rules, guard) = (Rules::NEWEST, LogGuard::default());
        Self { effects, metrics, faults, newest_rules, has_image: true, guard }
    }

    /// With the guard of the log whose entries are applied.
    pub(super) fn guarding(mut self, guard: LogGuard) -> Self {
        self.guard = guard;
        self
    }

    /// Without an image on disk: the registry comes back from the last snapshot and the log. It
    /// needs no thread, so a simulation can have many.
    pub fn without_image(mut self) -> Self {
        self.has_image = false;
        self
    }
}

/// The registry under openraft.
#[derive(Debug)]
pub struct StateMachine {
    replica: Arc<Mutex<Replica>>,
    at: SnapshotMeta,
    image: ImageQueue,
    progress: ImageProgress,
    snapshots: SnapshotDir,
    deadline: watch::Sender<Option<Timestamp>>,
    applied: Arc<AtomicU64>,
    installed: Arc<AtomicU64>,
    /// The last entry that was in the log at the start: the process before, or another instance,
    /// counted it.
    counted_through: Option<u64>,
    options: StateMachineOptions,
}

/// The registry after some entry, and what is known beside it.
#[derive(Debug)]
struct Replica {
    registry: Registry,
    history: History,
    points: Points,
    /// When the last entry was applied here.
    applied_at: Instant,
}

impl Replica {
    /// Looks at the whole registry, for its digest.
    fn new(registry: Registry, at: &SnapshotMeta) -> Self {
        let points = Points::of(&registry, at.last_log_id.map(|last| last.index));
        let history = History::new(HISTORY_EVENTS);
        Self { registry, history, points, applied_at: clock::now() }
    }
}

/// The registry as others see it: always as it was after some entry.
#[derive(Clone, Debug)]
pub struct RegistryView {
    replica: Arc<Mutex<Replica>>,
    deadline: watch::Receiver<Option<Timestamp>>,
    /// The entry that it is as of; changed with the registry.
    applied: Arc<AtomicU64>,
    installed: Arc<AtomicU64>,
}

impl RegistryView {
    /// Looks at the registry. Entries wait meanwhile, so be quick; for a long look take a clone
    /// of [`Registry::image`], which is cheap.
    pub fn read<T>(&self, look: impl FnOnce(&Registry) -> T) -> T {
        look(&lock(&self.replica).registry)
    }

    /// Looks at the registry and at what happened lately. Entries wait meanwhile.
    pub fn look<T>(&self, look: impl FnOnce(Look<'_>) -> T) -> T {
        let replica = lock(&self.replica);
        let since = clock::now().duration_since(replica.applied_at).as_millis();
        look(Look {
            registry: &replica.registry,
            history: &replica.history,
            entry: self.applied.load(Ordering::Acquire),
            now: replica.registry.now().plus_ms(u64::try_from(since).unwrap_or(u64::MAX)),
        })
    }

    /// Returns a copy of the registry, and the index of the entry that it is as of. It is cheap to
    /// make.
    pub fn image(&self) -> (u64, Image) {
        self.read(|registry| (self.applied.load(Ordering::Acquire), registry.image().clone()))
    }

    /// Returns the digest of the registry, and the entry that it is as of.
    pub fn digest(&self) -> Point {
        let Replica { registry, points, .. } = &mut *lock(&self.replica);
        points.newest(self.applied.load(Ordering::Acquire), registry)
    }

    /// Returns the digests of the registry as some entries left it, to be held against other
    /// replicas'.
    pub fn digests(&self) -> Digests {
        lock(&self.replica).points.all()
    }

    /// Changes the registry by no entry, as memory that was damaged does.
    #[cfg(test)]
    pub(crate) fn damage(&self, command: Command) {
        let registry = &mut lock(&self.replica).registry;
        let (at, batch, commands) = (registry.now(), None, vec![command]);
        registry.apply(&crate::registry::Proposal { at, batch, commands });
    }

    /// This registry is known to be wrong: it tells no digests until another one is installed.
    pub fn disown(&self) {
        lock(&self.replica).points.disown();
    }

    /// Returns the number of snapshots that have taken the place of the registry. The effects of
    /// the entries that they stand for were never sent.
    pub fn installed(&self) -> u64 {
        self.installed.load(Ordering::Acquire)
    }

    /// Follows [`Registry::next_deadline`]; it is renewed after each entry that changes it.
    pub fn next_deadline(&self) -> watch::Receiver<Option<Timestamp>> {
        self.deadline.clone()
    }
}

impl StateMachine {
    /// Restores the registry from what the data directory holds, and begins to write its image.
    /// The raft log must be open already, because its ends decide what can be used.
    ///
    /// # Errors
    /// If nothing in the directory connects with the log, or the disk fails.
    pub fn open(
        dir: &mut DataDir,
        log: LogEnds,
        options: StateMachineOptions,
    ) -> Result<(Self, RegistryView, ImageProgress), StorageError> {
        let store = options.has_image.then(|| dir.image_store());
        let Restored { registry, at, image, snapshots } =
            start::restore(dir, log, store.as_deref(), &options.guard)?;
        check_rules(registry.rules(), options.newest_rules)
            .map_err(|newer| StorageError::Newer { path: dir.path().to_path_buf(), newer })?;
        let (queue, progress) = match store {
            Some(store) => {
                let fresh = image.is_none().then(|| registry.image().clone());
                let (at, meta) = (at.clone(), registry.image().meta.clone());
                let begin = image::Start { store, image, at: at.clone(), meta };
                let (metrics, faults) = (&options.metrics, &options.faults);
                let (queue, progress) = image::spawn(dir, begin, metrics, faults)?;
                if let Some(image) = fresh {
                    queue.send_first(Work::Replace { image, at });
                }
                (queue, progress)
            }
            None => ImageQueue::nowhere(),
        };
        dir.mark_initialised(options.guard.store())?;
        options.guard.set_applied(at.last_log_id);
        options.metrics.raft_applied_index.set(gauge_of(&at));
        if let Some(file) = snapshots.current() {
            show_snapshot(&options.metrics, &file);
        }
        let (deadline, watch) = watch::channel(registry.next_deadline());
        let replica = Arc::new(Mutex::new(Replica::new(registry, &at)));
        let applied = Arc::new(AtomicU64::new(index_of(&at)));
        let installed = Arc::default();
        let view = RegistryView {
            replica: Arc::clone(&replica),
            deadline: watch,
            applied: Arc::clone(&applied),
            installed: Arc::clone(&installed),
        };
        let machine = Self {
            replica,
            at,
            image: queue,
            progress: progress.clone(),
            snapshots,
            deadline,
            applied,
            installed,
            counted_through: log.last.map(|last| last.index),
            options,
        };
        Ok((machine, view, progress))
    }

    /// Has the machine know no newer rules than these.
    pub(super) fn limit_rules(&mut self, newest: Rules) -> Result<(), Newer> {
        self.options.newest_rules = newest;
        check_rules(lock(&self.replica).registry.rules(), newest)
    }

    /// Applies one entry, unless it was applied before.
    async fn apply_entry(&mut self, entry: Entry) -> io::Result<Verdict> {
        let is_next = self.options.guard.check_apply(entry.log_id);
        if !is_next.map_err(|fault| self.options.faults.report(fault))? {
            return Ok(Verdict::Duplicate);
        }
        // Nothing behind a raise that this binary cannot follow may be applied by it: its rules
        // would make another registry of the same entries.
        check_entry(&entry, self.options.newest_rules).map_err(|newer| {
            let index = entry.log_id.index;
            self.options.faults.refuse(format!("entry {index} of the raft log: {newer}"))
        })?;
        let is_counted = Some(entry.log_id.index) <= self.counted_through;
        let (step, mut applied) = self.advance(entry);
        self.options.guard.set_applied(self.at.last_log_id);
        if is_counted {
            applied.notes.clear();
        }
        let verdict = applied.verdict;
        self.options.metrics.raft_applied_index.set(gauge(step.applied));
        image::show_lag(&self.options.metrics, self.progress.durable());
        if !(applied.effects.is_empty() && applied.notes.is_empty()) {
            // With no task left to receive, the instance is on its way out; sessions learn from the
            // next life of it what they were not told.
            let _ = self.options.effects.send(applied).await;
        }
        self.image.send(Work::Step(step), || whole(&self.replica, &self.at)).await?;
        Ok(verdict)
    }

    /// Does the part that needs the lock.
    fn advance(&mut self, entry: Entry) -> (Step, Applied) {
        let mut replica = lock(&self.replica);
        let Replica { registry, history, points, applied_at } = &mut *replica;
        let log_id = entry.log_id;
        let applied = apply_to(registry, &mut self.at, entry);
        history.record(registry.now(), log_id.index, &applied.notes);
        *applied_at = clock::now();
        let members = &self.at.last_membership;
        let changed = points.follow(log_id.index, registry);
        let image = registry.image();
        let changes =
            changed.into_iter().map(|serial| (serial, image.records.get(serial).cloned()));
        let step = Step {
            applied: log_id,
            membership: (*members.log_id() == Some(log_id)).then(|| members.clone()),
            changes: changes.collect(),
            meta: image.meta.clone(),
        };
        self.applied.store(index_of(&self.at), Ordering::Release);
        publish_deadline(&self.deadline, registry);
        (step, applied)
    }

    /// Puts a registry that was received in the place of ours.
    async fn install(&mut self, snapshot: SnapshotFile) -> io::Result<()> {
        let (snapshots, received) = (self.snapshots.clone(), snapshot.clone());
        snapshots.wait().await;
        let adopt = move || {
            let registry = snapshots.adopt(&received)?;
            Ok::<_, StorageError>(Replica::new(registry, received.meta()))
        };
        let adopted = spawn_blocking(adopt).await?;
        // What happened before is the history of another registry.
        let installed = adopted.map_err(|error| report(&self.options.faults, error))?;
        check_rules(installed.registry.rules(), self.options.newest_rules)
            .map_err(|newer| self.options.faults.refuse(format!("a snapshot: {newer}")))?;
        let (at, image) = (snapshot.meta().clone(), installed.registry.image().clone());
        tracing::info!(entry = gauge_of(&at), records = snapshot.records(), "snapshot installed");
        {
            let mut replica = lock(&self.replica);
            *replica = installed;
            self.applied.store(index_of(&at), Ordering::Release);
            publish_deadline(&self.deadline, &replica.registry);
            self.installed.fetch_add(1, Ordering::Release);
        }
        self.options.metrics.raft_applied_index.set(gauge_of(&at));
        self.options.metrics.snapshots.with_label_values(&["received"]).inc();
        show_snapshot(&self.options.metrics, &snapshot);
        self.at = at.clone();
        self.options.guard.set_applied(at.last_log_id);
        self.image.send(Work::Replace { image, at }, || whole(&self.replica, &self.at)).await
    }
}

impl RaftStateMachine<TypeConfig> for StateMachine {
    type SnapshotData = SnapshotFile;
    type SnapshotBuilder = SnapshotBuilder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, Membership), io::Error> {
        Ok((self.at.last_log_id, self.at.last_membership.clone()))
    }

    async fn apply<S>(&mut self, mut entries: S) -> Result<(), io::Error>
    where
        S: Stream<Item = Result<EntryResponder<TypeConfig>, io::Error>> + Unpin + Send,
    {
        while let Some(next) = entries.next().await {
            let (entry, responder) = next?;
            let verdict = self.apply_entry(entry).await?;
            if let Some(responder) = responder {
                responder.send(verdict);
            }
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Self::SnapshotBuilder {
        SnapshotBuilder {
            image: lock(&self.replica).registry.image().clone(),
            at: self.at.clone(),
            snapshots: self.snapshots.clone(),
            metrics: self.options.metrics.clone(),
            faults: self.options.faults.clone(),
        }
    }

    async fn install_snapshot(
        &mut self,
        _meta: &SnapshotMeta,
        snapshot: SnapshotFile,
    ) -> Result<(), io::Error> {
        self.install(snapshot).await
    }

    async fn get_current_snapshot(
        &mut self,
    ) -> Result<Option<SnapshotOf<TypeConfig, SnapshotFile>>, io::Error> {
        Ok(self.snapshots.current().map(as_openraft))
    }
}

/// A registry at one moment, to be written to a snapshot while entries are applied to the next.
#[derive(Debug)]
pub struct SnapshotBuilder {
    image: Image,
    at: SnapshotMeta,
    snapshots: SnapshotDir,
    metrics: Metrics,
    faults: FaultReporter,
}

impl RaftSnapshotBuilder<TypeConfig> for SnapshotBuilder {
    type SnapshotData = SnapshotFile;

    async fn build_snapshot(&mut self) -> Result<SnapshotOf<TypeConfig, SnapshotFile>, io::Error> {
        let began = clock::now();
        let (snapshots, at, image) = (self.snapshots.clone(), self.at.clone(), self.image.clone());
        snapshots.wait().await;
        let written = spawn_blocking(move || snapshots.write(&at, &image)).await?;
        let file = written.map_err(|fault| self.faults.report(fault))?;
        self.metrics.snapshot_seconds.observe((clock::now() - began).as_secs_f64());
        self.metrics.snapshots.with_label_values(&["built"]).inc();
        show_snapshot(&self.metrics, &file);
        Ok(as_openraft(file))
    }
}

/// Refuses rules that are newer than the newest known.
fn check_rules(rules: Rules, newest: Rules) -> Result<(), Newer> {
    let newer = Newer { found: rules.0, newest: newest.0 };
    if rules > newest { Err(newer) } else { Ok(()) }
}

/// Refuses an entry that raises the rules above the newest known.
pub(super) fn check_entry(entry: &Entry, newest: Rules) -> Result<(), Newer> {
    let EntryPayload::Normal(proposal) = &entry.payload else { return Ok(()) };
    proposal.commands.iter().try_for_each(|command| {
        if let Command::Raise { rules } = command { check_rules(*rules, newest) } else { Ok(()) }
    })
}

/// Applies an entry to a registry that stands at the one before it.
pub(super) fn apply_to(registry: &mut Registry, at: &mut SnapshotMeta, entry: Entry) -> Applied {
    at.last_log_id = Some(entry.log_id);
    match entry.payload {
        EntryPayload::Blank => Applied::default(),
        EntryPayload::Normal(proposal) => registry.apply(&proposal),
        EntryPayload::Membership(members) => {
            let named = members.nodes().map(|(id, member)| (InstanceId(*id), member.store));
            registry.members_changed(entry.log_id.index, named);
            at.last_membership = Membership::new(Some(entry.log_id), members);
            Applied::default()
        }
    }
}

fn as_openraft(file: SnapshotFile) -> SnapshotOf<TypeConfig, SnapshotFile> {
    Snapshot { meta: file.meta().clone(), snapshot: file }
}

/// Returns the registry as work for the image's writer.
fn whole(replica: &Mutex<Replica>, at: &SnapshotMeta) -> Work {
    Work::Replace { image: lock(replica).registry.image().clone(), at: at.clone() }
}

/// Between entries the registry is whole, even if a thread that looked at it has panicked; and a
/// panic *while* it is applied to ends the task that applies.
fn lock(replica: &Mutex<Replica>) -> MutexGuard<'_, Replica> {
    replica.lock().unwrap_or_else(PoisonError::into_inner)
}

fn publish_deadline(deadline: &watch::Sender<Option<Timestamp>>, registry: &Registry) {
    let next = registry.next_deadline();
    deadline.send_if_modified(|slot| std::mem::replace(slot, next) != next);
}

/// A failed disk ends the instance; a bad snapshot only the attempt to install it.
fn report(faults: &FaultReporter, error: StorageError) -> io::Error {
    match error {
        StorageError::Io(fault) => faults.report(fault),
        error @ StorageError::Newer { .. } => faults.refuse(error),
        error @ (StorageError::Locked { .. }
        | StorageError::Foreign { .. }
        | StorageError::Damaged { .. }
        | StorageError::Unfit { .. }
        | StorageError::Log(_)) => io::Error::new(io::ErrorKind::InvalidData, error),
    }
}

fn index_of(at: &SnapshotMeta) -> u64 {
    at.last_log_id.map_or(0, |log_id| log_id.index)
}

fn show_snapshot(metrics: &Metrics, file: &SnapshotFile) {
    metrics.snapshot_bytes.set(signed(file.bytes()));
    metrics.snapshot_timestamp.set(signed(file.written_at()));
}

fn gauge_of(at: &SnapshotMeta) -> i64 {
    signed(index_of(at))
}

fn gauge(log_id: LogId) -> i64 {
    signed(log_id.index)
}

fn signed(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
