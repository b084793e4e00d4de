//! The log as memory knows it: where it begins and ends, the entries of its tail, and where the
//! older ones stand on disk. Readers and the writing thread share it behind one lock, which is
//! never held across a read, a write or a sync.

use std::{collections::VecDeque, sync::Arc};

use super::{
    LogIds, Sizes,
    read::{Extent, Plan},
    segment::{Mark, Segment},
};
use crate::raft::{LogId, Vote};

/// An entry as it stands on disk.
pub(in crate::storage) type Encoded = Arc<[u8]>;

/// Frames of entries that are on disk now.
#[derive(Debug, Default)]
pub(super) struct Written {
    /// Where each frame starts.
    pub(super) marks: Vec<Mark>,
    /// Bytes of all of them.
    pub(super) bytes: u64,
    /// Bytes of the encoded entries alone.
    pub(super) entry_bytes: usize,
    /// CRC of the last header.
    pub(super) chain: u32,
    /// Index after the last entry.
    pub(super) end: u64,
}

/// Positions and contents. The live entries are `first..end`; those below `durable` are synced.
#[derive(Debug)]
pub(in crate::storage) struct Log {
    pub(in crate::storage) vote: Option<Vote>,
    pub(in crate::storage) purged: Option<LogId>,
    /// The last entry, or `purged` if there is none.
    pub(in crate::storage) last: Option<LogId>,
    /// Set when the writing thread has failed or ended: no caller need wait for it any more.
    pub(in crate::storage) broken: bool,
    pub(super) segments: Vec<Segment>,
    /// The ids of all live entries.
    ids: LogIds,
    first: u64,
    end: u64,
    durable: u64,
    tail: VecDeque<Encoded>,
    tail_bytes: usize,
    unsynced_bytes: usize,
    sizes: Sizes,
}

impl Log {
    /// Creates an empty log that begins at `first`, with no segment yet.
    pub(super) fn new(first: u64, sizes: Sizes) -> Self {
        Self {
            vote: None,
            purged: None,
            last: None,
            broken: false,
            segments: Vec::new(),
            ids: LogIds::default(),
            first,
            end: first,
            durable: first,
            tail: VecDeque::new(),
            tail_bytes: 0,
            unsynced_bytes: 0,
            sizes,
        }
    }

    /// Index of the first entry, if there is one.
    pub(super) fn first(&self) -> u64 {
        self.first
    }

    /// Index after the last entry.
    pub(in crate::storage) fn end(&self) -> u64 {
        self.end
    }

    /// Index after the last entry that is synced.
    pub(super) fn durable(&self) -> u64 {
        self.durable
    }

    /// Returns the id of the entry at an index, if the log holds it or purged it last.
    pub(in crate::storage) fn id_at(&self, index: u64) -> Option<LogId> {
        if (self.first..self.end).contains(&index) {
            return self.ids.at(index);
        }
        self.purged.filter(|purged| purged.index == index)
    }

    /// Returns the segment that is being written.
    pub(super) fn current(&self) -> &Segment {
        self.segments.last().expect("a log has at least one segment")
    }

    fn current_mut(&mut self) -> &mut Segment {
        self.segments.last_mut().expect("a log has at least one segment")
    }

    /// Bytes of all segments.
    pub(super) fn bytes(&self) -> u64 {
        self.segments.iter().map(|segment| segment.bytes).sum()
    }

    /// Returns whether a log that was never written may begin at any index.
    pub(in crate::storage) fn may_begin_anywhere(&self) -> bool {
        self.first == self.end && self.purged.is_none()
    }

    /// Returns whether another entry may wait for its sync.
    pub(in crate::storage) fn has_room(&self) -> bool {
        let unsynced = self.end - self.durable;
        let room = unsynced < self.sizes.tail_entries as u64
            && self.unsynced_bytes < self.sizes.tail_bytes;
        room || self.broken
    }

    /// Takes entries that go on where the log ends: they are readable from now on.
    pub(in crate::storage) fn append(&mut self, entries: &[Encoded], ids: &LogIds, last: LogId) {
        self.ids.append(ids);
        for entry in entries {
            self.tail_bytes += entry.len();
            self.unsynced_bytes += entry.len();
            self.tail.push_back(Arc::clone(entry));
        }
        self.end += entries.len() as u64;
        self.last = Some(last);
        self.evict();
    }

