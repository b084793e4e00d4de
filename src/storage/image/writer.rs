//! The writer of the image behind the registry. It follows the log in order: changes of
//! whole entries are gathered, the later of two changes of a record replacing the earlier, until
//! they fill a batch or a flush is due; so every batch leaves the registry as it was after some
//! entry. Batches are small because sled pays for large ones with memory, and flushes are frequent
//! because it cannot cope with much unflushed data.

use std::{
    collections::BTreeMap,
    io, mem,
    ops::ControlFlow,
    panic::{self, AssertUnwindSafe},
    path::PathBuf,
    sync::{Arc, mpsc::Receiver},
    time::{Duration, Instant},
};

use futures_util::future::BoxFuture;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    time::timeout,
};

use super::{ImageStore, OpenImage, open::panic_text};
use crate::{
    clock,
    metrics::Metrics,
    raft::{LogId, Membership, SnapshotMeta},
    registry::{Image, Meta, Record, Serial},
    storage::{
        disk::Disk,
        fault::{DiskFault, FaultReporter},
        files,
        identity::{DataDir, DirLock},
        pulse::Pulse,
        worker::{self, Queue, Worker},
    },
};

/// A batch is written once this many records changed.
const BATCH_RECORDS: usize = 64;

/// Changed records that may wait for the thread: half a second of its work, some 25 MB.
const QUEUE_RECORDS_MAX: u32 = 65_536;

/// The longest time that an entry waits for the writer of the image before it goes on without it.
/// Clients wait meanwhile, and the image is a convenience.
const ROOM_WAIT_MAX: Duration = Duration::from_secs(1);

/// The longest time that a change is in memory only.
const FLUSH_EVERY: Duration = Duration::from_millis(150);

/// A job of the writer.
#[derive(Debug)]
pub(in crate::storage) enum Work {
    /// An entry was applied.
    Step(Step),
    /// Forget what the image holds, and begin again with this registry.
    Replace {
        /// The registry.
        image: Image,
        /// Its log position.
        at: SnapshotMeta,
    },
}

/// The changes of one entry.
#[derive(Debug)]
pub(in crate::storage) struct Step {
    /// The entry.
    pub(in crate::storage) applied: LogId,
    /// The members from this entry on, if it changed them.
    pub(in crate::storage) membership: Option<Membership>,
    /// The records that it changed; `None` if it removed one.
    pub(in crate::storage) changes: Vec<(Serial, Option<Record>)>,
    /// The values beside the records.
    pub(in crate::storage) meta: Meta,
}

impl Work {
    /// Returns the number of places that it takes in the queue.
    fn weight(&self) -> u32 {
        match self {
            Self::Step(step) => u32::try_from(step.changes.len())
                .unwrap_or(QUEUE_RECORDS_MAX)
                .clamp(1, QUEUE_RECORDS_MAX),
            Self::Replace { .. } => 1,
        }
    }
}

/// The sending side. Its drop ends the writer, once all that was sent is durable.
#[derive(Debug)]
pub(in crate::storage) struct ImageQueue {
    /// `None` if no image is kept.
    queue: Option<Queue<Queued>>,
    room: Arc<Semaphore>,
    /// Something was not handed over, so nothing may follow but a whole registry.
    has_gap: bool,
    metrics: Metrics,
}

/// Work and the place that it takes in the queue.
#[derive(Debug)]
struct Queued {
    work: Work,
    _place: OwnedSemaphorePermit,
}

impl ImageQueue {
    /// Returns a queue for a registry whose image is not kept.
    pub(in crate::storage) fn nowhere() -> (Self, ImageProgress) {
        let (_, watch) = watch::channel(None);
        let room = Arc::new(Semaphore::new(0));
        let metrics = Metrics::new();
        (Self { queue: None, room, has_gap: false, metrics }, ImageProgress(watch))
    }

    /// Hands work over; waits for a moment while the writer is too far behind. If it does not
    /// catch up, as when its disk hangs, the image is given up: this work and what follows is
    /// left out. As soon as the writer has caught up, it gets the `whole` registry instead.
    ///
    /// # Errors
    /// If the writer has ended because the disk failed.
    pub(in crate::storage) async fn send(
        &mut self,
        work: Work,
        whole: impl FnOnce() -> Work,
    ) -> io::Result<()> {
        let Some(queue) = &self.queue else { return Ok(()) };
        let ended = || io::Error::other("the image's writer has ended");
        let room = Arc::clone(&self.room);
        let (work, place) = if self.has_gap {
            if room.is_closed() {
                return Err(ended());
            }
            // It may have woken up for one sync only, so it must have done half of its work.
            if room.available_permits() < QUEUE_RECORDS_MAX as usize / 2 {
                return Ok(());
            }
            let work = whole();
            let place = room.acquire_many_owned(work.weight()).await;
            tracing::warn!("the image's writer has caught up; the image is written again");
            (work, place)
        } else {
            let place = room.acquire_many_owned(work.weight());
            let Ok(place) = timeout(ROOM_WAIT_MAX, place).await else {
                tracing::warn!("the image's writer does not catch up; the image is given up");
                self.metrics.image_given_up.inc();
                self.has_gap = true;
                return Ok(());
            };
            (work, place)
        };
        let queued = Queued { work, _place: place.map_err(|_| ended())? };
        queue.send(queued).map_err(|_| ended())?;
        self.has_gap = false;
        Ok(())
    }

