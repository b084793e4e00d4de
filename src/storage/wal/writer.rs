//! The one writer. Jobs come through one queue and are carried out in its order. All
//! appends that are waiting share one write and one sync; nothing waits for more to come.
//!
//! The first failure is final. The writer reports it, answers everything that waits and everything
//! that comes later with an error, and touches the disk no more: after a failed sync the kernel
//! may have dropped what it could not write, and a second sync would lie.
//!
//! A disk that hangs is seen by an operation that does not end ([`Pulse`]), so a writer without
//! jobs makes one itself every few seconds: else an idle instance would pass for well until a
//! client comes.

use std::{
    io, mem,
    ops::ControlFlow,
    path::PathBuf,
    sync::{Arc, mpsc::Receiver},
    time::{Duration, Instant},
};

use futures_util::future::BoxFuture;

use super::{
    Sizes,
    frame::{FrameBuilder, SegmentHeader},
    job::{Append, Done, Job, Shared},
    log::Written,
    recover::{Repairs, segment_path},
    segment::{Mark, Segment},
    state::{State, StateFile},
};
use crate::{
    clock, codec,
    metrics::Metrics,
    raft::{LogId, Vote},
    storage::{
        disk::{Disk, DiskFile},
        fault::{DiskFault, FaultReporter},
        pulse::Pulse,
        worker::Worker,
    },
};

/// For how long nothing was asked of the disk before it is probed. A probe is a write of one page
/// and a sync, which costs an idle machine little.
const PROBE_AFTER: Duration = Duration::from_secs(3);

/// On a slow disk probes are rarer, by this factor of what its slow syncs take: a vote may have to
/// wait behind one. No disk counts as slower than this.
const PROBE_REST: (u32, Duration) = (8, Duration::from_millis(500));

/// The writer's belongings.
#[derive(Debug)]
pub(super) struct Writer {
    pub(super) disk: Arc<dyn Disk>,
    pub(super) dir: PathBuf,
    pub(super) shared: Arc<Shared>,
    pub(super) state: State,
    pub(super) state_file: StateFile,
    pub(super) repairs: Option<Repairs>,
    pub(super) sizes: Sizes,
    pub(super) metrics: Metrics,
    pub(super) faults: FaultReporter,
    pub(super) pulse: Pulse,
    pub(super) failed: Option<(io::ErrorKind, String)>,
    /// When the last job, or the last probe, was done.
    pub(super) idle_since: Instant,
    /// When the files were last seen where they belong.
    pub(super) seen: Instant,
    pub(super) buffer: Vec<u8>,
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.shared.break_off();
    }
}

impl Worker for Writer {
    type Job = Job;
    const NAME: &str = "raft-log";

    /// A failed disk does not end it: every job that waits, or still comes, must be
    /// answered.
    fn work(&mut self, job: Job, behind: &Receiver<Job>) -> ControlFlow<()> {
        let mut batch = Vec::new();
        let mut batch_bytes = 0;
        let mut next = Ok(job);
        while let Ok(job) = next {
            match job {
                Job::Append(append) => {
                    batch_bytes += append.entries.iter().map(|e| e.len()).sum::<usize>();
                    batch.push(append);
                    if batch_bytes >= self.sizes.drain_bytes {
                        self.flush(&mut batch);
                        batch_bytes = 0;
                    }
                }
                Job::Begin(first, done) => {
                    self.alone(&mut batch, done, |writer| writer.restart(first, None));
                }
                Job::Purge(upto, done) => {
                    self.alone(&mut batch, done, |writer| writer.purge(upto));
                }
                Job::Truncate(after, done) => {
                    self.alone(&mut batch, done, |writer| writer.truncate(after));
                }
                Job::Vote(vote, done) => {
                    self.alone(&mut batch, done, |writer| writer.vote(vote));
                }
            }
            next = behind.try_recv();
        }
        self.flush(&mut batch);
        let bytes = i64::try_from(self.shared.lock().bytes()).unwrap_or(i64::MAX);
        self.metrics.log_bytes.set(bytes);
        self.idle_since = clock::now();
        if self.idle_since - self.seen >= PROBE_AFTER {
            let _ = self.attempt(Self::look);
        }
        // Under load the worker is never idle.
        if self.due().is_some_and(|due| clock::now() >= due) {
            return self.idle();
        }
        ControlFlow::Continue(())
    }

