//! One segment file: making it, opening it, and reading its frames in order.

use std::{path::Path, sync::Arc};

use super::{
    LogError,
    frame::{FRAME_HEADER_BYTES, FrameHeader, SEGMENT_HEADER_BYTES, Seal, SegmentHeader},
};
use crate::storage::{
    disk::{Access, Disk, DiskFile},
    fault::DiskFault,
};

/// A segment of the log, as memory knows it.
#[derive(Clone, Debug)]
pub(super) struct Segment {
    /// Index of the first entry, which is also the file's name.
    pub(super) first: u64,
    pub(super) file: Arc<dyn DiskFile>,
    /// Length of what is intact and durable; the next frame goes here.
    pub(super) bytes: u64,
    /// CRC of the last header, to which the next one is chained.
    pub(super) chain: u32,
    /// Where some of the frames start, in order of both fields.
    pub(super) marks: Vec<Mark>,
}

/// From `offset` on, frames follow each other without a restart from index `first` to that of the
/// next mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mark {
    pub(super) first: u64,
    pub(super) offset: u64,
}

/// Returns the name of the segment whose first entry has this index.
pub(super) fn segment_name(first: u64) -> String {
    format!("{first:020}.wal")
}

/// Returns the first index in a segment's name: `None` for another kind of file, `Some(None)` for a
/// segment with a name that we never give.
pub(super) fn parse_segment_name(name: &str) -> Option<Option<u64>> {
    let first = name.strip_suffix(".wal")?.parse().ok();
    Some(first.filter(|first| segment_name(*first) == name))
}

impl Segment {
    /// Makes an empty segment, durable on return with its name.
    pub(super) fn create(
        disk: &dyn Disk,
        dir: &Path,
        header: &SegmentHeader,
    ) -> Result<Self, DiskFault> {
        let file = disk.create(&dir.join(segment_name(header.first)))?;
        let (bytes, sum) = header.encode();
        file.write_at(&bytes, 0)?;
        file.sync()?;
        disk.sync_dir(dir)?;
        Ok(Self::empty(header.first, file, sum))
    }

    /// Opens a segment and verifies that its header is the one that belongs here. `chain` is what
    /// the segment before ends with.
    pub(super) fn open(
        disk: &dyn Disk,
        path: &Path,
        access: Access,
        expected: &SegmentHeader,
        chain: Option<u32>,
    ) -> Result<Self, LogError> {
        let file = disk.open(path, access)?;
        if file.size()? < SEGMENT_HEADER_BYTES as u64 {
            return Err(LogError::damaged(path, 0, "the segment's header is cut off"));
        }
        let mut bytes = [0; SEGMENT_HEADER_BYTES];
        file.read_at(&mut bytes, 0)?;
        let (header, sum) =
            SegmentHeader::decode(&bytes).map_err(|what| LogError::damaged(path, 0, what))?;
        let fault = if header.cluster != expected.cluster {
            "the segment belongs to another cluster"
        } else if header.store != expected.store {
            "the segment belongs to the log of another instance"
        } else if header.first != expected.first {
            "the segment was renamed: its header names another first index"
        } else if chain.is_some_and(|chain| chain != header.chain) {
            "the segment does not follow the one before it"
        } else {
            return Ok(Self::empty(header.first, file, sum));
        };
        Err(LogError::damaged(path, 0, fault))
    }

    fn empty(first: u64, file: Arc<dyn DiskFile>, chain: u32) -> Self {
        let bytes = SEGMENT_HEADER_BYTES as u64;
        Self { first, file, bytes, chain, marks: vec![Mark { first, offset: bytes }] }
    }

    /// Notes where a frame of entries starts, unless a mark is near enough.
    pub(super) fn note_frame(&mut self, mark: Mark, mark_bytes: u64) {
        if self.marks.last().is_none_or(|last| mark.offset >= last.offset + mark_bytes) {
            self.marks.push(mark);
        }
    }

    /// Notes that the log goes on at `mark`, and that entries from its index on are void.
    pub(super) fn note_restart(&mut self, mark: Mark) {
        self.marks.retain(|earlier| earlier.first < mark.first);
        self.marks.push(mark);
    }
}

/// An intact frame.
#[derive(Debug)]
pub(super) struct Frame {
    pub(super) header: FrameHeader,
    /// CRC of the header.
    pub(super) sum: u32,
    pub(super) body: Vec<u8>,
}

/// Why the next frame cannot be had.
#[derive(Debug)]
pub(super) enum FrameError {
    /// It is not intact.
    Bad(&'static str),
    /// The disk does not give it.
    Disk(DiskFault),
}

impl From<DiskFault> for FrameError {
    fn from(fault: DiskFault) -> Self {
        Self::Disk(fault)
    }
}

/// Reads frames one after the other.
#[derive(Debug)]
pub(super) struct FrameReader<'a> {
    pub(super) file: &'a dyn DiskFile,
    pub(super) seal: &'a Seal,
    /// Where the next frame starts.
    pub(super) offset: u64,
    /// Where the last one ends.
    pub(super) end: u64,
}

impl FrameReader<'_> {
    /// Returns the next frame; `None` at the end.
    pub(super) fn next(&mut self) -> Result<Option<Frame>, FrameError> {
        let left = self.end.saturating_sub(self.offset);
        if left == 0 {
            return Ok(None);
        }
        if left < FRAME_HEADER_BYTES as u64 {
            return Err(FrameError::Bad("a frame's header is cut off"));
        }
        let mut bytes = [0; FRAME_HEADER_BYTES];
        self.file.read_at(&mut bytes, self.offset)?;
        let Some((header, sum)) = FrameHeader::decode(&bytes, self.seal) else {
            return Err(FrameError::Bad("a frame's header is damaged"));
        };
        if left < header.frame_bytes() {
            return Err(FrameError::Bad("a frame's entries are cut off"));
        }
        let mut body = vec![0; usize::try_from(header.body_bytes).expect("64-bit machine")];
        self.file.read_at(&mut body, self.offset + FRAME_HEADER_BYTES as u64)?;
        if self.seal.sum(&body) != header.body_sum {
            return Err(FrameError::Bad("a frame's entries are damaged"));
        }
        self.offset += header.frame_bytes();
        Ok(Some(Frame { header, sum, body }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_names_we_give_are_segments() {
        assert_eq!(segment_name(7), "00000000000000000007.wal");
        assert_eq!(parse_segment_name(&segment_name(u64::MAX)), Some(Some(u64::MAX)));
        assert_eq!(parse_segment_name("7.wal"), Some(None));
        assert_eq!(parse_segment_name("00000000000000000007 (copy).wal"), Some(None));
        assert_eq!(parse_segment_name("00000000000000000007.wal.bak"), None);
        assert_eq!(parse_segment_name("state"), None);
    }
}