    /// Hands the first work over, for which there always is room.
    pub(in crate::storage) fn send_first(&self, work: Work) {
        let Some(queue) = &self.queue else { return };
        let place = Arc::clone(&self.room).try_acquire_many_owned(work.weight());
        let place = place.expect("the queue is empty before the first work");
        // If the thread has ended already it has reported why, and the next send says so.
        let _ = queue.send(Queued { work, _place: place });
    }
}

/// The progress of the image on disk.
#[derive(Clone, Debug)]
pub struct ImageProgress(watch::Receiver<Option<LogId>>);

impl ImageProgress {
    /// Returns the last entry that the image would hold after a power cut now.
    pub fn durable(&self) -> Option<LogId> {
        *self.0.borrow()
    }

    /// Waits until the entry with this index is durable in the image; false if the writer ended
    /// before.
    pub async fn reaches(&mut self, index: u64) -> bool {
        self.0.wait_for(|durable| durable.is_some_and(|at| at.index >= index)).await.is_ok()
    }

    /// Waits until the writer has ended, and with it every write into the image.
    pub async fn ended(&mut self) {
        while self.0.changed().await.is_ok() {}
    }
}

/// The state that the writer starts from.
#[derive(Debug)]
pub(in crate::storage) struct Start {
    /// Where the image is.
    pub(in crate::storage) store: Arc<dyn ImageStore>,
    /// The image; without one, [`Work::Replace`] must come first.
    pub(in crate::storage) image: Option<Box<dyn OpenImage>>,
    /// The log position of the registry.
    pub(in crate::storage) at: SnapshotMeta,
    /// The values beside its records.
    pub(in crate::storage) meta: Meta,
}

/// Starts the writer.
///
/// # Errors
/// If the system has no thread to give.
pub(in crate::storage) fn spawn(
    dir: &DataDir,
    start: Start,
    metrics: &Metrics,
    faults: &FaultReporter,
) -> Result<(ImageQueue, ImageProgress), DiskFault> {
    let path = dir.registry_dir();
    let room = Arc::new(Semaphore::new(QUEUE_RECORDS_MAX as usize));
    let durable = start.image.is_some().then_some(start.at.last_log_id).flatten();
    let (progress, watch) = watch::channel(durable);
    let writer = Writer {
        image: start.image,
        store: start.store,
        path: path.clone(),
        disk: Arc::clone(dir.disk()),
        metrics: metrics.clone(),
        faults: faults.clone(),
        pulse: dir.pulses().image.clone(),
        room: Arc::clone(&room),
        at: start.at,
        meta: start.meta,
        pending: BTreeMap::new(),
        dirty_since: None,
        _lock: dir.lock(),
        progress,
    };
    let (queue, _) = worker::start(writer, files::failed("start the writer of", &path))?;
    let (queue, metrics) = (Some(queue), metrics.clone());
    Ok((ImageQueue { queue, room, has_gap: false, metrics }, ImageProgress(watch)))
}

/// The order of the fields counts, because they are dropped in it: sled closes its files, then the
/// directory is free for others, and then those that wait for the end are told.
struct Writer {
    image: Option<Box<dyn OpenImage>>,
    store: Arc<dyn ImageStore>,
    path: PathBuf,
    disk: Arc<dyn Disk>,
    metrics: Metrics,
    faults: FaultReporter,
    pulse: Pulse,
    room: Arc<Semaphore>,
    at: SnapshotMeta,
    meta: Meta,
    /// The changes since the last batch.
    pending: BTreeMap<Serial, Option<Record>>,
    /// When the first change came that is not yet durable.
    dirty_since: Option<Instant>,
    /// No other process may open the directory while this one writes into it.
    _lock: DirLock,
    progress: watch::Sender<Option<LogId>>,
}

impl Worker for Writer {
    type Job = Queued;
    const NAME: &str = "image-writer";