    fn due(&self) -> Option<Instant> {
        if self.failed.is_some() {
            return None;
        }
        let probe = self.probe_due();
        Some(self.state_file.copy_due().map_or(probe, |copy| copy.min(probe)))
    }

    /// Makes the second copy of the state, if it is missing; else sees whether the disk answers.
    fn idle(&mut self) -> ControlFlow<()> {
        // What is acknowledged is safe in the first copy; a failure is reported by `attempt`.
        if self.state_file.copy_due().is_some() {
            let _ = self.attempt(|writer| writer.state_file.copy());
        } else if clock::now() >= self.probe_due() {
            let _ = self.attempt(Self::probe);
        }
        self.idle_since = clock::now();
        ControlFlow::Continue(())
    }

    fn pulse(&self) -> &Pulse {
        &self.pulse
    }

    fn pause(&self) -> Option<BoxFuture<'static, ()>> {
        self.disk.pause(&self.dir)
    }
}

impl Writer {
    /// Does what cannot share a sync with appends, after those that came before it.
    fn alone(
        &mut self,
        batch: &mut Vec<Append>,
        done: Done,
        job: impl FnOnce(&mut Self) -> Result<(), DiskFault>,
    ) {
        self.flush(batch);
        let result = self.attempt(job);
        // A caller that went away does not need to know.
        let _ = done.send(result);
    }

    fn flush(&mut self, batch: &mut Vec<Append>) {
        if batch.is_empty() {
            return;
        }
        let result = self.attempt(|writer| writer.write_entries(batch));
        self.shared.room.notify_one();
        for append in batch.drain(..) {
            append.flushed.complete(match &result {
                Ok(()) => Ok(()),
                Err(error) => Err(io::Error::new(error.kind(), error.to_string())),
            });
        }
        // The answers are out; if making the next segment fails, the next job will hear of it.
        let _ = self.attempt(Self::begin_next_segment_if_full);
    }

    fn probe_due(&self) -> Instant {
        let (times, slowest_max) = PROBE_REST;
        self.idle_since + PROBE_AFTER + times * self.pulse.slowest().min(slowest_max)
    }

    /// Writes and syncs the watermark, which says what it said before. A file system that is frozen
    /// holds up the write, a device that hangs the sync.
    fn probe(&mut self) -> Result<(), DiskFault> {
        self.look()?;
        let (_, bytes) = self.current();
        let started = clock::now();
        self.state_file.note_durable(self.state.generation, bytes)?;
        self.state_file.sync()?;
        self.note_sync(started);
        Ok(())
    }

    /// Sees that the log is still where the next start will look for it.
    fn look(&mut self) -> Result<(), DiskFault> {
        self.seen = clock::now();
        self.state_file.in_place()
    }

    /// Does something with the disk, unless it has failed before.
    fn attempt(&mut self, job: impl FnOnce(&mut Self) -> Result<(), DiskFault>) -> io::Result<()> {
        if let Some((kind, text)) = &self.failed {
            return Err(io::Error::new(*kind, text.clone()));
        }
        let _beat = self.pulse.begin();
        self.repair().and_then(|()| job(self)).map_err(|fault| {
            tracing::error!(error = %fault, "the raft log can no longer be written");
            let error = self.faults.report(fault);
            self.failed = Some((error.kind(), error.to_string()));
            self.shared.break_off();
            error
        })
    }

    /// Puts right what a crash left behind; open itself writes nothing.
    fn repair(&mut self) -> Result<(), DiskFault> {
        let Some(repairs) = self.repairs.take() else { return Ok(()) };
        if repairs.torn_bytes > 0 {
            let (file, bytes) = self.current();
            file.set_size(bytes)?;
            // Or a new frame might stand before old ones, if the power is cut while it is written.
            file.sync()?;
        }
        let removed = self.remove_dropped()?;
        if repairs.one_slot_stale || removed {
            let (_, bytes) = self.current();
            self.write_state(bytes)?;
        }
        Ok(())
    }