    /// Notes that frames were written behind the current segment and synced.
    pub(super) fn wrote(&mut self, written: &Written) {
        let mark_bytes = self.sizes.mark_bytes;
        let segment = self.current_mut();
        for mark in &written.marks {
            segment.note_frame(*mark, mark_bytes);
        }
        segment.bytes += written.bytes;
        segment.chain = written.chain;
        self.durable = written.end;
        self.unsynced_bytes -= written.entry_bytes;
        self.evict();
    }

    /// Notes that a restart was written and synced: the log goes on at `first`, behind `last`.
    pub(super) fn wrote_restart(
        &mut self,
        first: u64,
        last: Option<LogId>,
        bytes: u64,
        chain: u32,
    ) {
        self.cut_tail(first);
        self.last = last;
        let segment = self.current_mut();
        segment.bytes += bytes;
        segment.chain = chain;
        let mark = Mark { first, offset: segment.bytes };
        segment.note_restart(mark);
    }

    /// Forgets the last segments, from the `keep`th on, and their entries.
    pub(super) fn drop_last_segments(&mut self, keep: usize) {
        if let Some(dropped) = self.segments.get(keep) {
            let first = dropped.first;
            self.segments.truncate(keep);
            self.cut_tail(first);
        }
    }

    /// Forgets entries up to and including `upto`, and the first `segments` segments.
    pub(super) fn purge(&mut self, upto: LogId, segments: usize) {
        self.segments.drain(..segments);
        let next = upto.index + 1;
        if next > self.end {
            self.tail.clear();
            self.ids = LogIds::default();
            (self.tail_bytes, self.unsynced_bytes) = (0, 0);
            (self.end, self.durable) = (next, next);
        }
        if next >= self.end {
            self.last = Some(upto);
        }
        self.first = self.first.max(next);
        self.ids.purge(self.first);
        self.purged = Some(upto);
        while self.tail_first() < self.first {
            self.forget_oldest();
        }
    }

    /// Returns everything that a reader of `from..to` needs, so that it can read without the lock.
    pub(in crate::storage) fn plan(&self, from: u64, to: u64) -> Plan {
        let (from, to) = (from.max(self.first), to.min(self.end));
        let tail_first = self.tail_first();
        let extents = self.extents(from, to.min(tail_first));
        let skip = usize::try_from(from.max(tail_first) - tail_first).unwrap_or(usize::MAX);
        let take = usize::try_from(to.saturating_sub(from.max(tail_first))).unwrap_or(usize::MAX);
        Plan { extents, tail: self.tail.iter().skip(skip).take(take).cloned().collect() }
    }

    fn extents(&self, from: u64, to: u64) -> Vec<Extent> {
        let mut extents = Vec::new();
        if from >= to {
            return extents;
        }
        for (number, segment) in self.segments.iter().enumerate() {
            let segment_end = self.segments.get(number + 1).map_or(self.durable, |next| next.first);
            if segment_end <= from || segment.first >= to {
                continue;
            }
            for (number, mark) in segment.marks.iter().enumerate() {
                let end = segment.marks.get(number + 1).map_or(segment_end, |next| next.first);
                let (from, to) = (from.max(mark.first), to.min(end));
                if from < to {
                    let file = Arc::clone(&segment.file);
                    extents.push(Extent { file, mark: *mark, end: segment.bytes, from, to });
                }
            }
        }
        extents
    }

    fn tail_first(&self) -> u64 {
        self.end - self.tail.len() as u64
    }

    /// Forgets the entries from index `end` on, all of which are synced.
    fn cut_tail(&mut self, end: u64) {
        self.ids.truncate(end);
        while self.end > end {
            self.end -= 1;
            if let Some(entry) = self.tail.pop_back() {
                self.tail_bytes -= entry.len();
            }
        }
        self.first = if self.first == self.end || end < self.first { end } else { self.first };
        (self.end, self.durable, self.unsynced_bytes) = (end, end, 0);
    }

    /// Leaves old entries to the disk, as long as they are synced.
    fn evict(&mut self) {
        while (self.tail.len() > self.sizes.tail_entries || self.tail_bytes > self.sizes.tail_bytes)
            && self.tail_first() < self.durable
        {
            self.forget_oldest();
        }
    }

    fn forget_oldest(&mut self) {
        if let Some(entry) = self.tail.pop_front() {
            self.tail_bytes -= entry.len();
        }
    }
}