    fn work(&mut self, job: Queued, behind: &Receiver<Queued>) -> ControlFlow<()> {
        self.attempt(|writer| {
            let mut next = Ok(job);
            while let Ok(Queued { work, _place }) = next {
                match work {
                    Work::Step(step) => writer.follow(step)?,
                    Work::Replace { image, at } => writer.replace(&image, at)?,
                }
                next = behind.try_recv();
            }
            Ok(())
        })
    }

    fn due(&self) -> Option<Instant> {
        self.dirty_since.map(|since| since + FLUSH_EVERY)
    }

    fn idle(&mut self) -> ControlFlow<()> {
        self.attempt(Self::flush)
    }

    fn pulse(&self) -> &Pulse {
        &self.pulse
    }

    fn pause(&self) -> Option<BoxFuture<'static, ()>> {
        self.disk.pause(&self.path)
    }
}

impl Writer {
    /// Does something with the image; the first failure is the end. sled may panic.
    fn attempt(&mut self, job: impl FnOnce(&mut Self) -> Result<(), DiskFault>) -> ControlFlow<()> {
        let done = panic::catch_unwind(AssertUnwindSafe(|| job(self)));
        let fault = match done {
            Ok(Ok(())) => return ControlFlow::Continue(()),
            Ok(Err(fault)) => fault,
            Err(panic) => {
                let source = io::Error::other(panic_text(&*panic).to_owned());
                files::failed("write", &self.path)(source)
            }
        };
        tracing::error!(%fault, "the image cannot be written");
        self.faults.report(fault);
        self.room.close();
        // sled would sync once more in its drop, and panic if that fails as well.
        mem::forget(self.image.take());
        ControlFlow::Break(())
    }

    /// Takes what an entry changed.
    fn follow(&mut self, step: Step) -> Result<(), DiskFault> {
        self.gather(step);
        if self.pending.len() >= BATCH_RECORDS {
            self.write()?;
        }
        if self.due().is_some_and(|due| clock::now() >= due) {
            self.flush()?;
        }
        Ok(())
    }

    fn gather(&mut self, step: Step) {
        self.pending.extend(step.changes);
        self.at.last_log_id = Some(step.applied);
        if let Some(membership) = step.membership {
            self.at.last_membership = membership;
        }
        self.meta = step.meta;
        self.dirty_since.get_or_insert_with(clock::now);
    }

    fn write(&mut self) -> Result<(), DiskFault> {
        let image = self.image.as_mut().expect("a start without an image begins with Replace");
        let _beat = self.pulse.begin();
        image.write(&self.pending, Some((&self.at, &self.meta)))?;
        self.pending.clear();
        Ok(())
    }

    /// Writes what is pending and makes everything durable.
    fn flush(&mut self) -> Result<(), DiskFault> {
        if self.dirty_since.is_none() {
            return Ok(());
        }
        self.write()?;
        self.sync()?;
        self.dirty_since = None;
        self.progress.send_replace(self.at.last_log_id);
        show_lag(&self.metrics, self.at.last_log_id);
        Ok(())
    }

    fn sync(&mut self) -> Result<(), DiskFault> {
        let image = self.image.as_mut().expect("written before it is synced");
        let beat = self.pulse.begin();
        image.flush()?;
        self.pulse.took(beat.elapsed());
        self.metrics.image_sync_seconds.observe(beat.elapsed().as_secs_f64());
        drop(beat);
        self.metrics.image_bytes.set(i64::try_from(image.bytes()).unwrap_or(i64::MAX));
        Ok(())
    }

    /// Puts a new image in the place of the old one. The stamp goes in with the last batch: a
    /// crash before leaves no image, and the start finds the snapshot or the log instead.
    fn replace(&mut self, image: &Image, at: SnapshotMeta) -> Result<(), DiskFault> {
        drop(self.image.take());
        self.pending.clear();
        (self.at, self.meta) = (at, image.meta.clone());
        let new = {
            let _beat = self.pulse.begin();
            self.image.insert(self.store.replace()?)
        };
        let mut synced = clock::now();
        for (serial, record) in image.records.iter() {
            self.pending.insert(serial, Some(record.clone()));
            let _beat = self.pulse.begin();
            if self.pending.len() >= BATCH_RECORDS {
                new.write(&mem::take(&mut self.pending), None)?;
            }
            if clock::now() - synced >= FLUSH_EVERY {
                new.flush()?;
                synced = clock::now();
            }
        }
        self.dirty_since = Some(synced);
        self.flush()?;
        self.store.remove_superseded()
    }
}

/// Shows how far the image is behind the registry.
pub(in crate::storage) fn show_lag(metrics: &Metrics, durable: Option<LogId>) {
    let durable = durable.map_or(0, |at| i64::try_from(at.index).unwrap_or(i64::MAX));
    metrics.image_lag.set((metrics.raft_applied_index.get() - durable).max(0));
}