    fn write_entries(&mut self, batch: &[Append]) -> Result<(), DiskFault> {
        let (file, offset) = self.current();
        let (mut end, mut chain) = {
            let log = self.shared.lock();
            (log.durable(), log.current().chain)
        };
        assert_eq!(batch[0].first, end, "appends queue in the order of their entries");
        let mut written = Written::default();
        let mut buffer = mem::take(&mut self.buffer);
        buffer.clear();
        let mut entries = batch.iter().flat_map(|append| &append.entries).peekable();
        while entries.peek().is_some() {
            written.marks.push(Mark { first: end, offset: offset + buffer.len() as u64 });
            let mut frame = FrameBuilder::new(&mut buffer, end);
            while frame.body_bytes() < self.sizes.frame_bytes {
                let Some(entry) = entries.next() else { break };
                frame.push(entry);
                written.entry_bytes += entry.len();
                end += 1;
            }
            chain = frame.finish(&self.shared.seal, offset, chain);
        }
        if !buffer.is_empty() {
            let entries = end - self.shared.lock().durable();
            (written.bytes, written.chain, written.end) = (buffer.len() as u64, chain, end);
            self.write_frames(&*file, &buffer, offset, entries)?;
            self.shared.lock().wrote(&written);
        }
        self.buffer = buffer;
        // One unusual burst must not hold its memory for ever.
        self.buffer.shrink_to(2 * self.sizes.frame_bytes);
        Ok(())
    }

    /// Writes and syncs bytes behind the current segment.
    fn write_frames(
        &self,
        file: &dyn DiskFile,
        bytes: &[u8],
        offset: u64,
        entries: u64,
    ) -> Result<(), DiskFault> {
        file.write_at(bytes, offset)?;
        let started = clock::now();
        file.sync()?;
        self.note_sync(started);
        self.metrics.log_sync_entries.observe(entries as f64);
        self.state_file.note_durable(self.state.generation, offset + bytes.len() as u64)
    }

    /// Writes that the log goes on at `first`, behind `last`.
    fn restart(&mut self, first: u64, last: Option<LogId>) -> Result<(), DiskFault> {
        let (file, offset) = self.current();
        let chain = self.shared.lock().current().chain;
        let mut bytes = Vec::new();
        let mut frame = FrameBuilder::new(&mut bytes, first);
        frame.restart(&codec::encode(&last));
        let chain = frame.finish(&self.shared.seal, offset, chain);
        self.write_frames(&*file, &bytes, offset, 0)?;
        self.shared.lock().wrote_restart(first, last, bytes.len() as u64, chain);
        Ok(())
    }

    fn vote(&mut self, vote: Vote) -> Result<(), DiskFault> {
        self.state.vote = Some(vote);
        let (_, bytes) = self.current();
        self.write_state(bytes)?;
        self.shared.lock().vote = Some(vote);
        Ok(())
    }

    /// Forgets the entries behind `after`. Segments that begin later leave the log first, which
    /// shortens it from its end; then a restart makes the rest of the entries void.
    fn truncate(&mut self, after: Option<LogId>) -> Result<(), DiskFault> {
        let (first, keep, last) = {
            let log = self.shared.lock();
            let last = after.max(log.purged);
            let first = last.as_ref().map_or(0, |last| last.index + 1);
            if first >= log.durable() {
                return Ok(());
            }
            let keep = log.segments.iter().take_while(|segment| segment.first < first).count();
            (first, keep.max(1), last)
        };
        if keep < self.state.segments.len() {
            let bytes = self.shared.lock().segments[keep - 1].bytes;
            self.state.dropped.extend(self.state.segments.drain(keep..));
            self.write_state(bytes)?;
            self.shared.lock().drop_last_segments(keep);
        }
        self.restart(first, last)?;
        self.remove_dropped().map(drop)
    }

    /// Forgets the entries up to `upto`, and the segments that hold no others. Behind a snapshot
    /// that is ahead of the log, the log begins again.
    fn purge(&mut self, upto: LogId) -> Result<(), DiskFault> {
        let (drop_count, next) = {
            let log = self.shared.lock();
            if log.purged.as_ref().is_some_and(|purged| purged.index >= upto.index) {
                return Ok(());
            }
            let next = upto.index + 1;
            let begins_anew = next > log.durable();
            let later = log.segments.iter().skip(1);
            let drop_count = later.take_while(|segment| segment.first <= next).count();
            (if begins_anew { log.segments.len() } else { drop_count }, next)
        };
        let is_fresh = drop_count == self.state.segments.len();
        let new_segment = if is_fresh { Some(self.create_segment(next)?) } else { None };
        self.state.dropped.extend(self.state.segments.drain(..drop_count));
        self.state.segments.extend(new_segment.as_ref().map(|segment| segment.first));
        self.state.purged = Some(upto);
        let bytes = new_segment.as_ref().map_or(self.current().1, |segment| segment.bytes);
        self.write_state(bytes)?;
        {
            let mut log = self.shared.lock();
            log.segments.extend(new_segment);
            log.purge(upto, drop_count);
        }
        self.remove_dropped().map(drop)
    }

    fn begin_next_segment_if_full(&mut self) -> Result<(), DiskFault> {
        let next = {
            let log = self.shared.lock();
            let current = log.current();
            if current.bytes < self.sizes.segment_bytes || log.durable() == current.first {
                return Ok(());
            }
            log.durable()
        };
        let segment = self.create_segment(next)?;
        self.state.segments.push(next);
        self.write_state(segment.bytes)?;
        self.shared.lock().segments.push(segment);
        Ok(())
    }

    /// Makes an empty segment; it becomes part of the log with the next state written.
    fn create_segment(&mut self, first: u64) -> Result<Segment, DiskFault> {
        let path = segment_path(&self.dir, first);
        if self.state.segments.len() + self.state.dropped.len() >= self.sizes.segments {
            let text = "the raft log has too many segments; nothing was purged for too long";
            let source = io::Error::new(io::ErrorKind::StorageFull, text);
            return Err(DiskFault { operation: "create", path, source });
        }
        if self.state.dropped.contains(&first) {
            self.disk.remove(&path)?;
            self.state.dropped.retain(|dropped| *dropped != first);
        }
        let chain = self.shared.lock().current().chain;
        let (cluster, store) = (self.state.cluster, self.state.store);
        let header = SegmentHeader { cluster, store, first, chain };
        Segment::create(&*self.disk, &self.dir, &header)
    }

    /// Writes the state; `durable` is the length of the last segment in it.
    fn write_state(&mut self, durable: u64) -> Result<(), DiskFault> {
        self.state.generation += 1;
        self.state.durable = durable;
        let started = clock::now();
        self.state_file.write(&self.state)?;
        self.note_sync(started);
        Ok(())
    }

    /// Counts a sync. Those of the vote count as well: what they take decides about elections.
    fn note_sync(&self, started: Instant) {
        let took = clock::now().duration_since(started);
        self.pulse.took(took);
        self.metrics.log_sync_seconds.observe(took.as_secs_f64());
    }

    /// Removes segments that are no longer part of the log; one that stays is tried again later.
    /// Returns whether any is gone.
    fn remove_dropped(&mut self) -> Result<bool, DiskFault> {
        let before = self.state.dropped.len();
        self.state.dropped.retain(|first| {
            let removed = self.disk.remove(&segment_path(&self.dir, *first));
            if let Err(fault) = &removed {
                tracing::warn!(error = %fault, "an old segment of the raft log was not removed");
            }
            removed.is_err()
        });
        let any = self.state.dropped.len() < before;
        if any {
            // A segment that came back after a power cut would otherwise be taken for a stranger.
            self.disk.sync_dir(&self.dir)?;
        }
        Ok(any)
    }

    /// Returns the file being written, and where its next frame goes.
    fn current(&self) -> (Arc<dyn DiskFile>, u64) {
        let log = self.shared.lock();
        let current = log.current();
        (Arc::clone(&current.file), current.bytes)
    }
}
